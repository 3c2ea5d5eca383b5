"""The objective's exact gradient and Hessian, for a table of logits and for a GPT-2 over the same strings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import enumerable
from rlhf_jax.lm import gpt2

VOCAB, LENGTH, EOS = 3, 3, 2
TOKENS, MASK = enumerable.all_strings(VOCAB, LENGTH, EOS)
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=len(TOKENS))
REF = np.log(RNG.dirichlet(np.ones(len(TOKENS))))
TABLE = RNG.normal(size=(enumerable.num_prefixes(VOCAB, LENGTH), VOCAB))


def table_logits(table, tokens):
    return table[enumerable.prefix_rows(tokens, VOCAB)]


def gpt2_logits(params, tokens):
    """A GPT-2 over the same strings: its token VOCAB begins them, and is never written."""
    shown = jnp.pad(jnp.asarray(tokens)[:, :-1], [(0, 0), (1, 0)], constant_values=VOCAB)
    return gpt2.apply(GPT2, params, shown)[..., :VOCAB]


GPT2 = gpt2.GPT2Config(vocab_size=VOCAB + 1, n_positions=4, n_embd=8, n_layer=1, n_head=2, initializer_range=0.5)
POLICIES = {"table": (table_logits, lambda: jnp.asarray(TABLE)), "gpt2": (gpt2_logits, lambda: wide_gpt2())}


def wide_gpt2():
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), gpt2.init(jax.random.key(0), GPT2))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_exact_gradient_and_its_derivative_are_those_of_the_objective(policy):
    """Along a random direction, against autodiff of J and central differences, for a table and for a GPT-2."""
    logits_fn, make = POLICIES[policy]
    with jax.enable_x64(True):
        params, problem = make(), tuple(map(jnp.asarray, (TOKENS, MASK, REF, REWARDS, 0.3)))
        keys = iter(jax.random.split(jax.random.key(1), 99))
        along = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape, leaf.dtype), params)

        def objective(params):
            policy = enumerable.string_log_probs(functools.partial(logits_fn, params), TOKENS, MASK)
            return enumerable.regularized_objective(policy, *problem[2:])

        @jax.jit
        def measure(params):
            exact = enumerable.objective_gradient(logits_fn, params, *problem)
            curved = enumerable.objective_hvp(logits_fn, params, along, *problem)
            (value, gradient), (_, hvp) = jax.jvp(jax.value_and_grad(objective), (params,), (along,))
            return value, exact, curved, gradient, hvp

        _, exact, curved, gradient, hvp = measure(params)
        same = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-12)
        jax.tree.map(same, (exact, curved), (gradient, hvp))
        step = lambda size: jax.tree.map(lambda leaf, move: leaf + size * move, params, along)
        (up, ahead, *_), (down, behind, *_) = measure(step(1e-5)), measure(step(-1e-5))
        dot = lambda one, other: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, one, other)))
        np.testing.assert_allclose(dot(exact, along), (up - down) / 2e-5, rtol=1e-6)
        np.testing.assert_allclose(dot(curved, along), (dot(ahead, along) - dot(behind, along)) / 2e-5, rtol=1e-6)


def test_the_exact_gradient_vanishes_at_the_optimum_and_survives_excluded_strings():
    with jax.enable_x64(True):
        logits_fn = lambda table, tokens: table[enumerable.prefix_rows(tokens, 3)]
        tokens, mask = enumerable.all_strings(3, 1)
        gradient = lambda table, ref: enumerable.objective_gradient(
            logits_fn, table, tokens, mask, jnp.asarray(ref), jnp.array([1.0, 0.0, 2.0]), 0.5
        )
        ref = np.log([0.2, 0.3, 0.5])
        best = enumerable.optimal_log_probs(ref, np.array([1.0, 0.0, 2.0]), 0.5)
        np.testing.assert_allclose(gradient(best[None], ref), 0, atol=1e-15)
        out = np.array([np.log(0.5), np.log(0.5), -np.inf])
        np.testing.assert_allclose(gradient(jnp.asarray(out)[None], out), [[0.25, -0.25, 0]], atol=1e-15)
        lead = 1 - 0.5 * np.log(0.3 / 0.2)
        np.testing.assert_allclose(gradient(jnp.asarray(out)[None], ref), [[lead / 4, -lead / 4, 0]], atol=1e-15)
        assert np.isfinite(gradient(jnp.asarray(ref)[None], out)).all()
