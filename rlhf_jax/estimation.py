"""Values from samples: Monte Carlo and temporal differences, on tables.

`discounts` is a scalar or one per step: d_t = γ, or 0 where step t terminates, after which the next state may be the
start of another episode. `step_sizes` is a scalar or one per step; estimates converge to the exact values when
Σ α = ∞ and Σ α² < ∞ over the visits of each entry. The TD functions take a table and one trajectory and return the
table after its T updates, in order: feed it back for the next trajectory, or `vmap` over independent tables. No
gradient is meant to flow through them.

Reference: Sutton & Barto (2018), chapters 5, 6 and 12.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from rlhf_jax import returns
from rlhf_jax._typing import Scalar
from rlhf_jax.mdp import Trajectory
from rlhf_jax.values import greedy_policy


@functools.partial(jax.jit, static_argnames="num_states")
def first_visit_monte_carlo(
    trajectories: Trajectory, discounts: Float[ArrayLike, "N T"] | Scalar, num_states: int
) -> Float[Array, " {num_states}"]:
    """V(s) ≈ the mean, over trajectories that visit s, of the return after the first visit; 0 if none does.

    Takes a batch: every field of `trajectories` has a leading axis N. Unbiased for trajectories that reach an
    absorbing state. One cut off after T steps lacks its tail: a visit at step t is off by up to γ^(T−t) max|V|.
    """
    first = jax.vmap(functools.partial(_first_visits, num_states=num_states))(trajectories.states[:, :-1])
    return _mean_return(trajectories, discounts, num_states, first)


@functools.partial(jax.jit, static_argnames="num_states")
def every_visit_monte_carlo(
    trajectories: Trajectory, discounts: Float[ArrayLike, "N T"] | Scalar, num_states: int
) -> Float[Array, " {num_states}"]:
    """V(s) ≈ the mean of the returns after all visits to s, a batch of trajectories together; 0 without a visit.

    Consistent; for finitely many trajectories biased, as one trajectory's visits are correlated with their number.
    Truncation adds a bias as for `first_visit_monte_carlo`.
    """
    return _mean_return(trajectories, discounts, num_states, jnp.ones(trajectories.actions.shape, bool))


def _first_visits(states, num_states):
    times = jnp.arange(states.size)
    first = jnp.full(num_states, states.size).at[states].min(times)
    return first[states] == times


def _mean_return(trajectories, discounts, num_states, counted):
    discounts = jnp.broadcast_to(discounts, trajectories.rewards.shape)
    to_go = jax.vmap(returns.rewards_to_go)(trajectories.rewards, discounts)
    nothing = jnp.zeros(num_states, to_go.dtype)
    visited = trajectories.states[:, :-1]
    sums = nothing.at[visited].add(jnp.where(counted, to_go, 0))
    return sums / jnp.maximum(nothing.at[visited].add(counted.astype(to_go.dtype)), 1)


@jax.jit
def td0(
    values: Float[ArrayLike, " S"],
    trajectory: Trajectory,
    discounts: Float[ArrayLike, " T"] | Scalar,
    step_sizes: Float[ArrayLike, " T"] | Scalar,
) -> Float[Array, " S"]:
    """TD(0): V(s_t) ← V(s_t) + α_t [r_t + d_t V(s_{t+1}) − V(s_t)]; converges to V^π of the behaviour policy.

    Reference: Sutton & Barto (2018), equation 6.2.
    """
    return td_lambda(values, trajectory, discounts, 0.0, step_sizes)


@jax.jit
def td_lambda(
    values: Float[ArrayLike, " S"],
    trajectory: Trajectory,
    discounts: Float[ArrayLike, " T"] | Scalar,
    lambda_: Scalar,
    step_sizes: Float[ArrayLike, " T"] | Scalar,
) -> Float[Array, " S"]:
    """TD(λ) with accumulating traces: V ← V + α_t δ_t e_t; converges to V^π of the behaviour policy.

    δ_t = r_t + d_t V(s_{t+1}) − V(s_t),   e_t = d_{t−1} λ e_{t−1} + 1[s_t]

    To first order in α, the trajectory's updates sum to those towards its λ-returns. The trace starts at 0.

    Reference: Sutton & Barto (2018), section 12.2.
    """

    def step(carry, transition):
        values, trace = carry
        state, _, reward, next_state, discount, step_size = transition
        trace = trace.at[state].add(1)
        error = reward + discount * values[next_state] - values[state]
        return (values + step_size * error * trace, discount * lambda_ * trace), None

    values, transitions = _prepare(values, trajectory, discounts, step_sizes)
    return jax.lax.scan(step, (values, jnp.zeros_like(values)), transitions)[0][0]


@jax.jit
def sarsa(
    action_values: Float[ArrayLike, "S A"],
    trajectory: Trajectory,
    discounts: Float[ArrayLike, " T"] | Scalar,
    step_sizes: Float[ArrayLike, " T"] | Scalar,
) -> Float[Array, "S A"]:
    """SARSA: Q(s_t, a_t) moves towards r_t + d_t Q(s_{t+1}, a_{t+1}); converges to Q^π of the behaviour policy.

    The last step's next action is not in the trajectory, so that step counts only if it terminates (d_{T−1} = 0).

    Reference: Sutton & Barto (2018), equation 6.7.
    """
    num_steps = trajectory.actions.size
    discounts = jnp.broadcast_to(discounts, num_steps)
    unknown = (jnp.arange(num_steps) == num_steps - 1) & (discounts != 0)
    next_actions = jnp.roll(trajectory.actions, -1)
    bootstrap = lambda table, next_state, next_action: table[next_state, next_action]
    return _learn(action_values, trajectory, discounts, jnp.where(unknown, 0, step_sizes), bootstrap, next_actions)


@jax.jit
def expected_sarsa(
    action_values: Float[ArrayLike, "S A"],
    trajectory: Trajectory,
    discounts: Float[ArrayLike, " T"] | Scalar,
    policy: Float[ArrayLike, "S A"],
    step_sizes: Float[ArrayLike, " T"] | Scalar,
) -> Float[Array, "S A"]:
    """Expected SARSA: Q(s_t, a_t) moves towards r_t + d_t Σ_a π(a|s_{t+1}) Q(s_{t+1}, a).

    Converges to Q^π of `policy`, whatever policy behaved, if it tries every action.

    Reference: Sutton & Barto (2018), equation 6.9.
    """
    bootstrap = lambda table, next_state, probs: jnp.sum(probs * table[next_state])
    next_probs = jnp.asarray(policy)[trajectory.states[1:]]
    return _learn(action_values, trajectory, discounts, step_sizes, bootstrap, next_probs)


@jax.jit
def q_learning(
    action_values: Float[ArrayLike, "S A"],
    trajectory: Trajectory,
    discounts: Float[ArrayLike, " T"] | Scalar,
    step_sizes: Float[ArrayLike, " T"] | Scalar,
) -> Float[Array, "S A"]:
    """Q-learning: Q(s_t, a_t) moves towards r_t + d_t max_a Q(s_{t+1}, a); converges to Q*.

    Whatever policy behaved, if it tries every action.

    Reference: Watkins & Dayan (1992); Sutton & Barto (2018), equation 6.8.
    """
    bootstrap = lambda table, next_state, _: jnp.max(table[next_state])
    return _learn(action_values, trajectory, discounts, step_sizes, bootstrap, trajectory.actions)


@jax.jit
def epsilon_greedy(action_values: Float[ArrayLike, "S A"], epsilon: Scalar) -> Float[Array, "S A"]:
    """π(a|s) = (1 − ε) 1[a = argmax_b Q(s, b)] + ε / A: explores, so that Q-values learned from it can improve it."""
    action_values = jnp.asarray(action_values)
    return (1 - epsilon) * greedy_policy(action_values) + epsilon / action_values.shape[-1]


def _learn(table, trajectory, discounts, step_sizes, bootstrap, following):
    """Q(s_t, a_t) += α_t [r_t + d_t bootstrap(Q, s_{t+1}, following_t) − Q(s_t, a_t)]."""

    def step(table, inputs):
        (state, action, reward, next_state, discount, step_size), following = inputs
        target = reward + discount * bootstrap(table, next_state, following)
        return table.at[state, action].add(step_size * (target - table[state, action])), None

    table, transitions = _prepare(table, trajectory, discounts, step_sizes)
    return jax.lax.scan(step, table, (transitions, following))[0]


def _prepare(table, trajectory, discounts, step_sizes):
    states, actions, rewards = trajectory
    dtype = jnp.result_type(table, rewards, discounts, step_sizes)
    per_step = lambda values: jnp.broadcast_to(jnp.asarray(values, dtype), rewards.shape)
    transitions = (states[:-1], actions, per_step(rewards), states[1:], per_step(discounts), per_step(step_sizes))
    return jnp.asarray(table, dtype), transitions
