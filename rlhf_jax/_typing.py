"""Annotations and the one shape check that the pure functions share."""

import jax.numpy as jnp
from jaxtyping import ArrayLike, Real

Scalar = Real[ArrayLike, ""]


def check_same_shape(**arrays: ArrayLike) -> None:
    """Refuse to broadcast: (4,) - (4, 1) would silently become (4, 4). Scalars pass.

    Raises:
        ValueError: at trace time, naming the arguments and their shapes.
    """
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len({shape for shape in shapes.values() if shape != ()}) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"arguments must have equal shapes or be scalars, got {listed}")
