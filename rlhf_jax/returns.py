"""Returns and advantages of one trajectory, time first; `vmap` for a batch.

`discounts` is a scalar or `[T]`: d_t = γ, or 0 where step t terminates. Truncation is not termination: a
trajectory that was merely cut off keeps d_{T−1} = γ and bootstraps from `values[T]`. `values` has T + 1 entries.
Gradients flow into every argument: stop them at the call where a target must not move. Sums run in float32 or
wider and come back in the arguments' dtype. Lengths that do not fit one trajectory raise a ValueError at trace time.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from rlhf_jax._typing import Scalar


@jax.jit
def discounted_return(rewards: Float[ArrayLike, " T"], gamma: Scalar) -> Float[Array, ""]:
    """Return of a trajectory: R(τ) = Σ_t γ^t r_t.

    Raises:
        ValueError: if `gamma` is not one number: `rewards_to_go` takes a discount per step.
    """
    if jnp.ndim(gamma) != 0:
        raise ValueError(f"gamma must be one number, got shape {jnp.shape(gamma)}")
    dtype, rewards, discounts = _aligned(rewards, gamma)
    return jnp.sum(rewards * discounts ** jnp.arange(rewards.size)).astype(dtype)


@jax.jit
def rewards_to_go(rewards: Float[ArrayLike, " T"], discounts: Float[ArrayLike, " T"] | Scalar) -> Float[Array, " T"]:
    """G_t = r_t + d_t G_{t+1}, G_T = 0: what follows a truncation counts as 0."""
    dtype, rewards, discounts = _aligned(rewards, discounts)
    return _accumulate(rewards, discounts, jnp.zeros_like(rewards, shape=())).astype(dtype)


@functools.partial(jax.jit, static_argnames="n")
def n_step_returns(
    rewards: Float[ArrayLike, " T"],
    discounts: Float[ArrayLike, " T"] | Scalar,
    values: Float[ArrayLike, " T+1"],
    n: int,
) -> Float[Array, " T"]:
    """n rewards, then a value: G_t = r_t + d_t r_{t+1} + … + d_t ⋯ d_{t+m−1} v_{t+m}, m = min(n, T − t).

    The trajectory's end shortens the sum, and v_T bootstraps it. n = 1 is the TD(0) target, n ≥ T Monte Carlo.

    Reference: Sutton & Barto (2018), equation 7.1.
    """
    dtype, rewards, discounts, values = _aligned(rewards, discounts, values)
    length, n = rewards.size, min(n, rewards.size)
    rewards = jnp.pad(rewards, (0, n))
    discounts = jnp.pad(discounts, (0, n), constant_values=1)
    targets = jnp.pad(values[n:], (0, n), mode="edge")[:length]

    def step(k, targets):
        shift = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=n - 1 - k, slice_size=length)
        return shift(rewards) + shift(discounts) * targets

    return jax.lax.fori_loop(0, n, step, targets).astype(dtype)


@jax.jit
def lambda_returns(
    rewards: Float[ArrayLike, " T"],
    discounts: Float[ArrayLike, " T"] | Scalar,
    values: Float[ArrayLike, " T+1"],
    lambda_: Scalar,
) -> Float[Array, " T"]:
    """λ-returns, the geometric mixture of the n-step returns.

    G_t = r_t + d_t [(1 − λ) v_{t+1} + λ G_{t+1}],   G_T = v_T

    λ = 0 is the TD(0) target, λ = 1 Monte Carlo bootstrapped by v_T.

    Reference: Sutton & Barto (2018), section 12.8, where discounts vary by step.
    """
    dtype, rewards, discounts, values = _aligned(rewards, discounts, values)
    terms = rewards + discounts * (1 - lambda_) * values[1:]
    return _accumulate(terms, discounts * lambda_, values[-1]).astype(dtype)


@jax.jit
def gae(
    rewards: Float[ArrayLike, " T"],
    discounts: Float[ArrayLike, " T"] | Scalar,
    values: Float[ArrayLike, " T+1"],
    lambda_: Scalar,
) -> Float[Array, " T"]:
    """Generalized advantage estimation: the λ-return minus the value.

    A_t = δ_t + d_t λ A_{t+1},   δ_t = r_t + d_t v_{t+1} − v_t,   A_T = 0

    Not whitened: that is `masking.masked_whiten`.

    Reference: Schulman et al. (2016), equation 16, truncated at T.
    """
    dtype, rewards, discounts, values = _aligned(rewards, discounts, values)
    errors = rewards + discounts * values[1:] - values[:-1]
    return _accumulate(errors, discounts * lambda_, jnp.zeros_like(errors, shape=())).astype(dtype)


def _accumulate(terms, decays, last):
    """x_t = terms_t + decays_t x_{t+1}, x_T = last."""

    def step(following, inputs):
        term, decay = inputs
        total = term + decay * following
        return total, total

    dtype = jnp.result_type(terms, decays, last)
    inputs = (terms.astype(dtype), decays.astype(dtype))
    return jax.lax.scan(step, last.astype(dtype), inputs, reverse=True)[1]


def _aligned(rewards, discounts, *values):
    """The arguments' dtype, then the arguments in float32 or wider, discounts as `[T]`.

    Raises:
        ValueError: at trace time, where the lengths do not fit one trajectory.
    """
    shapes = [jnp.shape(array) for array in (rewards, discounts, *values)]
    if len(shapes[0]) != 1 or shapes[1] not in ((), shapes[0]) or shapes[2:] not in ([], [(shapes[0][0] + 1,)]):
        names = ("rewards [T]", "discounts [] or [T]", "values [T+1]")
        listed = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=False))
        raise ValueError(f"one trajectory is expected (vmap for a batch), got {listed}")
    dtype = jnp.result_type(rewards, discounts, *values)
    wide = jnp.promote_types(dtype, jnp.float32)
    rewards, discounts, *values = (jnp.asarray(array, wide) for array in (rewards, discounts, *values))
    return dtype, rewards, jnp.broadcast_to(discounts, rewards.shape), *values
