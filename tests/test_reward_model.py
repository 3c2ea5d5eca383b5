import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import numpy_losses, reward_model

RNG = np.random.default_rng(0)
CHOSEN, REJECTED = RNG.normal(size=(2, 3, 4)).astype(np.float32)


def test_bradley_terry_by_hand():
    """A lead of ln 3 is chosen three times in four; a margin of ln 3 takes the lead away."""
    lead = np.log(np.float32(3))
    np.testing.assert_allclose(reward_model.bradley_terry_loss(lead, 0.0), -np.log(0.75), rtol=1e-6)
    np.testing.assert_allclose(reward_model.bradley_terry_loss(0.0, lead), -np.log(0.25), rtol=1e-6)
    np.testing.assert_allclose(reward_model.bradley_terry_loss(lead, 0.0, margin=lead), np.log(2), rtol=1e-6)


def test_bradley_terry_equals_the_loop_with_one_margin_or_one_a_pair():
    loop = np.vectorize(numpy_losses.bradley_terry_loss)
    for margin in (0.0, 0.7, np.abs(CHOSEN)):
        losses = reward_model.bradley_terry_loss(CHOSEN, REJECTED, margin=margin)
        np.testing.assert_allclose(losses, loop(CHOSEN, REJECTED, margin), rtol=1e-5)


def test_bradley_terry_gradient_is_the_probability_of_the_other_choice():
    total = lambda chosen, rejected: reward_model.bradley_terry_loss(chosen, rejected).sum()
    chosen_gradient, rejected_gradient = jax.grad(total, (0, 1))(jnp.asarray(CHOSEN), jnp.asarray(REJECTED))
    np.testing.assert_allclose(chosen_gradient, -numpy_losses.sigmoid(REJECTED - np.float64(CHOSEN)), rtol=1e-5)
    np.testing.assert_allclose(rejected_gradient, -chosen_gradient)


def test_bradley_terry_of_huge_leads():
    losses, slopes = jax.vmap(jax.value_and_grad(reward_model.bradley_terry_loss))(jnp.array([1e4, -1e4]), jnp.zeros(2))
    np.testing.assert_allclose(losses, [0, 1e4])
    np.testing.assert_allclose(slopes, [0, -1])


def test_plackett_luce_by_hand():
    """Weights 2, 1, 1: the first is chosen with probability 2/4, the second with 1/2, the last with 1."""
    rewards = np.log(np.array([2.0, 1.0, 1.0], np.float32))
    np.testing.assert_allclose(reward_model.plackett_luce_loss(rewards), np.log(4), rtol=1e-6)


def test_plackett_luce_equals_the_loop_and_of_two_is_bradley_terry():
    rewards = CHOSEN.ravel()
    np.testing.assert_allclose(
        reward_model.plackett_luce_loss(rewards), numpy_losses.plackett_luce_loss(rewards), rtol=1e-5
    )
    pair = np.array([0.3, 1.4], np.float32)
    np.testing.assert_allclose(reward_model.plackett_luce_loss(pair), reward_model.bradley_terry_loss(*pair), rtol=1e-6)


def test_plackett_luce_probabilities_of_all_rankings_sum_to_one():
    rankings = jnp.array(list(itertools.permutations([0.5, -1.0, 2.0, 0.1])))
    losses = jax.vmap(reward_model.plackett_luce_loss)(rankings)
    np.testing.assert_allclose(jnp.exp(-losses).sum(), 1, rtol=1e-6)


def test_plackett_luce_gradient_is_the_closed_form():
    """∂/∂r_i = −1 + Σ_{k ≤ i} P(i is chosen among k, k + 1, …)."""
    rewards = np.array([0.5, -1.0, 2.0, 0.1])
    expected = -np.ones(4)
    for k in range(4):
        expected[k:] += numpy_losses.softmax(rewards[k:])
    with jax.enable_x64(True):
        gradient = np.array(jax.grad(reward_model.plackett_luce_loss)(jnp.asarray(rewards)))
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_plackett_luce_of_huge_rewards():
    loss, gradient = jax.value_and_grad(reward_model.plackett_luce_loss)(jnp.array([-1e4, 1e4, 0.0]))
    np.testing.assert_allclose(loss, 2e4)
    np.testing.assert_allclose(gradient, [-1, 1, 0], atol=1e-6)
