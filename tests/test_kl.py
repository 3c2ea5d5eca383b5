import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import kl, numpy_losses

RNG = np.random.default_rng(0)
LOGITS, REF_LOGITS = RNG.normal(size=(2, 5, 6)).astype(np.float32)
HOLES = np.array([0.3, -np.inf, 1.2], np.float32), np.array([0.1, 0.7, -np.inf], np.float32)


def _log_softmax(logits):
    return jnp.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def test_categorical_kl_by_hand():
    p, q = np.log(np.array([0.5, 0.5], np.float32)), np.log(np.array([0.25, 0.75], np.float32))
    np.testing.assert_allclose(kl.categorical_kl(p, q), 0.5 * np.log(2) + 0.5 * np.log(2 / 3), rtol=1e-6)
    np.testing.assert_allclose(kl.categorical_kl(q, p), 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2), rtol=1e-6)


def test_categorical_kl_equals_the_loop_and_ignores_a_shift_of_the_logits():
    expected = [
        numpy_losses.exact_kl(numpy_losses.softmax(p), numpy_losses.softmax(q))
        for p, q in zip(LOGITS, REF_LOGITS, strict=True)
    ]
    np.testing.assert_allclose(kl.categorical_kl(LOGITS, REF_LOGITS), expected, rtol=1e-5)
    np.testing.assert_allclose(kl.categorical_kl(LOGITS + 50, REF_LOGITS - 9), expected, rtol=1e-4)
    np.testing.assert_allclose(kl.categorical_kl(LOGITS, LOGITS), 0, atol=1e-7)


def test_nothing_times_log_nothing_is_zero_and_mass_where_the_reference_has_none_is_infinite():
    half = np.array([0.0, -np.inf, 0.0], np.float32)
    full = np.zeros(3, np.float32)
    np.testing.assert_allclose(kl.categorical_kl(half, full), np.log(3 / 2), rtol=1e-6)
    assert kl.categorical_kl(full, half) == jnp.inf
    np.testing.assert_allclose(kl.categorical_kl(half, half), 0, atol=1e-7)


@pytest.mark.parametrize("argnum", [0, 1])
@pytest.mark.parametrize("ref_logits", [HOLES[0], HOLES[1], np.zeros(3, np.float32)])
def test_the_gradient_is_finite_at_excluded_tokens(argnum, ref_logits):
    gradient = jax.grad(kl.categorical_kl, argnum)(jnp.asarray(HOLES[0]), jnp.asarray(ref_logits))
    assert jnp.isfinite(gradient).all()


def test_the_gradients_are_the_closed_forms():
    """∂KL/∂l_v = p_v (log p_v/q_v − KL) and ∂KL/∂m_v = q_v − p_v for reference logits m."""
    log_p, log_q = _log_softmax(LOGITS), _log_softmax(REF_LOGITS)
    total = lambda logits, ref_logits: kl.categorical_kl(logits, ref_logits).sum()
    gradient, ref_gradient = jax.grad(total, (0, 1))(jnp.asarray(LOGITS), jnp.asarray(REF_LOGITS))
    divergence = kl.categorical_kl(LOGITS, REF_LOGITS)[:, None]
    np.testing.assert_allclose(gradient, jnp.exp(log_p) * (log_p - log_q - divergence), atol=1e-6)
    np.testing.assert_allclose(ref_gradient, jnp.exp(log_q) - jnp.exp(log_p), atol=1e-6)


def test_an_unmasked_nan_propagates():
    assert jnp.isnan(kl.categorical_kl(np.array([np.nan, 0.0]), np.array([0.0, 0.0])))
    assert jnp.isnan(kl.exact_kl(np.array([np.nan, -1.0]), np.array([0.0, -np.inf])))


def test_estimators_by_hand_and_by_the_loop():
    log_prob, ref_log_prob = np.log(np.float32(0.5)), np.log(np.float32(0.25))
    np.testing.assert_allclose(kl.k1(log_prob, ref_log_prob), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(kl.k2(log_prob, ref_log_prob), np.log(2) ** 2 / 2, rtol=1e-6)
    np.testing.assert_allclose(kl.k3(log_prob, ref_log_prob), 0.5 - 1 + np.log(2), rtol=1e-6)
    loop = np.vectorize(numpy_losses.kl_estimates)(LOGITS, REF_LOGITS)
    for estimator, expected in zip([kl.k1, kl.k2, kl.k3], loop, strict=True):
        np.testing.assert_allclose(estimator(LOGITS, REF_LOGITS), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("mean", "expected"),
    [(0.1, {kl.k1: (0, 20), kl.k2: (0.0025, 1.418), kl.k3: (0, 1.417)}),
     (1.0, {kl.k1: (0, 2), kl.k2: (0.25, 1.732), kl.k3: (0, 1.695)})],
)  # fmt: skip
def test_schulmans_table_of_bias_and_deviation(mean, expected):
    """KL(N(0, 1) ‖ N(μ, 1)) = μ²/2, by quadrature in place of his samples; both relative to the divergence."""
    with jax.enable_x64(True):
        x = np.linspace(-14, 14, 20_001)
        weights = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
        for estimator, (bias, deviation) in expected.items():
            estimates = np.array(estimator(-(x**2) / 2, -((x - mean) ** 2) / 2))
            average = weights @ estimates
            assert abs(average / (mean**2 / 2) - 1 - bias) < 1e-6
            np.testing.assert_allclose(
                np.sqrt(weights @ (estimates - average) ** 2) / (mean**2 / 2), deviation, rtol=5e-4
            )


def test_expected_gradients_of_the_estimators():
    """By enumeration: k1's is zero, k2's is that of KL(π ‖ π_ref), k3's is that of KL(π_ref ‖ π)."""
    logits, ref_log_probs = jnp.asarray(LOGITS[0]), _log_softmax(REF_LOGITS[0])
    probs = jax.nn.softmax(logits)

    def expected_gradient(estimator):
        return jax.grad(lambda logits: probs @ estimator(jax.nn.log_softmax(logits), ref_log_probs))(logits)

    forward = jax.grad(kl.categorical_kl, 0)(logits, ref_log_probs)
    backward = jax.grad(kl.categorical_kl, 1)(ref_log_probs, logits)
    np.testing.assert_allclose(expected_gradient(kl.k1), 0, atol=1e-7)
    np.testing.assert_allclose(expected_gradient(kl.k2), forward, atol=1e-6)
    np.testing.assert_allclose(expected_gradient(kl.k3), backward, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2e-2), (jnp.float32, 2e-6), (jnp.float64, 1e-14)])
def test_k3_loses_no_digits_near_zero(dtype, tolerance):
    """Against the series, which is exact here; exp(u) − 1 − u, even by expm1, has none left at u = 1e-8."""
    with jax.enable_x64(True):
        u = jnp.asarray([1e-8, -3e-5, 1e-3, 0.02, -0.1, 0.3], dtype)
        exact = sum(np.float64(u) ** k / float(np.prod(np.arange(1.0, k + 1))) for k in range(2, 16))
        np.testing.assert_allclose(np.float64(kl.k3(jnp.zeros_like(u), u)), exact, rtol=tolerance)


def test_k3_is_continuous_where_its_two_computations_meet():
    with jax.enable_x64(True):
        for radius in (0.5, -0.5):
            u = radius + np.array([-1e-9, 1e-9])
            values, slopes = jax.vmap(jax.value_and_grad(lambda u: kl.k3(0.0, u)))(u)
            np.testing.assert_allclose(values, np.expm1(u) - u, rtol=1e-14)
            np.testing.assert_allclose(slopes, np.expm1(u), rtol=1e-12)


def test_estimates_of_huge_log_ratios_are_finite_with_finite_gradients():
    log_ratios = jnp.array([-1e4, -1e3, -60.0, 60.0, 1e3, 1e4])
    for estimator in (kl.k1, kl.k2, kl.k3):
        values, slopes = jax.vmap(jax.value_and_grad(estimator))(log_ratios, jnp.zeros(6))
        assert jnp.isfinite(values).all()
        assert jnp.isfinite(slopes).all()
    assert (kl.k3(log_ratios, 0.0) >= 0).all()


def test_adaptive_coefficient_by_hand():
    update = lambda measured, **gain: kl.adaptive_kl_coefficient(0.2, measured, target=6.0, **gain)
    np.testing.assert_allclose(update(6.0), 0.2, rtol=1e-6)
    np.testing.assert_allclose(update(6.6), 0.2 * 1.01, rtol=1e-6)
    np.testing.assert_allclose(update(60.0), 0.2 * 1.02, rtol=1e-6)
    np.testing.assert_allclose(update(-3.0), 0.2 * 0.98, rtol=1e-6)
    np.testing.assert_allclose(update(5.4, gain=0.5), 0.2 * 0.95, rtol=1e-6)


def test_adaptive_coefficient_steers_to_its_target():
    """A policy whose divergence is 1/β settles where 1/β is the target."""
    coefficient = jnp.float32(1.0)
    for _ in range(400):
        coefficient = kl.adaptive_kl_coefficient(coefficient, 1 / coefficient, target=6.0)
    np.testing.assert_allclose(1 / coefficient, 6.0, rtol=1e-3)
