"""What a train step carries, and how a loss becomes a train step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Real

Metrics = dict[str, Real[Array, ""]]
Loss = Callable[[Any, Any], tuple[Real[Array, ""], Metrics]]
Step = Callable[["TrainState", Any], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
    """Parameters, the optimiser's state, and the number of updates made."""

    params: Any
    opt_state: Any
    step: Int[Array, ""]


def create(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first update. Arrays are copied: train steps donate theirs."""
    params = jax.tree.map(jnp.array, params)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def update(state: TrainState, batch: Any, loss: Loss, optimizer: optax.GradientTransformation):
    """One gradient step of `loss(params, batch) -> (scalar, metrics)`; adds `loss` and `grad_norm` to the metrics."""
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    state = TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
    return state, metrics | {"loss": value, "grad_norm": optax.tree.norm(gradient)}


def make_step(loss: Loss, optimizer: optax.GradientTransformation) -> Step:
    """`update` with loss and optimiser fixed, jitted once; the incoming state is donated."""
    return jax.jit(functools.partial(update, loss=loss, optimizer=optimizer), donate_argnums=0)
