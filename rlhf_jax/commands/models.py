"""A model with its tokenizer, as the commands need it: loaded, checked and saved together."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from rlhf_jax.errors import UserError
from rlhf_jax.lm import gpt2, tokenizer, weights


class Model(NamedTuple):
    """What `load` found under `name`."""

    name: str
    config: gpt2.GPT2Config
    params: gpt2.Params
    tokenizer: Tokenizer

    @property
    def eos_id(self) -> int:
        return self.config.eos_token_id


def load(name: str) -> Model:
    """A language model and its tokenizer.

    Raises:
        UserError: if either cannot be loaded, they do not fit together, or no token ends a text.
    """
    return _checked(name, *weights.load(name))


def load_reward_model(folder: str, tokenizer_of: Model) -> Model:
    """A reward model that reads the ids of another model's tokenizer.

    Raises:
        UserError: if it cannot be loaded, or has another tokenizer.
    """
    model = _checked(folder, *weights.load_reward_model(folder))
    check_same_tokenizer(model, tokenizer_of)
    return model


def save(folder: Path, model: Model, params: gpt2.Params) -> None:
    """`params`, without any head, as a folder of weights, configuration and tokenizer."""
    trunk = {name: params[name] for name in gpt2.shapes(model.config)}
    weights.save(folder, model.config, trunk)
    model.tokenizer.save(str(folder / "tokenizer.json"))


def save_reward_model(folder: Path, model: Model, params: gpt2.Params) -> None:
    """`params` with their read-out, and the tokenizer."""
    weights.save_reward_model(folder, model.config, params)
    model.tokenizer.save(str(folder / "tokenizer.json"))


def check_same_tokenizer(model: Model, other: Model) -> None:
    """Raises a UserError if the two give different ids to a text."""
    if model.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise UserError(f"{model.name} and {other.name} have different tokenizers: give models of one family")


def check_same_family(model: Model, other: Model) -> None:
    """Raises a UserError unless the two differ in their parameters alone."""
    check_same_tokenizer(model, other)
    plain, other_plain = (
        dataclasses.replace(each.config, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.0)
        for each in (model, other)
    )
    if plain != other_plain:
        raise UserError(f"{model.name} and {other.name} differ in architecture: give a model and what it came from")


def check_context(model: Model, prompt: int, completion: int, names: str) -> None:
    """Raises a UserError if so many tokens do not fit into the model's context."""
    if prompt + completion > model.config.n_positions:
        raise UserError(
            f"{names}: {prompt} + {completion} tokens, but {model.name} reads at most {model.config.n_positions}: "
            "lower one of them"
        )


def _checked(name: str, config: gpt2.GPT2Config, params: gpt2.Params) -> Model:
    own = tokenizer.load(name)
    if config.eos_token_id is None:
        raise UserError(f"{name}: config.json names no eos_token_id, the token that ends a text: add it")
    if own.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"{name}: the tokenizer has {own.get_vocab_size()} tokens and the model {config.vocab_size}: "
            "they belong to different models"
        )
    return Model(name, config, params, own)
