"""Prompts and completions as arrays, and the log-probabilities that a model gives them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from rlhf_jax import log_probs
from rlhf_jax.lm import gpt2
from rlhf_jax.lm.architecture import Config, architecture

TokenIds = Sequence[int] | Int[np.ndarray, "_"]


class Sequences(NamedTuple):
    """Prompts padded on the left, completions on the right: the border stands at one column for every row.

    Prompt and completion are tokenised apart and joined here as ids, so no token straddles the border.
    """

    prompts: Int[ArrayLike, "B P"]
    prompt_mask: Bool[ArrayLike, "B P"]
    completions: Int[ArrayLike, "B C"]
    completion_mask: Bool[ArrayLike, "B C"]


def join(sequences: Sequences) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
    """Tokens and mask of prompt followed by completion, T = P + C."""
    tokens = jnp.concatenate([sequences.prompts, sequences.completions], axis=1)
    return tokens, jnp.concatenate([sequences.prompt_mask, sequences.completion_mask], axis=1)


def completion_states(config: Config, params: gpt2.Params, sequences: Sequences) -> Float[Array, "B S D"]:
    """Hidden states from the last prompt token to the last completion token, S = C + 1.

    Row t is what the policy knows before completion token t: it scores that token, and its value head V(s_t).
    """
    tokens, mask = join(sequences)
    return architecture(config).hidden(config, params, tokens, mask)[:, sequences.prompts.shape[1] - 1 :]


def completion_log_probs(config: Config, params: gpt2.Params, sequences: Sequences) -> Float[Array, "B C"]:
    """log π(y_t | x, y_<t) for each completion token, in float32; what stands at padding is meaningless.

    Logits are computed at the completion's positions only.
    """
    states = completion_states(config, params, sequences)
    tokens = jnp.concatenate([sequences.prompts[:, -1:], sequences.completions], axis=1)
    return log_probs.token_log_probs(gpt2.unembed(params, states), tokens)


def sequence_log_probs(config: Config, params: gpt2.Params, sequences: Sequences) -> Float[Array, " B"]:
    """log π(y | x) = Σ_t log π(y_t | x, y_<t), summed over the completion's real tokens."""
    per_token = completion_log_probs(config, params, sequences)
    return jnp.where(sequences.completion_mask, per_token, 0).sum(1)


def pad_left(rows: Sequence[TokenIds], length: int) -> tuple[Int[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
    """Ids [N, length] and mask of rows padded on the left with id 0; a longer row keeps its end."""
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        kept = list(row)[-length:]
        if kept:
            tokens[index, -len(kept) :], mask[index, -len(kept) :] = kept, True
    return tokens, mask


def pad_right(rows: Sequence[TokenIds], length: int) -> tuple[Int[np.ndarray, "N T"], Bool[np.ndarray, "N T"]]:
    """Ids [N, length] and mask of rows padded on the right with id 0; a longer row keeps its start."""
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        kept = list(row)[:length]
        tokens[index, : len(kept)], mask[index, : len(kept)] = kept, True
    return tokens, mask


def take(tree, index):
    """The rows `index` of every array in a tree of arrays with one leading axis."""
    return jax.tree.map(lambda array: array[index], tree)
