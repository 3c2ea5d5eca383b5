import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.lm.sequences import pad_right
from rlhf_jax.lm.tokenizer import load as load_tokenizer
from rlhf_jax.preferences import annotators

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "rlhf_jax" / "assets" / "gold"
VOCAB_SIZE = 7


@functools.cache
def small_gold():
    """Weights for seven tokens and half of their pairs."""
    rng = np.random.default_rng(0)
    codes = np.sort(rng.choice(VOCAB_SIZE**2, VOCAB_SIZE**2 // 2, replace=False)).astype(np.int32)
    return annotators.GoldAnnotator(
        jnp.asarray(rng.normal(size=VOCAB_SIZE), jnp.float32),
        jnp.asarray(codes),
        jnp.asarray(rng.normal(size=len(codes)), jnp.float32),
        jnp.float32(0.25),
    )


def utility_loop(gold, tokens, mask):
    """The same sum with Python sets, in float64."""
    weights = dict(zip(gold.bigram_codes.tolist(), gold.bigrams.tolist(), strict=True))
    words = {int(token) for token, real in zip(tokens, mask, strict=True) if real}
    pairs = {(int(tokens[t]), int(tokens[t + 1])) for t in range(len(tokens) - 1) if mask[t] and mask[t + 1]}
    total = float(gold.bias) + sum(gold.unigrams.tolist()[word] for word in words)
    return total + sum(weights.get(first * len(gold.unigrams) + second, 0.0) for first, second in pairs)


def texts(num_texts=200, length=12):
    """Random tokens whose real part stands anywhere: padded on the left, the right, both, or nothing but padding."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, VOCAB_SIZE, (num_texts, length), dtype=np.int32)
    ends = np.sort(rng.integers(0, length + 1, (num_texts, 2)))
    columns = np.arange(length)
    return tokens, (columns >= ends[:, :1]) & (columns < ends[:, 1:])


def test_utility_by_hand():
    gold = annotators.GoldAnnotator(
        jnp.array([0.0, 1.0, 10.0]),
        jnp.array([1 * 3 + 2, 2 * 3 + 2], jnp.int32),
        jnp.array([100.0, 1e3]),
        jnp.array(0.5),
    )
    everything = np.ones(5, bool)
    assert annotators.utility(gold, np.array([1, 2, 1, 2, 1]), everything) == 0.5 + 1 + 10 + 100
    assert annotators.utility(gold, np.array([2, 2, 2, 2, 0]), everything) == 0.5 + 10 + 1e3
    assert annotators.utility(gold, np.array([2, 1, 0, 1, 1]), everything) == 0.5 + 10 + 1


def test_utility_equals_the_loop_under_vmap_and_jit():
    gold, (tokens, mask) = small_gold(), texts()
    scores = jax.jit(jax.vmap(annotators.utility, in_axes=(None, 0, 0)))(gold, tokens, mask)
    expected = [utility_loop(gold, *text) for text in zip(tokens, mask, strict=True)]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.dtype == jnp.float32
    assert (mask.sum(1) == 0).any()


def test_padding_of_any_value_on_any_side_changes_nothing():
    gold, (tokens, mask) = small_gold(), texts()
    score = jax.vmap(annotators.utility, in_axes=(None, 0, 0))
    scores = score(gold, tokens, mask)
    for padding in (0, VOCAB_SIZE - 1, -1, 2**30):
        np.testing.assert_array_equal(score(gold, np.where(mask, tokens, padding), mask), scores)
    rows = [row[kept] for row, kept in zip(tokens, mask, strict=True)]
    np.testing.assert_allclose(score(gold, *pad_right(rows, 30)), scores, atol=1e-6)


def test_a_gap_in_the_text_hides_the_pair_across_it():
    gold = small_gold()
    tokens, mask = np.array([3, 5, 3, 4]), np.array([True, False, True, True])
    np.testing.assert_allclose(annotators.utility(gold, tokens, mask), utility_loop(gold, tokens, mask), rtol=1e-6)


@pytest.mark.parametrize("length", [0, 1])
def test_texts_too_short_for_a_pair(length):
    gold = small_gold()
    tokens, mask = np.full(length, 3), np.ones(length, bool)
    np.testing.assert_allclose(annotators.utility(gold, tokens, mask), utility_loop(gold, tokens, mask), rtol=1e-6)


def test_the_gradient_is_the_presence_of_each_feature():
    gold, tokens, mask = small_gold(), np.array([1, 2, 1, 2, 6]), np.array([True, True, True, True, False])
    floats = (gold.unigrams, gold.bigrams, gold.bias)
    gradients = jax.grad(
        lambda w: annotators.utility(annotators.GoldAnnotator(w[0], gold.bigram_codes, *w[1:]), tokens, mask)
    )(floats)
    np.testing.assert_array_equal(gradients[0], np.isin(np.arange(VOCAB_SIZE), [1, 2]))
    np.testing.assert_array_equal(gradients[1], np.isin(gold.bigram_codes, [1 * VOCAB_SIZE + 2, 2 * VOCAB_SIZE + 1]))
    assert gradients[2] == 1


def test_utility_stays_float32_for_64_bit_tokens():
    tokens, mask = texts()
    with jax.enable_x64(True):
        score = annotators.utility(small_gold(), tokens[0].astype(np.int64), mask[0])
    assert score.dtype == jnp.float32
    assert score == annotators.utility(small_gold(), tokens[0], mask[0])


def test_choices_follow_bradley_and_terry():
    leads, temperature, num_draws = jnp.array([-2.0, -0.3, 0.0, 0.3, 2.0]), 0.5, 20_000
    keys = jax.random.split(jax.random.key(0), num_draws)
    chosen = jax.vmap(annotators.choose, in_axes=(0, None, None, None))(keys, leads + 1, jnp.ones(5), temperature)
    expected = 1 / (1 + np.exp(-np.asarray(leads, np.float64) / temperature))
    error = np.sqrt(expected * (1 - expected) / num_draws)
    assert chosen.dtype == bool
    assert (np.abs(np.asarray(chosen).mean(0) - expected) < 4 * error + 1e-9).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_a_small_temperature_chooses_the_better_text(dtype):
    with jax.enable_x64(True):
        first = jnp.asarray([-500.0, 1.0, 500.0], dtype)
        assert annotators.choose(jax.random.key(0), first, -first, 1e-3).tolist() == [False, True, True]
        assert annotators.best_accuracy(first, -first, 1e-3) == 1


def test_choices_are_independent_and_repeat_with_the_key():
    utilities = jnp.zeros((50, 4))
    chosen = annotators.choose(jax.random.key(3), utilities, utilities, 1.0)
    np.testing.assert_array_equal(chosen, annotators.choose(jax.random.key(3), utilities, utilities, 1.0))
    assert 60 < chosen.sum() < 140


def test_best_accuracy_by_hand_and_by_an_oracle():
    first, second = jnp.array([np.log(3.0), 0.0, 0.0]), jnp.array([0.0, np.log(9.0), 0.0])
    np.testing.assert_allclose(annotators.best_accuracy(first, second, 1.0), (3 / 4 + 9 / 10 + 1 / 2) / 3, rtol=1e-6)
    first, second = jax.random.normal(jax.random.key(0), (2, 50_000))
    chosen = annotators.choose(jax.random.key(1), first, second, 0.5)
    oracle = jnp.mean((first > second) == chosen)
    assert abs(oracle - annotators.best_accuracy(first, second, 0.5)) < 4 * np.sqrt(0.25 / 50_000)


def test_another_temperature_does_not_recompile():
    utilities = jnp.arange(3.0)
    for function, key in ((annotators.choose, (jax.random.key(0),)), (annotators.best_accuracy, ())):
        function(*key, utilities, utilities, 0.5)
        before = function._cache_size()
        function(*key, utilities, utilities, 0.25)
        assert function._cache_size() == before


def test_unequal_shapes_are_refused_without_the_annotation_checker():
    script = """
import jax, jax.numpy as jnp
from rlhf_jax.preferences import annotators
gold = annotators.GoldAnnotator(jnp.zeros(3), jnp.zeros(1, jnp.int32), jnp.zeros(1), jnp.zeros(()))
calls = [
    lambda: annotators.utility(gold, jnp.zeros(4, jnp.int32), jnp.ones((4, 1), bool)),
    lambda: annotators.choose(jax.random.key(0), jnp.zeros(4), jnp.zeros((4, 1)), 1.0),
    lambda: annotators.best_accuracy(jnp.zeros(4), jnp.zeros((4, 1)), 1.0),
]
for call in calls:
    try:
        call()
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert [("(4,)" in line, "(4, 1)" in line) for line in lines] == [(True, True)] * 3
    assert "tokens" in lines[0]
    assert "second_utilities" in lines[1]
    assert "first_utilities" in lines[2]


def test_the_bundled_weights_are_sound_and_small():
    gold = annotators.load_gold()
    assert [array.dtype for array in gold] == [jnp.float32, jnp.int32, jnp.float32, jnp.float32]
    assert (ASSETS / "gold.safetensors").stat().st_size < 1_000_000
    assert gold.unigrams.shape == (load_tokenizer("bundled").get_vocab_size(),)
    codes = np.asarray(gold.bigram_codes)
    assert (np.diff(codes) > 0).all()
    assert all(np.isfinite(array).all() for array in gold)
    end_of_text = 0
    assert gold.unigrams[end_of_text] == 0
    assert not (codes // 4096 == end_of_text).any()
    assert not (codes % 4096 == end_of_text).any()


def score_texts(texts_):
    rows = [encoding.ids for encoding in load_tokenizer("bundled").encode_batch(list(texts_))]
    tokens, mask = pad_right(rows, max(map(len, rows)))
    return np.asarray(jax.vmap(annotators.utility, in_axes=(None, 0, 0))(annotators.load_gold(), tokens, mask))


def test_the_bundled_annotator_tells_praise_from_blame():
    praise, blame, mixed = score_texts(
        [
            "A wonderful, moving film with superb acting; one of the best I have seen.",
            "A dull waste of time with terrible acting; one of the worst I have seen.",
            "I saw this film at the cinema on a Tuesday with my brother.",
        ]
    )
    assert praise > 2 > mixed > -2 > blame


@pytest.fixture
def fit_script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("fit_gold_annotator")


def test_the_fit_script_extracts_the_features_that_utility_sums(fit_script, monkeypatch):
    monkeypatch.setattr(fit_script, "VOCAB_SIZE", VOCAB_SIZE)
    gold, (tokens, mask) = small_gold(), texts()
    features = fit_script.presence(tokens, mask, np.asarray(gold.bigram_codes))
    assert features.max() == 1
    scores = features @ np.concatenate([gold.unigrams, gold.bigrams]) + gold.bias
    np.testing.assert_allclose(scores, [utility_loop(gold, *t) for t in zip(tokens, mask, strict=True)], atol=1e-5)


def test_the_fit_is_at_a_minimum_of_its_objective(fit_script, monkeypatch):
    """At the minimum of a penalised log-loss its gradient in each weight's own scale is zero."""
    monkeypatch.setattr(fit_script, "VOCAB_SIZE", VOCAB_SIZE)
    tokens, mask = texts()
    labels = np.random.default_rng(2).integers(0, 2, len(tokens))
    features = fit_script.presence(tokens, mask, np.asarray(small_gold().bigram_codes))
    weights, bias = fit_script.fit(features, labels)
    scale = fit_script.log_odds(features, labels)
    slopes = (1 / (1 + np.exp(-(features @ weights + bias))) - labels) / len(labels)
    assert abs(slopes.sum()) < 1e-4
    np.testing.assert_allclose(scale * (features.T @ slopes) + fit_script.PENALTY * weights / scale, 0, atol=3e-4)


def test_the_bundled_annotator_reaches_its_stated_accuracy(fit_script):
    imdb = importlib.import_module("imdb")
    if not (imdb.DATA / "imdb_reviews.jsonl.xz").exists():
        pytest.skip("needs imdb_reviews.jsonl.xz in ../shared/data")
    reviews = imdb.labelled("test")
    sample = [reviews[index] for index in np.random.default_rng(0).choice(len(reviews), 1500, replace=False)]
    stated = json.loads((ASSETS / "metrics.json").read_text(encoding="utf-8"))["test"]["first_40_tokens"]["accuracy"]
    rows, labels = fit_script.tokenised(load_tokenizer("bundled"), sample)
    tokens, mask = pad_right(rows, 40)
    scores = jax.vmap(annotators.utility, in_axes=(None, 0, 0))(annotators.load_gold(), tokens, mask)
    accuracy = np.mean((np.asarray(scores) > 0) == labels)
    assert abs(accuracy - stated) < 4 * np.sqrt(stated * (1 - stated) / len(sample))
    assert accuracy > 0.7
