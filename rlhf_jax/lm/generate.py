"""Sampling from a model: one compiled loop over tokens, with GPT-2's keys and values cached."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from rlhf_jax._typing import Scalar
from rlhf_jax.lm import gpt2
from rlhf_jax.lm.architecture import Config, architecture


class Completion(NamedTuple):
    """The N new tokens of each prompt, up to and including the end-of-text token."""

    tokens: Int[Array, "B N"]
    mask: Bool[Array, "B N"]
    log_probs: Float[Array, "B N"]


def generate(
    config: Config,
    params: gpt2.Params,
    prompts: Int[ArrayLike, "B P"],
    prompt_mask: Bool[ArrayLike, "B P"],
    key: Key[Array, ""],
    *,
    max_new_tokens: int,
    temperature: Scalar = 1.0,
    top_k: int = 0,
    top_p: Scalar = 1.0,
    eos_id: int | Int[ArrayLike, ""] | None = None,
) -> Completion:
    """Continue each prompt by tokens drawn from softmax(logits / temperature), truncated to the top_k, then to top_p.

    Changing `temperature`, `top_p` or one `eos_id` for another does not recompile. Nothing is donated: no input has
    an output's shape, and the caller keeps `params`; the cache is updated in place inside the loop.

    Args:
        prompts, prompt_mask: padding on either side; each row needs a real token (a row without one continues
            its padding).
        temperature: 0 is greedy decoding, the first of equal logits.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose probability reaches this, at least one; 1 keeps all.
        eos_id: ends a row. The mask keeps it and drops what follows (`eos_id` again, with log-probability 0).

    Returns:
        `log_probs` [nats] are the model's own log π(y_t | x, y_<t), neither tempered nor truncated: those of the
        behaviour policy only at temperature 1 without truncation.

    Raises:
        ValueError: if `max_new_tokens` is not positive, or P + max_new_tokens exceeds `n_positions`.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be positive, got {max_new_tokens}")
    temperature, top_p = jnp.asarray(temperature, jnp.float32), jnp.asarray(top_p, jnp.float32)
    eos_id = None if eos_id is None else jnp.asarray(eos_id, jnp.int32)
    return _generate(config, params, prompts, prompt_mask, key, max_new_tokens, temperature, top_k, top_p, eos_id)


@functools.partial(jax.jit, static_argnums=(0, 5, 7))
def _generate(config, params, prompts, prompt_mask, key, max_new_tokens, temperature, top_k, top_p, eos_id):
    model, (batch, length) = architecture(config), prompts.shape
    uniforms = jax.random.uniform(key, (max_new_tokens, batch), jnp.float32)

    def next_token(states, done, uniform):
        logits = gpt2.unembed(params, states)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        tokens = _sample(logits, uniform, temperature, top_k, top_p)
        log_probs = jnp.take_along_axis(logits, tokens[:, None], 1)[:, 0] - jax.nn.logsumexp(logits, axis=1)
        if eos_id is None:
            return Completion(tokens, ~done, log_probs), done
        tokens = jnp.where(done, eos_id, tokens)
        return Completion(tokens, ~done, jnp.where(done, 0, log_probs)), done | (tokens == eos_id)

    def step(carry, slot_and_uniform):
        (tokens, cache, done), (slot, uniform) = carry, slot_and_uniform
        states, cache = model.decode_step(config, params, tokens, cache, slot)
        new, done = next_token(states, done, uniform)
        return (new.tokens, cache, done), new

    states, cache = model.prefill(config, params, prompts, prompt_mask, length + max_new_tokens)
    last = length - 1 - jnp.argmax(prompt_mask[:, ::-1], axis=1)
    first, done = next_token(states[jnp.arange(batch), last], jnp.zeros(batch, bool), uniforms[0])
    slots = length + jnp.arange(max_new_tokens - 1)
    _, rest = jax.lax.scan(step, (first.tokens, cache, done), (slots, uniforms[1:]))
    return jax.tree.map(lambda one, more: jnp.concatenate([one[:, None], more.T], axis=1), first, rest)


def _sample(logits, uniforms, temperature, top_k, top_p):
    """One token a row. Temperature 0 leaves weight on the largest logits only, of which uniform 0 takes the first."""
    ids = None
    if top_k:
        logits, ids = jax.lax.top_k(logits, min(top_k, logits.shape[1]))
    centred = (logits - logits.max(1, keepdims=True)).astype(jnp.float32)
    weights = jnp.exp(centred / jnp.maximum(temperature, 1e-30))
    weights = jax.lax.cond(top_p < 1, lambda: _nucleus(weights, top_p), lambda: weights)
    drawn = _draw(weights, jnp.where(temperature > 0, uniforms, 0))
    return drawn if ids is None else jnp.take_along_axis(ids, drawn[:, None], 1)[:, 0]


def _nucleus(weights, top_p):
    """Zero all but the smallest set of largest weights whose sum reaches top_p of the total.

    The set's smallest weight is found by bisection on its bits, which order non-negative floats as integers do: 30
    passes, where XLA's sort on a CPU costs ten times as much. Of equal weights there the first are kept.
    """
    target = jnp.maximum(top_p * weights.sum(1, keepdims=True), 1e-30)
    total = lambda keep: jnp.where(keep, weights, 0).sum(1, keepdims=True)
    as_float = lambda bits: jax.lax.bitcast_convert_type(bits, jnp.float32)

    def set_bit(i, low):
        trial = low | (1 << (29 - i))
        return jnp.where(total(weights >= as_float(trial)) >= target, trial, low)

    least = as_float(jax.lax.fori_loop(0, 30, set_bit, jnp.zeros((len(weights), 1), jnp.int32)))
    above, equal = weights > least, weights == least
    rank = jnp.cumsum(equal, axis=1)
    kept = above | (equal & (total(above) + (rank - 1) * least < target))
    return jnp.where(kept, weights, 0)


def _draw(weights, uniforms):
    """Inverse of the cumulative distribution by a table of two levels: first a block of about sqrt(V) tokens."""
    size = math.ceil(math.sqrt(weights.shape[1]))
    blocks = jnp.pad(weights, ((0, 0), (0, -weights.shape[1] % size))).reshape(len(weights), -1, size)
    sums = blocks.sum(2)
    block, target = _first_above(sums, uniforms * sums.sum(1))
    inside, _ = _first_above(jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0], target)
    return block * size + inside


def _first_above(weights, targets):
    """First entry whose cumulative weight exceeds the target, and what the target leaves inside it.

    Never an entry of weight 0, even where rounding leaves no cumulative weight above the target.
    """
    cumulative = jnp.cumsum(weights, axis=1)
    index = jnp.argmax(jnp.where(weights > 0, 1 + (cumulative > targets[:, None]), 0), axis=1).astype(jnp.int32)
    at = lambda array: jnp.take_along_axis(array, index[:, None], 1)[:, 0]
    return index, targets - (at(cumulative) - at(weights))
