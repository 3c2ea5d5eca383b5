import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

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


def test_an_infinite_divergence_has_the_gradient_of_its_finite_terms():
    """½ (log ½ − 0) at the first token alone: ∂/∂ log p is ½ log ½ + ½, ∂/∂ log q is −½; log 0 is left alone."""
    arguments = jnp.log(jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    value, slopes = jax.value_and_grad(kl.exact_kl, (0, 1))(*arguments)
    assert value == jnp.inf
    np.testing.assert_allclose(slopes, [[0.5 - 0.5 * np.log(2), 0, 0], [-0.5, 0, 0]], rtol=1e-6)


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


def test_the_estimators_as_losses_by_enumeration():
    """The module's table in float64, E over x ~ π of the value and of the gradient: k1's is zero, k2's that of
    KL(π ‖ π_ref), k3's that of KL(π_ref ‖ π); the weighted k1 and k3 have both right, whatever policy drew x.
    """
    with jax.enable_x64(True):
        logits, ref_logits, old_logits = (
            jnp.asarray(row, jnp.float64) for row in (LOGITS[0], REF_LOGITS[0], LOGITS[1])
        )
        ref, divergence = jax.nn.log_softmax(ref_logits), kl.categorical_kl(logits, ref_logits)
        forward = jax.grad(kl.categorical_kl, 0)(logits, ref_logits)
        backward = jax.grad(kl.categorical_kl, 1)(ref_logits, logits)
        half_square = jax.nn.softmax(logits) @ jnp.square(jax.nn.log_softmax(logits) - ref) / 2

        def means(sampler, estimate):
            """E over x ~ softmax(sampler) of the estimate and of its gradient."""
            drawn = jax.nn.log_softmax(sampler)
            mean = lambda logits: jnp.exp(drawn) @ estimate(jax.nn.log_softmax(logits), drawn)
            return jax.value_and_grad(mean)(logits)

        for estimator, value, gradient in (
            (kl.k1, divergence, 0), (kl.k2, half_square, forward), (kl.k3, divergence, backward)
        ):  # fmt: skip
            measured = means(logits, lambda log_probs, drawn, k=estimator: k(log_probs, ref))
            np.testing.assert_allclose(measured[0], value, rtol=1e-13)
            np.testing.assert_allclose(measured[1], gradient, atol=1e-14)
        assert abs(half_square / divergence - 1) > 0.05
        for sampler in (logits, old_logits):
            for estimator in (kl.k1, kl.k3):
                weighted = lambda log_probs, drawn, k=estimator: kl.importance_weighted(
                    k(log_probs, ref), log_probs, drawn
                )
                value, gradient = means(sampler, weighted)
                np.testing.assert_allclose(value, divergence, rtol=1e-13)
                np.testing.assert_allclose(gradient, forward, atol=1e-14)


def test_importance_weighting_by_hand():
    """π/π_old = 3 times k = 0.5: by the product rule 3 to the estimate, 1.5 to log π and nothing to log π_old."""
    weighted = jax.value_and_grad(kl.importance_weighted, (0, 1, 2))
    value, slopes = weighted(0.5, np.log(0.6), np.log(0.2))
    np.testing.assert_allclose((value, *slopes), (1.5, 3, 1.5, 0), rtol=1e-6)
    values = weighted(0.5, 1e3, 0.0)
    assert np.isfinite((values[0], *values[1])).all()


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        log_probs, ref = (jnp.asarray(row, jnp.float64) for row in (LOGITS[0], REF_LOGITS[0]))

        def values(log_probs, ref):
            k1, k2, k3 = (estimator(log_probs, ref) for estimator in (kl.k1, kl.k2, kl.k3))
            weighted = kl.importance_weighted(k3, log_probs, jnp.zeros(6))
            return k1, k2, k3, weighted, kl.exact_kl(log_probs, ref)

        check_grads(jax.jit(values), (log_probs, ref), order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2e-2), (jnp.float32, 2e-6), (jnp.float64, 1e-14)])
def test_k3_loses_no_digits_near_zero(dtype, tolerance):
    """Against the series, which is exact here; exp(u) − 1 − u, even by expm1, has none left at u = 1e-8."""
    with jax.enable_x64(True):
        u = jnp.asarray([1e-8, -3e-5, 1e-3, 0.02, -0.1, 0.3], dtype)
        exact = sum(np.float64(u) ** k / float(np.prod(np.arange(1.0, k + 1))) for k in range(2, 16))
        np.testing.assert_allclose(np.float64(kl.k3(jnp.zeros_like(u), u)), exact, rtol=tolerance)


def test_k3_is_continuous_where_its_two_computations_meet():
    with jax.enable_x64(True):
        for radius in (0.5, -0.5, 2.0):
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
    np.testing.assert_array_equal(kl.k1(log_ratios, 0.0), log_ratios)
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
