import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import numpy_loops, numpy_losses
from rlhf_jax.lm.sequences import completion_log_probs, take
from rlhf_jax.training import ppo, state

KL_COEF = 0.1
COEFFICIENTS = {"clip_eps": 0.2, "value_clip_eps": 0.3, "value_weight": 0.5}


@pytest.fixture(scope="module")
def rolled(draw_sequences):
    """A rollout with made-up numbers, and NaN wherever there is padding."""
    sequences, rng = draw_sequences(9, 5), np.random.default_rng(9)
    nowhere = np.where(sequences.completion_mask, 0, np.nan).astype(np.float32)
    draw = lambda: rng.normal(size=nowhere.shape).astype(np.float32)
    values = np.pad(draw() + nowhere, ((0, 0), (0, 1)), constant_values=np.nan)
    return ppo.Rollout(sequences, draw() - 2 + nowhere, draw() - 2 + nowhere, values)


SCORES = np.array([1.0, -2.0, 0.5, 3.0, 0.0], np.float32)


@pytest.fixture(scope="module")
def policy(params):
    """With a value head that says something."""
    policy = ppo.init(params)
    weight = 0.1 * jax.random.normal(jax.random.key(2), (16,))
    return policy | {"v_head": {"weight": weight, "bias": jnp.array(0.5)}}


@pytest.fixture(scope="module")
def batch(config, policy, draw_sequences):
    """Log-probabilities are the policy's own; the rest is made up."""
    sequences, rng = draw_sequences(10, 6), np.random.default_rng(10)
    draw = lambda: rng.normal(size=sequences.completions.shape).astype(np.float32)
    old = jax.jit(completion_log_probs, static_argnums=0)(config, policy, sequences)
    return ppo.PPOBatch(sequences, np.asarray(old), draw(), draw(), draw())


@pytest.fixture(scope="module")
def value_and_grad(config):
    return jax.jit(jax.value_and_grad(functools.partial(ppo.ppo_loss, config=config), has_aux=True))


def test_token_rewards_by_hand():
    """A text that ended, with its end-of-text token kept; one cut at the limit; one of a single token."""
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], bool)
    log_probs = np.array([[-1.0, -2, np.nan], [-1, -1, -1], [-3, -9, -9]])
    ref_log_probs = np.array([[-1.5, -1, -7], [-1, -2, -3], [-1, -9, np.nan]])
    rewards = ppo.token_rewards(log_probs, ref_log_probs, np.array([10.0, 20, 30]), mask, 0.1)
    np.testing.assert_allclose(rewards, [[-0.05, 10.1, 0], [0, -0.1, 19.8], [30.2, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.0), (1.0, 0.95), (1.0, 1.0), (0.9, 0.5)])
def test_experience_is_gae_over_each_rows_real_tokens(rolled, gamma, lambda_):
    """The last real token ends the episode, so nothing is bootstrapped and padding is never read."""
    batch, _ = ppo.experience(rolled, SCORES, kl_coef=KL_COEF, gamma=gamma, lambda_=lambda_)
    raw = np.zeros(rolled.log_probs.shape)
    for i, length in enumerate(rolled.sequences.completion_mask.sum(1)):
        rewards = -KL_COEF * (rolled.log_probs[i, :length] - rolled.ref_log_probs[i, :length]).astype(np.float64)
        rewards[-1] += SCORES[i]
        discounts = [gamma] * (length - 1) + [0]
        values = np.append(rolled.values[i, :length], 1e6)
        raw[i, :length] = numpy_loops.gae(rewards, discounts, values, lambda_)
    mask = rolled.sequences.completion_mask
    np.testing.assert_allclose((batch.returns - batch.old_values)[mask], raw[mask], atol=1e-5)
    whitened = (raw[mask] - raw[mask].mean()) / raw[mask].std(ddof=1)
    np.testing.assert_allclose(batch.advantages[mask], whitened, atol=1e-5)
    assert (batch.advantages[~mask] == 0).all()


def test_with_lambda_1_the_first_return_is_the_score_less_the_kl_of_the_string(rolled):
    batch, metrics = ppo.experience(rolled, SCORES, kl_coef=KL_COEF, gamma=1.0, lambda_=1.0)
    string_kl = np.nansum(rolled.log_probs - rolled.ref_log_probs, axis=1)
    np.testing.assert_allclose(batch.returns[:, 0], SCORES - KL_COEF * string_kl, rtol=1e-5)
    mask = rolled.sequences.completion_mask
    targets, errors = np.asarray(batch.returns)[mask], np.asarray(batch.returns - batch.old_values)[mask]
    expected = {
        "score": SCORES.mean(),
        "kl": string_kl.mean(),
        "length": mask.sum() / 5,
        "explained_variance": 1 - errors.var() / targets.var(),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_value_head_says_zero_at_first_and_is_linear(params, policy):
    states = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    assert (ppo.state_values(ppo.init(params), states) == 0).all()
    assert "v_head" not in params
    head = policy["v_head"]
    np.testing.assert_allclose(ppo.state_values(policy, states), states @ head["weight"] + 0.5, rtol=1e-4, atol=1e-5)


def test_loss_and_metrics_equal_the_loops(
    value_and_grad, policy, batch, unpadded_rows, unpadded_hidden, unpadded_log_probs
):
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda leaf: leaf + 0.03 * rng.normal(size=leaf.shape).astype(np.float32), policy)
    (loss, metrics), _ = value_and_grad(moved, batch, **COEFFICIENTS)
    mask, rows = batch.sequences.completion_mask, unpadded_rows(batch.sequences)
    new = np.concatenate(unpadded_log_probs(moved, batch.sequences))
    states = [s[num_prompt - 1 : -1] for (_, num_prompt), s in zip(rows, unpadded_hidden(moved, rows), strict=True)]
    states = np.concatenate(states).astype(np.float64)
    values = states @ np.asarray(moved["v_head"]["weight"]) + float(moved["v_head"]["bias"])
    old, advantages, old_values, targets = (
        array[mask] for array in (batch.old_log_probs, batch.advantages, batch.old_values, batch.returns)
    )
    policy_loss = np.mean(np.vectorize(numpy_losses.clipped_surrogate_loss)(new, old, advantages, 0.2))
    value_loss = np.mean(np.vectorize(numpy_losses.clipped_value_loss)(values, old_values, targets, 0.3))
    logits = states @ np.asarray(moved["wte"]["weight"]).T
    expected = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": np.mean([numpy_losses.entropy(row) for row in logits]),
        "clip_fraction": np.mean(np.abs(np.exp(new - old) - 1) > 0.2),
        "approximate_kl": np.mean(np.exp(new - old) - 1 - (new - old)),
        "max_ratio_deviation": np.max(np.abs(np.exp(new - old) - 1)),
    }
    assert set(metrics) == set(expected)
    assert 0.1 < expected["clip_fraction"] < 0.9
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-3, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(loss, policy_loss + 0.5 * value_loss, rtol=1e-3)


def test_at_ratio_one_the_gradient_is_the_policy_gradient_estimate(config, value_and_grad, policy, batch):
    """∇L = −mean_t A_t ∇ log π(y_t | x, y_<t): clipping is out of sight, and the value head is not touched."""

    def estimate(params):
        terms = batch.advantages * completion_log_probs(config, params, batch.sequences)
        return -jnp.where(batch.sequences.completion_mask, terms, 0).sum() / batch.sequences.completion_mask.sum()

    (_, metrics), gradient = value_and_grad(policy, batch, **COEFFICIENTS | {"value_weight": 0.0})
    assert metrics["max_ratio_deviation"] <= 1e-3
    assert metrics["clip_fraction"] == 0
    close = functools.partial(np.testing.assert_allclose, atol=1e-4)
    jax.tree.map(close, gradient, jax.jit(jax.grad(estimate))(policy))


def test_every_epoch_visits_each_row_once_in_a_new_order():
    rows = np.asarray(ppo.minibatch_rows(jax.random.key(0), 12, 3, 4))
    assert rows.shape == (12, 3)
    epochs = rows.reshape(3, 12)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(12), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    with pytest.raises(ValueError, match="12 rows cannot be cut into 5 equal minibatches"):
        ppo.minibatch_rows(jax.random.key(0), 12, 1, 5)


def test_a_step_is_one_update_a_minibatch(config, policy, batch):
    optimizer, key = optax.sgd(0.1), jax.random.key(4)
    step = ppo.make_ppo_step(config, optimizer, num_epochs=2, num_minibatches=3, **COEFFICIENTS)
    after, metrics = step(state.create(policy, optimizer), (batch, key))
    update = jax.jit(
        functools.partial(
            state.update, loss=functools.partial(ppo.ppo_loss, config=config, **COEFFICIENTS), optimizer=optimizer
        )
    )
    current, losses = state.create(policy, optimizer), []
    for rows in np.asarray(ppo.minibatch_rows(key, 6, 2, 3)):
        current, each = update(current, take(batch, rows))
        losses.append(each["loss"])
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, after.params, current.params)
    assert after.step == 6
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-4)
    ppo.check_first_ratio(float(metrics["first_ratio_deviation"]))


@pytest.mark.parametrize("deviation", [2e-3, float("nan")])
def test_the_first_ratio_check_refuses_a_sampler_that_disagrees(deviation):
    with pytest.raises(RuntimeError, match="sampling and training disagree"):
        ppo.check_first_ratio(deviation)
