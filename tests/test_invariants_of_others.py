"""Right losses of somebody else raise no false alarm, and a check that has nothing to look at does not pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import invariants, pipeline_invariants
from rlhf_jax.commands.audit import audit_function

MASK = np.array([[True, True, True], [True, True, False], [True, False, False]])
LEFT = MASK[:, ::-1]
VALUES = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
TOKENS = np.array([[1, 2, 3], [2, 1, 0], [3, 0, 0]])
LOGITS = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)


def whitening_ppo(log_probs, old_log_probs, advantages):
    ratio, advantages = jnp.exp(log_probs - old_log_probs), (advantages - advantages.mean()) / advantages.std()
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages).mean()


def test_advantages_that_are_whitened_inside():
    advantages = np.array([[1, -2, 4], [0, 1, 5], [3, 3, 0]], np.float32)
    check = invariants.first_update_is_the_policy_gradient
    assert check(whitening_ppo, -VALUES, advantages - advantages.mean())
    assert not check(whitening_ppo, -VALUES, advantages)
    assert audit_function(whitening_ppo, "whitening_ppo").ok


@pytest.mark.parametrize("mask", [MASK, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_padding_on_either_side_at_any_scale(mask, scale):
    mean = lambda values, mask: scale * jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)
    leaky = lambda values, mask: mean(values, mask) + scale * 1e-3 * values.mean()
    leaky_slope = lambda values, mask: (
        mean(jnp.square(values), mask) * values.mean() / jax.lax.stop_gradient(values.mean())
    )
    assert invariants.padding_is_ignored(mean, VALUES, mask)
    assert invariants.empty_mask_is_finite(mean, VALUES, mask)
    assert not invariants.padding_is_ignored(leaky, VALUES, mask)
    assert not invariants.padding_is_ignored(leaky_slope, VALUES, mask)
    assert invariants.padding_length_is_irrelevant(mean, VALUES, mask)
    over_all = lambda values, mask: scale * jnp.where(mask, values, 0).mean()
    assert not invariants.padding_length_is_irrelevant(over_all, VALUES, mask)


def test_a_loss_that_is_0_passes():
    assert invariants.padding_is_ignored(lambda values, mask: 0 * jnp.where(mask, values, 0).sum(), VALUES, MASK)


def test_logits_are_masked_too():
    token = lambda logits: jax.nn.log_softmax(logits)[..., 0]
    right = lambda logits, mask: jnp.where(mask, token(jnp.where(mask[..., None], logits, 0)), 0).sum()
    wrong = lambda logits, mask: token(logits).sum()
    for check in (
        invariants.padding_is_ignored,
        invariants.masked_entries_get_no_gradient,
        invariants.masked_nan_is_ignored,
    ):
        assert check(right, LOGITS, MASK)
        assert not check(wrong, LOGITS, MASK)


def test_a_mask_for_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"no array of floats has the mask's axes, \(3, 3\)"):
        invariants.padding_is_ignored(lambda rewards, mask: rewards.sum(), VALUES[0], MASK)


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_nan_times_a_mask_is_seen_although_xla_may_hide_it(dtype):
    product = lambda values, mask: (values * mask.astype(dtype)).sum()
    assert not invariants.masked_nan_is_ignored(product, VALUES, MASK)


def test_what_is_not_of_the_batch_stays_in_its_order():
    embedding = np.arange(8, dtype=np.float32).reshape(4, 2)
    loss = lambda hidden, embedding: (hidden[:, :2] @ embedding.T)[:, 0]
    assert invariants.batch_order_is_irrelevant(loss, VALUES, embedding)
    assert invariants.batch_order_is_irrelevant(lambda one, other: one * other.sum(), np.float32(2), VALUES)


def test_padding_may_stand_on_the_left_at_first():
    counting = lambda tokens, mask: jnp.sin(tokens + jnp.arange(3))
    own = lambda tokens, mask: jnp.sin(tokens + jnp.cumsum(mask, axis=1))
    for tokens, mask in ((TOKENS, MASK), (TOKENS[:, ::-1], LEFT)):
        assert not pipeline_invariants.padding_side_is_irrelevant(counting, tokens, mask)
        assert pipeline_invariants.padding_side_is_irrelevant(own, tokens, mask)


def test_a_pair_may_end_with_more_than_the_completion():
    encode = lambda text: list(text.encode())
    with_eos = lambda prompt, text: (*encode(prompt), *encode(text), 0)
    assert pipeline_invariants.prompt_stays_a_prefix(with_eos, encode, "a", "b", "")
    inside = lambda prompt, text: encode(prompt[0] + text + prompt[1:])
    assert not pipeline_invariants.prompt_stays_a_prefix(inside, encode, "ab", "c")


def test_an_emptied_string_has_no_place_for_a_reward():
    place = lambda scores, mask: jnp.where(jnp.arange(2) == mask.sum(1)[:, None] - 1, scores[:, None], 0)
    mask = np.array([[True, False], [False, False]])
    assert pipeline_invariants.reward_lands_on_the_last_token(place, np.ones(2), mask)
