"""Files of human choices: JSON lines, plain or compressed, in the forms that are in use.

    {"prompt": "…", "chosen": "…", "rejected": "…"}         TRL, explicit prompt
    {"chosen": "…", "rejected": "…"}                        TRL, implicit prompt: whole texts with a common beginning
    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", …}           Anthropic's HH-RLHF: whole transcripts

Every row is told apart by itself, and other fields are ignored.
"""

import gzip
import itertools
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.preferences.schema import Preference, PreferenceError

_OPENERS = {".gz": gzip.open, ".xz": lzma.open}
_HUMAN_TURN, _ASSISTANT_TURN = "\n\nHuman:", "\n\nAssistant:"

EQUAL_TEXTS = "equal texts"
DIFFERENT_PROMPTS = "different prompts"
EMPTY_COMPLETION = "empty completion"


class ReadReport(NamedTuple):
    """What a file holds: the usable pairs in the file's order, and how many well-formed rows were not usable."""

    preferences: list[Preference]
    dropped: dict[str, int]
    """Rows by reason: equal texts, different prompts (a comparison of two questions), and transcripts that end in an
    empty completion. HH-RLHF has all three."""


def read(path: str | os.PathLike) -> ReadReport:
    """The choices in a `.jsonl`, `.jsonl.gz` or `.jsonl.xz` file.

    A row that cannot be understood stops the reading; one that is well-formed but teaches nothing is dropped and
    counted, because published data has such rows.

    Raises:
        PreferenceError: naming file and line: a file that is missing, damaged or not UTF-8, a line that is not a JSON
            object, a missing field or one that is not text, an empty completion beside an explicit prompt, or a file
            without a usable pair.
    """
    preferences: list[Preference] = []
    dropped = {EQUAL_TEXTS: 0, DIFFERENT_PROMPTS: 0, EMPTY_COMPLETION: 0}
    for number, line in _lines(Path(path)):
        try:
            outcome = _parse(line)
        except PreferenceError as error:
            raise PreferenceError(f"{path}:{number}: {error}") from None
        if isinstance(outcome, Preference):
            preferences.append(outcome)
        else:
            dropped[outcome] += 1
    if not preferences:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in dropped.items() if count)
        raise PreferenceError(f"{path}: no usable pair; its rows: {reasons or 'none'}")
    return ReadReport(preferences, dropped)


def read_prompts(path: str | os.PathLike) -> list[str]:
    """The different prompts of a file, in its order: of a .txt file the lines, of JSON lines the field "prompt".

    Rows without that field are read as choices, and give what `read` takes for their prompt.

    Raises:
        PreferenceError: as `read`, or if there is no prompt.
    """
    as_text = Path(path).suffix == ".txt"
    prompts: dict[str, None] = {}
    for number, line in _lines(Path(path)):
        try:
            outcome = _decode(line).strip() if as_text else _prompt(line)
        except PreferenceError as error:
            raise PreferenceError(f"{path}:{number}: {error}") from None
        if outcome is not None:
            prompts[outcome] = None
    if not prompts:
        raise PreferenceError(f"{path}: no prompt; give one a line in a .txt file, or JSON lines with 'prompt'")
    return list(prompts)


def from_explicit_prompt(prompt: str, chosen: str, rejected: str) -> Preference | str:
    """A row of TRL's explicit form, as it stands; or the reason to drop it."""
    return EQUAL_TEXTS if chosen == rejected else Preference(prompt, chosen, rejected)


def from_implicit_prompt(chosen: str, rejected: str) -> Preference | str:
    """A row of TRL's implicit form: the prompt is what both texts begin with, cut at a border between words.

    The white space at the border goes to the completions, as byte-level BPE expects. Without such a border (Chinese,
    say) the prompt is empty; the common beginning then cancels in a difference of log-probabilities.
    """
    if chosen == rejected:
        return EQUAL_TEXTS
    agreeing = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    common = "".join(character for character, _ in agreeing)
    next_characters = chosen[len(common) :][:1], rejected[len(common) :][:1]
    if not all(character.isspace() for character in next_characters):
        border = re.search(r"\s+\S*\Z", common)
        common = common[: border.start()] if border else ""
    return Preference(common, chosen[len(common) :], rejected[len(common) :])


def from_transcripts(chosen: str, rejected: str) -> Preference | str:
    """A row of HH-RLHF: the prompt is the transcript up to and including the last "Assistant:"."""
    if chosen == rejected:
        return EQUAL_TEXTS
    prompt, completion = _split_last_turn(chosen)
    other_prompt, other_completion = _split_last_turn(rejected)
    if prompt != other_prompt:
        return DIFFERENT_PROMPTS
    if not completion or not other_completion:
        return EMPTY_COMPLETION
    return Preference(prompt, completion, other_completion)


def _split_last_turn(transcript: str) -> tuple[str, str]:
    border = transcript.rindex(_ASSISTANT_TURN) + len(_ASSISTANT_TURN)
    return transcript[:border], transcript[border:]


def _is_transcript(text: str) -> bool:
    return text.startswith(_HUMAN_TURN) and _ASSISTANT_TURN in text


def _prompt(line: bytes) -> str | None:
    """The prompt in one line; None for a choice that `read` drops."""
    row = _object(line)
    if "prompt" in row:
        return _text(row, "prompt")
    outcome = _parse(line)
    return outcome.prompt if isinstance(outcome, Preference) else None


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PreferenceError(f"not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8") from None


def _object(line: bytes) -> dict:
    text = _decode(line)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PreferenceError(f"not valid JSON ({error}); give one object a line") from None
    if not isinstance(row, dict):
        raise PreferenceError(f"a JSON {_name(row)}; give one object a line with 'chosen' and 'rejected'")
    return row


def _parse(line: bytes) -> Preference | str:
    """The choice in one line, or the reason to drop it."""
    row = _object(line)
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    if "prompt" in row:
        return from_explicit_prompt(_text(row, "prompt"), chosen, rejected)
    if _is_transcript(chosen) and _is_transcript(rejected):
        return from_transcripts(chosen, rejected)
    return from_implicit_prompt(chosen, rejected)


def _text(row: dict, field: str) -> str:
    if field not in row:
        raise PreferenceError(f"no field {field!r} among {sorted(row)}; give 'chosen', 'rejected' and maybe 'prompt'")
    if not isinstance(row[field], str):
        hint = "; conversations as lists of messages are not read" if isinstance(row[field], list) else ""
        raise PreferenceError(f"{field!r} is a JSON {_name(row[field])}, give a string{hint}")
    return row[field]


def _name(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, numbered from 1."""
    number = 0
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise PreferenceError(f"{path}: no such file; give a .jsonl, .jsonl.gz or .jsonl.xz file") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise PreferenceError(f"{path}:{number + 1}: damaged {path.suffix} file ({error}); fetch it again") from None
    except OSError as error:
        raise PreferenceError(f"{path}: cannot be read ({error.strerror})") from None
