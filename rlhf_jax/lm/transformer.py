"""GPT-2's configuration and its architecture as Flax NNX modules, with the parameter names of the checkpoints.

Reference: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners"; the fields and defaults are
those of Hugging Face's `GPT2Config`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

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
        weights = dropout(jax.nn.softmax(scores).astype(x.dtype), self.pdrop, dropout_key)
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
        x = x + dropout(mixed, self.pdrop, resid_key)
        return x + dropout(self.mlp(self.ln_2(x)), self.pdrop, mlp_key), key, value


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
        x = dropout(self.wte(tokens) + self.wpe(positions), self.pdrop, embd_key)
        keys, values = [], []
        for layer, block in enumerate(self.h):
            past = None if cache is None else (cache.keys[layer], cache.values[layer], slot)
            x, key, value = block(x, attend, past, block_keys[layer])
            keys.append(key)
            values.append(value)
        return self.ln_f(x), keys, values


def _split(key, num):
    return [None] * num if key is None else list(jax.random.split(key, num))


def dropout(x, rate, key):
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
