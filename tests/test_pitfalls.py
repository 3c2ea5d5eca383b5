"""Every mutant of the gallery is caught by the invariant that is named for it, and the right way passes it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import dpo_variants, group, kl, masking, policy_gradient, returns
from rlhf_jax import log_probs as lp
from rlhf_jax.pitfalls import GALLERY

CAUGHT_BY = {
    1: "is_summed",
    2: "prompt_stays_a_prefix",
    3: "eos_is_kept",
    4: "padding_is_ignored",
    5: "padding_side_is_irrelevant",
    6: "ratio_is_one",
    7: "kl_is_nonnegative",
    8: "kl_loss_descends_the_kl",
    9: "falling_chosen_costs",
    10: "empty_mask_is_finite",
    11: "ln2_at_the_reference",
    12: "randomness_is_off",
    13: "vocabulary_is_never_held",
    14: "log_probs_are_normalised",
    15: "reward_lands_on_the_last_token",
    16: "first_values_are_zero",
    17: "batch_split_is_irrelevant",
    18: "group_weights_are_fair",
    19: "gradient_is_finite",
    20: "truncation_bootstraps",
}


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("pitfall", GALLERY, ids=lambda pitfall: pitfall.name)
def test_the_named_invariant_catches_the_wrong_and_passes_the_right(pitfall):
    wrong, right = pitfall.invariant(pitfall.wrong), pitfall.invariant(pitfall.right)
    assert wrong.name == right.name == CAUGHT_BY[pitfall.number]
    assert not wrong, wrong
    assert right, right
    assert str(wrong).startswith(f"FAIL  {wrong.name} ")
    assert str(right).startswith(f"pass  {right.name} ")


def test_there_are_twenty_each_with_a_thread_of_its_own():
    assert [pitfall.number for pitfall in GALLERY] == list(range(1, 21))
    for pitfall in GALLERY:
        links = re.findall(r"https://github\.com/[\w.-]+/[\w.-]+/issues/\d+", str(pitfall))
        assert len(links) == len(pitfall.threads) >= 1
        assert str(pitfall).startswith(f"{pitfall.number}. {pitfall.name}: {pitfall.symptom}\n")


def invariant(number):
    return GALLERY[number - 1].invariant


def group_loss(advantages, mean):
    return lambda log_probs, rewards, mask: mean(
        policy_gradient.reinforce_loss(log_probs, jnp.broadcast_to(advantages(rewards)[:, None], mask.shape)), mask
    )


def test_length_and_difficulty_bias_are_caught_apart():
    fixed = lambda losses, mask: group.fixed_length_mean(losses, mask, 4)
    assert not invariant(18)(group_loss(group.standardized_advantages, fixed))
    assert not invariant(18)(group_loss(group.centered_advantages, group.sequence_mean))
    assert not invariant(18)(group_loss(lambda rewards: -group.centered_advantages(rewards), fixed))
    assert invariant(18)(group_loss(group.rloo_advantages, group.token_mean))


@pytest.mark.parametrize(
    ("number", "implementation", "holds"),
    [
        (1, lambda log_probs, mask: masking.masked_sum(log_probs, mask), True),
        (3, lambda tokens: np.ones_like(tokens, bool), False),
        (5, lambda tokens, mask: jnp.sin(tokens), True),
        (8, kl.k3, False),
        (14, lambda logits: lp.log_softmax(logits) + 0.01, False),
        (15, lambda scores, mask: jnp.where(jnp.arange(4) == 3, scores[:, None], 0), False),
        (15, lambda scores, mask: jnp.where(mask, scores[:, None], 0), False),
        (20, lambda rewards, ended, cut, values: returns.gae(rewards, 1.0, values, 0.95), False),
    ],
)
def test_other_ways_to_do_it(number, implementation, holds):
    assert bool(invariant(number)(implementation)) is holds


def test_losses_that_keep_the_chosen_string_up():
    """Beside DPO-positive, those that look at the chosen string by itself; the sigmoid of the gap alone does not."""
    apo = lambda *arguments: dpo_variants.apo_zero_loss(*arguments, beta=0.1)
    nll = lambda chosen, rejected, *reference: -chosen
    assert not invariant(9)(lambda chosen, rejected, *reference: rejected - chosen)
    assert invariant(9)(nll)
    assert isinstance(invariant(9)(apo).measured, float)


def test_measured_numbers_by_hand():
    """Means do not grow; k1's expected gradient is 0, all of the KL's away; an end that is missed costs v_T = 8."""
    measured = {
        pitfall.number: pitfall.invariant(pitfall.wrong).measured for pitfall in (GALLERY[i] for i in (0, 7, 19))
    }
    np.testing.assert_allclose([measured[1], measured[8], measured[20]], [1, 1, 8], rtol=1e-5)
