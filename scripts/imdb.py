"""The IMDB reviews (Maas et al. 2011) as the scripts here use them: clean text, and splits that do not leak."""

import html
import json
import lzma
import re
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class Review(NamedTuple):
    text: str
    label: int


def clean(text: str) -> str:
    """One line of plain text: `<br />` removed, entities unescaped, white space folded; case preserved."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"(?:<br\s*/?>\s*)+", " ", text))).strip()


def labelled(split: str, data: Path = DATA) -> list[Review]:
    """The reviews of `split` ("train" or "test") with label 1 for 7 to 10 stars and 0 for 1 to 4."""
    with lzma.open(data / "imdb_reviews.jsonl.xz", "rt", encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [Review(clean(row["text"]), row["label"]) for row in rows if row["split"] == split]


def language_model_texts(data: Path = DATA) -> tuple[list[str], list[str]]:
    """(training, held-out) texts: train and unlabelled reviews without repeats or test texts; the test reviews."""
    with lzma.open(data / "imdb_unsup.jsonl.xz", "rt", encoding="utf-8") as lines:
        unlabelled = [clean(json.loads(line)["text"]) for line in lines]
    held_out = list(dict.fromkeys(review.text for review in labelled("test", data)))
    training = dict.fromkeys([review.text for review in labelled("train", data)] + unlabelled)
    return [text for text in training if text not in set(held_out)], held_out
