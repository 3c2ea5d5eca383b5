"""Losses as a newcomer brings them to `rlhf-jax audit`, by what its report says of each."""

import fractions
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.commands import audit
from rlhf_jax.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def chosen_log_probs_of(logits, tokens):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]


def fine_tuning(logits, tokens, mask):
    kept = jnp.where(mask, chosen_log_probs_of(logits, tokens), 0)
    return -kept.sum() / jnp.maximum(mask.sum(), 1)


def mean_over_padding(logits, tokens, mask):
    return -jnp.where(mask, chosen_log_probs_of(logits, tokens), 0).mean()


def unmasked_kl(logits, ref_logits, mask):
    log_probs, ref_log_probs = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    return (jnp.exp(log_probs) * (log_probs - ref_log_probs)).sum()


def unmasked_k3(log_probs, ref_log_probs, mask):
    log_ratio = ref_log_probs - log_probs
    return (jnp.expm1(log_ratio) - log_ratio).sum()


def reinforce(log_probs, advantages, mask):
    return -jnp.where(mask, log_probs * advantages, 0).sum()


def whitening_reinforce(log_probs, advantages):
    return reinforce(log_probs, (advantages - advantages.mean()) / advantages.std(), True)


def unsigned_reinforce(log_probs, advantages, mask):
    return -reinforce(log_probs, advantages, mask)


LEAKS = ["padding_is_ignored", "masked_entries_get_no_gradient"]


@pytest.mark.parametrize(
    ("loss", "failed"),
    [
        (fine_tuning, []),
        (mean_over_padding, ["padding_length_is_irrelevant"]),
        (unmasked_kl, LEAKS),
        (unmasked_k3, LEAKS),
        (reinforce, []),
        (whitening_reinforce, []),
        (unsigned_reinforce, ["first_update_is_the_policy_gradient"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_fails(loss, failed):
    report = audit.audit_function(loss, "mine")
    assert [check.name for check in report.checks if not check] == failed
    assert report.gradient.ok
    assert report.ok is (not failed)
    assert ("advantages" in loss.__code__.co_varnames) == (
        "first_update_is_the_policy_gradient" in {check.name for check in report.checks}
    )


def test_a_kl_estimate_of_the_wrong_sign_is_noted():
    values = [
        audit.audit_function(estimate, "mine").notes[0]
        for estimate in (
            lambda log_probs, ref_log_probs: log_probs - ref_log_probs,
            lambda log_probs, ref_log_probs: 2 * (ref_log_probs - log_probs),
        )
    ]
    expected = "as an estimate: its expectation is {} of KL(policy || reference)"
    assert values == [expected.format(1), expected.format(-2)]


def with_metrics(log_probs, mask):
    return jnp.where(mask, log_probs, 0).sum(), {"tokens": mask.sum()}


def without_return(log_probs):
    log_probs.sum()


def of_any_arguments(*arguments, **settings):
    return jnp.zeros(())


def of_a_batch(log_probs):
    return log_probs.reshape(7, 9)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (with_metrics, "the output is a tuple: give a function that returns the loss alone"),
        (without_return, "the output is a NoneType: give"),
        (of_any_arguments, "mine: nothing to check: rlhf-jax audit --help lists the names of arrays that are known"),
        (of_a_batch, f" ({Path(__file__).name}:{of_a_batch.__code__.co_firstlineno + 1})"),
        (jax.jit(of_a_batch), f" ({Path(__file__).name}:{of_a_batch.__code__.co_firstlineno + 1})"),
    ],
)
def test_what_cannot_be_audited_says_why(loss, said):
    with pytest.raises(UserError) as error:
        audit.audit_function(loss, "mine")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_class_is_not_a_loss_but_its_instance_may_be():
    with pytest.raises(UserError, match="Fraction is a class: give a function, or an instance that can be called"):
        audit.load(f"{fractions.__name__}:Fraction")


def trl_style_dpo(
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta=0.1
):
    chosen, rejected = policy_chosen_logps - reference_chosen_logps, policy_rejected_logps - reference_rejected_logps
    return -jax.nn.log_sigmoid(beta * (chosen - rejected))


def trl_style_grpo(per_token_logps, old_per_token_logps, adv, completion_mask, epsilon=0.2):
    ratio = jnp.exp(per_token_logps - old_per_token_logps)
    losses = -jnp.minimum(ratio * adv, jnp.clip(ratio, 1 - epsilon, 1 + epsilon) * adv)
    return jnp.where(completion_mask, losses, 0).sum() / jnp.maximum(completion_mask.sum(), 1)


def test_trls_names_are_read_and_the_same_checks_follow():
    pairs = audit.audit_function(trl_style_dpo, "dpo")
    assert pairs.ok
    assert [check.name for check in pairs.checks][:2] == ["chosen_is_preferred", "constant_at_the_reference"]
    assert "read policy_chosen_logps as chosen_log_probs" in str(pairs)
    tokens = audit.audit_function(trl_style_grpo, "grpo", {"epsilon": 0.1})
    assert tokens.ok
    assert {"first_update_is_the_policy_gradient", "padding_is_ignored"} < {check.name for check in tokens.checks}
    swapped = lambda policy_chosen_logps, policy_rejected_logps: policy_chosen_logps - policy_rejected_logps
    assert not audit.audit_function(swapped, "swapped").ok


def test_two_spellings_of_one_name_stay_apart():
    both = lambda logps, log_probs: (log_probs - logps).sum()
    with pytest.raises(UserError, match="no example value is known for the argument 'logps'"):
        audit.audit_function(both, "both")


def test_a_likelihood_term_beside_dpo_is_told_apart_by_its_weight():
    def with_likelihood(
        chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs, weight, beta=0.1
    ):
        pairs = chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs
        return trl_style_dpo(*pairs, beta) - weight * chosen_log_probs

    report = audit.audit_function(with_likelihood, "with_likelihood")
    assert not report.ok
    assert "--set its weight to 0" in str(report)
    assert audit.audit_function(with_likelihood, "with_likelihood", {"weight": 0}).ok
