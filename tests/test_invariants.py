"""Each invariant, on a loss that holds it and on one that breaks it, with what it measures worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import dpo, invariants, pipeline_invariants, ppo
from rlhf_jax.masking import masked_mean, masked_sum


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


MASK = np.array([[True, True, True], [True, True, False], [True, False, False]])
VALUES = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
CHOSEN, REJECTED = np.array([-3, -20], np.float32), np.array([-5, -2], np.float32)


def test_a_check_is_as_true_as_it_passed_and_prints_in_a_line():
    passed = invariants.Check("name", True, 0.5, "what it means")
    assert passed
    assert not passed._replace(passed=False)
    assert str(passed) == "pass  name" + " " * 39 + "0.5  what it means"
    assert str(passed._replace(passed=False)).startswith("FAIL  name ")


def test_not_a_number_never_passes():
    assert not invariants.check_small("name", np.array([0.0, np.nan]), "")
    assert invariants.check_small("name", np.array([1e-5, -1e-5]), "")
    assert not invariants.check_small("name", -1.0, "")


def test_the_ratio():
    old = np.log([[0.5, 0.25]]).astype(np.float32)
    check = invariants.ratio_is_one(old + np.log([[1, 1.5]]).astype(np.float32), old, np.array([[True, True]]))
    assert not check
    np.testing.assert_allclose(check.measured, 0.5, rtol=1e-6)
    assert invariants.ratio_is_one(old, old, np.array([[True, True]]))
    assert invariants.ratio_is_one(old + np.array([[0, 1]], np.float32), old, np.array([[True, False]]))


def surrogate(*arguments):
    return ppo.clipped_surrogate_loss(*arguments, clip_eps=0.2).mean()


@pytest.mark.parametrize(
    ("loss", "holds"),
    [
        (surrogate, True),
        (lambda new, old, advantages: -surrogate(new, old, advantages), False),
        (lambda new, old, advantages: surrogate(new, old, jnp.abs(advantages)), False),
        (lambda new, old, advantages: surrogate(new, old - 1.0, advantages), False),
        (lambda new, old, advantages: surrogate(new, new, advantages), True),
        (lambda new, old, advantages: surrogate(old, old, advantages) + 0 * new.sum(), False),
    ],
    ids=["ppo", "sign", "absolute", "shifted", "on-policy", "no gradient"],
)
def test_the_first_update(loss, holds):
    """Shifted by a nat all ratios are e: where A > 0 they are clipped, and nothing is proportional to A."""
    check = invariants.first_update_is_the_policy_gradient(loss, CHOSEN, np.array([1, -2], np.float32))
    assert bool(check) is holds, check


def test_at_the_reference():
    for loss, value in ((dpo.dpo_loss, np.log(2)), (dpo.hinge_loss, 1), (dpo.ipo_loss, 25)):
        check = invariants.constant_at_the_reference(lambda *a, loss=loss: loss(*a, beta=0.1), CHOSEN, REJECTED)
        assert check, check
        assert f"{value:.4f}" in check.meaning
    without_reference = lambda chosen, rejected, *_: dpo.dpo_loss(chosen, rejected, beta=0.1)
    crossed = lambda chosen, rejected, ref_chosen, ref_rejected: dpo.dpo_loss(
        chosen, rejected, ref_rejected, ref_chosen, beta=0.1
    )
    for loss in (without_reference, crossed):
        assert not invariants.constant_at_the_reference(loss, CHOSEN, REJECTED)
        assert not invariants.ln2_at_the_reference(loss, CHOSEN, REJECTED)
    assert invariants.ln2_at_the_reference(dpo.dpo_loss, CHOSEN, REJECTED)
    np.testing.assert_allclose(
        invariants.ln2_at_the_reference(lambda *a: dpo.hinge_loss(*a, beta=0.1), CHOSEN, REJECTED).measured,
        1 - np.log(2),
        rtol=1e-6,
    )


def test_the_chosen_string_is_preferred():
    """At a gap of 0 the slopes are ∓β/2, so −β against the gap."""
    check = invariants.chosen_is_preferred(lambda *pair: dpo.dpo_loss(*pair, beta=0.1), CHOSEN, CHOSEN)
    assert check
    np.testing.assert_allclose(check.measured, -0.1)
    assert not invariants.chosen_is_preferred(lambda chosen, rejected: dpo.dpo_loss(rejected, chosen), CHOSEN, CHOSEN)
    assert invariants.chosen_is_preferred(
        lambda chosen, rejected: dpo.hinge_loss(chosen + 9, rejected, beta=1), CHOSEN, CHOSEN
    )
    one_of_two = lambda chosen, rejected: np.array([-1, 1]) * (chosen - rejected)
    assert not invariants.chosen_is_preferred(one_of_two, CHOSEN, CHOSEN)
    both_rise = lambda chosen, rejected: -chosen - 2 * rejected
    assert not invariants.chosen_is_preferred(both_rise, CHOSEN, CHOSEN)


def unsafe(values, mask):
    return jnp.where(mask, jnp.square(values), 0).sum() / mask.sum()


def safe_if_all_are_empty(values, mask):
    return (jnp.where(mask, values, 0).sum(1) / (mask.sum(1) + ~mask.any())).mean()


def leaky(values, mask):
    return masked_mean(values, mask) + 1e-3 * values.mean()


def mean_over_padding_too(values, mask):
    return jnp.where(mask, values, 0).mean()


def steeper_with_padding(values, mask):
    """Its value is that of a mean over kept entries, its gradient grows with the length."""
    constant = jax.lax.stop_gradient(values)
    return masked_mean(constant + values.shape[1] * (values - constant), mask)


MASKED = {
    invariants.padding_is_ignored: {masked_mean: True, unsafe: True, leaky: False},
    invariants.padding_length_is_irrelevant: {
        masked_mean: True,
        masked_sum: True,
        jax.vmap(masked_mean): True,
        mean_over_padding_too: False,
        steeper_with_padding: False,
    },
    invariants.masked_entries_get_no_gradient: {masked_mean: True, unsafe: True, leaky: False},
    invariants.masked_nan_is_ignored: {masked_mean: True, unsafe: False, leaky: False},
    invariants.empty_mask_is_finite: {masked_mean: True, unsafe: False, leaky: True, safe_if_all_are_empty: False},
    invariants.batch_order_is_irrelevant: {
        masked_mean: True,
        jax.vmap(masked_mean): True,
        lambda values, mask: masked_sum(values * jnp.arange(3)[:, None], mask): False,
        lambda values, mask: values[0] - values[1]: False,
    },
    invariants.is_summed: {masked_sum: True, masked_mean: False},
    invariants.is_averaged: {masked_sum: False, masked_mean: True},
}


@pytest.mark.parametrize("invariant", MASKED, ids=lambda invariant: invariant.__name__)
def test_masks_and_batches(invariant):
    for loss, holds in MASKED[invariant].items():
        check = invariant(loss, VALUES, MASK)
        assert bool(check) is holds, check
        assert check.name == invariant.__name__


def test_measured_leak_and_growth():
    np.testing.assert_allclose(
        invariants.masked_entries_get_no_gradient(leaky, VALUES, MASK).measured, 1e-3 / 9, rtol=1e-6
    )
    assert invariants.is_summed(masked_mean, VALUES, MASK).measured == 1
    assert invariants.is_averaged(masked_sum, VALUES, MASK, axis=0).measured == 2
    filled_with_minus_two = 22 / 6 + 1e-3 * (22 - 3 * 2) / 9
    change = 1e-3 * 3 * (0.5 + 2) / 9 / filled_with_minus_two
    np.testing.assert_allclose(invariants.padding_is_ignored(leaky, VALUES, MASK).measured, change, rtol=1e-2)


def test_padding_that_a_mean_counts_halves_it():
    check = invariants.padding_length_is_irrelevant(mean_over_padding_too, VALUES, MASK)
    np.testing.assert_allclose(check.measured, 0.5)
    of_one_string = lambda logits, tokens, mask: (jnp.take_along_axis(logits, tokens[:, None], 1)[:, 0] * mask).sum()
    arrays = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([0, 2, 1, 1]), np.array([True, True, True, False])
    assert invariants.padding_length_is_irrelevant(of_one_string, *arrays)
    assert not invariants.padding_length_is_irrelevant(lambda *arrays: of_one_string(*arrays) / len(arrays[0]), *arrays)


def test_padding_reaches_a_loss_of_a_difference():
    """The same number at the padding of both would leave it 0."""
    squares = lambda values, returns, mask: jnp.square(values - returns).sum()
    assert not invariants.padding_is_ignored(squares, VALUES, VALUES + 1, MASK)


def test_arrays_of_other_shapes_stand_beside_the_mask():
    loss = lambda values, advantages, scale, mask: masked_mean(
        scale * jnp.where(mask, values, 0) * advantages[:, None], mask
    )
    for invariant in (invariants.padding_is_ignored, invariants.masked_nan_is_ignored, invariants.empty_mask_is_finite):
        assert invariant(loss, VALUES, np.ones(3, np.float32), np.float32(2), MASK)
    assert invariants.is_averaged(loss, VALUES, np.ones(3, np.float32), np.float32(2), MASK)


def test_a_split_by_unequal_rows_is_tried():
    """[3, 2, 1] kept tokens: a mean of means is right for no cut, though the whole batch is its own mean."""
    mean_of_means = lambda parts: jnp.mean(jnp.stack([masked_mean(*part) for part in parts]))
    assert not invariants.batch_split_is_irrelevant(mean_of_means, VALUES, MASK)
    assert invariants.batch_split_is_irrelevant(lambda parts: sum(masked_sum(*part) for part in parts), VALUES, MASK)


def test_ids_at_the_padding():
    tokens = np.array([[1, 2, 3], [2, 1, 0], [3, 0, 0]])
    own = lambda tokens, mask: jnp.sin(tokens)
    leaking = lambda tokens, mask: jnp.sin(tokens) + tokens.sum(1, keepdims=True)
    assert pipeline_invariants.padding_ids_are_ignored(own, tokens, MASK)
    check = pipeline_invariants.padding_ids_are_ignored(leaking, tokens, MASK)
    assert not check
    assert check.measured == 6
