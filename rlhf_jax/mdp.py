"""Finite Markov decision processes: the tables, sampled and enumerated trajectories, and their probability.

States and actions are integers, the rows of the tables. A policy is a table of probabilities π(a|s), `[S, A]`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

Table = ArrayLike | Sequence
_SUM_TOLERANCE = 1e-5


class MDP(NamedTuple):
    """(ρ₀, P, r, γ). `make_mdp` builds a checked one; under jit or vmap, name the fields directly."""

    initial: Float[Array, " S"]
    """ρ₀(s)"""
    transition: Float[Array, "S A S"]
    """P(s'|s, a)"""
    reward: Float[Array, "S A"]
    """r(s, a): the mean over next states where the reward depends on them."""
    gamma: Float[Array, ""]
    """γ in [0, 1]"""


class Trajectory(NamedTuple):
    """τ = (s₀, a₀, r₀, s₁, …, s_T): r_t is the reward for taking a_t in s_t."""

    states: Int[Array, " T+1"]
    actions: Int[Array, " T"]
    rewards: Float[Array, " T"]


def make_mdp(initial: Table, transition: Table, reward: Table, gamma: ArrayLike) -> MDP:
    """An MDP from tables whose values are checked; eager, so not for use under jit.

    Args:
        initial: ρ₀, `[S]`.
        transition: P(s'|s, a), `[S, A, S]`.
        reward: r(s, a), `[S, A]`.
        gamma: γ in [0, 1].

    Raises:
        ValueError: naming the field and the index, for a wrong shape, a NaN, an infinite or negative entry, a row
            that does not sum to 1 within 1e-5, or γ outside [0, 1].
    """
    fields = MDP(*(np.asarray(field, np.float64) for field in (initial, transition, reward, gamma)))
    if fields.transition.ndim != 3 or 0 in fields.transition.shape:
        raise ValueError(f"transition has shape {fields.transition.shape}, expected [S, A, S]")
    num_states, num_actions = fields.transition.shape[:2]
    shapes = MDP((num_states,), (num_states, num_actions, num_states), (num_states, num_actions), ())
    for name, field, shape in zip(MDP._fields, fields, shapes, strict=True):
        if field.shape != shape:
            raise ValueError(f"{name} has shape {field.shape}, expected {shape} from transition's S and A")
        _refuse(~np.isfinite(field), name, field, "it must be finite")
    for name, field in (("initial", fields.initial), ("transition", fields.transition)):
        _refuse(field < 0, name, field, "a probability cannot be negative")
        sums = field.sum(-1)
        _refuse(np.abs(sums - 1) > _SUM_TOLERANCE, f"the sum of {name}", sums, "probabilities must sum to 1")
    _refuse((fields.gamma < 0) | (fields.gamma > 1), "gamma", fields.gamma, "it must lie in [0, 1]")
    return MDP(*(jnp.asarray(field, float) for field in fields))


def _refuse(wrong, name, field, why):
    for index in np.argwhere(wrong):
        place = f"[{', '.join(map(str, index))}]" if index.size else ""
        raise ValueError(f"{name}{place} is {field[tuple(index)]:g}: {why}")


@functools.partial(jax.jit, static_argnames="num_steps")
def rollout(key: Key[Array, ""], mdp: MDP, policy: Float[ArrayLike, "S A"], num_steps: int) -> Trajectory:
    """One trajectory of `num_steps` actions: s₀ ~ ρ₀, a_t ~ π(·|s_t), s_{t+1} ~ P(·|s_t, a_t).

    All uniforms are drawn before the loop and compared with cumulative tables; an entry of probability 0 is never
    drawn. `vmap` over keys for a batch. Only the rewards carry a gradient, into the reward table.
    """
    actions_table, states_table = _lower_edges(policy), _lower_edges(mdp.transition)
    uniforms = jax.random.uniform(key, (2 * num_steps + 1,), states_table.dtype)

    def step(state, uniform):
        action = _draw(actions_table[state], uniform[0])
        next_state = _draw(states_table[state, action], uniform[1])
        return next_state, (next_state, action)

    first = _draw(_lower_edges(mdp.initial), uniforms[0])
    _, (following, actions) = jax.lax.scan(step, first, uniforms[1:].reshape(num_steps, 2))
    states = jnp.append(first, following)
    return Trajectory(states, actions, mdp.reward[states[:-1], actions])


def _lower_edges(probs):
    """The interval [edge, next edge) of [0, 1) that draws each entry; impossible entries get none."""
    probs = jnp.asarray(probs, jnp.promote_types(jnp.result_type(probs), jnp.float32))
    return jnp.where(probs > 0, jnp.cumsum(probs, axis=-1) - probs, jnp.inf)


def _draw(lower_edges, uniform):
    # The first possible entry's edge is exactly 0, so rounding in the sums can neither overrun nor miss.
    return jnp.max(jnp.where(lower_edges <= uniform, jnp.arange(lower_edges.size), 0))


@functools.partial(jax.jit, static_argnames="num_steps")
def enumerate_trajectories(mdp: MDP, num_steps: int) -> Trajectory:
    """Every sequence (s₀, a₀, s₁, …, s_T), possible or not: N = S^(T+1) A^T of them on a leading axis.

    In lexicographic order of that sequence. With `trajectory_prob` as weights, a sum over N is an expectation.
    """
    num_states, num_actions = mdp.reward.shape
    radices = (num_states, *(num_actions, num_states) * num_steps)
    digits = jnp.stack(jnp.unravel_index(jnp.arange(np.prod(radices)), radices), axis=-1)
    states, actions = digits[:, ::2], digits[:, 1::2]
    return Trajectory(states, actions, mdp.reward[states[:, :-1], actions])


@jax.jit
def trajectory_prob(mdp: MDP, policy: Float[ArrayLike, "S A"], trajectory: Trajectory) -> Float[Array, ""]:
    """Probability of a trajectory under a policy.

    P(τ|π) = ρ₀(s₀) ∏_t P(s_{t+1}|s_t, a_t) π(a_t|s_t)

    Gradients flow into every factor and are exact at zeros: a factor's is the product of the others.
    """
    return jnp.prod(_factors(mdp, policy, trajectory))


@jax.jit
def trajectory_log_prob(mdp: MDP, policy: Float[ArrayLike, "S A"], trajectory: Trajectory) -> Float[Array, ""]:
    """log P(τ|π) = log ρ₀(s₀) + Σ_t [log P(s_{t+1}|s_t, a_t) + log π(a_t|s_t)], in nats.

    −inf for an impossible trajectory. Gradients stay finite there, also through a softmax with −inf logits: an
    impossible factor contributes 0 (its true derivative is infinite).
    """
    factors = _factors(mdp, policy, trajectory)
    impossible = factors == 0
    return jnp.where(impossible, -jnp.inf, jnp.log(jnp.where(impossible, 1, factors))).sum()


def _factors(mdp, policy, trajectory):
    states, actions, next_states = trajectory.states[:-1], trajectory.actions, trajectory.states[1:]
    return jnp.concatenate(
        [
            mdp.initial[trajectory.states[:1]],
            mdp.transition[states, actions, next_states],
            jnp.asarray(policy)[states, actions],
        ]
    )
