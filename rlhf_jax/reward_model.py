"""Losses that fit a reward to choices and to rankings."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from rlhf_jax._typing import check_same_shape


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
