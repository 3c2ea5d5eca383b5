import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import enumerable, kl, log_probs, numpy_losses
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


def test_a_language_that_does_not_fit_is_refused_with_the_bytes_it_needs():
    with pytest.raises(ValueError, match=r"need 7,000,000,000,000,000 bytes, more than max_bytes = 1,073,741,824"):
        enumerable.all_strings(10, 14, 0)
    with pytest.raises(ValueError, match="need 120 bytes"):
        enumerable.all_strings(2, 3, max_bytes=119)
    assert len(enumerable.all_strings(2, 3, max_bytes=120)[0]) == 8


def test_the_optimum_by_hand():
    """π_ref = (½, ½) and rewards β ln 3 apart: the odds become 3 to 1."""
    best = enumerable.optimal_log_probs(np.log([0.5, 0.5]), np.array([0.2 * np.log(3), 0.0]), 0.2)
    np.testing.assert_allclose(jnp.exp(best), [0.75, 0.25], rtol=1e-6)


def test_partition_value_and_reward_by_hand():
    """π_ref = (½, ½), β = 0.2, rewards β ln 3 and 0: Z = ½ · 3 + ½ = 2; π* = (¾, ¼)."""
    half, rewards = np.log([0.5, 0.5]), np.array([0.2 * np.log(3), 0.0])
    np.testing.assert_allclose(enumerable.log_partition(half, rewards, 0.2), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(enumerable.optimal_value(half, rewards, 0.2), 0.2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(enumerable.expected_reward(half, rewards), 0.1 * np.log(3), rtol=1e-6)
    assert enumerable.expected_reward(np.array([0.0, -np.inf]), np.array([2.0, 5.0])) == 2
    np.testing.assert_allclose(jax.grad(enumerable.optimal_value, 1)(half, rewards, 0.2), [0.75, 0.25], rtol=1e-6)


def test_the_divergence_goes_both_ways():
    """KL(π* ‖ π_ref) = E_π*[r]/β − log Z, KL(π_ref ‖ π*) = log Z − E_ref[r]/β; 0 and inf at the edges."""
    with jax.enable_x64(True):
        best, log_z = (f(REF, REWARDS, 0.3) for f in (enumerable.optimal_log_probs, enumerable.log_partition))
        gain, mean = (enumerable.expected_reward(policy, REWARDS) / 0.3 for policy in (best, REF))
        np.testing.assert_allclose(kl.exact_kl(best, REF), gain - log_z, rtol=1e-10)
        np.testing.assert_allclose(kl.exact_kl(REF, best), log_z - mean, rtol=1e-10)
        certain = jnp.where(jnp.arange(N) == 2, 0, -jnp.inf)
        np.testing.assert_allclose(kl.exact_kl(certain, REF), -REF[2], rtol=1e-12)
        assert kl.exact_kl(REF, certain) == jnp.inf


def test_several_prompts_are_a_vmap():
    """Different references and rewards: each row as if alone; one table of logits for each prompt."""
    refs, rewards = log_probs.log_softmax(RNG.normal(size=(3, N))), RNG.normal(size=(3, N))
    values = jax.vmap(enumerable.optimal_value, (0, 0, None))(refs, rewards, 0.3)
    best = jax.vmap(enumerable.optimal_log_probs, (0, 0, None))(refs, rewards, 0.3)
    objectives = jax.vmap(enumerable.regularized_objective, (0, 0, 0, None))(best, refs, rewards, 0.3)
    np.testing.assert_allclose(objectives, values, rtol=1e-5)
    for row in range(3):
        probs = numpy_losses.optimal_probs(np.exp(np.float64(refs[row])), rewards[row], 0.3)
        np.testing.assert_allclose(jnp.exp(best[row]), probs, rtol=1e-4)
    tables = RNG.normal(size=(3, *TABLE.shape))
    score = lambda table: enumerable.string_log_probs(lambda tokens: table_logits(table, tokens), TOKENS, MASK)
    together = jax.vmap(score)(jnp.asarray(tables))
    np.testing.assert_allclose(together, [score(jnp.asarray(table)) for table in tables], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(together).sum(1), 1, rtol=1e-6)


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


TABLE = RNG.normal(size=(enumerable.num_prefixes(VOCAB, LENGTH), VOCAB))


def table_logits(table, tokens):
    """An autoregressive table: one row of logits for each prefix."""
    return table[enumerable.prefix_rows(tokens, VOCAB)]


def test_prefix_rows_by_hand():
    """The empty prefix, then 0, 1, 2, then 00, 01, 02, 10, ...: 1 + 3 + 9 rows; 1 2 is row 4 + 1 * 3 + 2."""
    assert enumerable.num_prefixes(3, 3) == 13
    np.testing.assert_array_equal(enumerable.prefix_rows(np.array([[0, 0, 0], [1, 2, 0]]), 3), [[0, 1, 4], [0, 2, 9]])


@pytest.mark.parametrize(("vocab_size", "length", "eos_id"), [(3, 3, 2), (4, 3, None), (2, 5, 1), (1, 3, None)])
def test_prefix_rows_number_the_prefixes_without_a_gap(vocab_size, length, eos_id):
    """Listed by length, then in lexicographic order."""
    tokens = np.array(enumerable.all_strings(vocab_size, length, eos_id)[0])
    listed = [prefix for t in range(length) for prefix in itertools.product(range(vocab_size), repeat=t)]
    assert enumerable.num_prefixes(vocab_size, length) == len(listed)
    rows = np.array(enumerable.prefix_rows(tokens, vocab_size))
    for row, string in zip(rows, tokens.tolist(), strict=True):
        assert row.tolist() == [listed.index(tuple(string[:t])) for t in range(length)]


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


TIED = np.array([0.4, -1.0, 0.4, 2.0, -1.0])
UNEVEN = np.array([0.1, 0.3, 0.2, 0.05, 0.35])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_best_of_n_equals_the_enumeration_of_all_draws(n):
    for rewards in (TIED, np.arange(5.0), np.zeros(5)):
        exact = jnp.exp(enumerable.best_of_n_log_probs(np.log(UNEVEN), rewards, n))
        np.testing.assert_allclose(exact, numpy_losses.best_of_n_probs(UNEVEN, rewards, n), rtol=1e-5)


def test_best_of_n_ends_at_the_best_strings_and_keeps_impossible_ones_out():
    with_zero = np.log(np.array([0.5, 0.25, 0.25])), np.array([-1.0, 3.0, 3.0])
    np.testing.assert_allclose(jnp.exp(enumerable.best_of_n_log_probs(*with_zero, 200)), [0, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(enumerable.best_of_n_log_probs(*with_zero, 200)[0], 200 * np.log(0.5), rtol=1e-5)
    impossible = np.array([-np.inf, np.log(0.5), np.log(0.5), -np.inf])
    measure = lambda ref: enumerable.best_of_n_log_probs(ref, np.array([-2.0, 0.0, 1.0, 2.0]), 3)
    np.testing.assert_allclose(jnp.exp(measure(impossible)), [0, 0.125, 0.875, 0], rtol=1e-6)
    assert jnp.isfinite(jax.jacrev(measure)(impossible)).all()


def test_the_divergence_of_best_of_n_is_below_its_published_bound_and_approaches_it():
    """log n − (n − 1)/n, met by many strings of little probability and without ties."""
    for n in (2, 8, 32):
        bound = np.log(n) - (n - 1) / n
        few = kl.exact_kl(enumerable.best_of_n_log_probs(np.log(UNEVEN), TIED, n), np.log(UNEVEN))
        even = np.full(500, -np.log(500))
        many = kl.exact_kl(enumerable.best_of_n_log_probs(even, np.arange(500.0), n), even)
        assert few < bound
        assert 0.999 * bound < many < bound * (1 + 1e-5)


def test_best_of_n_batches_keeps_its_dtype_and_refuses_mismatched_shapes():
    refs = jnp.asarray(RNG.normal(size=(3, 5)), jnp.bfloat16)
    measure = jax.vmap(lambda ref: enumerable.best_of_n_log_probs(ref, TIED, 3))
    np.testing.assert_array_equal(measure(refs)[1], enumerable.best_of_n_log_probs(refs[1], TIED, 3))
    assert enumerable.best_of_n_log_probs(refs[0], refs[1], 3).dtype == jnp.bfloat16
    with pytest.raises((TypeError, ValueError)):
        enumerable.best_of_n_log_probs(refs[0], TIED[:4], 3)
