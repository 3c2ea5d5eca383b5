"""Group-relative methods: G strings sampled for one prompt are each other's baseline.

A method is its advantages, its loss and the mean that reduces it:

    method     advantages               loss                             reduction
    RLOO       rloo_advantages          rloo_loss, a string              mean
    GRPO       standardized_advantages  grpo_loss, a token               sequence_mean
    Dr. GRPO   centered_advantages      ppo.clipped_surrogate_loss       fixed_length_mean
    DAPO       standardized_advantages  dapo_loss, a token               token_mean
    GSPO       standardized_advantages  gspo_loss, a string              mean
    CISPO      standardized_advantages  cispo_loss, a token              token_mean

The KL to the reference is β k3 inside GRPO's loss and part of the reward in RLOO; the other papers leave it out, and
β times `kl.importance_weighted` may be added to any per-token loss. At π = π_old (GRPO: and β = 0) every loss has the
policy gradient's gradient, −A ∇ log π, GSPO's divided by the length.

Advantages see one group at a time; callers `vmap` over prompts. A group whose rewards are all equal says nothing: its
advantages are 0, with finite gradients. No loss has a gradient for advantages, old or reference log-probabilities.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from rlhf_jax import kl, ppo
from rlhf_jax._typing import Scalar, check_same_shape
from rlhf_jax.masking import masked_mean, masked_sum
from rlhf_jax.policy_gradient import reinforce_loss


@jax.jit
def centered_advantages(rewards: Float[ArrayLike, " G"]) -> Float[Array, " G"]:
    """A_i = r_i − mean(r), in reward units; the mean includes r_i, which shrinks the gradient by (G − 1)/G.

    Reference: Liu et al. (2025), "Understanding R1-Zero-Like Training" (Dr. GRPO).
    """
    return jnp.asarray(rewards) - jnp.mean(rewards)


@jax.jit
def standardized_advantages(rewards: Float[ArrayLike, " G"], eps: Scalar = 1e-4) -> Float[Array, " G"]:
    """A_i = (r_i − mean(r)) / (std(r) + ε), std the sample deviation, which divides by G − 1.

    Groups that nearly agree are scaled up, the bias towards very easy and very hard prompts that Dr. GRPO removes.

    Args:
        eps: ε, in reward units; TRL adds 1e-4, Tunix 1e-6.

    Reference: Shao et al. (2024), "DeepSeekMath", section 4.1.2 (GRPO); the paper has no ε.
    """
    centered = centered_advantages(rewards)
    variance = jnp.square(centered).sum() / max(centered.size - 1, 1)
    deviation = jnp.sqrt(jnp.where(variance == 0, 1, variance))
    return centered / (deviation + eps)


@jax.jit
def rloo_advantages(rewards: Float[ArrayLike, " G"]) -> Float[Array, " G"]:
    """A_i = r_i − mean of the other G − 1 rewards = G/(G − 1) (r_i − mean(r)): an unbiased baseline.

    Reference: Kool et al. (2019), "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; Ahmadian et al. (2024).

    Raises:
        ValueError: if the group has fewer than two members.
    """
    size = jnp.size(rewards)
    if size < 2:
        raise ValueError(f"rewards: leave-one-out needs a group of at least 2, got {size}")
    return size / (size - 1) * centered_advantages(rewards)


@jax.jit
def rloo_loss(log_probs: Float[ArrayLike, " G"], rewards: Float[ArrayLike, " G"]) -> Float[Array, " G"]:
    """−A_i log π(y_i|x), A_i the leave-one-out advantage: REINFORCE on whole strings.

    Its mean over the group has, on average, the gradient −∇ E_π[r].

    Args:
        log_probs: log π(y_i|x), summed over the string's tokens.
        rewards: r(x, y_i), the KL penalty already subtracted.

    Reference: Ahmadian et al. (2024), "Back to Basics". TRL puts PPO's clip around the ratio of strings instead.

    Raises:
        ValueError: if the group has fewer than two members.
    """
    check_same_shape(log_probs=log_probs, rewards=rewards)
    return reinforce_loss(log_probs, rloo_advantages(rewards))


@jax.jit
def grpo_loss(
    log_probs: Float[ArrayLike, "*s"],
    old_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    ref_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    advantages: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    *,
    clip_eps: Scalar,
    beta: Scalar,
) -> Float[Array, "*s"]:
    """PPO's clipped loss plus β k3(log π, log π_ref), one number a token.

    k3 here is a loss: on-policy its gradient is β ∇ KL(π_ref ‖ π) (see `kl.k3`).

    Args:
        beta: β, in reward units per nat; with 0 it is `ppo.clipped_surrogate_loss`, TRL's default.

    Reference: Shao et al. (2024), "DeepSeekMath", equations 3 and 4. TRL also weights k3 by the ratio by default:
    add β `kl.importance_weighted(k3, …)` to the clipped loss for that.
    """
    surrogate = ppo.clipped_surrogate_loss(log_probs, old_log_probs, advantages, clip_eps=clip_eps)
    return surrogate + beta * kl.k3(log_probs, jax.lax.stop_gradient(ref_log_probs))


@jax.jit
def dapo_loss(
    log_probs: Float[ArrayLike, "*s"],
    old_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    advantages: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    *,
    clip_eps_low: Scalar,
    clip_eps_high: Scalar,
) -> Float[Array, "*s"]:
    """−min(r A, clip(r, 1 − ε_low, 1 + ε_high) A): PPO's clip with its two bounds decoupled.

    A larger ε_high lets unlikely tokens grow. The gradient is −r A ∇ log π, and 0 where the clip binds.

    Args:
        clip_eps_low: ε_low; 0.2 in the paper.
        clip_eps_high: ε_high; 0.28 in the paper.

    Reference: Yu et al. (2025), "DAPO"; its sampling and its penalty on long strings are the caller's.
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    advantages = jax.lax.stop_gradient(advantages)
    ratio = ppo.probability_ratio(log_probs, jax.lax.stop_gradient(old_log_probs))
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip_eps_low, 1 + clip_eps_high) * advantages)


@jax.jit
def gspo_loss(
    log_probs: Float[ArrayLike, " T"],
    old_log_probs: Float[ArrayLike, " T"],
    advantage: Scalar,
    mask: Bool[ArrayLike, " T"],
    *,
    clip_eps_low: Scalar,
    clip_eps_high: Scalar,
) -> Float[Array, ""]:
    """The clipped loss of one string, with the geometric mean of its tokens' ratios as the ratio.

    −min(s A, clip(s, 1 − ε_low, 1 + ε_high) A),   s = (π(y|x) / π_old(y|x))^{1/|y|}.

    The gradient is −s A / |y| at every kept token, and 0 where the clip binds, which it does for a string as a whole.
    A string with no kept token costs 0.

    Args:
        clip_eps_low: ε_low; 3e-4 in the paper, since s varies less than a token's ratio.
        clip_eps_high: ε_high; 4e-4 in the paper.

    Reference: Zheng et al. (2025), "Group Sequence Policy Optimization", equation 5. The gradient flows through s, as
    in TRL; Tunix's `gspo-token` passes the same numbers token by token with s held constant.
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    log_ratio = masked_mean(jnp.subtract(log_probs, jax.lax.stop_gradient(old_log_probs)), mask)
    loss = dapo_loss(log_ratio, 0.0, advantage, clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high)
    return jnp.where(jnp.any(mask), loss, 0)


@jax.jit
def cispo_loss(
    log_probs: Float[ArrayLike, "*s"],
    old_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    advantages: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    *,
    clip_eps_low: Scalar,
    clip_eps_high: Scalar,
) -> Float[Array, "*s"]:
    """−w A log π with the clipped ratio w = clip(r, 1 − ε_low, 1 + ε_high) as a constant weight.

    The gradient is −w A ∇ log π, so no token is ever dropped; it is not the gradient of the ratio's objective.

    Args:
        clip_eps_low: ε_low; 1 or more removes the lower bound, as the paper's experiments do.
        clip_eps_high: ε_high; TRL's `epsilon_high` is the cap itself, 1 + ε_high here, and it has no lower bound.

    Reference: MiniMax (2025), "MiniMax-M1".
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    ratio = ppo.probability_ratio(log_probs, old_log_probs)
    weight = jnp.clip(ratio, 1 - clip_eps_low, 1 + clip_eps_high)
    return reinforce_loss(log_probs, weight * advantages)


@jax.jit
def token_mean(losses: Float[ArrayLike, "B T"], mask: Bool[ArrayLike, "B T"]) -> Float[Array, ""]:
    """Σ_i Σ_t losses_{i,t} / Σ_i |y_i|: every token weighs the same, so long strings weigh more.

    TRL's `bnpo`, and its `dapo` if the batch is the whole generation batch; Tunix's `token-mean`.
    """
    check_same_shape(losses=losses, mask=mask)
    return masked_mean(losses, mask)


@jax.jit
def sequence_mean(losses: Float[ArrayLike, "B T"], mask: Bool[ArrayLike, "B T"]) -> Float[Array, ""]:
    """(1/B) Σ_i (1/|y_i|) Σ_t losses_{i,t}: every string weighs the same, so a long one's tokens weigh less.

    A string with no kept token adds 0 and counts in B. TRL's `grpo`; Tunix's `sequence-mean-token-mean`.
    """
    check_same_shape(losses=losses, mask=mask)
    return jax.vmap(masked_mean)(losses, mask).mean()


@jax.jit
def fixed_length_mean(
    losses: Float[ArrayLike, "B T"], mask: Bool[ArrayLike, "B T"], length: Scalar
) -> Float[Array, ""]:
    """Σ_i Σ_t losses_{i,t} / (B L): a token's weight depends on no string's length.

    TRL's `dr_grpo`; Tunix's `sequence-mean-token-scale` with L the padded width.

    Args:
        length: L, a constant of the run: the most tokens that a string may have.

    Reference: Liu et al. (2025), "Understanding R1-Zero-Like Training" (Dr. GRPO).
    """
    check_same_shape(losses=losses, mask=mask)
    return masked_sum(losses, mask) / (jnp.shape(losses)[0] * length)
