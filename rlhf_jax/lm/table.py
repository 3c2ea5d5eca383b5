"""A table of logits as a language model: its hidden state is the one-hot vector of the prefix.

With params = {"wte": {"weight": logits^T [V, R]}} the logits are the state times the output embedding, exactly as in
GPT-2, and a value head is a table of values. So everything that scores, samples or trains takes a table unchanged.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax import enumerable
from rlhf_jax.lm.gpt2 import Params


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """Sizes of a table: one row of logits for each prefix of 0 to n_positions − 1 tokens, the prompt among them."""

    vocab_size: int
    n_positions: int
    initializer_range: float = 1.0

    @property
    def num_rows(self) -> int:
        """R = Σ_{t < n_positions} V^t."""
        return enumerable.num_prefixes(self.vocab_size, self.n_positions)


def _next_row(config: TableConfig, rows, tokens):
    """Rows are numbered as the nodes of a V-ary tree: 0 is the empty prefix, V·row + 1 + v its child by token v."""
    return config.vocab_size * rows + 1 + tokens


def _one_hot(config: TableConfig, params: Params, rows):
    """A prefix of n_positions tokens or more has no row: its state is 0."""
    return jax.nn.one_hot(rows, config.num_rows, dtype=params["wte"]["weight"].dtype)


def from_logits(logits: Float[Array, "R V"]) -> Params:
    """Parameters that give logits[i] after the prefix of row i, numbered as in `enumerable.prefix_rows`."""
    return {"wte": {"weight": logits.T}}


@functools.partial(jax.jit, static_argnames="config")
def init(key: Key[Array, ""], config: TableConfig) -> Params:
    """Normal logits of standard deviation `initializer_range`."""
    return from_logits(config.initializer_range * jax.random.normal(key, (config.num_rows, config.vocab_size)))


def _rows(config: TableConfig, tokens, mask):
    """Row of the prefix that ends with each token, that token included; padding on either side is not read."""

    def step(rows, token_and_kept):
        token, kept = token_and_kept
        rows = jnp.where(kept, _next_row(config, rows, token), rows)
        return rows, rows

    steps = jnp.transpose(tokens), jnp.transpose(mask)
    return jax.lax.scan(step, jnp.zeros_like(steps[0][0]), steps)[1].T


def _check_length(config: TableConfig, length: int) -> None:
    if length > config.n_positions:
        raise ValueError(f"{length} tokens, but the table has n_positions = {config.n_positions}")


@functools.partial(jax.jit, static_argnums=0)
def hidden(
    config: TableConfig, params: Params, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None
) -> Float[Array, "B T R"]:
    """One-hot vector of the prefix that ends with each token.

    Raises:
        ValueError: if T exceeds `n_positions`.
    """
    _check_length(config, tokens.shape[1])
    return _one_hot(config, params, _rows(config, tokens, jnp.ones(tokens.shape, bool) if mask is None else mask))


@functools.partial(jax.jit, static_argnums=(0, 4))
def prefill(
    config: TableConfig, params: Params, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"], num_slots: int
) -> tuple[Float[Array, "B P R"], Int[Array, " B"]]:
    """`hidden` of the prompts, and the row that each of them ends in, which is all that sampling remembers.

    Raises:
        ValueError: if `num_slots` exceeds `n_positions`.
    """
    _check_length(config, num_slots)
    rows = _rows(config, tokens, mask)
    return _one_hot(config, params, rows), rows[:, -1]


@functools.partial(jax.jit, static_argnums=0)
def decode_step(
    config: TableConfig, params: Params, tokens: Int[Array, " B"], cache: Int[Array, " B"], slot: Int[Array, ""]
) -> tuple[Float[Array, "B R"], Int[Array, " B"]]:
    """State after one more token a row, and the rows reached; `slot` is unused, as there is nothing to write."""
    rows = _next_row(config, cache, tokens)
    return _one_hot(config, params, rows), rows
