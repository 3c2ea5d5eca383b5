import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.preferences import readers
from rlhf_jax.preferences.schema import Preference, PreferenceError

HH_RLHF = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh-rlhf"
EXPLICIT = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
IMPLICIT = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
TRANSCRIPTS = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: Because.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: Be quiet.",
}
SKY = Preference("The sky is", " blue.", " green.")
WHY = Preference("\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:", " Because.", " Be quiet.")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_three_forms_may_stand_in_one_file(tmp_path):
    report = readers.read(write(tmp_path / "a.jsonl", EXPLICIT, IMPLICIT, TRANSCRIPTS, EXPLICIT | {"score": 3}))
    assert report.preferences == [SKY, SKY, WHY, SKY]
    assert report.dropped == {"equal texts": 0, "different prompts": 0, "empty completion": 0}


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_compressed_files(tmp_path, suffix, opener):
    path = tmp_path / f"a.jsonl{suffix}"
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "é", "chosen": "ü", "rejected": "漢"}, ensure_ascii=False))
    assert readers.read(str(path)).preferences == [Preference("é", "ü", "漢")]


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path):
    path = tmp_path / "a.jsonl"
    row = json.dumps(EXPLICIT).encode()
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\r\n" + row)
    assert readers.read(path).preferences == [SKY, SKY]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue", "The sky is blueish", "The sky is"),
        ("Q: why?\nA: so", "Q: why?\nA: no", "Q: why?\nA:"),
        ("one two\n\nthree", "one two\n\nfour", "one two"),
        ("one two three", "one two\nthree", "one two"),
        ("one two", "one two three", "one"),
        ("one\ntwo\n", "one\ntwo\nthree", "one\ntwo"),
        ("blue", "green", ""),
        ("天空是蓝的", "天空是绿的", ""),
    ],
)
def test_an_implicit_prompt_ends_between_words(chosen, rejected, prompt):
    preference = readers.from_implicit_prompt(chosen, rejected)
    assert preference.prompt == prompt
    assert (preference.prompt + preference.chosen, preference.prompt + preference.rejected) == (chosen, rejected)


@given(common=st.text(" \nab", max_size=8), chosen=st.text(" \nab", max_size=4), rejected=st.text(" \nab", max_size=4))
def test_an_implicit_prompt_loses_no_text(common, chosen, rejected):
    try:
        preference = readers.from_implicit_prompt(common + chosen, common + rejected)
    except PreferenceError:
        assert not common + chosen or not common + rejected or (common + chosen).strip() == (common + rejected).strip()
    else:
        assert preference == readers.EQUAL_TEXTS or (
            preference.prompt + preference.chosen == common + chosen
            and preference.prompt + preference.rejected == common + rejected
        )


def test_well_formed_rows_that_teach_nothing_are_dropped_and_counted(tmp_path):
    other_question = TRANSCRIPTS | {"rejected": TRANSCRIPTS["chosen"].replace("Hi", "Ho")}
    silent = TRANSCRIPTS | {"rejected": TRANSCRIPTS["rejected"].removesuffix(" Be quiet.")}
    rows = [
        EXPLICIT,
        EXPLICIT | {"rejected": EXPLICIT["chosen"]},
        IMPLICIT | {"rejected": IMPLICIT["chosen"]},
        TRANSCRIPTS | {"rejected": TRANSCRIPTS["chosen"]},
        other_question,
        silent,
        TRANSCRIPTS,
    ]
    report = readers.read(write(tmp_path / "a.jsonl", *rows))
    assert report.preferences == [SKY, WHY]
    assert report.dropped == {"equal texts": 3, "different prompts": 1, "empty completion": 1}


def test_a_transcript_with_another_number_of_turns_has_another_prompt():
    longer = TRANSCRIPTS["chosen"] + "\n\nHuman: And?\n\nAssistant: So."
    assert readers.from_transcripts(longer, TRANSCRIPTS["rejected"]) == readers.DIFFERENT_PROMPTS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"chosen": "a"', "not valid JSON"),
        (b"\xff\xfe{}", "not UTF-8 at byte 1"),
        (b'["a", "b"]', "a JSON array; give one object a line"),
        (b"null", "a JSON null"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"chosen": "a", "prompt": "x"}', r"no field 'rejected' among \['chosen', 'prompt'\]"),
        (b'{"prompt": "x", "chosen": "", "rejected": "b"}', "'chosen' is an empty completion"),
        (b'{"prompt": "x", "chosen": 1, "rejected": "b"}', "'chosen' is a JSON number, give a string"),
        (b'{"prompt": null, "chosen": "a", "rejected": "b"}', "'prompt' is a JSON null"),
        (b'{"chosen": [{"role": "user"}], "rejected": "b"}', "'chosen' is a JSON array.*lists of messages"),
        (b'{"chosen": "\\ud800", "rejected": "b"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_in_one_line(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(EXPLICIT).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(PreferenceError, match=reason) as caught:
        readers.read(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(PreferenceError, match=r"missing\.jsonl: no such file"):
        readers.read(tmp_path / "missing.jsonl")
    with pytest.raises(PreferenceError, match="cannot be read"):
        readers.read(tmp_path)
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(PreferenceError, match="no usable pair; its rows: none"):
        readers.read(tmp_path / "empty.jsonl")
    equal = write(tmp_path / "equal.jsonl", IMPLICIT | {"rejected": IMPLICIT["chosen"]})
    with pytest.raises(PreferenceError, match="no usable pair; its rows: 1 with equal texts"):
        readers.read(equal)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("damage", ["cut", "not compressed", "wrong checksum"])
def test_damaged_compressed_files_are_named(tmp_path, suffix, compress, damage):
    content = compress(b"".join(json.dumps(EXPLICIT | {"id": i}).encode() + b"\n" for i in range(500)))
    wrong = content[:-8] + bytes(byte ^ 255 for byte in content[-8:])
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes({"cut": content[: len(content) // 2], "not compressed": b"{}\n", "wrong checksum": wrong}[damage])
    with pytest.raises(PreferenceError, match=r"a\.jsonl\.[gx]z:\d+: damaged"):
        readers.read(path)


@pytest.mark.parametrize(
    ("name", "rows", "equal", "different"),
    [
        ("harmless-base", 2312, 0, 5),
        ("helpful-base", 2354, 2, 9),
        ("helpful-online", 1137, 2, 0),
        ("helpful-rejection-sampled", 2749, 32, 3),
    ],
)
def test_real_hh_rlhf_files_load(name, rows, equal, different):
    """`rows`, `equal` and `different` are those of the whole test files; the copies here may hold a part of them."""
    path = HH_RLHF / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs HH-RLHF's {name}.jsonl.gz in ../shared/data/hh-rlhf")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows_here = sum(1 for _ in lines)
    preferences, dropped = readers.read(path)
    assert 0.7 * rows < rows_here <= rows
    assert len(preferences) + sum(dropped.values()) == rows_here
    assert dropped["equal texts"] <= equal
    assert dropped["different prompts"] <= different
    assert dropped["empty completion"] == 0
    assert all(preference.prompt.endswith("\n\nAssistant:") for preference in preferences)
    assert all(preference.prompt.startswith("\n\nHuman:") for preference in preferences)


def test_prompts_are_read_from_lines_of_text_fields_and_choices_each_once(tmp_path):
    text = tmp_path / "a.txt"
    text.write_bytes("\ufeffThe sky is\n\n  Über \r\nThe sky is\n".encode())
    assert readers.read_prompts(text) == ["The sky is", "Über"]
    rows = ({"prompt": " A"}, EXPLICIT, IMPLICIT, TRANSCRIPTS, {"chosen": "same", "rejected": "same"})
    assert readers.read_prompts(write(tmp_path / "a.jsonl", *rows)) == [" A", SKY.prompt, WHY.prompt]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": 3}', "a.jsonl:2: 'prompt' is a JSON number"),
        ("a.jsonl", b'{"text": "x"}', "a.jsonl:1: no field 'chosen'"),
        ("a.txt", b"x\n\xff", "a.txt:2: not UTF-8 at byte 1"),
        ("a.txt", b"\n \n", "a.txt: no prompt"),
        ("a.jsonl", b'{"chosen": "same", "rejected": "same"}', "a.jsonl: no prompt"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PreferenceError, match=said):
        readers.read_prompts(tmp_path / name)
