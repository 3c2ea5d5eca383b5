"""Reinforcement learning from human feedback, from first principles, in JAX.

The modules are the namespace: `from rlhf_jax import dpo; dpo.dpo_loss(...)`. The core modules need jax, numpy
and jaxtyping alone; `rlhf_jax.lm`, `rlhf_jax.preferences` and `rlhf_jax.training` need the `[lm]` extra.
"""

__version__ = "0.1.0"
