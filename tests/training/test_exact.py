"""The trainers end at the known optimum, each within what theory says of it; shorter runs than `exact.runs`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.lm import table
from rlhf_jax.lm.sequences import completion_log_probs
from rlhf_jax.training import dpo, exact, grpo, language


@pytest.fixture(scope="module")
def policies():
    return language.policies()


@pytest.fixture(scope="module")
def problem(policies):
    return language.make_problem(policies["table"])


@pytest.fixture(scope="module")
def best(problem):
    """A table whose strings have the probabilities of π*, by NumPy: each prefix's share among its siblings."""
    tokens = np.concatenate([problem.strings.prompts, problem.strings.completions], axis=1)
    probs = np.exp(np.asarray(language.optimum(problem), np.float64)).reshape(-1)
    reached = {}
    for string, prob in zip(tokens.tolist(), probs, strict=True):
        for length in range(1, 5):
            reached[tuple(string[:length])] = reached.get(tuple(string[:length]), 0) + prob
    logits = np.zeros((language.TABLE_CONFIG.num_rows, language.VOCAB))
    for prefix, prob in reached.items():
        if len(prefix) > 1:
            row = functools.reduce(lambda row, token: language.VOCAB * row + 1 + token, prefix[:-1], 0)
            logits[row, prefix[-1]] = np.log(prob)
    return table.from_logits(jnp.asarray(logits, jnp.float32))


def end(problem, policies, method, name="table", **changes):
    """KL(π ‖ π*) where the method ends, settings as in `exact.SETTINGS` but for `changes`."""
    (setting,) = (each for each in exact.SETTINGS[name] if each.setup is method)
    setting = setting._replace(**changes)
    marks = np.arange(1, 11, dtype=np.int32) * (setting.steps // 10)
    run = exact.make_run(problem, name, policies[name], setting, marks)
    return np.asarray(run.path.distance)


def test_both_policies_start_at_the_reference_and_the_sums_are_exact(problem, policies):
    weights, rewards = np.exp(np.asarray(problem.ref_log_probs, np.float64)), np.asarray(problem.rewards, np.float64)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    tilted = weights * np.exp(rewards / problem.beta)
    partition = tilted.sum(1)
    expected = (0, (weights * rewards).sum(1).mean(), (np.log(partition) - (weights * rewards).sum(1) / 0.5).mean())
    for policy in policies.values():
        np.testing.assert_allclose(language.measure(problem, *policy), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.exp(language.optimum(problem)), tilted / partition[:, None], rtol=1e-4)
    assert problem.rewards.shape == (2, 40)


def test_a_sampled_string_is_worth_what_the_list_says(problem):
    np.testing.assert_array_equal(language.score(problem, problem.strings), problem.rewards.reshape(-1))


def test_at_the_optimum_nothing_moves_and_groups_have_no_noise(problem, policies, best):
    """Distance and gradients of the exact objective and of the population's DPO are 0, every group's rewards equal."""
    point = language.measure(problem, language.TABLE_CONFIG, best)
    np.testing.assert_allclose(point.distance, 0, atol=1e-6)
    batch = language.dpo_batch(problem, language.choices(problem))
    np.testing.assert_allclose(batch.weights.mean(), 1, rtol=1e-5)
    config = language.TABLE_CONFIG
    losses = [
        lambda params: language.exact_loss(params, problem, config=config)[0],
        lambda params: dpo.dpo_batch_loss(params, batch, config=config, beta=problem.beta)[0],
    ]
    for gradient in jax.jit(lambda params: [jax.grad(loss)(params) for loss in losses])(best):
        np.testing.assert_allclose(gradient["wte"]["weight"], 0, atol=1e-6)
    scorer = jax.jit(completion_log_probs, static_argnums=0)
    rolled = grpo.GroupRollout(
        problem.strings, *(scorer(config, params, problem.strings) for params in (best, policies["table"].params))
    )
    settings = {"group_size": 40, "kl_coef": problem.beta, "advantages": jnp.asarray}
    batch, _ = grpo.experience(rolled, problem.rewards.reshape(-1), **settings)
    rewards = batch.advantages.reshape(2, 40)
    np.testing.assert_allclose(rewards - rewards.mean(1, keepdims=True), 0, atol=2e-5)


def test_exact_methods_end_at_the_optimum(problem, policies):
    """In float32, within 1e-4 nats."""
    assert end(problem, policies, exact.policy_gradient)[-1] < 1e-4
    assert end(problem, policies, exact.population_dpo)[-1] < 1e-4


@pytest.mark.parametrize(
    ("method", "steps", "at_most"),
    [(exact.ppo_with_values, 600, 2e-3), (exact.grpo_kl_in_reward, 600, 5e-3), (exact.rloo, 600, 2e-3)],
)
def test_sampled_methods_end_near_it(problem, policies, method, steps, at_most):
    path = end(problem, policies, method, steps=steps)
    assert path[0] > 1
    assert path[-1] < at_most


def test_k3_in_the_loss_ends_elsewhere(problem, policies):
    assert end(problem, policies, exact.grpo_kl_in_loss, steps=600)[-1] > 0.2


def test_reinforce_without_a_baseline_stays_where_theory_says(problem, policies):
    """To first order in the learning rate; the next order adds about a seventh here."""
    path = end(problem, policies, exact.reinforce)
    expected = language.expected_reinforce_distance(problem, 4.0, exact.BATCH_SIZE)
    assert 0.7 < path[5:].mean() / expected < 1.6
    doubled = language.expected_reinforce_distance(problem, 8.0, 2 * exact.BATCH_SIZE)
    np.testing.assert_allclose(doubled, expected, rtol=1e-6)
    with_baseline = {"steps": 3000, "learning_rate": 4.0, "optimizer": exact.constant_sgd}
    assert end(problem, policies, exact.rloo, **with_baseline)[-1] < 0.1 * expected


def test_standardised_advantages_settle_only_as_the_learning_rate_falls(problem, policies):
    """At a constant rate they keep the policy moving, the further from π* the larger the rate."""

    @jax.jit
    def floor(rate):
        setup = exact.grpo_kl_in_reward(problem, policies["table"], exact.optax.adam(rate))
        measure = functools.partial(language.measure, problem, policies["table"].config)
        return exact.follow(setup, measure, np.arange(500, 801, 50)).distance[1:].mean()

    low, high = floor(0.03), floor(0.1)
    assert high > 3 * low > 3 * 1e-3
    assert end(problem, policies, exact.grpo_kl_in_reward, steps=800)[-1] < 0.5 * low


def test_dpo_on_finite_choices_ends_where_the_fisher_information_says(problem, policies):
    """Eight samples of 50,000 choices: the mean of their distances."""
    config, params = policies["table"]
    batches = [language.dpo_batch(problem, language.count_choices(problem, seed, 50_000)) for seed in range(8)]
    optimizer = exact.falling_adam(0.1, 200)
    step = dpo.make_dpo_step(config, optimizer, beta=problem.beta)

    def distance(weights):
        batch = batches[0]._replace(weights=weights)
        setup = exact.Setup(step, exact.state.create(params, optimizer), lambda number: batch)
        measure = functools.partial(language.measure, problem, config)
        return exact.follow(setup, measure, np.array([200])).distance[-1]

    ends = jax.lax.map(distance, jnp.stack([batch.weights for batch in batches]))
    expected = language.expected_dpo_distance(problem, 50_000)
    assert 0.7 < ends.mean() / expected < 1.4
    assert ends.std() < 0.6 * expected


def test_the_expected_distance_of_two_strings_by_hand(problem):
    """π* = (p, 1 − p) and one gap d, known with variance 1 / (m σ(d) σ(−d)): p (1 − p) / (2 β² m σ(d) σ(−d))."""
    pair = problem._replace(ref_log_probs=jnp.log(jnp.array([[0.3, 0.7]])), rewards=jnp.array([[1.0, 0.0]]))
    odds = 3 / 7 * np.exp(1 / 0.5)
    share = odds / (1 + odds)
    slope = np.exp(-1) / (1 + np.exp(-1)) ** 2
    expected = share * (1 - share) / (2 * 0.25 * 100 * slope)
    np.testing.assert_allclose(language.expected_dpo_distance(pair, 100), expected, rtol=1e-4)


def test_a_gpt2_approaches_the_same_optimum(problem, policies):
    path = end(problem, policies, exact.policy_gradient, "GPT-2", steps=400)
    assert path[-1] < 0.02
    path = end(problem, policies, exact.rloo, "GPT-2", steps=100)
    assert path[-1] < 0.3 * path[0]


def test_a_run_makes_the_steps_it_says():
    """A step that adds its batch, which is its own number: 0 + 1 + … + (n − 1) after n steps."""
    step = lambda current, number: (current._replace(params=current.params + number), {})
    start = exact.state.create(jnp.array(0.0), exact.optax.sgd(1.0))
    setup = exact.Setup(step, start, lambda number: number)
    path = exact.follow(setup, lambda params: language.Point(params, params, params), np.array([1, 3, 10]))
    np.testing.assert_array_equal(path.kl, [0, 0, 3, 45])
    marks = exact.spread_marks(600)
    assert (marks[0], marks[-1]) == (1, 600)
    assert (np.diff(marks) > 0).all()


def test_rows_say_what_ran(monkeypatch):
    """The listing itself, on one setting of each policy."""
    short = {name: lines[:1] for name, lines in exact.SETTINGS.items()}
    short = {name: (lines[0]._replace(steps=30, learning_rate=0.01),) for name, lines in short.items()}
    monkeypatch.setattr(exact, "SETTINGS", short)
    rows = exact.distances()
    assert [row.policy for row in rows] == ["table", "GPT-2"]
    assert all(row[:5] == ("exact policy gradient", row.policy, 30, 0.01, 0) for row in rows)
    assert all(0 < row.kl < 1.4 for row in rows)
