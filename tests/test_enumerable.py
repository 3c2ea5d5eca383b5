import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import dpo, enumerable, kl, log_probs, numpy_losses
from rlhf_jax.lm import gpt2

RNG = np.random.default_rng(0)
VOCAB, LENGTH, EOS = 3, 3, 2
TOKENS, MASK = enumerable.all_strings(VOCAB, LENGTH, EOS)
N = len(TOKENS)
REWARDS = RNG.normal(size=N)
REF = RNG.normal(size=N)
REF -= np.log(np.exp(REF).sum())


def test_all_strings_without_eos():
    tokens, mask = enumerable.all_strings(2, 3)
    assert tokens.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]
    assert mask.all()


def test_all_strings_with_eos_by_hand():
    """0 and 1 are letters, 2 ends: seven strings, the EOS kept by the mask, what follows it not."""
    tokens, mask = enumerable.all_strings(3, 2, eos_id=2)
    assert tokens.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 2]]
    assert mask.tolist() == [[True, True]] * 6 + [[True, False]]


@pytest.mark.parametrize(("vocab_size", "length", "eos_id"), [(3, 3, 2), (4, 3, 0), (2, 4, 1), (3, 1, 1), (1, 3, 0)])
def test_all_strings_equal_the_loop_and_the_count(vocab_size, length, eos_id):
    tokens, mask = enumerable.all_strings(vocab_size, length, eos_id)
    strings = [tuple(np.array(row)[kept].tolist()) for row, kept in zip(tokens, np.array(mask), strict=True)]
    assert sorted(strings) == sorted(numpy_losses.all_strings(vocab_size, length, eos_id))
    others = vocab_size - 1
    assert len(strings) == others**length + sum(others ** (l - 1) for l in range(1, length + 1))  # noqa: E741
    assert (tokens[~mask] == eos_id).all()


@pytest.mark.parametrize("arguments", [(0, 3), (3, 0), (3, 3, 3), (3, 3, -1)])
def test_a_language_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=r"got|vocabulary"):
        enumerable.all_strings(*arguments)


def test_the_optimum_by_hand():
    """π_ref = (½, ½) and rewards β ln 3 apart: the odds become 3 to 1."""
    best = enumerable.optimal_log_probs(np.log([0.5, 0.5]), np.array([0.2 * np.log(3), 0.0]), 0.2)
    np.testing.assert_allclose(jnp.exp(best), [0.75, 0.25], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_optimum_and_objective_equal_the_loops(beta):
    best = enumerable.optimal_log_probs(REF, REWARDS, beta)
    np.testing.assert_allclose(jnp.exp(best), numpy_losses.optimal_probs(np.exp(REF), REWARDS, beta), rtol=2e-5)
    expected = numpy_losses.regularized_objective(np.exp(np.float64(best)), np.exp(REF), REWARDS, beta)
    np.testing.assert_allclose(enumerable.regularized_objective(best, REF, REWARDS, beta), expected, rtol=1e-4)


def test_the_optimum_is_stable_for_huge_rewards_and_keeps_excluded_strings_out():
    best = enumerable.optimal_log_probs(np.array([-0.7, -np.inf, -0.7]), np.array([1e4, 1e6, 1e4 - 1]), 0.5)
    np.testing.assert_allclose(best, [-np.log1p(np.exp(-2)), -np.inf, -2 - np.log1p(np.exp(-2))], rtol=1e-5)


def test_the_objective_is_its_maximum_less_beta_times_the_divergence_from_the_optimum():
    """J(π) = β log Z − β KL(π ‖ π*), for any π."""
    with jax.enable_x64(True):
        best = enumerable.optimal_log_probs(REF, REWARDS, 0.3)
        maximum = 0.3 * np.log(np.exp(REF + REWARDS / 0.3).sum())
        np.testing.assert_allclose(enumerable.regularized_objective(best, REF, REWARDS, 0.3), maximum, rtol=1e-12)
        for logits in RNG.normal(size=(5, N)):
            policy = log_probs.log_softmax(logits)
            objective = enumerable.regularized_objective(policy, REF, REWARDS, 0.3)
            np.testing.assert_allclose(objective, maximum - 0.3 * kl.exact_kl(policy, best), rtol=1e-12)


def test_gradient_ascent_on_the_objective_ends_at_the_optimum():
    objective = lambda logits: enumerable.regularized_objective(jax.nn.log_softmax(logits), REF, REWARDS, 0.5)
    climb = lambda _, logits: logits + 2 * jax.grad(objective)(logits)
    logits = jax.lax.fori_loop(0, 8000, climb, jnp.zeros(N))
    np.testing.assert_allclose(
        jax.nn.softmax(logits), jnp.exp(enumerable.optimal_log_probs(REF, REWARDS, 0.5)), atol=1e-4
    )


def test_the_objective_accepts_impossible_strings():
    half = np.log(np.array([0.5, 0.5]))
    certain = np.array([0.0, -np.inf])
    rewards = np.array([1.0, 3.0])
    objective = functools.partial(enumerable.regularized_objective, rewards=rewards, beta=0.1)
    np.testing.assert_allclose(objective(certain, half), 1 - 0.1 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(objective(certain, certain), 1)
    assert objective(half, certain) == -jnp.inf
    for log_probs_, ref in ((certain, half), (half, certain), (certain, certain)):
        gradients = jax.grad(enumerable.regularized_objective, (0, 1, 2))(
            *map(jnp.asarray, (log_probs_, ref, rewards, 0.1))
        )
        assert all(jnp.isfinite(gradient).all() for gradient in gradients)


def test_the_frontier_is_the_optimum_of_each_beta():
    betas = np.array([0.05, 0.3, 1.0, 5.0])
    divergences, rewards = enumerable.frontier(REF, REWARDS, betas)
    for beta, divergence, reward in zip(betas, divergences, rewards, strict=True):
        probs = numpy_losses.optimal_probs(np.exp(REF), REWARDS, beta)
        np.testing.assert_allclose(divergence, numpy_losses.exact_kl(probs, np.exp(REF)), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(reward, probs @ REWARDS, rtol=1e-4)
    assert (np.diff(divergences) < 0).all()
    assert (np.diff(rewards) < 0).all()


def test_the_slope_of_the_frontier_is_beta():
    with jax.enable_x64(True):
        ref, rewards = jnp.asarray(REF), jnp.asarray(REWARDS)
        point = lambda beta: jnp.stack(enumerable.frontier(ref, rewards, beta[None]))[:, 0]
        divergence_slope, reward_slope = jax.jacobian(point)(jnp.float64(0.4))
        np.testing.assert_allclose(reward_slope / divergence_slope, 0.4, rtol=1e-10)


@jax.jit
def table_logits(table, tokens):
    """An autoregressive table: one row of logits for each prefix, told apart by its tokens read as a number."""
    shifted = jnp.pad(tokens[:, :-1] + 1, [(0, 0), (1, 0)])
    codes = jax.lax.associative_scan(lambda a, b: (a[0] * b[1] + b[0], a[1] * b[1]),
                                     (shifted, jnp.full_like(shifted, VOCAB + 1)), axis=1)[0]  # fmt: skip
    return table[codes]


TABLE = RNG.normal(size=((VOCAB + 1) ** LENGTH, VOCAB))


def test_string_log_probs_equal_a_loop_over_tokens():
    logits = np.array(table_logits(jnp.asarray(TABLE), TOKENS))
    expected = []
    for rows, tokens, mask in zip(logits, np.array(TOKENS), np.array(MASK), strict=True):
        kept = range(mask.sum())
        expected.append(sum(np.log(numpy_losses.softmax(rows[t])[tokens[t]]) for t in kept))
    scored = enumerable.string_log_probs(lambda tokens: table_logits(jnp.asarray(TABLE), tokens), TOKENS, MASK)
    np.testing.assert_allclose(scored, expected, rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(scored).sum(), 1, rtol=1e-6)


def test_logits_at_masked_positions_reach_neither_value_nor_gradient():
    logits = jnp.asarray(table_logits(jnp.asarray(TABLE), TOKENS))
    total = lambda logits: enumerable.string_log_probs(lambda _: logits, TOKENS, MASK).sum()
    measure = jax.jit(jax.value_and_grad(total))
    value, gradient = measure(jnp.where(MASK[..., None], logits, jnp.nan))
    clean, clean_gradient = measure(logits)
    assert value == clean
    np.testing.assert_array_equal(gradient, clean_gradient)
    assert (gradient[~MASK] == 0).all()


def test_a_gpt2_assigns_probability_one_to_all_strings_together():
    """Shown the strings after a BOS token, without their last: position t then scores token t of the string."""
    config = gpt2.GPT2Config(vocab_size=VOCAB + 1, n_positions=8, n_embd=8, n_layer=1, n_head=2, initializer_range=1.0)
    params = gpt2.init(jax.random.key(0), config)
    with_bos = jnp.pad(TOKENS, [(0, 0), (1, 0)], constant_values=VOCAB)
    logits_fn = lambda tokens: gpt2.apply(config, params, with_bos[:, :-1])[..., :VOCAB]
    scored = enumerable.string_log_probs(logits_fn, TOKENS, MASK)
    np.testing.assert_allclose(jnp.exp(scored).sum(), 1, rtol=1e-5)
    full = gpt2.apply(config, params, with_bos)[..., :VOCAB]
    tokens = jnp.where(with_bos == VOCAB, 0, with_bos)
    np.testing.assert_allclose(scored, jnp.where(MASK, log_probs.token_log_probs(full, tokens), 0).sum(1), rtol=1e-5)


def population_dpo_loss(policy, beta, ref, rewards):
    """The mean DPO loss over every ordered pair, chosen with Bradley and Terry's probability of the rewards."""
    chosen, rejected = np.nonzero(~np.eye(N, dtype=bool))
    weight = np.exp(ref[chosen] + ref[rejected]) * numpy_losses.sigmoid(rewards[chosen] - rewards[rejected])
    losses = dpo.dpo_loss(policy[chosen], policy[rejected], ref[chosen], ref[rejected], beta=beta)
    return jnp.sum(weight * losses)


def test_population_dpo_is_smallest_exactly_at_the_optimum_of_rlhf():
    """On choices of full support, and nowhere else: no gradient, and a Hessian positive but for the shift."""
    with jax.enable_x64(True):
        gradient = jax.jit(
            jax.grad(lambda logits: population_dpo_loss(log_probs.log_softmax(logits), 0.4, REF, REWARDS))
        )
        best = enumerable.optimal_log_probs(REF, REWARDS, 0.4)
        assert jnp.abs(gradient(REF)).max() > 1e-3
        np.testing.assert_allclose(gradient(best), 0, atol=1e-15)
        curvatures = np.linalg.eigvalsh(jax.jit(jax.jacfwd(gradient))(best))
        assert abs(curvatures[0]) < 1e-12
        assert curvatures[1] > 1e-5


def test_gradient_descent_on_population_dpo_carries_a_table_to_the_optimum():
    """The policy is an autoregressive table of logits, scored token by token."""
    policy = lambda table: enumerable.string_log_probs(lambda tokens: table_logits(table, tokens), TOKENS, MASK)
    ref = np.array(policy(jnp.asarray(TABLE)))
    best = enumerable.optimal_log_probs(ref, REWARDS, 0.4)
    loss = lambda table: population_dpo_loss(policy(table), 0.4, ref, REWARDS)

    def step(table, _):
        return table - 20 * jax.grad(loss)(table), kl.exact_kl(policy(table), best)

    _, divergences = jax.lax.scan(step, jnp.asarray(TABLE), length=1500)
    assert divergences[0] > 0.5
    assert (np.diff(divergences[:50]) < 0).all()
    assert divergences[-1] < 1e-3
