import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import dpo, kl, numpy_losses
from rlhf_jax import dpo_variants as variants

RNG = np.random.default_rng(0)
PAIRS = RNG.normal(size=(4, 6)) * np.array([[1.0], [1.0], [0.5], [0.5]]) - 2
LENGTHS = np.array([[3, 1, 7, 2, 5, 4], [2, 6, 1, 3, 5, 9]])
BETA = 0.7
SMOOTHED_LOGIT = np.log(0.9 / 0.1)

# Each with its coefficients, and at π = π_ref the loss and the gradients into log π(y⁺) and log π(y⁻).
LOSSES = {
    "cpo": ({"beta": BETA, "nll_weight": 0.6}, np.log(2) + 0.6 * 2, (-BETA / 2 - 0.6, BETA / 2)),
    "dpop": ({"beta": BETA, "penalty_weight": 3.0}, np.log(2), (-BETA / 2, BETA / 2)),
    "apo_zero": ({"beta": BETA}, 1, (-BETA / 4, BETA / 4)),
    "apo_down": ({"beta": BETA}, 1, (0, BETA / 4)),
    "exo_pair": (
        {"beta": BETA, "label_smoothing": 0.1},
        -np.log(2) - 0.5 * np.log(0.09),
        (-BETA / 4 * SMOOTHED_LOGIT, BETA / 4 * SMOOTHED_LOGIT),
    ),
    "nca_pair": ({"beta": BETA}, 2 * np.log(2), (-BETA / 4, BETA / 4)),
    "sppo": ({"beta": BETA}, 0.5 / BETA**2, (-1 / BETA, 1 / BETA)),
    "length_normalized_dpo": ({"beta": BETA}, np.log(2), (-BETA / 6, BETA / 4)),
}
cases = pytest.mark.parametrize("name", LOSSES)


def functions(name):
    """The loss, its loop, both with their coefficients, and how many log-probabilities and other arrays they take."""
    coefficients = LOSSES[name][0]
    loss, loop = (getattr(module, f"{name}_loss") for module in (variants, numpy_losses))
    others = LENGTHS if name == "length_normalized_dpo" else ()
    arguments = PAIRS[:2] if name == "cpo" else PAIRS
    return functools.partial(loss, **coefficients), functools.partial(loop, **coefficients), arguments, others


@cases
def test_losses_equal_the_loops_and_gradients_their_finite_differences(name):
    loss, loop, arguments, others = functions(name)
    loops = lambda arrays: np.vectorize(loop)(*arrays, *others)
    differences = []
    for i in range(len(arguments)):
        step = np.zeros_like(arguments)
        step[i] = 1e-6
        differences.append((loops(arguments + step) - loops(arguments - step)) / 2e-6)
    with jax.enable_x64(True):
        total = lambda *arrays: (jnp.sum(out := loss(*arrays, *others)), out)
        wrt = tuple(range(len(arguments)))
        gradients, losses = jax.jit(jax.grad(total, wrt, has_aux=True))(*map(jnp.asarray, arguments))
        np.testing.assert_allclose(losses, loops(arguments), rtol=1e-12)
        np.testing.assert_allclose(np.array(gradients), differences, rtol=1e-7, atol=1e-8)


@cases
def test_at_the_reference_loss_and_gradient_are_closed_forms(name):
    loss, _, arguments, others = functions(name)
    refs = () if len(arguments) == 2 else (-2.0, -5.0)
    start = (-2.0, -2.0) if name == "cpo" else (-2.0, -5.0)
    lengths = (3.0, 2.0) if len(others) else ()
    value, gradients = jax.value_and_grad(lambda *pair: loss(*pair, *refs, *lengths), (0, 1))(*start)
    np.testing.assert_allclose(value, LOSSES[name][1], rtol=1e-6)
    np.testing.assert_allclose(gradients, LOSSES[name][2], rtol=1e-5, atol=1e-7)


@cases
def test_huge_log_ratios_have_finite_values_and_gradients(name):
    loss, _, arguments, others = functions(name)
    refs = () if len(arguments) == 2 else (0.0, 0.0)
    lengths = (jnp.ones(2),) * 2 if len(others) else ()
    total = lambda *pair: (jnp.sum(out := loss(*pair, *refs, *lengths)), out)
    huge = jnp.array([1e4, -1e4])
    for pair in ((huge, -huge), (huge, huge)):
        gradients, losses = jax.grad(total, (0, 1), has_aux=True)(*pair)
        assert jnp.isfinite(jnp.stack([losses, *gradients])).all()


def test_cpo_is_dpo_with_a_uniform_reference_and_the_likelihood():
    chosen, rejected, *_ = PAIRS.astype(np.float32)
    uniform = dpo.dpo_loss(chosen, rejected, -9.0, -9.0, beta=BETA)
    np.testing.assert_allclose(variants.cpo_loss(chosen, rejected, beta=BETA), uniform - chosen, rtol=1e-5)


def test_dpop_without_penalty_is_dpo_and_penalises_only_a_chosen_string_that_fell():
    np.testing.assert_allclose(
        variants.dpop_loss(*PAIRS, beta=BETA, penalty_weight=0.0), dpo.dpo_loss(*PAIRS, beta=BETA), rtol=1e-6
    )
    loss = jax.value_and_grad(lambda u: variants.dpop_loss(u, 0.0, beta=0.5, penalty_weight=3.0))
    np.testing.assert_allclose(loss(2.0), (np.log(1 + np.exp(-1)), -0.5 * numpy_losses.sigmoid(-1)), rtol=1e-6)
    np.testing.assert_allclose(loss(-0.5), (np.log(1 + np.exp(1)), -2 * numpy_losses.sigmoid(1)), rtol=1e-6)


def test_apo_zero_is_kto_of_both_strings_with_baseline_zero():
    chosen, rejected, ref_chosen, ref_rejected = PAIRS
    liked = dpo.kto_loss(chosen, ref_chosen, True, 0.0, beta=BETA)
    disliked = dpo.kto_loss(rejected, ref_rejected, False, 0.0, beta=BETA)
    np.testing.assert_allclose(variants.apo_zero_loss(*PAIRS, beta=BETA), liked + disliked, rtol=1e-6)


def test_apo_zero_of_a_pair_and_of_the_swapped_pair_add_to_two():
    chosen, rejected, ref_chosen, ref_rejected = PAIRS
    swapped = variants.apo_zero_loss(rejected, chosen, ref_rejected, ref_chosen, beta=BETA)
    np.testing.assert_allclose(variants.apo_zero_loss(*PAIRS, beta=BETA) + swapped, np.full(6, 2.0), rtol=1e-6)


def test_apo_down_by_hand():
    """β u = ± ln 3: σ(ln 3) + σ(−ln 9) = 3/4 + 1/10, and σ′ = 3/16 and 9/100 pull on the two strings."""
    lead = np.log(np.float32(3))
    loss = jax.value_and_grad(lambda *pair: variants.apo_down_loss(*pair, beta=0.5), (0, 1))
    value, gradients = loss(2 * lead, -2 * lead)
    np.testing.assert_allclose(value, 0.85, rtol=1e-6)
    np.testing.assert_allclose(gradients, (0.5 * (3 / 16 - 0.09), 0.5 * 0.09), rtol=1e-5)


def test_exo_and_conservative_dpo_are_the_two_directions_of_one_divergence():
    """KL(p ‖ q) and KL(q ‖ p) + H(q), p the policy's choice and q = (1 − ε, ε): the same minimum, of 0."""
    gaps = np.linspace(-8, 8, 9, dtype=np.float32)
    zeros = np.zeros_like(gaps)
    policy = np.stack([-dpo.dpo_loss(gaps, zeros, beta=BETA), -dpo.dpo_loss(-gaps, zeros, beta=BETA)], -1)
    noise = np.broadcast_to(np.log(np.float32([0.9, 0.1])), policy.shape)
    exo = functools.partial(variants.exo_pair_loss, beta=BETA, label_smoothing=0.1)
    np.testing.assert_allclose(exo(gaps, zeros), kl.exact_kl(policy, noise), rtol=1e-5)
    entropy = -0.9 * np.log(0.9) - 0.1 * np.log(0.1)
    conservative = dpo.dpo_loss(gaps, zeros, beta=BETA, label_smoothing=0.1)
    np.testing.assert_allclose(conservative - entropy, kl.exact_kl(noise, policy), rtol=1e-5)
    np.testing.assert_allclose(jax.value_and_grad(exo)(SMOOTHED_LOGIT / BETA, 0.0), (0, 0), atol=1e-6)


def test_exo_has_the_limits_of_the_documented_gradient():
    """A certain choice costs −ln(1 − ε) or −ln ε; nothing pulls on either, where DPO's pull on the wrong one is β."""
    exo = jax.value_and_grad(functools.partial(variants.exo_pair_loss, beta=BETA, label_smoothing=0.1))
    np.testing.assert_allclose(exo(np.inf, 0.0), (-np.log(0.9), 0), rtol=1e-6)
    np.testing.assert_allclose(exo(-1e4, 0.0), (-np.log(0.1), 0), rtol=1e-6)
    logit = BETA * 1.3
    closed_form = BETA * numpy_losses.sigmoid(logit) * numpy_losses.sigmoid(-logit) * (logit - SMOOTHED_LOGIT)
    np.testing.assert_allclose(exo(1.3, 0.0)[1], closed_form, rtol=1e-5)
    assert variants.exo_pair_loss(1.0, 0.0, beta=BETA, label_smoothing=0.0) == np.inf


def test_nca_holds_the_chosen_string_at_twice_its_reference_probability():
    loss = lambda u: variants.nca_pair_loss(u, 0.0, beta=BETA)
    best = np.log(2) / BETA
    assert abs(jax.grad(loss)(best)) < 1e-6
    assert loss(best) < min(loss(best - 0.1), loss(best + 0.1))


def test_sppo_is_half_of_ipo_and_half_of_the_squared_sum():
    chosen, rejected, ref_chosen, ref_rejected = PAIRS
    total = (chosen - ref_chosen) + (rejected - ref_rejected)
    expected = 0.5 * dpo.ipo_loss(*PAIRS, beta=BETA / 2) + 0.5 * total**2
    np.testing.assert_allclose(variants.sppo_loss(*PAIRS, beta=BETA), expected, rtol=1e-5)


def test_sppo_with_win_probabilities_by_hand():
    """Targets (0.9 − ½)/0.5 = 0.8 and (0.3 − ½)/0.5 = −0.4, log-ratios 1 and 0.6."""
    loss = variants.sppo_loss(1.0, 0.6, beta=0.5, chosen_win_probs=0.9, rejected_win_probs=0.3)
    np.testing.assert_allclose(loss, 0.2**2 + 1.0**2, rtol=1e-6)
    loop = numpy_losses.sppo_loss(1.0, 0.6, 0.0, 0.0, 0.5, 0.9, 0.3)
    np.testing.assert_allclose(loss, loop, rtol=1e-6)


def test_length_normalised_dpo_is_dpo_of_means():
    chosen_lengths, rejected_lengths = LENGTHS
    means = [log_probs / LENGTHS[i % 2] for i, log_probs in enumerate(PAIRS)]
    losses = variants.length_normalized_dpo_loss(*PAIRS, chosen_lengths, rejected_lengths, beta=BETA)
    np.testing.assert_allclose(losses, dpo.dpo_loss(*means, beta=BETA), rtol=1e-5)


def test_an_empty_string_has_a_log_ratio_of_zero():
    loss = functools.partial(variants.length_normalized_dpo_loss, beta=1.0)
    np.testing.assert_allclose(loss(0.0, -3.0, 0.0, -1.0, 0, 4), np.log(1 + np.exp(-0.5)), rtol=1e-6)
    np.testing.assert_allclose(loss(-3.0, 0.0, -1.0, 0.0, 4, 0), np.log(1 + np.exp(0.5)), rtol=1e-6)
