"""Exact values of a finite MDP: V, Q, advantages, J, discounted occupancy, and the optimum.

`num_steps` is the number of steps left: 0 gives zeros, None is the infinite horizon, solved as a linear system,
which needs γ < 1 (the answer is NaN otherwise). Gradients flow through everything into the policy and the tables.

Reference: Sutton & Barto (2018), chapters 3 and 4.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from rlhf_jax._typing import Scalar
from rlhf_jax.mdp import MDP

_einsum = functools.partial(jnp.einsum, precision="highest")


@functools.partial(jax.jit, static_argnames="num_steps")
def state_values(mdp: MDP, policy: Float[ArrayLike, "S A"], num_steps: int | None = None) -> Float[Array, " S"]:
    """Value of each state: V^π(s) = E_{τ~π}[R(τ) | s₀ = s].

    Infinite horizon: (I − γ P_π) V = r_π. Finite: V_0 = 0, V_{k+1} = r_π + γ P_π V_k (γ = 1 allowed).
    """
    transition, reward = state_transition(mdp, policy), _einsum("sa,sa->s", policy, mdp.reward)
    if num_steps is None:
        return jnp.linalg.solve(_resolvent(mdp, transition), reward)
    start = jnp.zeros(reward.shape, jnp.result_type(transition, reward))
    backup = lambda _, values: reward + mdp.gamma * _einsum("xy,y->x", transition, values)
    return jax.lax.fori_loop(0, num_steps, backup, start)


@functools.partial(jax.jit, static_argnames="num_steps")
def action_values(mdp: MDP, policy: Float[ArrayLike, "S A"], num_steps: int | None = None) -> Float[Array, "S A"]:
    """Value of each action: Q^π(s, a) = E_{τ~π}[R(τ) | s₀ = s, a₀ = a] = r(s, a) + γ Σ_{s'} P(s'|s, a) V^π(s').

    At a finite horizon T, V^π is that of the T − 1 steps that are left after the action.
    """
    if num_steps == 0:
        return jnp.zeros_like(mdp.reward)
    return bellman_backup(mdp, state_values(mdp, policy, None if num_steps is None else num_steps - 1))


@functools.partial(jax.jit, static_argnames="num_steps")
def advantages(mdp: MDP, policy: Float[ArrayLike, "S A"], num_steps: int | None = None) -> Float[Array, "S A"]:
    """A^π(s, a) = Q^π(s, a) − V^π(s), both with the same number of steps left."""
    q_values = action_values(mdp, policy, num_steps)
    return q_values - state_values_from_action_values(policy, q_values)[:, None]


@jax.jit
def state_values_from_action_values(
    policy: Float[ArrayLike, "S A"], action_values: Float[ArrayLike, "S A"]
) -> Float[Array, " S"]:
    """V^π(s) = Σ_a π(a|s) Q^π(s, a)."""
    return _einsum("sa,sa->s", policy, action_values)


@functools.partial(jax.jit, static_argnames="num_steps")
def expected_return(mdp: MDP, policy: Float[ArrayLike, "S A"], num_steps: int | None = None) -> Float[Array, ""]:
    """The objective: J(π) = E_{τ~π}[R(τ)] = Σ_s ρ₀(s) V^π(s)."""
    return _einsum("s,s->", mdp.initial, state_values(mdp, policy, num_steps))


@functools.partial(jax.jit, static_argnames="num_steps")
def occupancy(mdp: MDP, policy: Float[ArrayLike, "S A"], num_steps: int | None = None) -> Float[Array, " S"]:
    """Discounted visits: d(s) = Σ_t γ^t P(s_t = s | π), t < `num_steps`; not normalised (infinite: Σ_s d = 1/(1 − γ)).

    J(π) = Σ_s d(s) Σ_a π(a|s) r(s, a) at any horizon. At the infinite one, d(s) π(a|s) A(s, a) is the gradient of
    J in softmax logits. At a finite horizon it is NOT: A depends on the steps left, so it cannot leave the sum over
    t; use `policy_gradient.policy_gradient`.
    """
    transition = state_transition(mdp, policy)
    if num_steps is None:
        return jnp.linalg.solve(_resolvent(mdp, transition).T, mdp.initial)

    def step(_, carry):
        total, current = carry
        return total + current, mdp.gamma * _einsum("x,xy->y", current, transition)

    start = mdp.initial.astype(jnp.result_type(mdp.initial, transition))
    return jax.lax.fori_loop(0, num_steps, step, (jnp.zeros_like(start), start))[0]


@jax.jit
def state_transition(mdp: MDP, policy: Float[ArrayLike, "S A"]) -> Float[Array, "S S"]:
    """The Markov chain that a policy induces: P_π(s'|s) = Σ_a π(a|s) P(s'|s, a)."""
    return _einsum("xa,xay->xy", policy, mdp.transition)


@jax.jit
def bellman_backup(mdp: MDP, values: Float[ArrayLike, " S"]) -> Float[Array, "S A"]:
    """r(s, a) + γ Σ_{s'} P(s'|s, a) v(s'): the action values if v is what the next state is worth."""
    return mdp.reward + mdp.gamma * _einsum("xay,y->xa", mdp.transition, values)


@jax.jit
def greedy_policy(action_values: Float[ArrayLike, "S A"]) -> Float[Array, "S A"]:
    """The deterministic policy argmax_a Q(s, a), as a table; the first action wins a tie. Carries no gradient.

    A row that holds a NaN gives NaN.
    """
    action_values = jnp.asarray(action_values)
    best = jnp.argmax(action_values, axis=-1)
    policy = jax.nn.one_hot(best, action_values.shape[-1], dtype=action_values.dtype)
    return jnp.where(jnp.isnan(action_values).any(axis=-1, keepdims=True), jnp.nan, policy)


@jax.jit
def value_iteration(mdp: MDP, tolerance: Scalar = 1e-6) -> Float[Array, " S"]:
    """V*, by sweeps of V ← max_a [r + γ P V] from V = 0; infinite horizon, γ < 1.

    The sweeps contract the error by γ, so γ^k max|r| / (1 − γ) ≤ `tolerance` (in reward units) says how many are
    needed, down to the dtype's rounding. Not reverse-differentiable.
    """
    relative = jnp.maximum(tolerance / jnp.max(jnp.abs(mdp.reward)), jnp.finfo(mdp.reward.dtype).eps)
    sweeps = jnp.ceil(jnp.log(relative * (1 - mdp.gamma)) / jnp.log(mdp.gamma))
    sweep = lambda _, values: bellman_backup(mdp, values).max(axis=-1)
    values = jax.lax.fori_loop(0, jnp.maximum(sweeps, 1).astype(int), sweep, jnp.zeros_like(mdp.initial))
    return jnp.where(mdp.gamma < 1, values, jnp.nan)


@jax.jit
def policy_iteration(mdp: MDP) -> Float[Array, " S"]:
    """V*, by evaluating a policy exactly and then acting greedily on it, until Σ_s V(s) stops growing.

    Infinite horizon, γ < 1. The sum grows strictly and policies are finitely many, so it ends, rounding or not.
    Not reverse-differentiable: see `optimal_state_values`.
    """

    def improve(carry):
        _, values = carry
        return values, state_values(mdp, greedy_policy(bellman_backup(mdp, values)))

    growing = lambda carry: carry[1].sum() > carry[0].sum()
    nothing = jnp.full_like(mdp.initial, -jnp.inf)
    first = state_values(mdp, greedy_policy(mdp.reward))
    previous, values = jax.lax.while_loop(growing, improve, (nothing, first))
    return jnp.maximum(previous, values)


@jax.jit
def optimal_policy(mdp: MDP) -> Float[Array, "S A"]:
    """π* = argmax_π J(π), deterministic, best from every state at once; infinite horizon, γ < 1. No gradient."""
    mdp = jax.lax.stop_gradient(mdp)
    return greedy_policy(bellman_backup(mdp, policy_iteration(mdp)))


@jax.jit
def optimal_state_values(mdp: MDP) -> Float[Array, " S"]:
    """V*(s) = max_π V^π(s), by policy iteration; infinite horizon, γ < 1.

    Gradients flow into the tables with π* held fixed, which is exact where the optimal action is unique.
    """
    return state_values(mdp, optimal_policy(mdp))


def _resolvent(mdp, transition):
    """I − γ P_π, NaN where it has no inverse."""
    gamma = jnp.where(mdp.gamma < 1, mdp.gamma, jnp.nan)
    return jnp.eye(transition.shape[0], dtype=transition.dtype) - gamma * transition
