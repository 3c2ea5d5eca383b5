"""Human choices as arrays of token ids, for any tokenizer."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from rlhf_jax.lm.sequences import Sequences, pad_left, pad_right
from rlhf_jax.preferences.schema import Preference, PreferenceError


class Pairs(NamedTuple):
    """(x, y⁺) and (x, y⁻), NumPy arrays; row i of both has the same prompt."""

    chosen: Sequences
    rejected: Sequences


def encode_pairs(
    tokenizer: Tokenizer,
    preferences: Sequence[Preference],
    *,
    prompt_length: int,
    completion_length: int,
    eos_id: int,
) -> tuple[Pairs, float]:
    """Token ids of the pairs, in their order, and the share of pairs in which anything was cut off.

    Prompt and completion are tokenised apart, so their border is the same in both texts of a pair; without special
    tokens. The end-of-text token closes a completion and counts towards its length: a completion that is cut has none.
    A cut keeps the end of a prompt and the beginning of a completion. Pairs that a cut makes identical are left out:
    their losses would be constant and their accuracy a coin flip. `len(preferences)` less the rows is their number.

    Args:
        prompt_length: columns of the prompts, at least 1.
        completion_length: columns of the completions, at least 1.
        eos_id: also the one token of an empty prompt, since GPT-2 begins a text with its end-of-text token.

    Raises:
        PreferenceError: if no pair is left.
        ValueError: for a length below 1.
    """
    _check_lengths(prompt_length=prompt_length, completion_length=completion_length)
    prompts = _encode_prompts(tokenizer, [preference.prompt for preference in preferences], eos_id)
    chosen = _encode_completions(tokenizer, [preference.chosen for preference in preferences], eos_id)
    rejected = _encode_completions(tokenizer, [preference.rejected for preference in preferences], eos_id)
    rows = list(zip(prompts, chosen, rejected, strict=True))
    kept = [row for row in rows if row[1][:completion_length] != row[2][:completion_length]]
    if not kept:
        raise PreferenceError(
            f"no pair differs within {completion_length} tokens of completion; give more tokens or more pairs"
        )
    cut = [len(row[0]) > prompt_length or max(len(row[1]), len(row[2])) > completion_length for row in rows]
    prompts, chosen, rejected = zip(*kept, strict=True)
    padded_prompts = pad_left(prompts, prompt_length)
    pairs = Pairs(
        Sequences(*padded_prompts, *pad_right(chosen, completion_length)),
        Sequences(*padded_prompts, *pad_right(rejected, completion_length)),
    )
    return pairs, sum(cut) / len(cut)


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], prompt_length: int, eos_id: int
) -> tuple[Int[np.ndarray, "B P"], Bool[np.ndarray, "B P"]]:
    """Token ids and mask of prompts, padded on the left, P = `prompt_length`; the same ids as in `encode_pairs`.

    Raises:
        ValueError: for a length below 1.
    """
    _check_lengths(prompt_length=prompt_length)
    return pad_left(_encode_prompts(tokenizer, prompts, eos_id), prompt_length)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str], eos_id: int) -> list[list[int]]:
    return [ids or [eos_id] for ids in _encode(tokenizer, prompts)]


def _encode_completions(tokenizer: Tokenizer, completions: Sequence[str], eos_id: int) -> list[list[int]]:
    return [[*ids, eos_id] for ids in _encode(tokenizer, completions)]


def _check_lengths(**lengths: int) -> None:
    for name, length in lengths.items():
        if length < 1:
            raise ValueError(f"{name} is {length}, must be at least 1")
