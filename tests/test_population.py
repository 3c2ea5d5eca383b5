import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import numpy_losses, population

PROBS = np.array([0.1, 0.4, 0.2, 0.3])
REWARDS = np.array([1.0, -0.5, 0.0, 2.0])
ANNOTATORS = {
    "plain": {"temperature": 1.0, "position_bias": 0.0, "flip_prob": 0.0},
    "tempered": {"temperature": 0.5, "position_bias": 0.0, "flip_prob": 0.0},
    "all": {"temperature": 2.0, "position_bias": 0.7, "flip_prob": 0.1},
}
annotators = pytest.mark.parametrize("annotator", ANNOTATORS.values(), ids=ANNOTATORS)


def dense(pairs, weight):
    """[N, N]: what the pairs weigh, chosen in rows."""
    table = np.zeros((4, 4))
    np.add.at(table, (np.array(pairs.chosen), np.array(pairs.rejected)), np.float64(weight))
    return table


def test_choice_probs_by_hand():
    """A lead of ln 3 wins three times of four; a flipped record in ten leaves 0.75 * 0.9 + 0.25 * 0.1."""
    lead = np.log(3)
    np.testing.assert_allclose(population.choice_probs(lead, 0.0), 0.75, rtol=1e-6)
    np.testing.assert_allclose(population.choice_probs(2 * lead, 0.0, temperature=2.0), 0.75, rtol=1e-6)
    np.testing.assert_allclose(population.choice_probs(1.0, 1.0, position_bias=lead), 0.75, rtol=1e-6)
    np.testing.assert_allclose(population.choice_probs(lead, 0.0, flip_prob=0.1), 0.7, rtol=1e-6)
    np.testing.assert_allclose(population.choice_probs(0.0, lead, flip_prob=0.1), 0.3, rtol=1e-6)


@annotators
def test_choice_probs_and_the_population_equal_the_loops(annotator):
    probs = population.choice_probs(REWARDS, REWARDS[::-1], **annotator)
    expected = np.vectorize(numpy_losses.choice_prob)(REWARDS, REWARDS[::-1], **annotator)
    np.testing.assert_allclose(probs, expected, rtol=1e-6)
    pairs = population.bradley_terry_population(np.log(PROBS), REWARDS, **annotator)
    expected = numpy_losses.choice_weights(PROBS, REWARDS, **annotator)
    np.testing.assert_allclose(dense(pairs, pairs.weight), expected, rtol=1e-5)
    assert len(pairs.weight) == 4 * 3
    np.testing.assert_allclose(pairs.weight.sum(), 1, rtol=1e-6)


def test_without_bias_the_odds_of_a_pair_are_bradley_and_terrys():
    """weight(i, j) / weight(j, i) = exp((r_i - r_j) / T), however rare the strings; a bias pulls odds towards 1."""
    with jax.enable_x64(True):
        plain, biased = (
            dense(pairs, pairs.weight)
            for pairs in (
                population.bradley_terry_population(np.log(PROBS), REWARDS, temperature=0.8, position_bias=bias)
                for bias in (0.0, 1.5)
            )
        )
    leads = (REWARDS[:, None] - REWARDS) / 0.8
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(np.log(plain[off] / plain.T[off]), leads[off], rtol=1e-9)
    assert (np.abs(np.log(biased[off] / biased.T[off])) < np.abs(leads[off])).all()


def test_a_string_of_probability_0_is_in_no_pair():
    log_probs = np.array([-np.inf, np.log(0.5), np.log(0.3), np.log(0.2)])
    pairs = population.bradley_terry_population(log_probs, REWARDS)
    assert (pairs.weight[(pairs.chosen == 0) | (pairs.rejected == 0)] == 0).all()
    np.testing.assert_allclose(pairs.weight.sum(), 1, rtol=1e-6)
    choices = population.sample_choices(jax.random.key(0), log_probs, REWARDS, 500)
    assert (choices.chosen != 0).all() and (choices.rejected != 0).all()  # noqa: PT018


@annotators
def test_the_frequencies_of_samples_are_the_weights(annotator):
    """Pearson's statistic of 20,000 choices over 12 pairs: 11 degrees of freedom, 99.9% below 31.3."""
    number = 20_000
    choices = population.sample_choices(jax.random.key(5), np.log(PROBS), REWARDS, number, **annotator)
    counts = dense(choices, np.ones(number))
    assert np.trace(counts) == 0
    expected = number * numpy_losses.choice_weights(PROBS, REWARDS, **annotator)
    off = ~np.eye(4, dtype=bool)
    assert ((counts - expected)[off] ** 2 / expected[off]).sum() < 31.3


def test_a_position_bias_shows_in_what_was_chosen_first():
    """Strings of equal reward: the first shown wins σ(b), or 1 - σ(b) of flipped records."""
    measure = lambda **annotator: population.sample_choices(
        jax.random.key(1), np.log(PROBS), np.zeros(4), 20_000, **annotator
    ).chosen_first.mean()
    np.testing.assert_allclose(measure(), 0.5, atol=0.012)
    np.testing.assert_allclose(measure(position_bias=np.log(4)), 0.8, atol=0.01)
    np.testing.assert_allclose(measure(position_bias=np.log(4), flip_prob=0.25), 0.65, atol=0.012)


def test_samples_follow_their_key_and_batch():
    keys = jax.random.split(jax.random.key(2), 3)
    draw = lambda key: population.sample_choices(key, jnp.log(PROBS), REWARDS, 50)
    with jax.debug_key_reuse(True):
        together = jax.vmap(draw)(keys)
    for row, key in enumerate(keys):
        for leaves, leaf in zip(together, draw(key), strict=True):
            np.testing.assert_array_equal(leaves[row], leaf)
    assert (together.chosen[0] != together.chosen[1]).any()


def test_the_population_batches_over_prompts_and_keeps_its_gradient_finite():
    rewards = np.stack([REWARDS, -REWARDS])
    together = jax.vmap(population.bradley_terry_population, (None, 0))(np.log(PROBS), rewards)
    alone = population.bradley_terry_population(np.log(PROBS), -REWARDS)
    np.testing.assert_allclose(together.weight[1], alone.weight, rtol=1e-6)
    total = lambda log_probs, rewards: population.bradley_terry_population(log_probs, rewards).weight[0]
    for array in jax.grad(total, (0, 1))(jnp.array([-jnp.inf, -1.0, -1.0, -2.0]), jnp.asarray(REWARDS) * 1e4):
        assert jnp.isfinite(array).all()
