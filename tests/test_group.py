import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import group, numpy_losses

REWARDS = np.array([3.0, -1.0, 0.5, 2.0, 2.0], np.float32)


def test_advantages_by_hand():
    """Rewards 1, 2, 6: mean 3, sample variance (4 + 1 + 9) / 2 = 7; the others' means are 4, 3.5 and 1.5."""
    rewards = np.array([1.0, 2.0, 6.0], np.float32)
    np.testing.assert_allclose(group.centered_advantages(rewards), [-2, -1, 3], rtol=1e-6)
    np.testing.assert_allclose(group.standardized_advantages(rewards, 0.0), np.array([-2, -1, 3]) / 7**0.5, rtol=1e-6)
    np.testing.assert_allclose(group.rloo_advantages(rewards), [-3, -1.5, 4.5], rtol=1e-6)


def test_advantages_equal_the_loops():
    for eps in (1e-4, 0.3):
        expected = numpy_losses.standardized_advantages(REWARDS, eps)
        np.testing.assert_allclose(group.standardized_advantages(REWARDS, eps), expected, rtol=1e-5)
    np.testing.assert_allclose(group.standardized_advantages(REWARDS), group.standardized_advantages(REWARDS, 1e-4))
    np.testing.assert_allclose(group.rloo_advantages(REWARDS), numpy_losses.rloo_advantages(REWARDS), rtol=1e-5)


@pytest.mark.parametrize(
    "function", [group.centered_advantages, group.standardized_advantages, group.rloo_advantages]
)  # fmt: skip
def test_advantages_sum_to_zero_and_ignore_a_shift_of_the_rewards(function):
    np.testing.assert_allclose(function(REWARDS).sum(), 0, atol=1e-5)
    np.testing.assert_allclose(function(REWARDS + 7), function(REWARDS), atol=1e-5)


def test_standardised_advantages_ignore_the_scale_of_the_rewards_and_have_unit_deviation():
    standardized = group.standardized_advantages(REWARDS, 0.0)
    np.testing.assert_allclose(group.standardized_advantages(10 * REWARDS, 0.0), standardized, rtol=1e-5)
    np.testing.assert_allclose(standardized.std(ddof=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "function", [group.centered_advantages, group.standardized_advantages, group.rloo_advantages]
)  # fmt: skip
def test_an_all_equal_group_has_zero_advantages_and_finite_gradients(function):
    equal = jnp.full(4, 2.5)
    assert (function(equal) == 0).all()
    assert jnp.isfinite(jax.jacobian(function)(equal)).all()


def test_a_group_of_one():
    alone = np.array([2.0], np.float32)
    assert group.centered_advantages(alone) == 0
    assert group.standardized_advantages(alone) == 0
    with pytest.raises(ValueError, match="rewards: leave-one-out needs a group of at least 2, got 1"):
        group.rloo_advantages(alone)


def test_the_leave_one_out_baseline_is_unbiased_and_the_shared_mean_shrinks_the_gradient():
    """Exactly, over all pairs of draws: E[Σ_i A_i ∇ log π(y_i)] / G is ∇ E[r], and (G − 1)/G of it when centred."""
    logits, rewards = jnp.array([0.3, -0.2, 1.0]), jnp.array([1.0, -2.0, 0.5])
    probs, score = jax.nn.softmax(logits), jax.jacobian(jax.nn.log_softmax)(logits)
    exact = jax.grad(lambda logits: jax.nn.softmax(logits) @ rewards)(logits)
    pairs = jnp.stack(jnp.meshgrid(*[jnp.arange(3)] * 2), -1).reshape(-1, 2)
    for function, share in ((group.rloo_advantages, 1.0), (group.centered_advantages, 0.5)):
        advantages = jax.vmap(function)(rewards[pairs])
        estimates = jnp.einsum("ng,ngv->nv", advantages, score[pairs]) / 2
        np.testing.assert_allclose(probs[pairs].prod(1) @ estimates, share * exact, atol=1e-6)
