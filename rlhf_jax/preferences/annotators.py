"""Simulated annotators: a utility u(x, y) of text, and noisy choices drawn from it.

The gold annotator stands in for a crowd. It read 25,000 film reviews with their human star ratings and likes text
that it would take for a positive review; `assets/gold/README.md` says what it learned from and how often it is right.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key
from safetensors.numpy import load_file

from rlhf_jax._typing import Scalar, check_same_shape

_GOLD_FILE = Path(__file__).parent.parent / "assets" / "gold" / "gold.safetensors"


class GoldAnnotator(NamedTuple):
    """A logistic regression on which tokens and which pairs of neighbouring tokens stand in a text.

    Token ids are those of the bundled tokenizer, V = 4096; its end-of-text token weighs 0, alone and in pairs.
    """

    unigrams: Float[Array, " V"]
    """The weight of each token, in nats."""
    bigram_codes: Int[Array, " K"]
    """previous · V + next of the pairs that have a weight, ascending."""
    bigrams: Float[Array, " K"]
    """The weight of each of those pairs, in nats."""
    bias: Float[Array, ""]


def load_gold() -> GoldAnnotator:
    """The bundled annotator, its weights in float32."""
    fields = load_file(_GOLD_FILE)
    weights = {name: jnp.asarray(fields[name], jnp.float32) for name in ("unigrams", "bigrams", "bias")}
    return GoldAnnotator(bigram_codes=jnp.asarray(fields["bigram_codes"], jnp.int32), **weights)


@jax.jit
def utility(gold: GoldAnnotator, tokens: Int[ArrayLike, " T"], mask: Bool[ArrayLike, " T"]) -> Float[Array, ""]:
    """u = log P(positive) − log P(negative) of one text read as a film review, in nats.

    u = b + Σ_{distinct tokens v} w_v + Σ_{distinct pairs (v, v')} w_{v v'}: saying a word twice counts once.

    Args:
        gold: from `load_gold`.
        tokens: ids of the bundled tokenizer.
        mask: the real tokens. They should stand together, with padding at either end: a pair is two real tokens in
            neighbouring columns, so a gap inside the text hides the pair across it.

    Gradients flow into the weights of `gold`.
    """
    check_same_shape(tokens=tokens, mask=mask)
    vocab_size, num_bigrams = gold.unigrams.shape[0], gold.bigram_codes.shape[0]
    tokens, mask = jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)
    codes = tokens[:-1] * vocab_size + tokens[1:]
    slots = jnp.searchsorted(gold.bigram_codes, codes).clip(0, num_bigrams - 1)
    known = mask[:-1] & mask[1:] & (gold.bigram_codes[slots] == codes)
    unigrams = _sum_of_distinct(gold.unigrams, jnp.where(mask, tokens, vocab_size))
    return gold.bias + unigrams + _sum_of_distinct(gold.bigrams, jnp.where(known, slots, num_bigrams))


def _sum_of_distinct(weights: Float[Array, " N"], indices: Int[Array, " T"]) -> Float[Array, ""]:
    """Σ of the weights at the distinct indices; index N stands for none."""
    ordered = jnp.sort(indices)
    repeated = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] == ordered[:-1]])[: len(indices)]
    absent = repeated | (ordered == weights.shape[0])
    return jnp.where(absent, 0, weights[jnp.where(absent, 0, ordered)]).sum()


@jax.jit
def choose(
    key: Key[Array, ""],
    first_utilities: Float[ArrayLike, "*s"],
    second_utilities: Float[ArrayLike, "*s"],
    temperature: Scalar,
) -> Bool[Array, "*s"]:
    """True where the first text of a pair is preferred, drawn by Bradley and Terry's model of choice.

    P(first preferred) = σ((u₁ − u₂) / temperature).

    Args:
        temperature: above 0; a small one chooses the better text nearly always, a large one flips coins.

    Reference: Bradley and Terry (1952).
    """
    check_same_shape(first_utilities=first_utilities, second_utilities=second_utilities)
    leads = jnp.subtract(first_utilities, second_utilities) / temperature
    return jax.random.bernoulli(key, jax.nn.sigmoid(leads))


@jax.jit
def best_accuracy(
    first_utilities: Float[ArrayLike, "*s"], second_utilities: Float[ArrayLike, "*s"], temperature: Scalar
) -> Float[Array, ""]:
    """The share of choices that naming the better text foretells: no model can be expected to reach more.

    mean max(p, 1 − p) with p = σ((u₁ − u₂) / temperature) as in `choose`; couples the batch.
    """
    check_same_shape(first_utilities=first_utilities, second_utilities=second_utilities)
    leads = jnp.abs(jnp.subtract(first_utilities, second_utilities)) / temperature
    return jax.nn.sigmoid(leads).mean()
