import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import environments, estimation, mdp, numpy_loops, returns, values

GAMMA, LAMBDA = 0.7, 0.8
POLICY = np.array([[0.5, 0.5], [0.3, 0.7], [0.6, 0.4]])
OTHER_POLICY = np.array([[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]])
LEARNERS = {
    "td0": lambda path, steps: estimation.td0(jnp.zeros(3), path, GAMMA, steps),
    "td_lambda": lambda path, steps: estimation.td_lambda(jnp.zeros(3), path, GAMMA, LAMBDA, steps),
    "sarsa": lambda path, steps: estimation.sarsa(jnp.zeros((3, 2)), path, GAMMA, steps),
    "expected_sarsa": lambda path, steps: estimation.expected_sarsa(
        jnp.zeros((3, 2)), path, GAMMA, OTHER_POLICY, steps
    ),
    "q_learning": lambda path, steps: estimation.q_learning(jnp.zeros((3, 2)), path, GAMMA, steps),
}


def world():
    return environments.random_mdp(jax.random.key(3), 3, 2, GAMMA)


@functools.partial(jax.jit, static_argnums=(3, 4))
def sample(key, world, policy, num_trajectories, num_steps):
    keys = jax.random.split(key, num_trajectories)
    return jax.vmap(mdp.rollout, (0, None, None, None))(keys, world, policy, num_steps)


@functools.cache
def streams():
    return sample(jax.random.key(0), world(), POLICY, 64, 8000)


def truth(name):
    if name in ("td0", "td_lambda"):
        return values.state_values(world(), POLICY)
    if name == "q_learning":
        return values.bellman_backup(world(), values.optimal_state_values(world()))
    return values.action_values(world(), POLICY if name == "sarsa" else OTHER_POLICY)


@pytest.mark.parametrize("name", LEARNERS)
def test_temporal_differences_converge_to_the_exact_values(name):
    """64 independent streams: the error falls as one over the root of the steps, and its mean vanishes."""
    times = np.arange(8000)
    learn = jax.jit(jax.vmap(LEARNERS[name], (0, None)))
    errors = [learn(streams(), 0.5 / (1 + times / 50) * (times < end)) - truth(name) for end in (500, 8000)]
    early, late = (float(jnp.sqrt(jnp.square(error).mean(axis=0)).max()) for error in errors)
    assert late < 0.13
    assert late < 0.5 * early
    assert float(jnp.abs(errors[1].mean(axis=0)).max()) < 0.05


def test_hand_worked_updates():
    path = mdp.Trajectory(jnp.array([0, 1, 0]), jnp.array([1, 0]), jnp.array([1.0, 2.0]))
    table = np.array([[0.0, 4.0], [8.0, 2.0]])
    np.testing.assert_allclose(estimation.td0(np.array([4.0, 8.0]), path, 0.5, 0.5), [4.5, 8 + 0.5 * (2 + 2.25 - 8)])
    # Traces: after step 0, V = (4.5, 8) and e = (1/4, 1) at step 1, where delta = 2 + 2.25 - 8.
    traced = estimation.td_lambda(np.array([4.0, 8.0]), path, 0.5, 0.5, 0.5)
    np.testing.assert_allclose(traced, [4.5 + 0.5 * 0.25 * -3.75, 8 + 0.5 * -3.75])
    np.testing.assert_allclose(estimation.sarsa(table, path, 0.5, 0.5), [[0, 4 + 0.5 * (1 + 4 - 4)], [8, 2]])
    learned = estimation.q_learning(table, path, 0.5, 0.5)
    np.testing.assert_allclose(learned, [[0, 4.5], [8 + 0.5 * (2 + 2.25 - 8), 2]])
    policy = np.array([[1.0, 0.0], [0.5, 0.5]])
    expected = estimation.expected_sarsa(table, path, 0.5, policy, 0.5)
    np.testing.assert_allclose(expected, [[0, 4 + 0.5 * (1 + 2.5 - 4)], [8 + 0.5 * (2 + 0 - 8), 2]])


@pytest.mark.parametrize("last_discount", [0.0, GAMMA])
def test_every_learner_equals_its_loop(last_discount):
    """With per-step discounts: two episodes in one stream, the last step terminating or not."""
    with jax.enable_x64(True):
        path = mdp.rollout(jax.random.key(1), world(), POLICY, 30)
        states, actions, rewards = (np.array(field) for field in path)
        discounts = np.full(30, GAMMA)
        discounts[12], discounts[-1] = 0, last_discount
        steps = 0.5 / (1 + np.arange(30) / 10)
        rng = np.random.default_rng(0)
        v, q = rng.normal(size=3), rng.normal(size=(3, 2))
        pairs = [
            (
                estimation.td0(v, path, discounts, steps),
                numpy_loops.td_lambda(v, states, rewards, discounts, 0, steps),
            ),
            (
                estimation.td_lambda(v, path, discounts, LAMBDA, steps),
                numpy_loops.td_lambda(v, states, rewards, discounts, LAMBDA, steps),
            ),
            (
                estimation.sarsa(q, path, discounts, steps),
                numpy_loops.sarsa(q, states, actions, rewards, discounts, steps),
            ),
            (
                estimation.expected_sarsa(q, path, discounts, OTHER_POLICY, steps),
                numpy_loops.expected_sarsa(q, states, actions, rewards, discounts, OTHER_POLICY, steps),
            ),
            (
                estimation.q_learning(q, path, discounts, steps),
                numpy_loops.q_learning(q, states, actions, rewards, discounts, steps),
            ),
        ]
        for ours, loop in pairs:
            np.testing.assert_allclose(ours, loop, rtol=1e-12)


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_the_backward_view_is_the_forward_view_to_first_order(lambda_):
    """d(td_lambda) / d(step size) at 0 is the sum over visits of lambda-return minus value, which is GAE."""
    with jax.enable_x64(True):
        path = mdp.rollout(jax.random.key(2), world(), POLICY, 25)
        v, discounts = jnp.array([0.3, -1.0, 2.0]), GAMMA * (jnp.arange(25) != 9)
        update = lambda step_size: estimation.td_lambda(v, path, discounts, lambda_, step_size)
        slope = jax.jvp(update, (0.0,), (1.0,))[1]
        advantages = returns.gae(path.rewards, discounts, v[path.states], lambda_)
        np.testing.assert_allclose(slope, jnp.zeros(3).at[path.states[:-1]].add(advantages), rtol=1e-10)


def test_monte_carlo_by_hand_and_equals_its_loop():
    """States 0 1 0, rewards 1 2 4, gamma 1/2: returns 3, 4, 4. State 2 is never visited."""
    path = mdp.Trajectory(jnp.array([[0, 1, 0, 2]]), jnp.zeros((1, 3), int), jnp.array([[1.0, 2.0, 4.0]]))
    np.testing.assert_allclose(estimation.first_visit_monte_carlo(path, 0.5, 3), [3, 4, 0])
    np.testing.assert_allclose(estimation.every_visit_monte_carlo(path, 0.5, 3), [3.5, 4, 0])

    paths = sample(jax.random.key(3), world(), POLICY, 20, 6)
    pairs = list(zip(np.array(paths.states).tolist(), np.array(paths.rewards), strict=True))
    first = numpy_loops.monte_carlo(pairs, GAMMA, 3, first_visit=True)
    every = numpy_loops.monte_carlo(pairs, GAMMA, 3, first_visit=False)
    np.testing.assert_allclose(estimation.first_visit_monte_carlo(paths, GAMMA, 3), first, rtol=1e-5)
    np.testing.assert_allclose(estimation.every_visit_monte_carlo(paths, np.full((20, 6), GAMMA), 3), every, rtol=1e-5)


@pytest.mark.parametrize("estimate", [estimation.first_visit_monte_carlo, estimation.every_visit_monte_carlo])
def test_monte_carlo_converges_on_an_absorbing_mdp(estimate):
    walk, uniform = environments.chain(3, 0.9), np.full((4, 2), 0.5)
    exact, errors = values.state_values(walk, uniform), []
    for num_trajectories in (100, 10_000):
        paths = sample(jax.random.key(4), walk, uniform, num_trajectories, 50)
        errors.append(float(jnp.abs(estimate(paths, 0.9, 4) - exact).max()))
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_truncation_bias_is_as_stated():
    """One state that pays 1 forever, cut after 10 steps: the estimate lacks gamma^10 V."""
    forever = mdp.make_mdp([1.0], [[[1.0]]], [[1.0]], 0.9)
    paths = sample(jax.random.key(0), forever, np.ones((1, 1)), 1, 10)
    estimate = estimation.first_visit_monte_carlo(paths, 0.9, 1)
    np.testing.assert_allclose(estimate, [10 - 0.9**10 * 10], rtol=1e-5)


def test_first_visits_are_unbiased_and_every_visit_is_not():
    """State 0 pays 1 and goes on with probability 1/2: V = 2, but one trajectory's every-visit mean averages 1.5."""
    coin = mdp.make_mdp([1.0, 0.0], [[[0.5, 0.5]], [[0.0, 1.0]]], [[1.0], [0.0]], 1.0)
    paths = sample(jax.random.key(5), coin, np.ones((2, 1)), 10_000, 40)
    alone = jax.tree.map(lambda field: field[:, None], paths)
    for estimate, mean in ((estimation.first_visit_monte_carlo, 2), (estimation.every_visit_monte_carlo, 1.5)):
        one_each = jax.vmap(estimate, (0, None, None))(alone, 1.0, 2)
        assert float(one_each[:, 0].mean()) == pytest.approx(mean, abs=0.06)


def test_sarsa_with_epsilon_greedy_improvement_finds_the_optimal_policy():
    problem = environments.two_state(0.8)

    @jax.jit
    def learn(key):
        def round_(table, inputs):
            key, number = inputs
            behaviour = estimation.epsilon_greedy(table, 1 / (1 + number / 20))
            path = mdp.rollout(key, problem, behaviour, 50)
            return estimation.sarsa(table, path, problem.gamma, 0.5 / (1 + number / 20)), None

        keys, numbers = jax.random.split(key, 300), jnp.arange(300)
        return jax.lax.scan(round_, jnp.zeros((2, 2)), (keys, numbers))[0]

    table = learn(jax.random.key(0))
    np.testing.assert_array_equal(values.greedy_policy(table), values.optimal_policy(problem))
    exact = values.bellman_backup(problem, values.optimal_state_values(problem))
    np.testing.assert_allclose(table, exact, rtol=0.15)


def test_epsilon_greedy_by_hand():
    policy = estimation.epsilon_greedy(np.array([[1.0, 3.0], [2.0, 2.0]]), 0.2)
    np.testing.assert_allclose(policy, [[0.1, 0.9], [0.9, 0.1]], rtol=1e-6)


def test_dtype_empty_trajectory_and_no_recompilation():
    path = mdp.rollout(jax.random.key(0), world(), POLICY, 5)
    empty = mdp.rollout(jax.random.key(0), world(), POLICY, 0)
    for learn in LEARNERS.values():
        assert learn(path, 0.1).dtype == jnp.float32
        assert (learn(empty, 0.1) == 0).all()
    before = estimation.td_lambda._cache_size()
    for gamma, lambda_, step_size in ((0.9, 0.5, 0.1), (0.8, 0.4, 0.2)):
        estimation.td_lambda(np.zeros(4), path, gamma, lambda_, step_size)
    assert estimation.td_lambda._cache_size() == before + 1
