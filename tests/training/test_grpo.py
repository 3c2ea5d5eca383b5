"""Group trainers: their arithmetic by NumPy, the fixed points that the place of the KL decides, and a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import group
from rlhf_jax.lm import table
from rlhf_jax.lm.sequences import completion_log_probs
from rlhf_jax.training import grpo, ppo, state

KL_COEF = 0.3
CLIP = {"clip_eps_low": 0.2, "clip_eps_high": 0.28}


@pytest.fixture(scope="module")
def drawn(draw_sequences):
    """Six strings as two groups of three, with made-up numbers."""
    sequences, rng = draw_sequences(11, 6), np.random.default_rng(11)
    draw = lambda scale, *shape: (scale * rng.normal(size=shape)).astype(np.float32)
    shape = sequences.completions.shape
    old = draw(0.3, *shape) - 2
    return sequences, old, old + draw(0.4, *shape), draw(1.0, *shape) - 2, draw(1.0, 6)


def rows(drawn):
    """(old, new, reference, advantage) of each string's real tokens."""
    sequences, old, new, ref, advantages = drawn
    for i, mask in enumerate(sequences.completion_mask):
        yield old[i, mask].astype(float), new[i, mask].astype(float), ref[i, mask].astype(float), float(advantages[i])


def clipped(ratio, advantage, low, high):
    return -np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


def expected_objectives(drawn):
    every = list(rows(drawn))
    ratios = [np.exp(new - old) for old, new, _, _ in every]
    advantages = [advantage for *_, advantage in every]
    join = functools.partial(zip, strict=True)
    pairs = list(join(ratios, advantages))
    k3 = [np.exp(ref - new) - 1 - (ref - new) for _, new, ref, _ in every]
    concatenated = lambda parts: np.concatenate(list(parts)).mean()
    means = [np.exp(np.log(ratio).mean()) for ratio in ratios]
    return {
        "reinforce": np.mean([-advantage * new.sum() for _, new, _, advantage in every]),
        "grpo": np.mean([(clipped(*pair, 0.2, 0.2) + 0.7 * extra).mean() for pair, extra in join(pairs, k3)]),
        "dr_grpo": np.sum([clipped(*pair, 0.2, 0.2).sum() for pair in pairs]) / (6 * 6),
        "dapo": concatenated(clipped(*pair, 0.2, 0.28) for pair in pairs),
        "cispo": concatenated(
            -np.clip(ratio, 0.8, 1.28) * advantage * new for (ratio, advantage), (_, new, _, _) in join(pairs, every)
        ),
        "gspo": np.mean([clipped(mean, advantage, 0.2, 0.28) for mean, advantage in join(means, advantages)]),
    }


OBJECTIVES = {
    "reinforce": grpo.reinforce,
    "grpo": functools.partial(grpo.grpo, clip_eps=0.2, beta=0.7),
    "dr_grpo": functools.partial(grpo.dr_grpo, clip_eps=0.2),
    "dapo": functools.partial(grpo.dapo, **CLIP),
    "cispo": functools.partial(grpo.cispo, **CLIP),
    "gspo": functools.partial(grpo.gspo, **CLIP),
}


def test_objectives_equal_the_loops_and_read_no_padding(drawn):
    sequences, old, new, ref, advantages = drawn
    batch = grpo.GroupBatch(sequences, old, ref, advantages)
    both = jax.jit(lambda new: {name: jax.value_and_grad(each)(new, batch) for name, each in OBJECTIVES.items()})
    expected = expected_objectives(drawn)
    for name, (value, gradient) in both(new).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, err_msg=name)
        assert (gradient[~sequences.completion_mask] == 0).all()
        assert jnp.abs(gradient).max() > 0.01


def test_experience_by_hand():
    """Two groups of two; the second string of the first is one token long and followed by NaN."""
    mask = np.array([[1, 1], [1, 0], [1, 1], [1, 1]], bool)
    ones = np.ones((4, 1), np.int32)
    sequences = grpo.Sequences(ones, ones > 0, np.ones((4, 2), np.int32), mask)
    log_probs = np.array([[-1, -2], [-3, np.nan], [-1, -1], [-2, -2]], np.float32)
    ref_log_probs = np.array([[-2, -2], [-1, -5], [-1, -1], [-4, -4]], np.float32)
    rolled = grpo.GroupRollout(sequences, log_probs, ref_log_probs)
    scores = np.array([1.0, 2.0, 3.0, 7.0], np.float32)
    settings = {"group_size": 2, "advantages": group.rloo_advantages, "kl_coef": 0.5}
    batch, metrics = grpo.experience(rolled, scores, **settings)
    np.testing.assert_allclose(batch.advantages, [0.5 - 3, 3 - 0.5, 3 - 5, 5 - 3], rtol=1e-6)
    expected = {"score": 3.25, "kl": (1 - 2 + 0 + 4) / 4, "length": 7 / 4, "reward_std": (1.25 + 1) / 2}
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)


def test_rollout_puts_the_strings_of_a_prompt_side_by_side(config, params):
    prompts = np.array([[0, 3], [5, 6]], np.int32)
    mask = np.array([[False, True], [True, True]])
    reference = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    lengths = {"group_size": 8, "max_new_tokens": 5, "eos_id": 0}
    rolled = grpo.rollout(config, params, reference, prompts, mask, jax.random.key(0), **lengths)
    np.testing.assert_array_equal(rolled.sequences.prompts, np.repeat(prompts, 8, axis=0))
    np.testing.assert_array_equal(rolled.sequences.prompt_mask, np.repeat(mask, 8, axis=0))
    kept = np.asarray(rolled.sequences.completion_mask)
    assert len(np.unique(rolled.sequences.completions, axis=0)) > 12
    fresh = jax.jit(completion_log_probs, static_argnums=0)
    for log_probs, model in ((rolled.log_probs, params), (rolled.ref_log_probs, reference)):
        expected = np.asarray(fresh(config, model, rolled.sequences))
        np.testing.assert_allclose(np.asarray(log_probs)[kept], expected[kept], atol=2e-4)


def train(objective, kl_coef, *, steps, advantages=group.centered_advantages):
    """A table of one-token strings after one prompt, 256 strings a step: its final distribution over the tokens."""
    config = table.TableConfig(vocab_size=4, n_positions=2)
    reference = table.init(jax.random.key(1), config)
    optimizer = optax.adam(optax.linear_schedule(0.05, 0.0, steps))
    iteration = grpo.make_grpo_iteration(
        config=config,
        grpo_step=grpo.make_grpo_step(config, optimizer, objective=objective),
        ref_params=reference,
        score=lambda sequences: REWARDS[sequences.completions[:, 0]],
        advantages=advantages,
        group_size=256,
        kl_coef=kl_coef,
        max_new_tokens=1,
        eos_id=None,
    )
    prompts = jnp.ones((1, 1), jnp.int32)

    @jax.jit
    def run(start):
        advance = lambda carry, key: iteration(carry, (prompts, prompts > 0, key))
        return jax.lax.scan(advance, start, jax.random.split(jax.random.key(2), steps))

    current, metrics = run(state.create(reference, optimizer))
    row = lambda params: np.asarray(jax.nn.softmax(params["wte"]["weight"][:, 2]), np.float64)
    return row(reference), row(current.params), metrics


REWARDS = jnp.array([0.0, 1.0, -1.0, 0.5])


def kl(probs, others):
    return float(probs @ np.log(probs / others))


def test_where_the_kl_stands_decides_the_optimum():
    """In the reward: π_ref exp(r/β) / Z. As k3 in the loss: β π_ref / (c − r), which is another distribution."""
    beta, rewards = 0.7, np.asarray(REWARDS, np.float64)
    clip = {"clip_eps": 0.2}
    reference, in_reward, metrics = train(functools.partial(grpo.grpo, beta=0.0, **clip), beta, steps=400)
    _, in_loss, _ = train(functools.partial(grpo.grpo, beta=beta, **clip), 0.0, steps=400)
    tilted = reference * np.exp(rewards / beta)
    tilted /= tilted.sum()
    low, high = rewards.max(), rewards.max() + beta
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (beta * reference / (middle - rewards)).sum() > 1 else (low, middle)
    rational = beta * reference / (low - rewards)
    np.testing.assert_allclose(rational.sum(), 1)
    assert kl(rational, tilted) > 0.01
    assert kl(in_reward, tilted) < 1e-4
    assert kl(in_loss, rational) < 1e-4
    assert kl(in_loss, tilted) > 0.01
    assert metrics["reward_std"][-1] < 0.01 < 0.3 < metrics["reward_std"][0]
    assert metrics["first_ratio_deviation"].max() < 1e-5


def test_reward_for_a_token_makes_it_frequent(config, params):
    """On GPT-2, with clipped epochs: the score is the number of times that token 3 stands in the completion."""
    optimizer = optax.adam(1e-2)
    objective = functools.partial(grpo.grpo, clip_eps=0.2, beta=0.0)
    step = grpo.make_grpo_step(config, optimizer, objective=objective, num_epochs=2, num_minibatches=2)
    iteration = grpo.make_grpo_iteration(
        config=config,
        grpo_step=step,
        ref_params=params,
        score=lambda sequences: ((sequences.completions == 3) & sequences.completion_mask).sum(1).astype(jnp.float32),
        advantages=group.standardized_advantages,
        group_size=8,
        kl_coef=0.02,
        max_new_tokens=6,
        eos_id=0,
    )
    prompts = np.array([[1], [2], [4], [5]], np.int32)
    current, history = state.create(params, optimizer), []
    for key in jax.random.split(jax.random.key(5), 12):
        current, metrics = iteration(current, (prompts, prompts > 0, key))
        ppo.check_first_ratio(float(metrics["first_ratio_deviation"]))
        history.append(jax.device_get(metrics))
    assert history[-1]["score"] > history[0]["score"] + 2
    np.testing.assert_allclose(history[0]["kl"], 0, atol=1e-4)
    assert history[-1]["kl"] > 0.5
    assert step._cache_size() == 1
    assert not params["wte"]["weight"].is_deleted()
