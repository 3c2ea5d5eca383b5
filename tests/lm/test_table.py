"""A table of logits in GPT-2's place: scoring, sampling and padding, against a dictionary of prefixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import enumerable
from rlhf_jax.lm import gpt2, table
from rlhf_jax.lm.architecture import architecture
from rlhf_jax.lm.generate import generate
from rlhf_jax.lm.sequences import Sequences, completion_log_probs, completion_states, pad_left, pad_right
from rlhf_jax.training import ppo

VOCAB, EOS = 3, 0
CONFIG = table.TableConfig(vocab_size=VOCAB, n_positions=5)
PROMPTS = [(1,), (2, 1), (2, 2)]


def all_prefixes(length):
    """Every tuple of at most `length` tokens, the shorter first, then in lexicographic order."""
    shorter = [()] if length == 0 else all_prefixes(length - 1)
    longest = [prefix for prefix in shorter if len(prefix) == length - 1]
    return shorter + [(*prefix, token) for prefix in longest for token in range(VOCAB)] if length else shorter


@pytest.fixture(scope="module")
def params():
    return table.init(jax.random.key(0), CONFIG)


@pytest.fixture(scope="module")
def log_probs_of(params):
    """`prefix -> log π(·|prefix)`, by NumPy."""
    logits = np.asarray(params["wte"]["weight"], np.float64).T
    rows = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return dict(zip(all_prefixes(4), rows, strict=True))


def test_every_prefix_has_a_row_of_its_own():
    assert CONFIG.num_rows == len(all_prefixes(4)) == 1 + 3 + 9 + 27 + 81
    states = table.hidden(CONFIG, table.init(jax.random.key(1), CONFIG), jnp.array([[2, 0, 1, 2, 1]]))
    expected = [all_prefixes(4).index(prefix) for prefix in ((2,), (2, 0), (2, 0, 1), (2, 0, 1, 2))]
    np.testing.assert_array_equal(states[0, :4].argmax(1), expected)
    np.testing.assert_array_equal(states[0, :4].sum(1), 1)
    assert (states[0, 4] == 0).all()


def test_sampling_begins_at_the_row_of_the_whole_prompt(params):
    _, rows = table.prefill(CONFIG, params, jnp.array([[2, 0, 1, 2]]), jnp.ones((1, 4), bool), 5)
    np.testing.assert_array_equal(rows, [all_prefixes(4).index((2, 0, 1, 2))])


def test_completions_are_scored_by_the_rows_of_their_prefixes(params, log_probs_of):
    """Prompts of different lengths, padded on the left with a real token's id, and completions padded on the right."""
    completions = [(1, 2, 0), (0,), (2, 1, 1)]
    prompts, prompt_mask = pad_left(PROMPTS, 2)
    sequences = Sequences(np.where(prompt_mask, prompts, 2), prompt_mask, *pad_right(completions, 3))
    scored = np.asarray(completion_log_probs(CONFIG, params, sequences))
    for row, prompt, completion in zip(scored, PROMPTS, completions, strict=True):
        expected = [log_probs_of[(*prompt, *completion[:t])][token] for t, token in enumerate(completion)]
        np.testing.assert_allclose(row[: len(completion)], expected, rtol=1e-5)


def test_samples_have_the_tables_frequencies_and_its_log_probs(params, log_probs_of):
    num = 20_000
    prompts, mask = pad_left(PROMPTS[:2], 2)
    repeat = lambda array: np.repeat(array, num, axis=0)
    new = generate(CONFIG, params, repeat(prompts), repeat(mask), jax.random.key(3), max_new_tokens=3, eos_id=EOS)
    strings, kept = map(np.asarray, enumerable.all_strings(VOCAB, 3, EOS))
    for block, prompt in enumerate(PROMPTS[:2]):
        tokens, log_probs = (np.asarray(array)[block * num :][:num] for array in (new.tokens, new.log_probs))
        expected = np.array(
            [
                sum(log_probs_of[(*prompt, *string[:t])][string[t]] for t in range(length))
                for string, length in zip(strings.tolist(), kept.sum(1), strict=True)
            ]
        )
        hits = (tokens[:, None] == strings).all(-1)
        assert (hits.sum(1) == 1).all()
        np.testing.assert_allclose(log_probs.sum(1), expected[hits.argmax(1)], rtol=1e-4)
        probs = np.exp(expected)
        chi_squared = (num * (hits.mean(0) - probs) ** 2 / probs).sum()
        assert chi_squared < 40, "14 degrees of freedom: the 99.97 % quantile"


def test_a_value_head_on_a_table_is_a_table_of_values(params):
    policy = ppo.init(params)
    policy["v_head"]["weight"] = jnp.arange(CONFIG.num_rows, dtype=jnp.float32)
    sequences = Sequences(*pad_left([(1,), (2,)], 1), *pad_right([(2, 1, 0), (0,)], 3))
    values = ppo.state_values(policy, completion_states(CONFIG, policy, sequences))
    prefixes = [[(1,), (1, 2), (1, 2, 1), (1, 2, 1, 0)], [(2,), (2, 0), (2, 0), (2, 0)]]
    np.testing.assert_array_equal(values, [[all_prefixes(4).index(prefix) for prefix in row] for row in prefixes])


def test_a_text_too_long_for_the_table_is_refused(params):
    tokens = jnp.ones((1, 6), jnp.int32)
    with pytest.raises(ValueError, match="6 tokens, but the table has n_positions = 5"):
        table.hidden(CONFIG, params, tokens)
    with pytest.raises(ValueError, match="6 tokens, but the table has n_positions = 5"):
        generate(CONFIG, params, tokens[:, :3], tokens[:, :3] > 0, jax.random.key(0), max_new_tokens=3)


def test_a_configuration_names_its_architecture():
    assert architecture(CONFIG) is table
    assert architecture(gpt2.GPT2Config(vocab_size=4, n_embd=2, n_head=1)) is gpt2
