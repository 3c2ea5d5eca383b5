import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

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


def test_best_of_k_by_hand():
    """Weights 2, 1, 1: the first is chosen with probability 2/4, the last with 1/4."""
    rewards = np.log(np.array([2.0, 1.0, 1.0], np.float32))
    losses = [reward_model.best_of_k_loss(rewards, best) for best in (0, 2)]
    np.testing.assert_allclose(losses, [np.log(2), np.log(4)], rtol=1e-6)


def test_best_of_k_equals_the_loop_and_its_gradient_is_the_softmax_less_the_choice():
    rewards = CHOSEN.ravel()
    choose = jax.jit(jax.value_and_grad(reward_model.best_of_k_loss))
    for best in (0, 7):
        loss, gradient = choose(rewards, best)
        np.testing.assert_allclose(loss, numpy_losses.best_of_k_loss(rewards, best), rtol=1e-5)
        np.testing.assert_allclose(gradient, numpy_losses.softmax(rewards) - np.eye(12)[best], atol=1e-6)


def test_best_of_two_is_bradley_terry():
    pair = np.array([0.3, 1.4], np.float32)
    for best in (0, 1):
        expected = reward_model.bradley_terry_loss(pair[best], pair[1 - best])
        np.testing.assert_allclose(reward_model.best_of_k_loss(pair, best), expected, rtol=1e-6)


def test_a_ranking_is_a_best_of_k_of_each_of_its_tails():
    rewards = np.array([0.5, -1.0, 2.0, 0.1], np.float32)
    tails = sum(reward_model.best_of_k_loss(np.where(np.arange(4) < k, -np.inf, rewards), k) for k in range(4))
    np.testing.assert_allclose(tails, reward_model.plackett_luce_loss(rewards), rtol=1e-6)


def test_best_of_k_of_huge_rewards():
    choose = jax.value_and_grad(reward_model.best_of_k_loss)
    np.testing.assert_array_equal(choose(jnp.array([1e4, -1e4, 0.0]), 1)[1], [1, -1, 0])
    np.testing.assert_allclose(choose(jnp.array([1e4, -1e4, 0.0]), 1)[0], 2e4)


OUTCOMES = ((CHOSEN, REJECTED, False), (CHOSEN, REJECTED, True), (REJECTED, CHOSEN, False))


def test_davidson_by_hand():
    """Strengths 4 and 1 with ν = ½: 4 to ½ √4 = 1 to 1, so 4/6, 1/6 and 1/6."""
    lead = np.log(np.float32(4))
    losses = [
        reward_model.davidson_loss(*outcome, tie_weight=0.5) for outcome in ((lead, 0.0, False), (lead, 0.0, True))
    ]
    np.testing.assert_allclose(losses, [np.log(1.5), np.log(6)], rtol=1e-6)


@pytest.mark.parametrize("tie_weight", [0.0, 0.7, 30.0])
def test_davidson_probabilities_of_the_three_outcomes_sum_to_one(tie_weight):
    probs = [jnp.exp(-reward_model.davidson_loss(*outcome, tie_weight=tie_weight)) for outcome in OUTCOMES]
    np.testing.assert_allclose(sum(probs), np.ones_like(CHOSEN), rtol=1e-6)


def test_davidson_equals_the_loop_and_its_gradients_the_closed_form():
    """∂/∂r⁺ is −½ (1 − P⁺ + P⁻) of a win and ½ (P⁺ − P⁻) of a tie, ∂/∂r⁻ its negative."""
    loop = np.vectorize(numpy_losses.davidson_loss)
    tied = RNG.random(CHOSEN.shape) < 0.5
    wins, losses = (np.exp(-loop(*outcome, 0.7)) for outcome in (OUTCOMES[0], OUTCOMES[2]))
    slopes = 0.5 * np.where(tied, wins - losses, wins - losses - 1)
    with jax.enable_x64(True):
        loss = lambda *rewards: reward_model.davidson_loss(*rewards, tied, tie_weight=0.7)
        arguments = [jnp.asarray(rewards, jnp.float64) for rewards in (CHOSEN, REJECTED)]
        np.testing.assert_allclose(loss(*arguments), loop(CHOSEN, REJECTED, tied, 0.7), rtol=1e-12)
        gradients = jax.grad(lambda *rewards: loss(*rewards).sum(), (0, 1))(*arguments)
        np.testing.assert_allclose(np.array(gradients), [slopes, -slopes], rtol=1e-9, atol=1e-12)
        weight = lambda nu: reward_model.davidson_loss(*arguments, tied, tie_weight=nu)
        check_grads(weight, (jnp.asarray(0.7),), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_davidson_without_ties_is_bradley_terry():
    expected = reward_model.bradley_terry_loss(CHOSEN, REJECTED)
    np.testing.assert_allclose(reward_model.davidson_loss(CHOSEN, REJECTED, False, tie_weight=0.0), expected, rtol=1e-5)
    loss, slopes = jax.value_and_grad(reward_model.davidson_loss, (0, 1))(0.4, 0.4, False, tie_weight=0.0)
    np.testing.assert_allclose((loss, *slopes), (np.log(2), -0.5, 0.5), rtol=1e-6)
    assert reward_model.davidson_loss(0.4, 0.1, True, tie_weight=0.0) == np.inf


def test_davidson_is_differentiable_in_a_tie_weight_of_zero():
    slope = jax.grad(lambda nu: reward_model.davidson_loss(0.6, 0.2, False, tie_weight=nu))(0.0)
    np.testing.assert_allclose(slope, np.exp(0.4) / (np.exp(0.6) + np.exp(0.2)), rtol=1e-6)


def test_davidson_of_huge_leads():
    loss = jax.vmap(jax.value_and_grad(lambda lead, tied: reward_model.davidson_loss(lead, 0.0, tied, tie_weight=0.5)))
    losses, slopes = loss(jnp.array([1e4, -1e4, 1e4]), jnp.array([False, False, True]))
    np.testing.assert_allclose(losses, [0, 1e4, 5e3 + np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(slopes, [0, -1, 0.5], rtol=1e-6)


def test_centering_equals_the_loop_and_pulls_on_the_sum_alone():
    loss = jax.value_and_grad(lambda *rewards: reward_model.centering_loss(*rewards).sum(), (0, 1))
    total, gradients = loss(jnp.asarray(CHOSEN), jnp.asarray(REJECTED))
    np.testing.assert_allclose(total, numpy_losses.centering_loss(CHOSEN, REJECTED).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradients, [2 * (CHOSEN + REJECTED)] * 2, rtol=1e-5)
    np.testing.assert_allclose(reward_model.centering_loss(1.5, -0.5), 1.0)


def test_centering_picks_the_one_shift_that_choices_leave_open():
    """The sum of both losses is smallest where the rewards add to 0, at the lead that Bradley-Terry asks for."""
    weighted = lambda chosen, rejected: (
        reward_model.bradley_terry_loss(chosen, rejected) + 0.01 * reward_model.centering_loss(chosen, rejected)
    )
    slopes = jax.grad(weighted, (0, 1))(1.0, -1.0)
    expected = jax.grad(reward_model.bradley_terry_loss, (0, 1))(1.0, -1.0)
    np.testing.assert_allclose(slopes, expected, rtol=1e-6)
    np.testing.assert_allclose(sum(jax.grad(weighted, (0, 1))(2.0, 0.0)), 0.08, rtol=1e-5)
