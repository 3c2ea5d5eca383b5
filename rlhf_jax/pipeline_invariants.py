"""What must hold on the road from text to log-probabilities, rewards and advantages; see `invariants`."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from rlhf_jax import audit
from rlhf_jax.invariants import Check, check_small

# --- Text


def prompt_stays_a_prefix(
    encode_pair: Callable[[str, str], Sequence[int]], encode: Callable[[str], Sequence[int]], prompt: str, *texts: str
) -> Check:
    """`encode_pair(prompt, completion)` begins with `encode(prompt)` for each text.

    A tokenizer may merge across the border, and the mask that counts the prompt's tokens is then off by one.
    """
    alone = list(encode(prompt))
    broken = sum(list(encode_pair(prompt, text))[: len(alone)] != alone for text in texts)
    return check_small("prompt_stays_a_prefix", float(broken), "texts that changed the prompt's tokens")


def eos_is_kept(mask_of: Callable, tokens: Int[ArrayLike, "B T"], eos_id: int) -> Check:
    """`mask_of(tokens)` keeps a completion's first EOS and drops what follows, also where padding is EOS."""
    ended = np.cumsum(np.asarray(tokens) == eos_id, axis=1)
    expected = np.concatenate([np.zeros_like(ended[:, :1]), ended[:, :-1]], axis=1) == 0
    wrong = float(np.sum(np.asarray(mask_of(tokens)) != expected))
    return check_small("eos_is_kept", wrong, "tokens wrongly kept or dropped around the first EOS")


# --- Models


def padding_ids_are_ignored(scores_of: Callable, tokens: Int[ArrayLike, "B T"], mask: Bool[ArrayLike, "B T"]) -> Check:
    """`scores_of(tokens, mask)`, [B, T, ...], says the same of kept tokens whatever ids stand at the padding."""
    other = jnp.where(mask, tokens, jnp.max(tokens) - tokens)
    change = _kept(scores_of(tokens, mask), mask) - _kept(scores_of(other, mask), mask)
    return check_small("padding_ids_are_ignored", change, "change with the ids at the padding")


def padding_side_is_irrelevant(
    scores_of: Callable, tokens: Int[ArrayLike, "B T"], mask: Bool[ArrayLike, "B T"]
) -> Check:
    """`scores_of(tokens, mask)`, [B, T, ...], says the same of `tokens` padded on the right and on the left."""
    scores = []
    for order in (~np.asarray(mask), np.asarray(mask)):
        moved = np.argsort(order, axis=1, kind="stable")
        padded, kept = (jnp.take_along_axis(jnp.asarray(array), moved, 1) for array in (tokens, mask))
        scores.append(_kept(scores_of(padded, kept), kept))
    return check_small("padding_side_is_irrelevant", scores[0] - scores[1], "change when padding moves to the left")


def _kept(scores, mask):
    return jnp.asarray(scores)[np.asarray(mask)]


def randomness_is_off(log_probs_of: Callable[[Key[Array, ""]], Array]) -> Check:
    """`log_probs_of(key)` is the same for two keys: no dropout between the sampler, the reference and the trainer."""
    one, other = (log_probs_of(jax.random.key(seed)) for seed in (0, 1))
    return check_small("randomness_is_off", one - other, "change of log-probabilities with the random key")


def log_probs_are_normalised(log_softmax_of: Callable, logits: Float[ArrayLike, "*s V"]) -> Check:
    """Σ_v exp of `log_softmax_of(logits)` is 1, for the dtype of the logits that the model computes."""
    totals = jnp.exp(jnp.asarray(log_softmax_of(logits), jnp.float32)).sum(-1)
    return check_small("log_probs_are_normalised", totals - 1, "distance of the probabilities' sum from 1")


def vocabulary_is_never_held(function: Callable, *arrays: ArrayLike, vocab_size: int, num_tokens: int) -> Check:
    """No array in `function`'s program holds a number for each of the vocabulary at each of `num_tokens` tokens."""
    equations = audit.equations(jax.make_jaxpr(function)(*arrays))
    largest = max(variable.aval.size for equation in equations for variable in equation.outvars)
    bound = vocab_size * num_tokens
    meaning = f"largest array's size, over that of all {bound} logits"
    return Check("vocabulary_is_never_held", largest < bound, largest / bound, meaning)


# --- Rewards, values, advantages


def reward_lands_on_the_last_token(
    place: Callable, scores: Float[ArrayLike, " B"], mask: Bool[ArrayLike, "B T"]
) -> Check:
    """`place(scores, mask)`, [B, T], is each string's score at its last kept token, if it has one, and 0 elsewhere."""
    expected = np.zeros(np.shape(mask))
    for row, (score, kept) in enumerate(zip(np.asarray(scores), np.asarray(mask), strict=True)):
        expected[row, np.flatnonzero(kept)[-1:]] = score
    distance = jnp.asarray(place(scores, mask)) - expected
    return check_small("reward_lands_on_the_last_token", distance, "reward at a wrong token, in reward units")


def first_values_are_zero(values: Float[ArrayLike, "*s"]) -> Check:
    """A new value head says 0, so that the first advantages are the rewards and not its noise.

    Not for a value function that starts from a reward model's weights: that one has something to say.
    """
    return check_small("first_values_are_zero", values, "largest |value| before the first update, in reward units")


def truncation_bootstraps(advantages_of: Callable) -> Check:
    """A trajectory that was cut off bootstraps from v_T, one that ended does not; γ = 1.

    `advantages_of(rewards [T], terminated [T], truncated [T], values [T+1])`: the last one is r + v_T − v_{T−1} after a
    truncation, r − v_{T−1} after an end.
    """
    rewards, values, never = np.ones(3, np.float32), np.array([0.5, 0.5, 0.5, 8], np.float32), np.zeros(3, bool)
    last = np.arange(3) == 2
    of = {flag: np.asarray(advantages_of(rewards, *flags, values))[-1] for flag, flags in
          {"end": (last, never), "cut": (never, last)}.items()}  # fmt: skip
    distance = jnp.asarray([of["end"] - 0.5, of["cut"] - 8.5])
    return check_small("truncation_bootstraps", distance, "error of the last advantage, in reward units")
