"""GPT-2 as a pure function of its parameters.

Flax NNX holds the architecture; everything outside this file sees a plain nested dict of arrays, named as in
the published checkpoints (`wte`, `wpe`, `h[i].attn.c_attn.weight`, ...), and the functions `init`, `hidden`
and `apply`. Numbers are computed in the dtype of the parameters.

Reference: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners"; the fields and
defaults are those of Hugging Face's `GPT2Config`.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

Params = dict[str, Any]

_ACTIVATIONS = {
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """Every field of Hugging Face's GPT-2 configuration that changes the numbers.

    Raises:
        ValueError: if a field's value cannot describe a model; the message names the field.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256

    def __post_init__(self):
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            if getattr(self, name) < 1:
                raise ValueError(f"GPT2Config.{name} must be positive, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise ValueError(f"GPT2Config.n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.activation_function not in _ACTIVATIONS:
            raise ValueError(
                f"GPT2Config.activation_function {self.activation_function!r} is not one of {sorted(_ACTIVATIONS)}"
            )


class Cache(NamedTuple):
    """Keys and values of every layer, and which slots hold a real token."""

    keys: list[Float[Array, "B H S d"]]
    values: list[Float[Array, "B H S d"]]
    mask: Bool[Array, "B S"]


class Conv1D(nnx.Module):
    """y = x W + b with W stored as [inputs, outputs], as GPT-2's checkpoints do."""

    def __init__(self, inputs: int, outputs: int, std: float, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x):
        return x @ self.weight[...] + self.bias[...]


class LayerNorm(nnx.Module):
    def __init__(self, features: int, epsilon: float):
        self.weight = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.epsilon = epsilon

    def __call__(self, x):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return normed.astype(x.dtype) * self.weight[...] + self.bias[...]


class Embedding(nnx.Module):
    def __init__(self, num: int, features: int, std: float, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (num, features)))

    def __call__(self, ids):
        return self.weight[...][ids]


class Attention(nnx.Module):
    def __init__(self, config: GPT2Config, layer: int, *, rngs: nnx.Rngs):
        width, std = config.n_embd, config.initializer_range
        self.c_attn = Conv1D(width, 3 * width, std, rngs=rngs)
        self.c_proj = Conv1D(width, width, std / math.sqrt(2 * config.n_layer), rngs=rngs)
        self.n_head = config.n_head
        self.scale = (width // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.pdrop = config.attn_pdrop

    def __call__(self, x, attend, past, dropout_key):
        """`attend` [B, 1, T, S] says which keys a query sees; `past` is (keys, values, slot) or None."""
        query, key, value = (
            part.reshape(*part.shape[:2], self.n_head, -1).swapaxes(1, 2)
            for part in jnp.split(self.c_attn(x), 3, axis=-1)
        )
        if past is not None:
            past_keys, past_values, slot = past
            key = jax.lax.dynamic_update_slice_in_dim(past_keys, key, slot, axis=2)
            value = jax.lax.dynamic_update_slice_in_dim(past_values, value, slot, axis=2)
        scores = jnp.einsum("bhtd,bhsd->bhts", query * self.scale, key)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        scores = jnp.where(attend, scores, jnp.finfo(scores.dtype).min)
        weights = _dropout(jax.nn.softmax(scores).astype(x.dtype), self.pdrop, dropout_key)
        mixed = jnp.einsum("bhts,bhsd->bthd", weights, value)
        return self.c_proj(mixed.reshape(x.shape)), key, value


class MLP(nnx.Module):
    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        width, std = config.n_embd, config.initializer_range
        inner = 4 * width if config.n_inner is None else config.n_inner
        self.c_fc = Conv1D(width, inner, std, rngs=rngs)
        self.c_proj = Conv1D(inner, width, std / math.sqrt(2 * config.n_layer), rngs=rngs)
        self.activation = _ACTIVATIONS[config.activation_function]

    def __call__(self, x):
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nnx.Module):
    def __init__(self, config: GPT2Config, layer: int, *, rngs: nnx.Rngs):
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, layer, rngs=rngs)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config, rngs=rngs)
        self.pdrop = config.resid_pdrop

    def __call__(self, x, attend, past, dropout_key):
        attn_key, resid_key, mlp_key = _split(dropout_key, 3)
        mixed, key, value = self.attn(self.ln_1(x), attend, past, attn_key)
        x = x + _dropout(mixed, self.pdrop, resid_key)
        return x + _dropout(self.mlp(self.ln_2(x)), self.pdrop, mlp_key), key, value


class GPT2(nnx.Module):
    """The transformer; returns its last hidden states and each layer's keys and values."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        std = config.initializer_range
        self.wte = Embedding(config.vocab_size, config.n_embd, std, rngs=rngs)
        self.wpe = Embedding(config.n_positions, config.n_embd, std, rngs=rngs)
        self.h = nnx.List([Block(config, layer, rngs=rngs) for layer in range(config.n_layer)])
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        if not config.tie_word_embeddings:
            self.lm_head = Embedding(config.vocab_size, config.n_embd, std, rngs=rngs)
        self.pdrop = config.embd_pdrop

    def __call__(self, tokens, positions, attend, cache=None, slot=0, dropout_key=None):
        embd_key, *block_keys = _split(dropout_key, 1 + len(self.h))
        x = _dropout(self.wte(tokens) + self.wpe(positions), self.pdrop, embd_key)
        keys, values = [], []
        for layer, block in enumerate(self.h):
            past = None if cache is None else (cache.keys[layer], cache.values[layer], slot)
            x, key, value = block(x, attend, past, block_keys[layer])
            keys.append(key)
            values.append(value)
        return self.ln_f(x), keys, values


def _split(key, num):
    return [None] * num if key is None else list(jax.random.split(key, num))


def _dropout(x, rate, key):
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


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
