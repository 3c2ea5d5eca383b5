"""Exact moments of a random vector by listing what it depends on: every draw, its probability, and the estimate there.

Nothing here is sampled. An estimate is typically the gradient of a loss at what was drawn (`sample_gradients`): a
string, a pair, a group of strings (`all_groups`), a trajectory (`mdp.enumerate_trajectories`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from rlhf_jax._typing import Scalar

MAX_GROUPS = 100_000


class Moments(NamedTuple):
    """What an estimator of a vector says on average, and how far it strays."""

    mean: Float[Array, " D"]
    bias: Float[Array, " D"]
    """mean − truth"""
    variance: Float[Array, ""]
    """E‖estimate − mean‖², the trace of the covariance."""

    @property
    def mean_squared_error(self) -> Float[Array, ""]:
        """E‖estimate − truth‖² = ‖bias‖² + variance."""
        return jnp.square(self.bias).sum() + self.variance

    def averaged(self, count: Scalar) -> "Moments":
        """Those of the average of `count` independent estimates: the same bias, `count` times less variance."""
        return self._replace(variance=self.variance / count)


class Groups(NamedTuple):
    """Every ordered group of G independent draws, as indices, and its probability."""

    members: Int[Array, "M G"]
    probs: Float[Array, " M"]


@jax.jit
def moments(
    probs: Float[ArrayLike, " M"], estimates: Float[ArrayLike, "M D"], target: Float[ArrayLike, " D"]
) -> Moments:
    """mean = Σ_m p_m g_m,   bias = mean − target,   variance = Σ_m p_m ‖g_m − mean‖².

    Args:
        probs: p_m of every draw, summing to 1.
        estimates: g_m, what the estimator says when it sees draw m.
        target: the truth.
    """
    probs, estimates = jnp.asarray(probs), jnp.asarray(estimates)
    mean = jnp.matmul(probs, estimates, precision="highest")
    return Moments(mean, mean - target, jnp.sum(probs * jnp.square(estimates - mean).sum(axis=1)))


def sample_gradients(
    loss: Callable, log_probs: Float[ArrayLike, "*s"], scores: Float[ArrayLike, "*s D"], draws: PyTree
) -> Float[Array, "M D"]:
    """∇_θ loss(log π_θ, draw) of every draw, by the chain rule Σ_s ∂loss/∂(log π)_s ∇_θ (log π)_s.

    Args:
        loss: (log_probs [*s], draw) -> []; it is given the whole table and reads what was drawn.
        log_probs: any table of log-probabilities: of strings, of their tokens, of actions.
        scores: its Jacobian in the D parameters.
        draws: a pytree with the draws on the leading axis of every leaf.
    """
    weights = jax.vmap(jax.grad(loss), (None, 0))(jnp.asarray(log_probs), draws)
    return jnp.tensordot(weights, scores, axes=jnp.ndim(log_probs), precision="highest")


def all_groups(probs: Float[ArrayLike, " N"], group_size: int) -> Groups:
    """All N^G groups of G draws, in lexicographic order.

    Raises:
        ValueError: if they are more than `MAX_GROUPS`.
    """
    num_draws = jnp.size(probs)
    count = num_draws**group_size
    if count > MAX_GROUPS:
        raise ValueError(f"groups of {group_size} from {num_draws} are {count:,}, more than the {MAX_GROUPS:,} allowed")
    members = jnp.asarray(np.indices((num_draws,) * group_size).reshape(group_size, count).T)
    return Groups(members, jnp.asarray(probs)[members].prod(axis=1))
