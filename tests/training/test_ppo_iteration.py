"""PPO's rollout against fresh forward passes, and learning to write one token often."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.lm.sequences import completion_log_probs, completion_states, pad_left
from rlhf_jax.training import ppo, state

LENGTH = 6


@pytest.fixture(scope="module")
def prompts():
    """32 prompts of one to five tokens, padded on the left."""
    rng = np.random.default_rng(3)
    return pad_left([rng.integers(1, 11, 1 + i % 5) for i in range(32)], 5)


def test_rollout_says_what_fresh_forward_passes_say(config, params, prompts):
    policy = ppo.init(params) | {"v_head": {"weight": jnp.ones(16), "bias": jnp.ones(())}}
    reference = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    rolled = ppo.rollout(config, policy, reference, *prompts, jax.random.key(1), max_new_tokens=LENGTH, eos_id=0)
    fresh = jax.jit(completion_log_probs, static_argnums=0)
    mask = np.asarray(rolled.sequences.completion_mask)
    for log_probs, model in ((rolled.log_probs, policy), (rolled.ref_log_probs, reference)):
        expected = fresh(config, model, rolled.sequences)
        np.testing.assert_allclose(np.asarray(log_probs)[mask], np.asarray(expected)[mask], atol=2e-4)
    states = jax.jit(completion_states, static_argnums=0)(config, policy, rolled.sequences)
    np.testing.assert_allclose(rolled.values, states.sum(-1) + 1, rtol=1e-4, atol=1e-4)
    tokens = np.asarray(rolled.sequences.completions)
    ended = (tokens == 0) & mask
    assert 0 < ended.any(1).sum() < 32
    np.testing.assert_array_equal(mask, np.cumsum(ended, axis=1) - ended == 0)


def test_reward_for_a_token_makes_it_frequent_and_the_value_head_learns(config, params, prompts):
    """The score is the number of times that token 3 stands in the completion."""
    optimizer = optax.adam(1e-2)
    step = ppo.make_ppo_step(config, optimizer, num_epochs=2, num_minibatches=2)
    score = lambda sequences: ((sequences.completions == 3) & sequences.completion_mask).sum(1).astype(jnp.float32)
    settings = {"ref_params": params, "score": score, "max_new_tokens": LENGTH, "eos_id": 0, "lambda_": 0.95}
    iteration = ppo.make_ppo_iteration(kl_coef=0.02, config=config, ppo_step=step, **settings)
    current, history = state.create(ppo.init(params), optimizer), []
    for key in jax.random.split(jax.random.key(5), 12):
        current, metrics = iteration(current, (*prompts, key))
        ppo.check_first_ratio(float(metrics["first_ratio_deviation"]))
        history.append(jax.device_get(metrics))
    assert history[0]["score"] < 1.5
    assert history[-1]["score"] > history[0]["score"] + 2
    np.testing.assert_allclose(history[0]["kl"], 0, atol=1e-4)
    assert history[-1]["kl"] > 0.5
    np.testing.assert_allclose(history[0]["explained_variance"], 0, atol=1e-5)
    assert max(metrics["explained_variance"] for metrics in history) > 0.2
    assert step._cache_size() == 1
    assert not params["wte"]["weight"].is_deleted()


@pytest.mark.parametrize(("target", "factor"), [(1e-3, 1.1), (1e6, 0.9)])
def test_the_coefficient_follows_the_kl_that_it_allowed(config, params, prompts, target, factor):
    """A policy far above the target makes it grow by gain · 0.2, one far below shrink by as much."""
    optimizer = optax.sgd(0.0)
    iteration = ppo.make_adaptive_ppo_iteration(
        kl_target=target,
        kl_gain=0.5,
        config=config,
        ppo_step=ppo.make_ppo_step(config, optimizer, num_epochs=1, num_minibatches=1),
        ref_params=jax.tree.map(lambda leaf: 0.5 * leaf, params),
        score=lambda sequences: jnp.zeros(len(sequences.prompts)),
        max_new_tokens=LENGTH,
        eos_id=0,
    )
    start = ppo.AdaptiveState(*state.create(ppo.init(params), optimizer), jnp.float32(0.3))
    current, metrics = iteration(start, (*prompts, jax.random.key(0)))
    assert metrics["kl"] > 1e-2
    np.testing.assert_allclose(metrics["kl_coef"], 0.3, rtol=1e-6)
    np.testing.assert_allclose(current.kl_coef, 0.3 * factor, rtol=1e-6)
