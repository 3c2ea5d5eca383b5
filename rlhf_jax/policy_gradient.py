"""The policy gradient theorem, exactly on an MDP, and as the loss whose gradient estimates it from samples."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from rlhf_jax import values
from rlhf_jax._typing import check_same_shape
from rlhf_jax.mdp import MDP


@functools.partial(jax.jit, static_argnames="num_steps")
def policy_gradient(mdp: MDP, logits: Float[ArrayLike, "S A"], num_steps: int | None = None) -> Float[Array, "S A"]:
    """Policy gradient theorem: ∇J = E_{τ~π}[Σ_t γ^t ∇ log π(a_t|s_t) A(s_t, a_t)], for π = softmax(logits).

    ∂J / ∂ logits(s, a) = Σ_t γ^t P(s_t = s) π(a|s) A_{T−t}(s, a)

    A_k is the advantage with k steps left; at the infinite horizon (`num_steps` None, γ < 1) it is the same at every
    t and leaves the sum, which is then the discounted occupancy. Not automatic differentiation of J; itself
    differentiable: its Jacobian is J's Hessian.

    Reference: Sutton et al. (2000), theorem 1, started from ρ₀ and with γ^t kept, which practical estimators drop.
    """
    policy = jax.nn.softmax(jnp.asarray(logits))
    if num_steps is None:
        return values.occupancy(mdp, policy)[:, None] * policy * values.advantages(mdp, policy)

    def backward(state_values, _):
        action_values = values.bellman_backup(mdp, state_values)
        state_values = values.state_values_from_action_values(policy, action_values)
        return state_values, action_values - state_values[:, None]

    def forward(visits, advantages):
        following = mdp.gamma * jnp.matmul(visits, chain, precision="highest")
        return following, visits[:, None] * policy * advantages

    chain = values.state_transition(mdp, policy)
    visits = mdp.initial.astype(chain.dtype)
    _, advantages_left = jax.lax.scan(backward, jnp.zeros_like(visits), length=num_steps)
    _, terms = jax.lax.scan(forward, visits, advantages_left, reverse=True)
    return terms.sum(axis=0)


@jax.jit
def reinforce_loss(
    log_probs: Float[ArrayLike, "*s"], advantages: Float[ArrayLike, "*s"] | Float[ArrayLike, ""]
) -> Float[Array, "*s"]:
    """−log π(a|s) · A, whose gradient's sum over a trajectory is on average −∇J, the policy gradient theorem's.

    `advantages` may be any estimate whose mean is right: the return, rewards-to-go (times γ^t for the discounted J),
    either of them minus a baseline that depends on the state alone, or GAE. No gradient flows into `advantages`.

    Reference: Williams (1992), "Simple Statistical Gradient-Following Algorithms", sections 4 and 5.
    """
    check_same_shape(log_probs=log_probs, advantages=advantages)
    return -log_probs * jax.lax.stop_gradient(advantages)
