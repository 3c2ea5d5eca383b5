"""Choices between strings of an enumerable language: the whole population with exact weights, and finite samples.

Two different strings are drawn from a policy and shown in that order to an annotator, who names the better one by
Bradley and Terry's model. Strings are given by their index in the list of all strings.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from rlhf_jax._typing import Scalar, check_same_shape


class PairWeights(NamedTuple):
    """Every ordered pair of different strings, M = N (N − 1), and how often a choice comes out so."""

    chosen: Int[Array, " M"]
    rejected: Int[Array, " M"]
    weight: Float[Array, " M"]
    """Probabilities: they sum to 1, and Σ weight · loss is the population's mean loss."""


class Choices(NamedTuple):
    """Choices as drawn."""

    chosen: Int[Array, " M"]
    rejected: Int[Array, " M"]
    chosen_first: Bool[Array, " M"]
    """Whether the chosen string was the one shown first."""


@jax.jit
def choice_probs(
    first_rewards: Float[ArrayLike, "*s"],
    second_rewards: Float[ArrayLike, "*s"],
    *,
    temperature: Scalar = 1.0,
    position_bias: Scalar = 0.0,
    flip_prob: Scalar = 0.0,
) -> Float[Array, "*s"]:
    """P(the string shown first is recorded as chosen) = ε + (1 − 2ε) σ((r₁ − r₂)/T + b).

    Args:
        first_rewards: r₁ of the string shown first, in reward units.
        temperature: T > 0, reward units per nat; a small one makes choices nearly certain.
        position_bias: b, nats in favour of what is shown first.
        flip_prob: ε, the share of records that name the other string, whatever the pair.

    Reference: Bradley and Terry (1952); the flips are Chowdhury et al. (2024), "Provably Robust DPO".
    """
    check_same_shape(first_rewards=first_rewards, second_rewards=second_rewards)
    first_wins = jax.nn.sigmoid(jnp.subtract(first_rewards, second_rewards) / temperature + position_bias)
    return flip_prob + (1 - 2 * flip_prob) * first_wins


@jax.jit
def bradley_terry_population(
    log_probs: Float[ArrayLike, " N"],
    rewards: Float[ArrayLike, " N"],
    *,
    temperature: Scalar = 1.0,
    position_bias: Scalar = 0.0,
    flip_prob: Scalar = 0.0,
) -> PairWeights:
    """Every ordered pair of different strings with the probability of that choice, both orders of showing counted.

    weight(i, j) = π(i) π(j) [c(i, j) + 1 − c(j, i)] / Σ_{k≠l} π(k) π(l),   c = `choice_probs`.

    Without position bias c(i, j) + c(j, i) = 1. Gradients flow into all arguments.

    Args:
        log_probs: log π(y) of the policy that the pairs are drawn from; −inf is a string that is never shown.
        rewards: r(y), in reward units.
    """
    check_same_shape(log_probs=log_probs, rewards=rewards)
    probs, rewards = jnp.exp(log_probs), jnp.asarray(rewards)
    chosen, rejected = _ordered_pairs(len(rewards))
    prefers_first = functools.partial(
        choice_probs, temperature=temperature, position_bias=position_bias, flip_prob=flip_prob
    )
    shown = probs[chosen] * probs[rejected]
    wins = prefers_first(rewards[chosen], rewards[rejected]) + 1 - prefers_first(rewards[rejected], rewards[chosen])
    return PairWeights(chosen, rejected, shown / shown.sum() * wins)


@functools.partial(jax.jit, static_argnames="num_pairs")
def sample_choices(
    key: Key[Array, ""],
    log_probs: Float[ArrayLike, " N"],
    rewards: Float[ArrayLike, " N"],
    num_pairs: int,
    *,
    temperature: Scalar = 1.0,
    position_bias: Scalar = 0.0,
    flip_prob: Scalar = 0.0,
) -> Choices:
    """Independent choices, whose frequencies are on average the weights of `bradley_terry_population`.

    A pair is two draws from π, repeated until they differ, shown in the order drawn.
    """
    check_same_shape(log_probs=log_probs, rewards=rewards)
    log_probs, rewards = jnp.asarray(log_probs), jnp.asarray(rewards)
    pair_key, choice_key = jax.random.split(key)
    firsts, seconds = _ordered_pairs(len(rewards))
    pairs = jax.random.categorical(pair_key, log_probs[firsts] + log_probs[seconds], shape=(num_pairs,))
    first, second = firsts[pairs], seconds[pairs]
    probs = choice_probs(
        rewards[first], rewards[second], temperature=temperature, position_bias=position_bias, flip_prob=flip_prob
    )
    chosen_first = jax.random.bernoulli(choice_key, probs)
    return Choices(jnp.where(chosen_first, first, second), jnp.where(chosen_first, second, first), chosen_first)


def _ordered_pairs(num_strings):
    return map(jnp.asarray, np.nonzero(~np.eye(num_strings, dtype=bool)))
