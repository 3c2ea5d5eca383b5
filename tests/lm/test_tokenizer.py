import gzip
import json
import pathlib

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from rlhf_jax.lm import tokenizer
from rlhf_jax.lm.folder import ModelError

GPT2_BPE = pathlib.Path(__file__).parents[3] / "shared" / "data" / "gpt2-bpe"
any_utf8 = st.text(st.characters(exclude_categories=["Cs"]))


def byte_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[tokenizer.END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["a film that was the best film of the year, and the worst"] * 5, trainer)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    made = byte_level()
    made.enable_truncation(4)
    made.enable_padding(length=9)
    made.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary")
    byte_level().model.save(str(path))
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    if not GPT2_BPE.exists():
        pytest.skip("GPT-2's published vocabulary is not in ../shared/data/gpt2-bpe")
    path = tmp_path_factory.mktemp("gpt2")
    for name in ("encoder.json", "vocab.bpe"):
        (path / name).write_bytes(gzip.decompress((GPT2_BPE / f"{name}.gz").read_bytes()))
    return path


def round_trips(made, text):
    return made.decode(made.encode(text).ids, skip_special_tokens=False) == text


@settings(deadline=None)
@given(any_utf8)
def test_any_text_survives_the_round_trip(folder, text):
    assert round_trips(tokenizer.load(folder), text)


def test_vocabulary_and_merges_give_the_tokenizer_that_tokenizer_json_gives(folder, two_files):
    text = "the best film, <|endoftext|> naïve 電影\n\n  of 1999"
    whole, parts = tokenizer.load(folder), tokenizer.load(two_files)
    assert whole.encode(text).ids == parts.encode(text).ids
    assert whole.encode(text).ids.count(whole.token_to_id(tokenizer.END_OF_TEXT)) == 1
    assert round_trips(parts, text)


def test_padding_and_truncation_of_the_file_are_switched_off(folder):
    assert len(tokenizer.load(folder).encode("x").ids) == 1
    assert len(tokenizer.load(folder).encode("xyzxyzxyz").ids) == 9


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        ("Hello, my dog is cute", [15496, 11, 616, 3290, 318, 13779]),
        ("<|endoftext|>", [50256]),
        (" \n\n", [220, 628]),
    ],
)
def test_gpt2_ids_are_the_published_ones(published, text, ids):
    assert tokenizer.load(published).encode(text).ids == ids


def test_gpt2_round_trips_what_its_merges_never_saw(published):
    made = tokenizer.load(published)
    assert made.get_vocab_size() == 50257
    for text in (
        "",
        " ",
        "tabs\tand\r\nlines  ",
        "電影 🎬\u200d👧 naïve",
        "\x00\x7f\u2028",
        "<|endoftext|>x<|endoftext|>",
    ):
        assert round_trips(made, text)


def test_the_bundled_tokenizer_round_trips():
    made = tokenizer.load("bundled")
    assert made.token_to_id(tokenizer.END_OF_TEXT) is not None
    assert round_trips(made, "It was a great film — 10/10! 電影")


def test_what_cannot_be_read_is_named_in_one_line(tmp_path):
    with pytest.raises(ModelError, match=r"has no tokenizer: neither tokenizer\.json nor vocab\.json with merges\.txt"):
        tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(ModelError, match=r"vocab\.json or .*merges\.txt cannot be read: "):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read: ") as caught:
        tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
