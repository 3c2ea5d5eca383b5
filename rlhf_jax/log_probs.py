"""From logits to the log-probabilities of tokens, in nats.

Sums over a vocabulary run in float32 (float64 for float64 inputs), whatever the dtype of the logits.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from rlhf_jax._typing import check_same_shape


def _widen(logits: ArrayLike) -> Array:
    return jnp.asarray(logits, jnp.promote_types(jnp.result_type(logits), jnp.float32))


def _check_tokens(name: str, shape: tuple[int, ...], tokens: ArrayLike) -> None:
    if shape[:-1] != jnp.shape(tokens):
        raise ValueError(
            f"tokens must have the shape of {name} but its last axis, got {name} {shape}, tokens {jnp.shape(tokens)}"
        )


@jax.jit
def log_softmax(logits: Float[ArrayLike, "*s V"]) -> Float[Array, "*s V"]:
    """log p_v = l_v − log Σ_u exp l_u, in float32 or wider; −inf logits are tokens of probability 0."""
    return jax.nn.log_softmax(_widen(logits))


@jax.jit
def categorical_log_probs(logits: Float[ArrayLike, "*s V"], tokens: Int[ArrayLike, "*s"]) -> Float[Array, "*s"]:
    """log p(token) = l_token − log Σ_v exp l_v, without forming the log-softmax of the other tokens.

    Args:
        logits: those that score `tokens` at the same index; nothing is shifted.

    Raises:
        ValueError: if the shapes disagree.
    """
    _check_tokens("logits", jnp.shape(logits), tokens)
    wide = _widen(logits)
    gathered = jnp.take_along_axis(wide, jnp.asarray(tokens)[..., None], axis=-1)[..., 0]
    return gathered - jax.nn.logsumexp(wide, axis=-1)


@jax.jit
def token_log_probs(logits: Float[ArrayLike, "B T V"], tokens: Int[ArrayLike, "B T"]) -> Float[Array, "B T-1"]:
    """log π(token_{t+1} | token_0 … token_t), for t = 0 … T−2.

    Args:
        logits: a causal model's; position t scores token t + 1, so the last position is not used.

    Raises:
        ValueError: if the shapes disagree.
    """
    _check_tokens("logits", jnp.shape(logits), tokens)
    return categorical_log_probs(jnp.asarray(logits)[:, :-1], jnp.asarray(tokens)[:, 1:])


@functools.partial(jax.jit, static_argnames="chunk_size")
def chunked_token_log_probs(
    hidden: Float[ArrayLike, "B T D"],
    embedding: Float[ArrayLike, "V D"],
    tokens: Int[ArrayLike, "B T"],
    *,
    chunk_size: int = 32,
) -> Float[Array, "B T-1"]:
    """`token_log_probs(hidden @ embedding.T, tokens)` without ever holding an array of shape [B, T, V].

    Logits exist for `chunk_size` time steps at once, in the forward pass and again, recomputed, in the backward
    pass; the gradients into `hidden` and `embedding` are exact. The products accumulate in float32, so bfloat16
    inputs lose less than bfloat16 logits would.

    Raises:
        ValueError: if the shapes disagree.
    """
    _check_tokens("hidden", jnp.shape(hidden), tokens)
    states, weights = jnp.asarray(hidden), jnp.asarray(embedding)
    if weights.shape[1:] != states.shape[-1:]:
        raise ValueError(f"embedding must be [V, D] with D as in hidden {states.shape}, got {weights.shape}")
    wide = jnp.promote_types(jnp.result_type(states, weights), jnp.float32)

    @jax.checkpoint
    def score(step):
        step_states, next_tokens = step
        logits = jnp.matmul(step_states, weights.T, preferred_element_type=wide)
        return categorical_log_probs(logits, next_tokens)

    steps = (states[:, :-1].swapaxes(0, 1), jnp.asarray(tokens)[:, 1:].T)
    return jax.lax.map(score, steps, batch_size=chunk_size).T


@jax.jit
def log_ratio(log_probs: Float[ArrayLike, "*#s"], old_log_probs: Float[ArrayLike, "*#s"]) -> Float[Array, "*#s"]:
    """min(log π − log π_old, ½ log M), M the dtype's largest number.

    The bound (44 nats in float32) keeps the ratio, its square and their gradients finite, so that one absurd token
    that is masked later cannot turn a gradient into 0 · inf. Beyond it the gradient is 0.
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs)
    difference = jnp.subtract(log_probs, old_log_probs)
    return jnp.minimum(difference, 0.5 * math.log(float(jnp.finfo(difference.dtype).max)))
