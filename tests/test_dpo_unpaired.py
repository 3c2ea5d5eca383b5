"""The losses of `dpo` that do not take a pair and its reference: KTO of single strings, SimPO and ORPO of means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax import dpo, numpy_losses, reward_model

RNG = np.random.default_rng(0)
LOG_PROBS, REF_LOG_PROBS = RNG.normal(size=(2, 6)) - 10
DESIRABLE = np.array([True, False, True, True, False, False])
CHOSEN, REJECTED = MEANS = -np.abs(RNG.normal(size=(2, 6))) - 0.01


def test_losses_equal_the_loops_and_gradients_finite_differences():
    kto = lambda u, v: dpo.kto_loss(u, v, DESIRABLE, 0.4, beta=0.7)
    simpo = lambda *means: dpo.simpo_loss(*means, beta=2.0, margin=0.5)
    orpo = lambda *means: dpo.orpo_loss(*means, weight=0.3)
    expected = [
        np.vectorize(numpy_losses.kto_loss)(LOG_PROBS, REF_LOG_PROBS, DESIRABLE, 0.4, beta=0.7),
        np.vectorize(numpy_losses.simpo_loss)(*MEANS, beta=2.0, margin=0.5),
        np.vectorize(numpy_losses.orpo_loss)(*MEANS, weight=0.3),
    ]
    with jax.enable_x64(True):
        arguments = [jnp.asarray(array) for array in (LOG_PROBS, REF_LOG_PROBS, *MEANS)]
        losses = jax.jit(lambda u, v, *means: jnp.stack([kto(u, v), simpo(*means), orpo(*means)]))
        np.testing.assert_allclose(losses(*arguments), expected, rtol=1e-12)
        check_grads(losses, arguments, order=1, atol=1e-6, rtol=1e-6)


def test_kto_at_the_baseline_is_a_half_with_a_gradient_of_a_quarter_of_beta():
    loss = jax.vmap(jax.value_and_grad(lambda u, liked: dpo.kto_loss(u - 8.0, -8.0, liked, 1.5, beta=0.2)))
    values, slopes = loss(jnp.full(2, 1.5), jnp.array([True, False]))
    np.testing.assert_allclose(values, [0.5, 0.5])
    np.testing.assert_allclose(slopes, [-0.05, 0.05], rtol=1e-6)


def test_kto_by_hand():
    """β (u − z) = ln 3: a liked string costs 1/4 and a disliked one 3/4; a higher baseline raises the liked one's."""
    lead = np.log(np.float32(3))
    np.testing.assert_allclose(dpo.kto_loss(2 * lead, 0.0, True, 0.0, beta=0.5), 0.25, rtol=1e-6)
    np.testing.assert_allclose(dpo.kto_loss(2 * lead, 0.0, False, 0.0, beta=0.5), 0.75, rtol=1e-6)
    np.testing.assert_allclose(dpo.kto_loss(2 * lead, 0.0, True, 2 * lead, beta=0.5), 0.5, rtol=1e-6)


def test_kto_sends_no_gradient_into_the_baseline():
    """Not even where the baseline is itself computed from the log-probabilities."""
    mean = lambda u: dpo.kto_loss(u, REF_LOG_PROBS, DESIRABLE, jnp.mean(u - REF_LOG_PROBS), beta=0.7).sum()
    log_probs = jnp.asarray(LOG_PROBS, jnp.float32)
    baseline = float(np.mean(LOG_PROBS - REF_LOG_PROBS))
    fixed = jax.grad(lambda u: dpo.kto_loss(u, REF_LOG_PROBS, DESIRABLE, baseline, beta=0.7).sum())(log_probs)
    np.testing.assert_allclose(jax.grad(mean)(log_probs), fixed, rtol=1e-5)


def test_kto_of_huge_log_ratios():
    """Between 0 and 1, with no gradient left; the liked string's cost keeps its digits where 1 − σ would lose them."""
    liked = jax.value_and_grad(lambda u: dpo.kto_loss(u, 0.0, True, 0.0, beta=0.1))
    np.testing.assert_array_equal([liked(1e5), liked(-1e5)], [(0, 0), (1, 0)])
    np.testing.assert_allclose(liked(400.0)[0], np.exp(-40), rtol=1e-5)


def test_simpo_is_bradley_terry_of_scaled_means_with_a_margin():
    expected = reward_model.bradley_terry_loss(2 * CHOSEN, 2 * REJECTED, margin=0.5)
    np.testing.assert_allclose(dpo.simpo_loss(*MEANS, beta=2.0, margin=0.5), expected, rtol=1e-6)
    np.testing.assert_allclose(dpo.simpo_loss(*MEANS, beta=2.0, margin=0.0), dpo.dpo_loss(*MEANS, beta=2.0), rtol=1e-6)


def test_simpo_of_equal_means_is_the_softplus_of_the_margin():
    loss = lambda chosen, rejected: dpo.simpo_loss(chosen, rejected, beta=2.0, margin=0.5)
    np.testing.assert_allclose(loss(-1.5, -1.5), np.log(1 + np.exp(0.5)), rtol=1e-6)
    weight = 2 * numpy_losses.sigmoid(0.5)
    np.testing.assert_allclose(jax.grad(loss, (0, 1))(-1.5, -1.5), (-weight, weight), rtol=1e-6)
    np.testing.assert_allclose(loss(-1.25, -1.5), np.log(2), rtol=1e-6)


def test_simpo_of_huge_means_is_finite():
    slopes = jax.vmap(jax.value_and_grad(lambda gap: dpo.simpo_loss(gap, 0.0, beta=2.0, margin=0.5)))
    np.testing.assert_allclose(slopes(jnp.array([1e4, -1e4])), [(0, 20000.5), (0, -2)], rtol=1e-6)


def test_orpo_of_equal_means():
    """At m = −ln 2 the odds are even: −m + λ ln 2, and λ/(2 (1 − ½)) = λ into each."""
    loss = jax.value_and_grad(lambda *means: dpo.orpo_loss(*means, weight=0.3), (0, 1))
    value, gradients = loss(-np.log(2), -np.log(2))
    np.testing.assert_allclose(value, 1.3 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradients, (-1.3, 0.3), rtol=1e-6)


def test_orpo_by_hand():
    """Probabilities 3/4 and 1/4 of a token: odds of 3 and 1/3, an odds ratio of 9, σ(ln 9) = 9/10."""
    expected = -np.log(0.75) - 0.3 * np.log(0.9)
    np.testing.assert_allclose(dpo.orpo_loss(np.log(0.75), np.log(0.25), weight=0.3), expected, rtol=1e-6)


def test_orpo_loses_no_digits_near_certainty():
    """log σ(log odds) = log p = m against even odds: −2 m in all, though 1 − e^m has three digits left in float32."""
    np.testing.assert_allclose(dpo.orpo_loss(-1e-4, -np.log(2), weight=1.0), 2e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_orpo_is_finite_at_certainty_at_impossibility_and_between(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        edges = [0.0, -1e-30, -jnp.finfo(dtype).eps, -1e-3, -50.0, -1e4]
        chosen, rejected = (grid.ravel() for grid in jnp.meshgrid(*[jnp.array(edges, dtype)] * 2))
        total = lambda *means: (jnp.sum(out := dpo.orpo_loss(*means, weight=0.3)), out)
        gradients, losses = jax.grad(total, (0, 1), has_aux=True)(chosen, rejected)
        assert jnp.isfinite(jnp.stack([losses, *gradients])).all()
        certain = dpo.orpo_loss(jnp.zeros((), dtype), jnp.asarray(-np.log(2), dtype), weight=1.0)
        np.testing.assert_allclose(np.float64(certain), np.log1p(jnp.finfo(dtype).eps), rtol=0.1)


def test_an_impossible_rejected_string_costs_orpo_the_likelihood_only():
    loss, slopes = jax.value_and_grad(lambda *means: dpo.orpo_loss(*means, weight=0.3), (0, 1))(-0.5, -np.inf)
    np.testing.assert_allclose((loss, *slopes), (0.5, -1, 0))
