"""Fit the gold annotator: a logistic regression on the presence of tokens and token pairs, from IMDB's star ratings.

    python scripts/fit_gold_annotator.py            # rlhf_jax/assets/gold/gold.safetensors and metrics.json

It learns from the labelled train split cut into windows of 48 tokens, since it will judge texts of about 40, and is
measured on the test split with the library's own `annotators.utility`. Needs the data folder described in
scripts/imdb.py; a few minutes on two CPU cores.
"""

import json
from pathlib import Path

import imdb
import jax
import numpy as np
from safetensors.numpy import save_file
from scipy import optimize, sparse
from tokenizers import Tokenizer

from rlhf_jax.lm.sequences import pad_right
from rlhf_jax.lm.tokenizer import load as load_tokenizer
from rlhf_jax.preferences import annotators

ASSETS = Path(annotators.__file__).parent.parent / "assets" / "gold"
VOCAB_SIZE = 4096
WINDOW = 48
MIN_REVIEWS = 8  # a pair of tokens in fewer reviews gets no weight
PENALTY = 1e-4  # chosen on 3,000 train reviews kept back, among 3e-4, 1e-4 and 3e-5


def tokenised(tokenizer: Tokenizer, reviews: list[imdb.Review]) -> tuple[list[list[int]], np.ndarray]:
    """Token ids and labels of reviews."""
    encoded = tokenizer.encode_batch([review.text for review in reviews])
    return [encoding.ids for encoding in encoded], np.array([review.label for review in reviews])


def cut_windows(rows: list[list[int]], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens [N, WINDOW], mask, labels) of windows side by side; a rest of less than half a window is left out."""
    windows, window_labels = [], []
    for row, label in zip(rows, labels, strict=True):
        starts = range(0, max(1, len(row) - WINDOW // 2), WINDOW)
        windows += [row[start : start + WINDOW] for start in starts]
        window_labels += [label] * len(starts)
    return *pad_right(windows, WINDOW), np.array(window_labels)


def frequent_bigrams(rows: list[list[int]]) -> np.ndarray:
    """Ascending codes previous · V + next of the token pairs that stand in at least MIN_REVIEWS rows."""
    distinct = [np.unique(np.array(row[:-1]) * VOCAB_SIZE + row[1:]) for row in rows if len(row) > 1]
    codes, counts = np.unique(np.concatenate(distinct), return_counts=True)
    return codes[counts >= MIN_REVIEWS].astype(np.int32)


def presence(tokens: np.ndarray, mask: np.ndarray, codes: np.ndarray) -> sparse.csr_matrix:
    """[N, V + K] matrix of ones: column v for a token, V + k for the pair of code k, each once a row."""
    pairs = tokens[:, :-1] * VOCAB_SIZE + tokens[:, 1:]
    slots = np.searchsorted(codes, pairs).clip(0, len(codes) - 1)
    known = mask[:, :-1] & mask[:, 1:] & (codes[slots] == pairs)
    columns = np.concatenate([np.where(mask, tokens, -1), np.where(known, VOCAB_SIZE + slots, -1)], axis=1)
    columns = np.sort(columns.astype(np.int32), axis=1)
    kept = columns >= 0
    kept[:, 1:] &= columns[:, 1:] != columns[:, :-1]
    starts = np.concatenate([[0], kept.sum(1).cumsum()])
    ones = np.ones(starts[-1], np.float32)
    return sparse.csr_matrix((ones, columns[kept], starts), shape=(len(tokens), VOCAB_SIZE + len(codes)))


def log_odds(features: sparse.csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Naive Bayes' weight of each feature: log P(feature | positive) / P(feature | negative), with one added to counts.

    Reference: Wang and Manning (2012), "Baselines and Bigrams", equation 2.
    """
    positive, negative = features.T @ (labels == 1) + 1.0, features.T @ (labels == 0) + 1.0
    return np.log(positive / positive.sum()) - np.log(negative / negative.sum())


def fit(features: sparse.csr_matrix, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """(weights, bias) that minimise mean log-loss + PENALTY / 2 Σ v², where weight = v · log-odds.

    The scaling lets features that tell much have large weights, and costs a convex fit nothing.
    """
    scale = log_odds(features, labels)
    scaled = (features @ sparse.diags(scale)).tocsr().astype(np.float32)
    transposed, signs = scaled.T.tocsr(), 2.0 * labels - 1.0

    def objective(parameters):
        weights, bias = parameters[:-1], parameters[-1]
        margins = signs * (scaled @ weights.astype(np.float32) + bias)
        slopes = -signs / (1 + np.exp(margins)) / len(signs)
        loss = np.logaddexp(0, -margins).mean() + PENALTY / 2 * np.sum(weights**2)
        return loss, np.append(transposed @ slopes.astype(np.float32) + PENALTY * weights, slopes.sum())

    start = np.zeros(features.shape[1] + 1)
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 60})
    return found.x[:-1] * scale, found.x[-1]


def save(weights: np.ndarray, bias: float, codes: np.ndarray) -> None:
    ASSETS.mkdir(parents=True, exist_ok=True)
    fields = {
        "unigrams": weights[:VOCAB_SIZE].astype(np.float16),
        "bigram_codes": codes,
        "bigrams": weights[VOCAB_SIZE:].astype(np.float16),
        "bias": np.array(bias, np.float32),
    }
    save_file(fields, ASSETS / "gold.safetensors")


def utilities(gold: annotators.GoldAnnotator, rows: list[list[int]], batch_size: int = 512) -> np.ndarray:
    """Utilities of rows of any length, in batches of like length so that little is padded."""
    score = jax.jit(jax.vmap(annotators.utility, in_axes=(None, 0, 0)))
    order, scores = np.argsort([len(row) for row in rows]), np.zeros(len(rows))
    for start in range(0, len(rows), batch_size):
        batch = order[start : start + batch_size]
        length = 1 << (len(rows[batch[-1]]) - 1).bit_length()
        tokens, mask = pad_right([rows[index] for index in batch] + [[]] * (batch_size - len(batch)), length)
        scores[batch] = score(gold, tokens, mask)[: len(batch)]
    return scores


def measure(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    correct, signs = (scores > 0) == labels, 2.0 * labels - 1.0
    return {
        "accuracy": round(float(correct.mean()), 4),
        "log_loss": round(float(np.logaddexp(0, -signs * scores).mean()), 4),
        "utility_mean": round(float(scores.mean()), 3),
        "utility_standard_deviation": round(float(scores.std()), 3),
    }


def main() -> None:
    test = list(dict.fromkeys(imdb.labelled("test")))
    test_texts = {review.text for review in test}
    train = [review for review in dict.fromkeys(imdb.labelled("train")) if review.text not in test_texts]
    tokenizer = load_tokenizer("bundled")
    train_rows, train_labels = tokenised(tokenizer, train)
    codes = frequent_bigrams(train_rows)
    tokens, mask, labels = cut_windows(train_rows, train_labels)
    save(*fit(presence(tokens, mask, codes), labels), codes)

    gold = annotators.load_gold()
    rows, labels = tokenised(tokenizer, test)
    rng = np.random.default_rng(0)
    starts = [rng.integers(max(1, len(row) - WINDOW + 1)) for row in rows]
    texts = {
        "whole": rows,
        "random_48_tokens": [row[start : start + WINDOW] for row, start in zip(rows, starts, strict=True)],
        "first_40_tokens": [row[:40] for row in rows],
    }
    metrics = {
        "train_reviews": len(train),
        "train_windows": len(tokens),
        "bigrams": len(codes),
        "test_reviews": len(test),
        "test": {name: measure(utilities(gold, rows), labels) for name, rows in texts.items()},
    }
    (ASSETS / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
