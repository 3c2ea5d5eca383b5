import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax import kl, masking, numpy_losses, ppo

RNG = np.random.default_rng(0)
OLD = RNG.normal(size=(4, 50)).astype(np.float32) - 2
NEW = OLD + 0.4 * RNG.normal(size=OLD.shape).astype(np.float32)
ADVANTAGES = RNG.normal(size=OLD.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [(1.0, 2.0, -2.0), (1.5, 2.0, -2.4), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.6), (1.1, -2.0, 2.2)],
)
def test_surrogate_by_hand(ratio, advantage, loss):
    """min(r A, clip(r, 0.8, 1.2) A) with its sign turned: each sign of A on each side of the clip."""
    np.testing.assert_allclose(ppo.clipped_surrogate_loss(np.log(ratio), 0.0, advantage, clip_eps=0.2), loss, rtol=1e-6)


def test_surrogate_equals_the_loop():
    expected = np.vectorize(numpy_losses.clipped_surrogate_loss)(NEW, OLD, ADVANTAGES, 0.2)
    np.testing.assert_allclose(ppo.clipped_surrogate_loss(NEW, OLD, ADVANTAGES, clip_eps=0.2), expected, rtol=2e-5)


def test_surrogate_gradient_is_the_closed_form_inside_and_outside_the_clip():
    """−r A, and 0 where the clip binds: r > 1 + ε and A > 0, or r < 1 − ε and A < 0."""
    with jax.enable_x64(True):
        new, old, advantages = (np.float64(array) for array in (NEW, OLD, ADVANTAGES))
        gradient = jax.grad(lambda new: ppo.clipped_surrogate_loss(new, old, advantages, clip_eps=0.2).sum())(new)
    ratio = np.exp(new - old)
    binds = np.where(advantages > 0, ratio > 1.2, ratio < 0.8)
    assert 10 < binds.sum() < binds.size - 10
    np.testing.assert_allclose(gradient, np.where(binds, 0, -ratio * advantages), rtol=1e-12)


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    """And clipping is out of sight: minus A ∇ log π, through a softmax."""
    logits, action = jnp.array([0.2, -1.0, 0.7]), 1
    old = jax.nn.log_softmax(logits)[action]
    surrogate = lambda logits: ppo.clipped_surrogate_loss(jax.nn.log_softmax(logits)[action], old, 3.0, clip_eps=0.2)
    expected = -3.0 * (jnp.eye(3)[action] - jax.nn.softmax(logits))
    np.testing.assert_allclose(jax.grad(surrogate)(logits), expected, rtol=1e-5)


def test_no_gradient_reaches_the_old_policy_the_advantages_or_the_regression_targets():
    surrogate = lambda *arguments: ppo.clipped_surrogate_loss(*arguments, clip_eps=0.2).sum()
    value = lambda *arguments: ppo.clipped_value_loss(*arguments, clip_eps=0.2).sum()
    for loss in (surrogate, value):
        for gradient in jax.grad(loss, (1, 2))(jnp.asarray(NEW), jnp.asarray(OLD), jnp.asarray(ADVANTAGES)):
            assert (gradient == 0).all()


@pytest.mark.parametrize("absurd", [1e3, -1e3, np.inf, -np.inf])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_absurd_masked_token_spoils_no_gradient(absurd, advantage):
    mask = jnp.array([True, False])

    def loss(log_probs):
        losses = ppo.clipped_surrogate_loss(log_probs, jnp.array([0.0, absurd]), advantage, clip_eps=0.2)
        return masking.masked_mean(losses, mask) + ppo.approximate_kl(log_probs, jnp.array([0.0, absurd]), mask)

    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(2)), [-advantage, 0])


def test_an_absurd_unmasked_ratio_stays_finite_and_a_nan_does_not_hide():
    loss, slope = jax.value_and_grad(lambda new: ppo.clipped_surrogate_loss(new, 0.0, -1.0, clip_eps=0.2))(1e3)
    assert jnp.isfinite(loss)
    assert jnp.isfinite(slope)
    for arguments in ((np.nan, 0.0, 1.0), (0.0, np.nan, 1.0), (0.0, 0.0, np.nan)):
        assert jnp.isnan(ppo.clipped_surrogate_loss(*arguments, clip_eps=0.2))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [(5.0, -2.0, 6.0, 0.0), (2.5, -2.0, 5.0, 5.0), (0.5, -2.0, 1.6, 0.0), (1.1, -2.0, 2.2, 2.2),
     (5.0, 2.0, -2.4, 0.0), (1.1, 2.0, -2.2, -2.2), (5.0, 0.0, 0.0, 0.0)],
)  # fmt: skip
def test_dual_clip_and_its_gradient_by_hand(ratio, advantage, loss, slope):
    """ε = 0.2, c = 3: a negative advantage costs at most 3 |A|; a positive one is PPO's."""
    dual = jax.value_and_grad(lambda *arguments: ppo.dual_clip_loss(*arguments, clip_eps=0.2, dual_clip=3.0), (0, 1, 2))
    value, slopes = dual(np.log(ratio), 0.0, advantage)
    np.testing.assert_allclose((value, *slopes), (loss, slope, 0, 0), rtol=1e-6)


def test_dual_clip_equals_the_loop_and_without_its_bound_ppos_clip():
    new = (OLD + 3 * (NEW - OLD)).astype(np.float32)
    expected = np.vectorize(numpy_losses.dual_clip_loss)(new, OLD, ADVANTAGES, 0.2, 1.5)
    surrogate = ppo.clipped_surrogate_loss(new, OLD, ADVANTAGES, clip_eps=0.2)
    assert (expected < surrogate - 1e-3).sum() > 10
    np.testing.assert_allclose(
        ppo.dual_clip_loss(new, OLD, ADVANTAGES, clip_eps=0.2, dual_clip=1.5), expected, rtol=2e-5
    )
    np.testing.assert_array_equal(ppo.dual_clip_loss(new, OLD, ADVANTAGES, clip_eps=0.2, dual_clip=1e6), surrogate)


def test_gradients_equal_finite_differences_away_from_the_kinks():
    with jax.enable_x64(True):
        new = jnp.log(jnp.asarray([1.1, 0.9, 1.5, 0.5, 4.0, 0.7]))
        advantages, targets = (
            jnp.asarray([1.0, -2.0, -1.5, 0.7, -0.4, -1.0]),
            jnp.asarray([2.0, 0.3, -1.0, 0.0, 3.0, 0.1]),
        )

        def losses(new):
            dual = ppo.dual_clip_loss(new, 0.0, advantages, clip_eps=0.2, dual_clip=3.0).sum()
            surrogate = ppo.clipped_surrogate_loss(new, 0.0, advantages, clip_eps=0.2).sum()
            return jnp.stack(
                [dual, surrogate, ppo.clipped_value_loss(new, 0.0, targets, clip_eps=0.2).sum(), ppo.entropy(new)]
            )

        check_grads(jax.jit(losses), (new,), order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [(1.1, 3.0, 1.805, -1.9), (2.0, 3.0, 1.62, 0.0), (2.0, 0.0, 2, 2), (0.0, 3.0, 4.5, -3), (0.0, -1.0, 1.62, 0.0)],
)
def test_value_loss_and_its_gradient_by_hand(value, target, loss, slope):
    """v_old = 1, ε = 0.2: moves towards the target stop paying at the clip, moves away always cost."""
    measured = jax.value_and_grad(lambda v: ppo.clipped_value_loss(v, 1.0, target, clip_eps=0.2))(value)
    np.testing.assert_allclose(measured, (loss, slope), rtol=1e-6)


def test_value_loss_equals_the_loop_and_is_at_least_the_squared_error():
    expected = np.vectorize(numpy_losses.clipped_value_loss)(NEW, OLD, ADVANTAGES, 0.2)
    losses = ppo.clipped_value_loss(NEW, OLD, ADVANTAGES, clip_eps=0.2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert (losses >= 0.5 * np.square(NEW - ADVANTAGES) - 1e-6).all()
    np.testing.assert_allclose(
        ppo.clipped_value_loss(NEW, OLD, ADVANTAGES, clip_eps=1e3), 0.5 * np.square(NEW - ADVANTAGES), rtol=1e-6
    )


def test_entropy():
    logits = RNG.normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_allclose(ppo.entropy(logits), [numpy_losses.entropy(row) for row in logits], rtol=1e-5)
    np.testing.assert_allclose(ppo.entropy(np.zeros(7, np.float32)), np.log(7), rtol=1e-6)
    certain = jnp.array([0.0, -jnp.inf, -jnp.inf])
    assert ppo.entropy(certain) == 0
    assert (jax.grad(ppo.entropy)(certain) == 0).all()
    assert jnp.isnan(ppo.entropy(jnp.array([jnp.nan, 0.0])))


def test_the_entropy_gradient_is_the_closed_form():
    """∂H/∂l_a = −π_a (log π_a + H)."""
    logits = jnp.array([0.3, -1.0, 2.0, 0.0])
    expected = -jax.nn.softmax(logits) * (jax.nn.log_softmax(logits) + ppo.entropy(logits))
    np.testing.assert_allclose(jax.grad(ppo.entropy)(logits), expected, atol=1e-6)


def test_diagnostics_by_hand():
    """|r − 1|, neither |log r| nor |1/r − 1|, is what exceeds 0.2: at 0.81 only the latter two do."""
    old = jnp.zeros(5)
    new = jnp.log(jnp.array([1.0, 1.5, 0.3, 0.81, 100.0]))
    mask = jnp.array([True, True, True, True, False])
    np.testing.assert_allclose(ppo.probability_ratio(new, old), [1.0, 1.5, 0.3, 0.81, 100.0], rtol=1e-6)
    np.testing.assert_allclose(ppo.clip_fraction(new, old, mask, clip_eps=0.2), 2 / 4, rtol=1e-6)
    np.testing.assert_allclose(ppo.clip_fraction(new, old, mask, clip_eps=0.6), 1 / 4, rtol=1e-6)
    np.testing.assert_allclose(ppo.max_ratio_deviation(new, old, mask), 0.7, rtol=1e-6)
    expected = (0.5 - 0.7 - 0.19 - np.log(1.5 * 0.3 * 0.81)) / 4
    np.testing.assert_allclose(ppo.approximate_kl(new, old, mask), expected, rtol=1e-5)


def test_diagnostics_of_nothing_and_of_an_unchanged_policy_are_zero():
    nothing, everything = np.zeros(OLD.shape, bool), np.ones(OLD.shape, bool)
    for new, mask in ((NEW, nothing), (OLD, everything)):
        assert ppo.clip_fraction(new, OLD, mask, clip_eps=0.0) == 0
        assert ppo.approximate_kl(new, OLD, mask) == 0
        assert ppo.max_ratio_deviation(new, OLD, mask) == 0


def test_approximate_kl_averages_to_the_divergence_from_the_old_policy():
    """Over actions in the proportions of the old policy: KL(π_old ‖ π), not its reverse."""
    old_logits, new_logits = jnp.log(jnp.array([5.0, 3.0, 2.0])), jnp.log(jnp.array([1.0, 1.0, 8.0]))
    actions = np.repeat([0, 1, 2], [5, 3, 2])
    old, new = jax.nn.log_softmax(old_logits)[actions], jax.nn.log_softmax(new_logits)[actions]
    estimate = ppo.approximate_kl(new, old, np.ones(10, bool))
    np.testing.assert_allclose(estimate, kl.categorical_kl(old_logits, new_logits), rtol=1e-5)
