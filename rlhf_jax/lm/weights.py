"""GPT-2's weights in Hugging Face's layout: config.json beside model.safetensors, whole or in shards."""

import dataclasses
import inspect
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax

from rlhf_jax.lm import folder as folders
from rlhf_jax.lm import gpt2
from rlhf_jax.lm.folder import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def load(name_or_folder: str | pathlib.Path) -> tuple[gpt2.GPT2Config, gpt2.Params]:
    """Configuration and float32 parameters of "bundled", of a folder, or of a model on the Hugging Face hub.

    Names are accepted with and without the prefix `transformer.`; the causal-mask buffers of old checkpoints, and
    `lm_head.weight` where the configuration ties it to `wte`, are left out.

    Raises:
        ModelError: naming the file, and the tensor or field, that is missing, damaged, or not a GPT-2's.
    """
    return _load(name_or_folder, gpt2.shapes)


def save(folder: str | pathlib.Path, config: gpt2.GPT2Config, params: gpt2.Params) -> None:
    """Write a folder that `load` and `transformers.GPT2LMHeadModel.from_pretrained` read.

    Raises:
        ModelError: if a parameter is missing, unexpected, or not of the configuration's shape.
    """
    _save(folder, config, params, gpt2.shapes(config), {"architectures": ["GPT2LMHeadModel"]})


def load_reward_model(name_or_folder: str | pathlib.Path) -> tuple[gpt2.GPT2Config, gpt2.Params]:
    """As `load`, for a GPT2ForSequenceClassification with one label: the parameters hold `score.weight` [1, D] too.

    Raises:
        ModelError: as `load`.
    """
    return _load(name_or_folder, _reward_shapes)


def save_reward_model(folder: str | pathlib.Path, config: gpt2.GPT2Config, params: gpt2.Params) -> None:
    """As `save`, for parameters with a read-out `score.weight`; `load_reward_model` and transformers read the folder.

    transformers reads the score before the first padding token: give it a padding id that no text holds.

    Raises:
        ModelError: as `save`.
    """
    header = {
        "architectures": ["GPT2ForSequenceClassification"],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
    }
    _save(folder, config, params, _reward_shapes(config), header)


def _reward_shapes(config: gpt2.GPT2Config) -> gpt2.Params:
    return gpt2.shapes(config) | {"score": {"weight": jax.ShapeDtypeStruct((1, config.n_embd), jnp.float32)}}


def _load(name_or_folder, shapes_of) -> tuple[gpt2.GPT2Config, gpt2.Params]:
    folder = folders.find(name_or_folder)
    config = _read_config(folder / "config.json")
    return config, _to_params(config, shapes_of(config), _read_tensors(folder), folder)


def _save(folder, config: gpt2.GPT2Config, params: gpt2.Params, shapes: gpt2.Params, header: dict[str, Any]) -> None:
    folder = pathlib.Path(folder)
    tensors = _named(params)
    _check(shapes, tensors, "params")
    folder.mkdir(parents=True, exist_ok=True)
    prefix = lambda name: "" if name.startswith(("lm_head.", "score.")) else "transformer."
    stored = {prefix(name) + name: leaf for name, leaf in tensors.items()}
    safetensors.flax.save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    header = header | {"model_type": "gpt2"} | dataclasses.asdict(config)
    (folder / "config.json").write_text(json.dumps(header, indent=2) + "\n")


def _read_config(path: pathlib.Path) -> gpt2.GPT2Config:
    stored = folders.read_json(path)
    if stored.get("model_type") != "gpt2":
        raise ModelError(f"{path}: model_type is {stored.get('model_type')!r}, only 'gpt2' is supported")
    values = {}
    for field in dataclasses.fields(gpt2.GPT2Config):
        if field.name in stored:
            value = stored[field.name]
            values[field.name] = float(value) if field.type is float and type(value) is int else value
            if not isinstance(values[field.name], field.type):
                raise ModelError(
                    f"{path}: {field.name} is {value!r}, not of type {inspect.formatannotation(field.type)}"
                )
    try:
        return gpt2.GPT2Config(**values)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from None


def _read_tensors(folder: pathlib.Path) -> dict[str, jax.Array]:
    if (folder / INDEX).exists() and not (folder / WEIGHTS).exists():
        index = folders.read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict):
            raise ModelError(f"{folder / INDEX} has no weight_map")
        files = sorted(set(index.values()))
    else:
        files = [WEIGHTS]
    tensors = {}
    for file in files:
        tensors |= _read_file(folder / file)
    return tensors


def _read_file(path: pathlib.Path) -> dict[str, jax.Array]:
    if not path.exists():
        raise ModelError(
            f"{path} is missing (a pickle such as pytorch_model.bin can run code when opened and is not read: convert "
            "it with transformers' GPT2LMHeadModel.from_pretrained(...).save_pretrained(...))"
        )
    try:
        return safetensors.flax.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read, truncated or not safetensors: {error}") from None


def _to_params(
    config: gpt2.GPT2Config, shapes: gpt2.Params, stored: dict[str, jax.Array], folder: pathlib.Path
) -> gpt2.Params:
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    ignored = {name for name in tensors if _BUFFERS.fullmatch(name)}
    if config.tie_word_embeddings:
        ignored.add("lm_head.weight")
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    _check(shapes, tensors, str(folder))
    treedef = jax.tree.structure(shapes)
    return treedef.unflatten(jnp.asarray(np.asarray(tensors[name], np.float32)) for name in _named(shapes))


def _named(params: gpt2.Params) -> dict[str, Any]:
    """Leaves by their name in a checkpoint, such as h.0.attn.c_attn.weight."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _check(shapes: gpt2.Params, tensors: dict[str, Any], where: str) -> None:
    expected = _named(shapes)
    for kind, names in (
        ("missing", expected.keys() - tensors.keys()),
        ("unexpected", tensors.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"{where}: tensor {min(names)}{more} {kind} for this configuration")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(f"{where}: {name} has shape {tensor.shape}, its configuration says {expected[name].shape}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ModelError(f"{where}: {name} holds {tensor.dtype}, not floating-point numbers")
