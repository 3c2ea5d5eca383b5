import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax import dpo, numpy_losses

RNG = np.random.default_rng(0)
CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED = BATCH = -20 + 5 * RNG.normal(size=(4, 8)).astype(np.float32)
HALF = 0.5 * RNG.normal(size=(4, 8))

LOSSES = {
    "dpo": (dpo.dpo_loss, numpy_losses.dpo_loss, {"beta": 0.1}),
    "conservative": (dpo.dpo_loss, numpy_losses.dpo_loss, {"beta": 0.3, "label_smoothing": 0.1}),
    "robust": (dpo.robust_dpo_loss, numpy_losses.robust_dpo_loss, {"beta": 0.3, "label_smoothing": 0.1}),
    "ipo": (dpo.ipo_loss, numpy_losses.ipo_loss, {"beta": 0.1}),
    "hinge": (dpo.hinge_loss, numpy_losses.hinge_loss, {"beta": 0.1}),
}
cases = pytest.mark.parametrize(("loss", "loop", "coefficients"), LOSSES.values(), ids=LOSSES)

# f′ of the log-ratio; of the ratio ρ: the generator f, the textbook's f′ (its constants cancel), and ρ f″(ρ).
DIVERGENCES = {
    "reverse KL": (dpo.reverse_kl_f_prime, lambda p: p * jnp.log(p), lambda p: np.log(p) + 1, lambda p: 1),
    "forward KL": (dpo.forward_kl_f_prime, lambda p: -jnp.log(p), lambda p: -1 / p, lambda p: 1 / p),
    "Jensen-Shannon": (
        dpo.jensen_shannon_f_prime,
        lambda p: p * jnp.log(p) - (1 + p) * jnp.log((1 + p) / 2),
        lambda p: np.log(p / (1 + p)),
        lambda p: 1 / (1 + p),
    ),
    "alpha": (
        functools.partial(dpo.alpha_f_prime, alpha=0.3),
        lambda p: (p**0.7 - 0.7 * p - 0.3) / (0.3 * (0.3 - 1)),
        lambda p: (1 - p**-0.3) / 0.3,
        lambda p: p**-0.3,
    ),
}
divergences = pytest.mark.parametrize(
    ("f_prime", "generator", "textbook", "slope"), DIVERGENCES.values(), ids=DIVERGENCES
)


@cases
def test_losses_equal_the_loops(loss, loop, coefficients):
    np.testing.assert_allclose(loss(*BATCH, **coefficients), np.vectorize(loop)(*BATCH, **coefficients), rtol=2e-5)


@cases
def test_gradients_equal_finite_differences(loss, loop, coefficients):
    with jax.enable_x64(True):
        arguments = [jnp.asarray(array) for array in HALF]
        check_grads(lambda *a: loss(*a, **coefficients), arguments, order=1, atol=1e-6, rtol=1e-6)


@cases
def test_only_the_gap_of_the_log_ratios_matters(loss, loop, coefficients):
    """A common factor of both strings' probabilities, or of the policy's and the reference's, changes nothing."""
    chosen, rejected, ref_chosen, ref_rejected = HALF
    expected = loss(*HALF, **coefficients)
    for arguments in (
        (chosen + 1, rejected + 1, ref_chosen, ref_rejected),
        (chosen + 1, rejected, ref_chosen + 1, ref_rejected),
    ):
        np.testing.assert_allclose(loss(*arguments, **coefficients), expected, rtol=1e-4, atol=1e-5)


@cases
def test_huge_log_ratios_have_finite_values_and_gradients(loss, loop, coefficients):
    for gap in (1e4, -1e4):
        values = jax.value_and_grad(lambda gap: loss(gap, 0.0, 0.0, 0.0, **coefficients))(gap)
        assert jnp.isfinite(jnp.stack(values)).all()


def test_the_defaults_are_minus_the_objective_term_by_term():
    """L^DPO = log σ(f(y⁺|x) − f(y⁻|x)), f = log π, with no reference and no coefficient."""
    objective = np.log(1 / (1 + np.exp(-(np.float64(HALF[0]) - HALF[1]))))
    np.testing.assert_allclose(dpo.dpo_loss(HALF[0], HALF[1]), -objective, rtol=1e-6)


def test_with_a_reference_it_is_equation_7_of_rafailov_et_al():
    chosen_ratio, rejected_ratio = np.exp(HALF[0] - HALF[2]), np.exp(HALF[1] - HALF[3])
    equation = -np.log(1 / (1 + np.exp(-(0.5 * np.log(chosen_ratio) - 0.5 * np.log(rejected_ratio)))))
    np.testing.assert_allclose(dpo.dpo_loss(*HALF, beta=0.5), equation, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected", "slope"),
    [
        ("dpo", np.log(2), 0.1 / 2),
        ("conservative", np.log(2), 0.3 * (1 - 2 * 0.1) / 2),
        ("robust", np.log(2), 0.3 / (2 * (1 - 2 * 0.1))),
        ("ipo", 1 / (4 * 0.1**2), 1 / 0.1),
        ("hinge", 1, 0.1),
    ],
)
def test_at_the_reference_loss_and_gradient_are_closed_forms(name, expected, slope):
    loss, _, coefficients = LOSSES[name]
    at_reference = jax.value_and_grad(lambda *pair: loss(*pair, -30.0, -12.0, **coefficients), (0, 1))
    value, gradients = at_reference(-30.0, -12.0)
    np.testing.assert_allclose((value, *gradients), (expected, -slope, slope), rtol=1e-6)


def test_the_gradient_is_the_closed_form():
    """∂/∂ log π(y⁺) = −β σ(−β h): a pair that is ranked right by far moves little (equation 8's weight)."""
    gap = (CHOSEN - REF_CHOSEN) - (REJECTED - REF_REJECTED)
    gradients = jax.grad(lambda *a: dpo.dpo_loss(*a, beta=0.1).sum(), (0, 1, 2, 3))(*map(jnp.asarray, BATCH))
    expected = -0.1 * numpy_losses.sigmoid(-0.1 * np.float64(gap))
    for gradient, sign in zip(gradients, (1, -1, -1, 1), strict=True):
        np.testing.assert_allclose(gradient, sign * expected, rtol=1e-5)


def test_the_gradient_at_huge_log_ratios_is_its_limit():
    slope = jax.grad(lambda gap: dpo.dpo_loss(gap, 0.0, beta=0.1))
    np.testing.assert_allclose([slope(1e5), slope(-1e5)], [0, -0.1], rtol=1e-6)
    np.testing.assert_allclose(dpo.dpo_loss(-1e5, 0.0, beta=0.1), 1e4, rtol=1e-6)


def test_an_impossible_rejected_string_costs_nothing():
    loss, slope = jax.value_and_grad(dpo.dpo_loss)(-3.0, -np.inf)
    assert loss == 0
    assert slope == 0


def test_swapping_the_pair_costs_the_margin():
    """log σ(z) − log σ(−z) = z."""
    chosen, rejected, ref_chosen, ref_rejected = HALF
    swapped = dpo.dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=0.2)
    margin = dpo.implicit_reward(chosen, ref_chosen, beta=0.2) - dpo.implicit_reward(rejected, ref_rejected, beta=0.2)
    np.testing.assert_allclose(swapped - dpo.dpo_loss(*HALF, beta=0.2), margin, atol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("label_smoothing", [0.05, 0.3])
def test_conservative_dpo_is_smallest_at_the_log_odds_of_the_noise(beta, label_smoothing):
    best = np.log((1 - label_smoothing) / label_smoothing) / beta
    loss = lambda gap: dpo.dpo_loss(gap, 0.0, beta=beta, label_smoothing=label_smoothing)
    assert abs(jax.grad(loss)(best)) < 1e-7
    assert loss(best) < min(loss(best - 0.1 / beta), loss(best + 0.1 / beta))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_ipo_regresses_on_half_of_one_over_beta(beta):
    loss = lambda gap: dpo.ipo_loss(gap, 0.0, beta=beta)
    assert loss(0.5 / beta) == 0
    np.testing.assert_allclose(loss(0.0), 0.25 / beta**2, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(0.0), -1 / beta, rtol=1e-6)


def test_ipo_of_mean_log_probs_is_the_per_token_convention():
    """Strings of 4 and 10 tokens, log-ratios of 2 and -1 nats: 2/4 + 1/10 against the target, not 2 + 1."""
    means = np.array([-6.0 / 4, -31.0 / 10, -8.0 / 4, -30.0 / 10])
    np.testing.assert_allclose(dpo.ipo_loss(*means, beta=0.1), (0.6 - 5) ** 2, rtol=1e-6)
    np.testing.assert_allclose(dpo.ipo_loss(-6.0, -31.0, -8.0, -30.0, beta=0.1), (3 - 5) ** 2, rtol=1e-6)


def test_hinge_by_hand():
    loss = jax.value_and_grad(lambda gap: dpo.hinge_loss(gap, 0.0, beta=0.5))
    np.testing.assert_allclose(loss(1.0), (0.5, -0.5))
    np.testing.assert_allclose(loss(3.0), (0.0, 0.0))
    np.testing.assert_allclose(loss(-2.0), (2.0, -0.5))


def test_robust_dpo_without_noise_is_dpo():
    np.testing.assert_array_equal(
        dpo.robust_dpo_loss(*BATCH, beta=0.1, label_smoothing=0.0), dpo.dpo_loss(*BATCH, beta=0.1)
    )


def test_robust_dpo_on_flipped_choices_averages_to_dpo_on_the_true_ones():
    chosen, rejected, ref_chosen, ref_rejected = HALF
    kept = dpo.robust_dpo_loss(*HALF, beta=0.4, label_smoothing=0.2)
    flipped = dpo.robust_dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=0.4, label_smoothing=0.2)
    np.testing.assert_allclose(0.8 * kept + 0.2 * flipped, dpo.dpo_loss(*HALF, beta=0.4), rtol=1e-5)


def test_implicit_reward_by_hand():
    np.testing.assert_allclose(dpo.implicit_reward(-3.0, -5.0, beta=0.1), 0.2, rtol=1e-6)


def test_an_unmasked_nan_propagates():
    for loss, _, coefficients in LOSSES.values():
        assert jnp.isnan(loss(np.nan, 0.0, 0.0, 0.0, **coefficients))


@divergences
def test_f_prime_is_the_derivative_of_f_less_its_value_at_one(f_prime, generator, textbook, slope):
    with jax.enable_x64(True):
        ratios = jnp.array([0.01, 0.5, 1.0, 1.7, 300.0])
        derivative = jax.vmap(jax.grad(generator))
        expected = derivative(ratios) - derivative(jnp.ones(1))
        np.testing.assert_allclose(f_prime(jnp.log(ratios)), np.array(expected), rtol=1e-9, atol=1e-12)


@divergences
def test_f_dpo_equals_the_loop_and_its_gradient_the_closed_form(f_prime, generator, textbook, slope):
    """∂/∂ log π(y⁺) = −β σ(−β Δ) ρ⁺ f″(ρ⁺), Δ the difference of f′."""
    loss = functools.partial(dpo.f_dpo_loss, beta=0.6, f_prime=f_prime)
    loop = functools.partial(numpy_losses.f_dpo_loss, beta=0.6, f_prime=textbook)
    chosen_ratios, rejected_ratios = np.exp(HALF[0] - HALF[2]), np.exp(HALF[1] - HALF[3])
    weights = 0.6 * numpy_losses.sigmoid(0.6 * (textbook(rejected_ratios) - textbook(chosen_ratios)))
    chosen_slopes, rejected_slopes = weights * slope(chosen_ratios), weights * slope(rejected_ratios)
    with jax.enable_x64(True):
        arguments = [jnp.asarray(array) for array in HALF]
        _, pullback, losses = jax.vjp(lambda *a: (loss(*a).sum(), loss(*a)), *arguments, has_aux=True)
        gradients = pullback(jnp.ones(()))
        np.testing.assert_allclose(losses, np.vectorize(loop)(*HALF), rtol=1e-12)
        expected = (-chosen_slopes, rejected_slopes, chosen_slopes, -rejected_slopes)
        np.testing.assert_allclose(np.array(gradients), expected, rtol=1e-12)


@divergences
def test_f_dpo_at_the_reference(f_prime, generator, textbook, slope):
    loss = lambda chosen, rejected: dpo.f_dpo_loss(chosen, rejected, -30.0, -12.0, beta=0.3, f_prime=f_prime)
    half = 0.15 * slope(1.0)
    np.testing.assert_allclose(loss(-30.0, -12.0), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss, (0, 1))(-30.0, -12.0), (-half, half), rtol=1e-6)


@divergences
def test_f_dpo_of_huge_log_ratios_is_finite_and_keeps_the_dtype(f_prime, generator, textbook, slope):
    loss = functools.partial(dpo.f_dpo_loss, ref_chosen_log_probs=0.0, ref_rejected_log_probs=0.0, beta=0.1)
    for dtype in (jnp.float32, jnp.bfloat16):
        huge = jnp.array([1e4, -1e4], dtype)
        total = lambda *a: (jnp.sum(out := loss(*a, f_prime=f_prime)), out)
        gradients, losses = jax.grad(total, (0, 1), has_aux=True)(huge, -huge)
        assert losses.dtype == dtype
        assert jnp.isfinite(jnp.stack([losses, *gradients])).all()


def test_f_dpo_with_the_reverse_kl_is_dpo():
    np.testing.assert_array_equal(
        dpo.f_dpo_loss(*BATCH, beta=0.1, f_prime=dpo.reverse_kl_f_prime), dpo.dpo_loss(*BATCH, beta=0.1)
    )


def test_the_alpha_divergence_runs_from_the_reverse_to_the_forward_kl():
    log_ratios = np.linspace(-3, 3, 7).astype(np.float32)
    np.testing.assert_array_equal(dpo.alpha_f_prime(log_ratios, 0.0), log_ratios)
    assert jax.grad(dpo.alpha_f_prime)(0.7, 0.0) == jax.grad(dpo.alpha_f_prime)(-np.inf, 0.0) == 1
    np.testing.assert_allclose(dpo.alpha_f_prime(log_ratios, 1e-6), log_ratios, rtol=1e-5)
    np.testing.assert_array_equal(dpo.alpha_f_prime(log_ratios, 1.0), dpo.forward_kl_f_prime(log_ratios))


def test_f_dpo_with_a_traced_coefficient_compiles_once_and_maps():
    traces = []

    @jax.jit
    def loss(alpha, *log_probs):
        traces.append(alpha)
        return dpo.f_dpo_loss(*log_probs, beta=0.1, f_prime=lambda log_ratio: dpo.alpha_f_prime(log_ratio, alpha))

    rows = jnp.stack([loss(alpha, *HALF) for alpha in (0.2, 0.7)])
    assert len(traces) == 1
    mapped = jax.vmap(loss, (0, None, None, None, None))(jnp.array([0.2, 0.7]), *HALF)
    np.testing.assert_allclose(mapped, rows, rtol=1e-6)


def test_f_dpo_refuses_mismatched_shapes_by_name():
    bare = inspect.unwrap(dpo.f_dpo_loss)
    with pytest.raises(ValueError, match="rejected_log_probs"):
        bare(np.zeros(4), np.zeros((4, 1)), 0.0, 0.0, beta=0.1, f_prime=dpo.reverse_kl_f_prime)
