"""GPT-2 replaced by a table: the loss functions of the tabular problems are the ones that train GPT-2.

On a language of three tokens and at most three of them a policy is a table of logits, a row for each of the prefixes.
With the table filled from GPT-2's own logits, DPO's and PPO's losses must agree, and the gradient of the table's
loss, pulled back through GPT-2's logits, must be the gradient of GPT-2's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import dpo, enumerable, ppo
from rlhf_jax import log_probs as lp
from rlhf_jax.lm import gpt2
from rlhf_jax.lm.sequences import Sequences, take
from rlhf_jax.masking import masked_mean
from rlhf_jax.preferences.pairs import Pairs
from rlhf_jax.training import dpo as dpo_training
from rlhf_jax.training import ppo as ppo_training

VOCAB, LENGTH, BOS, EOS = 3, 3, 3, 0
CONFIG = gpt2.GPT2Config(
    vocab_size=4,
    n_positions=8,
    n_embd=16,
    n_layer=2,
    n_head=2,
    initializer_range=0.4,
    bos_token_id=BOS,
    eos_token_id=EOS,
)
TOKENS, MASK = map(np.asarray, enumerable.all_strings(VOCAB, LENGTH, EOS))
PREFIXES = [tuple(row[:t]) for row in TOKENS for t in range(LENGTH)]
ROW_OF = {prefix: row for row, prefix in enumerate(dict.fromkeys(PREFIXES))}
ROWS = np.array([ROW_OF[prefix] for prefix in PREFIXES]).reshape(TOKENS.shape)
FIRST_USE = np.array([PREFIXES.index(prefix) for prefix in ROW_OF])
BEGIN = np.full((len(TOKENS), 1), BOS, np.int32)
STRINGS = Sequences(BEGIN, np.ones_like(BEGIN, bool), TOKENS, MASK)


@pytest.fixture(scope="module")
def params():
    with jax.enable_x64(True):
        narrow = ppo_training.init(gpt2.init(jax.random.key(0), CONFIG))
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), narrow)


def gpt2_table(params):
    """Logits [prefix, token] of GPT-2 after every prefix."""
    logits = gpt2.apply(CONFIG, params, jnp.asarray(np.concatenate([BEGIN, TOKENS[:, :-1]], axis=1)))
    return logits.reshape(-1, CONFIG.vocab_size)[FIRST_USE]


def check_same_loss_and_gradient(gpt2_loss, table_loss, params):
    @jax.jit
    def both(params):
        table, pull_back = jax.vjp(gpt2_table, params)
        value, slope = jax.value_and_grad(table_loss)(table)
        return (value, *pull_back(slope)), jax.value_and_grad(gpt2_loss)(params)

    of_table, of_gpt2 = both(params)
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(of_gpt2[1])) > 1e-3
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12), of_table, of_gpt2)


def test_dpo(params):
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(len(TOKENS), size=(2, 8))
    with jax.enable_x64(True):
        refs = rng.normal(size=(2, 8)) - 3
        batch = dpo_training.DPOBatch(Pairs(take(STRINGS, chosen), take(STRINGS, rejected)), *refs, np.ones(8))

        def table_loss(table):
            strings = enumerable.string_log_probs(lambda tokens: table[ROWS], TOKENS, MASK)
            return dpo.dpo_loss(strings[chosen], strings[rejected], *refs, beta=0.5).mean()

        gpt2_loss = lambda params: dpo_training.dpo_batch_loss(params, batch, config=CONFIG, beta=0.5)[0]
        check_same_loss_and_gradient(gpt2_loss, table_loss, params)


def test_ppo(params):
    """Away from the old policy, so that some of the ratios are clipped."""
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        advantages, unused = rng.normal(size=TOKENS.shape), np.zeros(TOKENS.shape)
        old = jax.jit(lambda params: lp.categorical_log_probs(gpt2_table(params)[ROWS], TOKENS))(params)
        old = np.asarray(old) + 0.3 * rng.normal(size=old.shape)
        batch = ppo_training.PPOBatch(STRINGS, old, unused, advantages, unused)

        def table_loss(table):
            new = lp.categorical_log_probs(table[ROWS], TOKENS)
            return masked_mean(ppo.clipped_surrogate_loss(new, old, advantages, clip_eps=0.2), MASK)

        def gpt2_loss(params):
            coefficients = {"clip_eps": 0.2, "value_clip_eps": 0.2, "value_weight": 0.0}
            return ppo_training.ppo_loss(params, batch, config=CONFIG, **coefficients)[0]

        check_same_loss_and_gradient(gpt2_loss, table_loss, params)


def test_the_trainers_call_the_tabular_functions_themselves():
    assert dpo_training.dpo.dpo_loss is dpo.dpo_loss
    assert ppo_training.ppo.clipped_surrogate_loss is ppo.clipped_surrogate_loss
