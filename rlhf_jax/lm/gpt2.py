"""GPT-2 as a pure function of its parameters.

Flax NNX holds the architecture (`rlhf_jax.lm.transformer`); everything above sees a plain nested dict of arrays, named
as in the published checkpoints (`wte`, `wpe`, `h[i].attn.c_attn.weight`, ...), and the functions `init`, `hidden` and
`apply`. Numbers are computed in the dtype of the parameters.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.lm.transformer import GPT2, GPT2Config

Params = dict[str, Any]


class Cache(NamedTuple):
    """Keys and values of every layer, and which slots hold a real token."""

    keys: list[Float[Array, "B H S d"]]
    values: list[Float[Array, "B H S d"]]
    mask: Bool[Array, "B S"]


@functools.cache
def _graph(config: GPT2Config):
    return nnx.split(nnx.eval_shape(lambda: GPT2(config, rngs=nnx.Rngs(params=jax.random.key(0)))))


def _merge(config: GPT2Config, params: Params) -> GPT2:
    transformer = {name: params[name] for name in shapes(config)}
    return nnx.merge(_graph(config)[0], transformer | {"h": dict(enumerate(params["h"]))})


def _to_params(state) -> Params:
    params = nnx.to_pure_dict(state)
    return params | {"h": [params["h"][layer] for layer in range(len(params["h"]))]}


def shapes(config: GPT2Config) -> Params:
    """The parameters' tree with a `jax.ShapeDtypeStruct` at each leaf."""
    return _to_params(_graph(config)[1])


@functools.partial(jax.jit, static_argnames="config")
def init(key: Key[Array, ""], config: GPT2Config) -> Params:
    """Random parameters: normal with `initializer_range`, residual projections scaled by 1 / sqrt(2 n_layer)."""
    return _to_params(nnx.state(GPT2(config, rngs=nnx.Rngs(params=key))))


@jax.jit
def position_ids(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Number of real tokens before each token, so that padding on either side shifts nothing."""
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


def _check_length(config: GPT2Config, length: int) -> None:
    if length > config.n_positions:
        raise ValueError(f"{length} tokens, but the model has n_positions = {config.n_positions}")


@functools.partial(jax.jit, static_argnums=0)
def hidden(
    config: GPT2Config,
    params: Params,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None = None,
    *,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B T D"]:
    """Last hidden states, after the final layer norm.

    Args:
        mask: True at real tokens; padding may stand on either side and changes no real token's numbers.
        dropout_key: dropout acts only when a key is given.

    Raises:
        ValueError: if T exceeds `n_positions`.
    """
    _check_length(config, tokens.shape[1])
    attend = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))[None, None]
    if mask is None:
        positions = jnp.arange(tokens.shape[1])[None]
    else:
        positions, attend = position_ids(mask), attend & mask[:, None, None, :]
    return _merge(config, params)(tokens, positions, attend, dropout_key=dropout_key)[0]


@functools.partial(jax.jit, static_argnums=0)
def apply(
    config: GPT2Config,
    params: Params,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None = None,
    *,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B T V"]:
    """Next-token logits; position t scores token t + 1. Arguments as in `hidden`."""
    return unembed(params, hidden(config, params, tokens, mask, dropout_key=dropout_key))


def unembed_matrix(params: Params) -> Float[Array, "V D"]:
    """The output embedding: `lm_head` where it is untied, `wte` otherwise."""
    return params.get("lm_head", params["wte"])["weight"]


@jax.jit
def unembed(params: Params, states: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Logits = states @ embedding^T."""
    return states @ unembed_matrix(params).T


@functools.partial(jax.jit, static_argnums=(0, 4))
def prefill(
    config: GPT2Config, params: Params, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"], num_slots: int
) -> tuple[Float[Array, "B P D"], Cache]:
    """`hidden` of the prompts, and a cache of `num_slots` slots whose first P hold them.

    Raises:
        ValueError: if `num_slots` exceeds `n_positions`.
    """
    _check_length(config, num_slots)
    attend = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))[None, None] & mask[:, None, None, :]
    states, keys, values = _merge(config, params)(tokens, position_ids(mask), attend)
    room = (0, num_slots - tokens.shape[1])
    widen = lambda array: jnp.pad(array, [(0, 0), (0, 0), room, (0, 0)])
    return states, Cache([widen(k) for k in keys], [widen(v) for v in values], jnp.pad(mask, [(0, 0), room]))


@functools.partial(jax.jit, static_argnums=0)
def decode_step(
    config: GPT2Config, params: Params, tokens: Int[Array, " B"], cache: Cache, slot: Int[Array, ""]
) -> tuple[Float[Array, "B D"], Cache]:
    """Hidden state of one more token a row, written to `slot`; its position is the number of real tokens before it."""
    positions = cache.mask.sum(1, keepdims=True)
    mask = cache.mask.at[:, slot].set(True)
    states, keys, values = _merge(config, params)(tokens[:, None], positions, mask[:, None, None, :], cache, slot)
    return states[:, 0], Cache(keys, values, mask)
