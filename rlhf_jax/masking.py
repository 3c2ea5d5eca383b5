"""Sums and means over the entries that a mask keeps.

Masks are boolean, given by the caller and never inferred from a token id. A masked NaN reaches neither the value
nor the gradient; an unmasked one propagates; an empty mask gives 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from rlhf_jax._typing import Scalar, check_same_shape


@jax.jit
def masked_sum(values: Float[ArrayLike, "*s"], mask: Bool[ArrayLike, "*s"]) -> Float[Array, ""]:
    """Σ_{i : mask_i} values_i. Gradients flow into the kept values only."""
    check_same_shape(values=values, mask=mask)
    return jnp.where(mask, values, 0).sum()


@jax.jit
def masked_mean(values: Float[ArrayLike, "*s"], mask: Bool[ArrayLike, "*s"]) -> Float[Array, ""]:
    """Σ_{i : mask_i} values_i / |mask|, and 0 where the mask keeps nothing."""
    count = jnp.sum(mask, dtype=jnp.result_type(values))
    return masked_sum(values, mask) / jnp.maximum(count, 1)


@jax.jit
def masked_whiten(
    values: Float[ArrayLike, "*s"], mask: Bool[ArrayLike, "*s"], eps: Scalar = 1e-8
) -> Float[Array, "*s"]:
    """(values − mean) / sqrt(variance + eps) over the kept entries; 0 at the others.

    The variance divides by n − 1, as Tunix's PPO and TRL's former one do; with a single kept entry it is 0.

    Reference: Huang et al. (2022), "The 37 Implementation Details of PPO", detail 7 (advantage normalisation).
    """
    centred = jnp.where(mask, values - masked_mean(values, mask), 0)
    freedom = jnp.maximum(jnp.sum(mask, dtype=centred.dtype) - 1, 1)
    return centred * jax.lax.rsqrt(jnp.square(centred).sum() / freedom + eps)
