"""From a model's name to the folder that holds it: the bundled model, a folder on disk, or the Hugging Face hub."""

import json
import pathlib

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from rlhf_jax.errors import UserError

BUNDLED = pathlib.Path(__file__).parent.parent / "assets" / "base"

FILES = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
]


class ModelError(UserError):
    """A model or tokenizer that cannot be loaded: one line that names the file and says what to do."""


def find(name_or_folder: str | pathlib.Path) -> pathlib.Path:
    """The folder of "bundled", of an existing folder, or of a hub name (downloaded to the hub's cache).

    Raises:
        ModelError: if it is none of them, or the hub cannot be reached.
    """
    if str(name_or_folder) == "bundled":
        return BUNDLED
    folder = pathlib.Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{folder} is a file; give the folder that holds config.json and model.safetensors")
    name = str(name_or_folder)
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except HFValidationError:
        raise ModelError(f"{name!r} is neither an existing folder nor a name on the Hugging Face hub") from None
    except RepositoryNotFoundError:
        raise ModelError(f"{name!r} is not a folder here, and the Hugging Face hub has no public model of it") from None
    except Exception as error:  # the client raises its own, the HTTP library's and the operating system's
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{name!r} is not a folder here, and the Hugging Face hub is unreachable ({reason}); "
            'give a folder that holds the model, or "bundled"'
        ) from None


def read_json(path: pathlib.Path) -> dict:
    """A JSON object.

    Raises:
        ModelError: if the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing") from None
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content
