import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax import group, numpy_losses, ppo

REWARDS = np.array([3.0, -1.0, 0.5, 2.0, 2.0], np.float32)
RNG = np.random.default_rng(0)
OLD = RNG.normal(size=(5, 6)) - 2
NEW, REF = OLD + 0.4 * RNG.normal(size=(2, 5, 6))
ADVANTAGES = RNG.normal(size=(5, 6))
MASK = np.arange(6) < np.array([6, 4, 1, 0, 5])[:, None]
BOUNDS = {"clip_eps_low": 0.2, "clip_eps_high": 0.3}
PENALTY = {"clip_eps": 0.2, "beta": 0.3}


def test_advantages_by_hand():
    """Rewards 1, 2, 6: mean 3, sample variance (4 + 1 + 9) / 2 = 7; the others' means are 4, 3.5 and 1.5."""
    rewards = np.array([1.0, 2.0, 6.0], np.float32)
    np.testing.assert_allclose(group.centered_advantages(rewards), [-2, -1, 3], rtol=1e-6)
    np.testing.assert_allclose(group.standardized_advantages(rewards, 0.0), np.array([-2, -1, 3]) / 7**0.5, rtol=1e-6)
    np.testing.assert_allclose(group.rloo_advantages(rewards), [-3, -1.5, 4.5], rtol=1e-6)
    for rewards, standardized in (([0, 1, 2], [-1, 0, 1]), ([0, 2], [-(0.5**0.5), 0.5**0.5]), ([3, 3], [0, 0])):
        np.testing.assert_allclose(group.standardized_advantages(np.float32(rewards), 0.0), standardized, rtol=1e-6)


def test_advantages_equal_the_loops():
    for eps in (1e-4, 0.3):
        expected = numpy_losses.standardized_advantages(REWARDS, eps)
        np.testing.assert_allclose(group.standardized_advantages(REWARDS, eps), expected, rtol=1e-5)
    np.testing.assert_allclose(group.standardized_advantages(REWARDS), group.standardized_advantages(REWARDS, 1e-4))
    np.testing.assert_allclose(group.rloo_advantages(REWARDS), numpy_losses.rloo_advantages(REWARDS), rtol=1e-5)


@pytest.mark.parametrize(
    "function", [group.centered_advantages, group.standardized_advantages, group.rloo_advantages]
)  # fmt: skip
def test_advantages_sum_to_zero_and_ignore_a_shift_of_the_rewards(function):
    np.testing.assert_allclose(function(REWARDS).sum(), 0, atol=1e-5)
    np.testing.assert_allclose(function(REWARDS + 7), function(REWARDS), atol=1e-5)


def test_standardised_advantages_ignore_the_scale_of_the_rewards_and_have_unit_deviation():
    standardized = group.standardized_advantages(REWARDS, 0.0)
    np.testing.assert_allclose(group.standardized_advantages(10 * REWARDS, 0.0), standardized, rtol=1e-5)
    np.testing.assert_allclose(standardized.std(ddof=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "function", [group.centered_advantages, group.standardized_advantages, group.rloo_advantages]
)  # fmt: skip
def test_an_all_equal_group_has_zero_advantages_and_finite_gradients(function):
    equal = jnp.full(4, 2.5)
    assert (function(equal) == 0).all()
    assert jnp.isfinite(jax.jacobian(function)(equal)).all()


def test_a_group_of_one():
    alone = np.array([2.0], np.float32)
    assert group.centered_advantages(alone) == 0
    assert group.standardized_advantages(alone) == 0
    with pytest.raises(ValueError, match="rewards: leave-one-out needs a group of at least 2, got 1"):
        group.rloo_advantages(alone)


def test_the_leave_one_out_baseline_is_unbiased_and_the_shared_mean_shrinks_the_gradient():
    """Exactly, over all pairs of draws: E[Σ_i A_i ∇ log π(y_i)] / G is ∇ E[r], and (G − 1)/G of it when centred."""
    logits, rewards = jnp.array([0.3, -0.2, 1.0]), jnp.array([1.0, -2.0, 0.5])
    probs, score = jax.nn.softmax(logits), jax.jacobian(jax.nn.log_softmax)(logits)
    exact = jax.grad(lambda logits: jax.nn.softmax(logits) @ rewards)(logits)
    pairs = jnp.stack(jnp.meshgrid(*[jnp.arange(3)] * 2), -1).reshape(-1, 2)
    for function, share in ((group.rloo_advantages, 1.0), (group.centered_advantages, 0.5)):
        advantages = jax.vmap(function)(rewards[pairs])
        estimates = jnp.einsum("ng,ngv->nv", advantages, score[pairs]) / 2
        np.testing.assert_allclose(probs[pairs].prod(1) @ estimates, share * exact, atol=1e-6)


def test_rloo_is_the_hand_formula():
    """∂/∂ log π(y_i) of the sum is minus r_i less the mean of the others; rewards 1, 2, 6 as above."""
    log_probs, rewards = jnp.array([-4.0, -2.0, -1.0]), jnp.array([1.0, 2.0, 6.0])
    np.testing.assert_allclose(group.rloo_loss(log_probs, rewards), [-12, -3, 4.5], rtol=1e-6)
    slopes = jax.grad(lambda *arguments: group.rloo_loss(*arguments).sum(), (0, 1))(log_probs, rewards)
    np.testing.assert_allclose(slopes[0], [3, 1.5, -4.5], rtol=1e-6)
    assert (slopes[1] == 0).all()


def test_the_mean_gradient_of_rloo_is_the_policy_gradient():
    """Over every group of three strings with its probability: E[∇ mean loss] = −∇ E[r]."""
    with jax.enable_x64(True):
        logits, rewards = jnp.array([0.3, -0.2, 1.0]), jnp.array([1.0, -2.0, 0.5])
        groups = jnp.stack(jnp.meshgrid(*[jnp.arange(3)] * 3), -1).reshape(-1, 3)
        weights = jax.nn.softmax(logits)[groups].prod(1)

        def mean_loss(logits):
            log_probs = jax.nn.log_softmax(logits)[groups]
            return weights @ jax.vmap(group.rloo_loss)(log_probs, rewards[groups]).mean(1)

        exact = jax.grad(lambda logits: jax.nn.softmax(logits) @ rewards)(logits)
        np.testing.assert_allclose(jax.grad(mean_loss)(logits), -exact, atol=1e-14)


@pytest.mark.parametrize(
    ("ratio", "advantage", "dapo", "cispo"),
    [
        (1.0, 2.0, -2.0, 2.0), (1.25, 2.0, -2.5, 2.5), (1.5, 2.0, -2.6, 2.6), (0.5, 2.0, -1.0, 1.6),
        (1.5, -2.0, 3.0, -2.6), (0.9, -2.0, 1.8, -1.8), (0.5, -2.0, 1.6, -1.6),
    ],
)  # fmt: skip
def test_decoupled_bounds_by_hand(ratio, advantage, dapo, cispo):
    """Bounds 0.8 and 1.3, log π = −1: DAPO's minimum drops a term, CISPO's weight only stops growing."""
    arguments = (-1.0, -1.0 - np.log(ratio), advantage)
    np.testing.assert_allclose(group.dapo_loss(*arguments, **BOUNDS), dapo, rtol=1e-6)
    np.testing.assert_allclose(group.cispo_loss(*arguments, **BOUNDS), cispo, rtol=1e-6)


def test_grpo_by_hand():
    """r = 1.5, A = 2 clips at 1.2; π_ref/π = 2 costs β (2 − 1 − ln 2)."""
    loss = group.grpo_loss(np.log(1.5), 0.0, np.log(3.0), 2.0, **PENALTY)
    np.testing.assert_allclose(loss, -2.4 + 0.3 * (1 - np.log(2)), rtol=1e-6)


def test_token_losses_and_their_gradients_equal_the_loops_and_the_closed_forms():
    """−r A where the clip does not bind; CISPO's −clip(r) A everywhere; GRPO adds β (1 − π_ref/π)."""
    ratio = np.exp(NEW - OLD)
    unbound = lambda high: np.where(ADVANTAGES > 0, ratio <= high, ratio >= 0.8)
    assert 3 < (ratio < 0.8).sum() < (ratio < 1.2).sum() < (ratio < 1.3).sum() < ratio.size - 3
    expected = {
        group.dapo_loss: ((NEW, OLD, ADVANTAGES), BOUNDS, -ratio * ADVANTAGES * unbound(1.3)),
        group.cispo_loss: ((NEW, OLD, ADVANTAGES), BOUNDS, -np.clip(ratio, 0.8, 1.3) * ADVANTAGES),
        group.grpo_loss: (
            (NEW, OLD, REF, ADVANTAGES),
            PENALTY,
            -ratio * ADVANTAGES * unbound(1.2) + 0.3 * (1 - np.exp(REF - NEW)),
        ),
    }
    with jax.enable_x64(True):
        for function, (arguments, coefficients, slopes) in expected.items():
            loop = np.vectorize(getattr(numpy_losses, function.__name__))(*arguments, **coefficients)
            total = lambda *a, f=function, c=coefficients: (jnp.sum(out := f(*a, **c)), out)
            gradients, losses = jax.grad(total, tuple(range(len(arguments))), has_aux=True)(
                *map(jnp.asarray, arguments)
            )
            np.testing.assert_allclose(losses, loop, rtol=1e-12)
            np.testing.assert_allclose(gradients[0], slopes, rtol=1e-12)
            for gradient in gradients[1:]:
                assert (gradient == 0).all()


def test_gradients_equal_finite_differences_away_from_the_kinks():
    """CISPO's is that of its loss with the weight held constant, not of its value."""
    with jax.enable_x64(True):
        ratio = jnp.asarray([1.1, 1.25, 1.5, 0.5, 0.9, 2.0])
        advantages = jnp.asarray([1.0, 2.0, -1.5, 0.7, -0.4, 0.6])
        old, mask = jnp.asarray(OLD[0]), jnp.asarray(MASK[1])
        wide, narrow = {"clip_eps_low": 0.1, "clip_eps_high": 1.0}, {"clip_eps_low": 0.1, "clip_eps_high": 0.01}

        def losses(new):
            grpo = group.grpo_loss(new, old, old + 0.3, advantages, **PENALTY).sum()
            dapo = group.dapo_loss(new, old, advantages, **BOUNDS).sum()
            gspo = [group.gspo_loss(new, old, a, mask, **c) for a, c in ((1.0, wide), (-1.0, narrow), (1.0, narrow))]
            return jnp.stack([grpo, dapo, *gspo])

        new = old + jnp.log(ratio)
        check_grads(jax.jit(losses), (new,), order=1, modes=["rev"], atol=1e-7, rtol=1e-7)
        cispo = jax.grad(lambda new: group.cispo_loss(new, old, advantages, **BOUNDS).sum())(new)
        np.testing.assert_allclose(cispo, -np.clip(ratio, 0.8, 1.3) * advantages, rtol=1e-14)


def test_dapo_with_equal_bounds_is_ppos_clip_and_so_is_grpo_without_its_penalty():
    new, old, ref, advantages = (jnp.asarray(array, jnp.float32) for array in (NEW, OLD, REF, ADVANTAGES))
    expected = ppo.clipped_surrogate_loss(new, old, advantages, clip_eps=0.2)
    equal = group.dapo_loss(new, old, advantages, clip_eps_low=0.2, clip_eps_high=0.2)
    np.testing.assert_array_equal(equal, expected)
    np.testing.assert_array_equal(group.grpo_loss(new, old, ref, advantages, clip_eps=0.2, beta=0.0), expected)


def test_an_absurd_masked_token_spoils_no_gradient():
    old = jnp.array([[-1.0, np.inf, -np.inf, 1e3, -1e3]])
    mask = jnp.array([[True, False, False, False, False]])

    def total(new, advantages):
        tokens = (
            group.dapo_loss(new, old, advantages, **BOUNDS),
            group.cispo_loss(new, old, advantages, **BOUNDS),
            group.grpo_loss(new, old, old, advantages, **PENALTY),
        )
        return sum(group.token_mean(losses, mask) for losses in tokens)

    for advantage in (1.0, -1.0):
        gradient = jax.grad(total)(jnp.full((1, 5), -1.0), jnp.full((1, 5), advantage))
        np.testing.assert_allclose(gradient, [[-3 * advantage, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("advantage", "high", "loss", "slope"),
    [(1.0, 1.5, -2.0, -1.0), (1.0, 0.3, -1.3, 0.0), (-1.0, 0.3, 2.0, 1.0)],
)
def test_gspo_by_hand(advantage, high, loss, slope):
    """Ratios 4 and 1 of two kept tokens: s = 2. The slope −s A/2 is the same at both; a masked NaN reaches nothing."""
    new, old, mask = (
        jnp.log(jnp.array([4.0, 1.0, jnp.nan])),
        jnp.array([0.0, 0.0, jnp.nan]),
        jnp.array([True, True, False]),
    )
    gspo = lambda new, old, a: group.gspo_loss(new, old, a, mask, clip_eps_low=0.2, clip_eps_high=high)
    value, slopes = jax.value_and_grad(gspo, (0, 1, 2))(new, old, advantage)
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(slopes[0], [slope, slope, 0], rtol=1e-6)
    assert (slopes[1] == 0).all()
    assert slopes[2] == 0


def test_gspo_equals_the_loop_and_for_one_token_dapo():
    new, old, advantages = (array.astype(np.float32) for array in (NEW, OLD, ADVANTAGES[:, 0]))
    losses = jax.vmap(lambda *arguments: group.gspo_loss(*arguments, **BOUNDS))
    loop = [numpy_losses.gspo_loss(*row, **BOUNDS) for row in zip(new, old, advantages, MASK, strict=True)]
    np.testing.assert_allclose(losses(new, old, advantages, MASK), loop, rtol=1e-5)
    np.testing.assert_allclose(
        losses(new[:, :1], old[:, :1], advantages, MASK[:1, :1].repeat(5, 0)),
        group.dapo_loss(new[:, 0], old[:, 0], advantages, **BOUNDS),
        rtol=1e-6,
    )


def test_gspo_of_an_empty_string_is_zero():
    nothing = jnp.zeros(3, bool)
    loss = lambda new: group.gspo_loss(new, jnp.full(3, jnp.nan), jnp.nan, nothing, **BOUNDS)
    value, slopes = jax.value_and_grad(loss)(jnp.array([jnp.nan, 1.0, -jnp.inf]))
    assert value == 0
    assert (slopes == 0).all()


def test_an_unmasked_nan_propagates():
    for place in range(3):
        arguments = [0.0, 0.0, 1.0]
        arguments[place] = np.nan
        assert jnp.isnan(group.dapo_loss(*arguments, **BOUNDS))
        assert jnp.isnan(group.cispo_loss(*arguments, **BOUNDS))


def test_reductions_by_hand():
    """Strings of 3, 1 and 0 tokens with losses 1, 2, 3 and 4, and what each token then weighs."""
    mask = jnp.array([[True, True, True], [True, False, False], [False, False, False]])
    losses = jnp.where(mask, jnp.array([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), jnp.nan)
    fixed = lambda losses, mask: group.fixed_length_mean(losses, mask, 5.0)
    for reduce, value, slopes in (
        (group.token_mean, 2.5, [1 / 4, 1 / 4]),
        (group.sequence_mean, 2.0, [1 / 9, 1 / 3]),
        (fixed, 10 / 15, [1 / 15, 1 / 15]),
    ):
        measured, gradient = jax.value_and_grad(reduce)(losses, mask)
        np.testing.assert_allclose(measured, value, rtol=1e-6)
        np.testing.assert_allclose(gradient, jnp.where(mask, jnp.array([*slopes, 0.0])[:, None], 0), rtol=1e-6)
        nothing, gradient = jax.value_and_grad(reduce)(losses, jnp.zeros((3, 3), bool))
        assert nothing == 0
        assert (gradient == 0).all()
        assert jnp.isnan(reduce(losses, jnp.ones((3, 3), bool)))


def test_reductions_equal_the_loops_and_agree_on_strings_of_equal_length():
    losses, full = NEW.astype(np.float32), np.ones(MASK.shape, bool)
    for name, length in (("token_mean", ()), ("sequence_mean", ()), ("fixed_length_mean", (6,))):
        reduce, loop = getattr(group, name), getattr(numpy_losses, name)
        np.testing.assert_allclose(reduce(losses, MASK, *length), loop(losses, MASK, *length), rtol=1e-5)
        np.testing.assert_allclose(reduce(losses, full, *length), losses.mean(), rtol=1e-5)


def test_what_a_token_weighs_on_policy_method_by_method():
    """The module's table, on a group of 5 strings (one of them empty) at π = π_old = π_ref, in float64.

    Each gradient is −A times: 1/(G |y_i|) for GRPO and GSPO, 1/(G L) for Dr. GRPO, 1/Σ|y_i| for DAPO and CISPO.
    """
    with jax.enable_x64(True):
        old, mask, rewards = jnp.asarray(OLD), jnp.asarray(MASK), jnp.asarray(REWARDS, jnp.float64)
        standardized, centered = group.standardized_advantages(rewards), group.centered_advantages(rewards)
        tokens = lambda advantages: jnp.broadcast_to(advantages[:, None], mask.shape)

        def methods(new):
            grpo = group.grpo_loss(new, old, old, tokens(standardized), **PENALTY)
            dr_grpo = ppo.clipped_surrogate_loss(new, old, tokens(centered), clip_eps=0.2)
            gspo = jax.vmap(lambda *row: group.gspo_loss(*row, **BOUNDS))(new, old, standardized, mask)
            return jnp.stack([
                group.sequence_mean(grpo, mask),
                group.fixed_length_mean(dr_grpo, mask, 8),
                group.token_mean(group.dapo_loss(new, old, tokens(standardized), **BOUNDS), mask),
                gspo.mean(),
                group.token_mean(group.cispo_loss(new, old, tokens(standardized), **BOUNDS), mask),
            ])  # fmt: skip

        gradients = jax.jit(jax.jacrev(methods))(old)
        lengths = np.array([6, 4, 1, 1, 5])[:, None]
        weights = [1 / (5 * lengths), 1 / 40, 1 / 16, 1 / (5 * lengths), 1 / 16]
        advantages = [standardized, centered, standardized, standardized, standardized]
        for gradient, weight, advantage in zip(gradients, weights, advantages, strict=True):
            expected = -np.where(MASK, advantage[:, None] * weight, 0)
            np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-15)
