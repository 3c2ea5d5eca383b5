"""The train steps and PPO's rollout lower for accelerators that are not here."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import export

from rlhf_jax.preferences.pairs import Pairs
from rlhf_jax.training import dpo, ppo, reward, sft, state

PLATFORMS = ["cuda", "tpu"]
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def lower(function, *arguments):
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    assert exported.platforms == tuple(PLATFORMS)
    return exported


@pytest.fixture(scope="module")
def sequences(draw_sequences):
    return draw_sequences(12, 4)


def test_sft(config, params, sequences):
    lower(sft.make_sft_step(config, OPTIMIZER), state.create(params, OPTIMIZER), sequences)


def test_reward(config, params, sequences):
    current = state.create(reward.init(jax.random.key(0), params), OPTIMIZER)
    lower(reward.make_reward_step(config, OPTIMIZER), current, Pairs(sequences, sequences))


def test_dpo(config, params, sequences):
    batch = dpo.DPOBatch(Pairs(sequences, sequences), jnp.zeros(4), jnp.zeros(4), jnp.ones(4))
    lower(dpo.make_dpo_step(config, OPTIMIZER, beta=0.1), state.create(params, OPTIMIZER), batch)


def test_ppo(config, params, sequences):
    current = state.create(ppo.init(params), OPTIMIZER)
    batch = ppo.PPOBatch(sequences, *[jnp.zeros((4, 6))] * 4)
    step = ppo.make_ppo_step(config, OPTIMIZER, num_epochs=2, num_minibatches=2)
    lower(step, current, (batch, jax.random.key(0)))


def test_rollout(config, params, sequences):
    def rollout(policy, reference, prompts, prompt_mask, key):
        return ppo.rollout(config, policy, reference, prompts, prompt_mask, key, max_new_tokens=6, eos_id=0)

    arguments = ppo.init(params), params, sequences.prompts, sequences.prompt_mask, jax.random.key(0)
    exported = lower(rollout, *arguments)
    assert [leaf.shape for leaf in exported.out_avals[-3:]] == [(4, 6), (4, 6), (4, 7)]
