"""Supervised fine-tuning: maximum likelihood of completions given their prompts."""

import functools

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from rlhf_jax.lm import gpt2
from rlhf_jax.lm.sequences import Sequences, completion_log_probs
from rlhf_jax.masking import masked_mean
from rlhf_jax.training import state


def sft_loss(
    params: gpt2.Params, batch: Sequences, *, config: gpt2.GPT2Config
) -> tuple[Float[Array, ""], state.Metrics]:
    """−mean_t log π(y_t | x, y_<t) over all completion tokens of the batch, in nats a token.

    Prompt tokens are read, not learnt. Dropout is off.
    """
    per_token = completion_log_probs(config, params, batch)
    return -masked_mean(per_token, batch.completion_mask), {"tokens": jnp.sum(batch.completion_mask)}


def make_sft_step(config: gpt2.GPT2Config, optimizer: optax.GradientTransformation) -> state.Step:
    """A jitted `(state, Sequences) -> (state, metrics)`; metrics: loss, grad_norm, tokens."""
    return state.make_step(functools.partial(sft_loss, config=config), optimizer)
