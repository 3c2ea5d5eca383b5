"""Advantages relative to a group: G strings sampled for one prompt are each other's baseline.

One group at a time; callers `vmap` over prompts. A group whose rewards are all equal says nothing: its advantages
are 0, with finite gradients.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from rlhf_jax._typing import Scalar


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
    deviation = jnp.where(variance == 0, 0, jnp.sqrt(jnp.where(variance == 0, 1, variance)))
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
