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


def test_at_the_reference_the_loss_is_ln_2_and_the_gradient_half_of_beta():
    loss = lambda chosen, rejected: dpo.dpo_loss(chosen, rejected, -30.0, -12.0, beta=0.3)
    np.testing.assert_allclose(loss(-30.0, -12.0), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss, (0, 1))(-30.0, -12.0), (-0.15, 0.15), rtol=1e-6)


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
