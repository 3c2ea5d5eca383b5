"""Losses that fit a reward to choices and to rankings."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from rlhf_jax._typing import Scalar, check_same_shape


@jax.jit
def bradley_terry_loss(
    chosen_rewards: Float[ArrayLike, "*s"],
    rejected_rewards: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    *,
    margin: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "*s"]:
    """−log P(chosen beats rejected) under Bradley and Terry's model of choice.

    −log σ(r_chosen − r_rejected − m).

    Args:
        chosen_rewards: in nats: a lead of 1 is odds of e.
        rejected_rewards: of the other string of each pair.
        margin: m ≥ 0, the lead asked of a pair, one number or one a pair; 0 is the model's own likelihood.

    Reference: Bradley and Terry (1952); the margin is Touvron et al. (2023), "Llama 2", equation 2.
    """
    check_same_shape(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards, margin=margin)
    return -jax.nn.log_sigmoid(chosen_rewards - rejected_rewards - margin)


@jax.jit
def plackett_luce_loss(rewards: Float[ArrayLike, " K"]) -> Float[Array, ""]:
    """−log P(ranking) of K strings listed best first; with K = 2 it is `bradley_terry_loss`.

    −Σ_k [r_k − log Σ_{j ≥ k} exp r_j]: the best is chosen among all, the second among the rest, and so on.

    Reference: Plackett (1975); Rafailov et al. (2023), appendix A.3.
    """
    remaining = jax.lax.cumlogsumexp(jnp.asarray(rewards), reverse=True)
    return jnp.sum(remaining - rewards)


@jax.jit
def best_of_k_loss(rewards: Float[ArrayLike, " K"], best: Int[ArrayLike, ""]) -> Float[Array, ""]:
    """−log P(`best` is chosen among K strings) = log Σ_k exp r_k − r_best; with K = 2 it is `bradley_terry_loss`.

    The gradient is softmax(r), less 1 at `best`. It is `plackett_luce_loss` without the ranks below the first; a
    reward of −inf leaves a string out of the choice.

    Reference: Ziegler et al. (2019), equation 1.
    """
    rewards = jnp.asarray(rewards)
    return jax.nn.logsumexp(rewards) - rewards[best]


@jax.jit
def davidson_loss(
    chosen_rewards: Float[ArrayLike, "*s"],
    rejected_rewards: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    tied: Bool[ArrayLike, "*s"] | Bool[ArrayLike, ""],
    *,
    tie_weight: Scalar,
) -> Float[Array, "*s"]:
    """−log P(choice) under Davidson's model of choice with ties.

    P(y⁺ wins) : P(tie) : P(y⁻ wins) = e^{r⁺} : ν e^{(r⁺ + r⁻)/2} : e^{r⁻}.

    Args:
        chosen_rewards: r⁺, in nats; of either string of a pair that is tied.
        rejected_rewards: r⁻, of the other one.
        tied: True where the annotator could not choose.
        tie_weight: ν ≥ 0, the odds of a tie against a win between equals; 0 is `bradley_terry_loss`.

    Reference: Davidson (1970), "On Extending the Bradley-Terry Model to Accommodate Ties in Paired Comparison
    Experiments".
    """
    check_same_shape(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards, tied=tied)
    half_lead = 0.5 * (chosen_rewards - rejected_rewards)
    widest = jnp.abs(half_lead)
    normalizer = widest + jnp.log(1 + jnp.exp(-2 * widest) + tie_weight * jnp.exp(-widest))
    return normalizer - jnp.where(tied, jnp.log(jnp.where(tied, tie_weight, 1)), half_lead)


@jax.jit
def centering_loss(
    chosen_rewards: Float[ArrayLike, "*s"], rejected_rewards: Float[ArrayLike, "*s"] | Float[ArrayLike, ""]
) -> Float[Array, "*s"]:
    """(r⁺ + r⁻)², an auxiliary term that holds rewards around 0: choices fix them only up to a constant a prompt.

    Added to `bradley_terry_loss` with a small weight, TRL's `center_rewards_coefficient` (0.01 is suggested there).

    Reference: Eisenstein et al. (2023), "Helping or Herding?", equation 2.
    """
    check_same_shape(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    return jnp.square(jnp.add(chosen_rewards, rejected_rewards))
