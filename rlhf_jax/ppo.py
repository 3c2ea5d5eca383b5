"""Proximal policy optimisation: the clipped losses, the entropy bonus, and the diagnostics that are logged.

Losses are unreduced; the caller writes `masked_mean`, because a mean over tokens and a mean over strings are
different objectives.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from rlhf_jax import kl
from rlhf_jax import log_probs as lp
from rlhf_jax._typing import Scalar, check_same_shape
from rlhf_jax.masking import masked_mean


@jax.jit
def probability_ratio(
    log_probs: Float[ArrayLike, "*s"], old_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""]
) -> Float[Array, "*s"]:
    """r = π(a|s) / π_old(a|s) = exp(log π − log π_old), saturating as `log_probs.log_ratio` does."""
    return jnp.exp(lp.log_ratio(log_probs, old_log_probs))


@jax.jit
def clipped_surrogate_loss(
    log_probs: Float[ArrayLike, "*s"],
    old_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    advantages: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    *,
    clip_eps: Scalar,
) -> Float[Array, "*s"]:
    """Minus PPO's clipped surrogate objective L^PPO, one number an action.

    L^PPO = min(r A, clip(r, 1 − ε, 1 + ε) A),   r = π(a|s) / π_old(a|s).

    At r = 1 the gradient is the policy gradient's, −A ∇ log π; it is 0 where r > 1 + ε and A > 0, and where
    r < 1 − ε and A < 0.

    Args:
        log_probs: log π(a|s); the only argument that receives a gradient.
        old_log_probs: log π_old(a|s), of the policy that chose the actions.
        advantages: A(s, a), in reward units.
        clip_eps: ε.

    Reference: Schulman et al. (2017), equation 7. Differs: the ratio saturates (see `log_probs.log_ratio`).
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    advantages = jax.lax.stop_gradient(advantages)
    ratio = probability_ratio(log_probs, jax.lax.stop_gradient(old_log_probs))
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps) * advantages)


@jax.jit
def dual_clip_loss(
    log_probs: Float[ArrayLike, "*s"],
    old_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    advantages: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    *,
    clip_eps: Scalar,
    dual_clip: Scalar,
) -> Float[Array, "*s"]:
    """PPO's clipped loss, and at most −c A where A < 0: a bad action grown likely pulls no harder than r = c.

    −max(min(r A, clip(r, 1 − ε, 1 + ε) A), c A) where A < 0, `clipped_surrogate_loss` elsewhere. The gradient is also
    0 where r > c and A < 0.

    Args:
        dual_clip: c > 1 + ε; TRL's `delta`, Tunix's `epsilon_c`.

    Reference: Ye et al. (2020), "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning".
    """
    loss = clipped_surrogate_loss(log_probs, old_log_probs, advantages, clip_eps=clip_eps)
    advantages = jax.lax.stop_gradient(advantages)
    return jnp.where(jnp.less(advantages, 0), jnp.minimum(loss, -dual_clip * advantages), loss)


@jax.jit
def clipped_value_loss(
    values: Float[ArrayLike, "*s"],
    old_values: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    returns: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    *,
    clip_eps: Scalar,
) -> Float[Array, "*s"]:
    """Squared error of the values, with steps away from the old values clipped.

    ½ max((v − R)², (clip(v, v_old − ε, v_old + ε) − R)²).

    Args:
        values: v, the only argument that receives a gradient.
        old_values: v_old, those that the advantages were computed from.
        returns: R, the regression target, in reward units.
        clip_eps: ε, in reward units.

    Reference: Huang et al. (2022), "The 37 Implementation Details of PPO", detail 9 (value function clipping).
    """
    check_same_shape(values=values, old_values=old_values, returns=returns)
    old_values, returns = jax.lax.stop_gradient((old_values, returns))
    clipped = jnp.clip(values, old_values - clip_eps, old_values + clip_eps)
    return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns))


@jax.jit
def entropy(logits: Float[ArrayLike, "*s A"]) -> Float[Array, "*s"]:
    """H = −Σ_a π(a) log π(a), in nats and in float32 or wider; 0 log 0 = 0 with a finite gradient."""
    log_probs = lp.log_softmax(logits)
    return -(jnp.exp(log_probs) * jnp.where(log_probs == -jnp.inf, 0, log_probs)).sum(-1)


@jax.jit
def clip_fraction(
    log_probs: Float[ArrayLike, "*s"],
    old_log_probs: Float[ArrayLike, "*s"],
    mask: Bool[ArrayLike, "*s"],
    *,
    clip_eps: Scalar,
) -> Float[Array, ""]:
    """Share of the kept actions whose ratio lies outside [1 − ε, 1 + ε], whatever the advantage's sign."""
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    outside = jnp.abs(probability_ratio(log_probs, old_log_probs) - 1) > clip_eps
    return masked_mean(outside.astype(jnp.float32), mask)


@jax.jit
def approximate_kl(
    log_probs: Float[ArrayLike, "*s"], old_log_probs: Float[ArrayLike, "*s"], mask: Bool[ArrayLike, "*s"]
) -> Float[Array, ""]:
    """Mean of k3 over the kept actions: KL(π_old ‖ π) an action in nats, since the actions are π_old's."""
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    return masked_mean(kl.k3(old_log_probs, log_probs), mask)


@jax.jit
def max_ratio_deviation(
    log_probs: Float[ArrayLike, "*s"], old_log_probs: Float[ArrayLike, "*s"], mask: Bool[ArrayLike, "*s"]
) -> Float[Array, ""]:
    """max |r − 1| over the kept actions: 0, up to rounding, at the first minibatch after sampling.

    A larger number there means that the trainer and the sampler disagree (dropout, temperature, padding, dtype).
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    return jnp.where(mask, jnp.abs(probability_ratio(log_probs, old_log_probs) - 1), 0).max(initial=0)
