"""GPT-2's tokenizer: byte-level BPE, so that any UTF-8 text survives the round trip."""

import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from rlhf_jax.lm import folder as folders
from rlhf_jax.lm.folder import ModelError

END_OF_TEXT = "<|endoftext|>"


def load(name_or_folder: str | pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer of "bundled", of a folder, or of a model on the hub, without padding or truncation.

    Read from `tokenizer.json`, or from GPT-2's `vocab.json` and `merges.txt` (OpenAI's names for these two,
    `encoder.json` and `vocab.bpe`, will do).

    Raises:
        ModelError: naming the file that is missing or damaged.
    """
    folder = folders.find(name_or_folder)
    if (folder / "tokenizer.json").exists():
        tokenizer = _read(tokenizers.Tokenizer.from_file, folder / "tokenizer.json")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (folder / vocabulary).exists() and (folder / merges).exists():
            return _byte_level(_read(models.BPE.from_file, folder / vocabulary, folder / merges))
    raise ModelError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt")


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if model.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _read(reader, *paths: pathlib.Path):
    try:
        return reader(*(str(path) for path in paths))
    except Exception as error:  # the Rust library raises no narrower class
        names = " or ".join(str(path) for path in paths)
        raise ModelError(f"{names} cannot be read: {error}") from None
