import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax import mdp as mdps
from rlhf_jax import numpy_loops, values

POLICY_FUNCTIONS = [
    values.state_values,
    values.action_values,
    values.advantages,
    values.expected_return,
    values.occupancy,
]


def tables(seed=0, num_states=3, num_actions=2):
    rng = np.random.default_rng(seed)
    return (
        rng.dirichlet(np.ones(num_states)),
        rng.dirichlet(np.ones(num_states), (num_states, num_actions)),
        rng.normal(size=(num_states, num_actions)),
        rng.dirichlet(np.ones(num_actions), num_states),
    )


def example(gamma, **sizes):
    initial, transition, reward, policy = tables(**sizes)
    return mdps.make_mdp(initial, transition, reward, gamma), jnp.asarray(policy, float)


def test_by_hand():
    """One state, two actions that pay 1 and 3, gamma 1/2: V = 2 / (1 - 1/2) = 4."""
    mdp = mdps.make_mdp([1.0], [[[1.0], [1.0]]], [[1.0, 3.0]], 0.5)
    policy = np.array([[0.5, 0.5]])
    np.testing.assert_allclose(values.state_values(mdp, policy), [4])
    np.testing.assert_allclose(values.action_values(mdp, policy), [[3, 5]])
    np.testing.assert_allclose(values.advantages(mdp, policy), [[-1, 1]])
    np.testing.assert_allclose(values.state_values(mdp, policy, 2), [2 + 1])
    np.testing.assert_allclose(values.action_values(mdp, policy, 2), [[1 + 1, 3 + 1]])
    np.testing.assert_allclose(values.occupancy(mdp, policy), [2])
    np.testing.assert_allclose(values.occupancy(mdp, policy, 2), [1.5])
    np.testing.assert_allclose(values.optimal_state_values(mdp), [6])
    np.testing.assert_array_equal(values.optimal_policy(mdp), [[0, 1]])


@pytest.mark.parametrize("num_steps", [0, 1, 4])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_finite_horizon_equals_the_loop(gamma, num_steps):
    initial, transition, reward, policy = tables()
    with jax.enable_x64(True):
        mdp, _ = example(gamma)
        expected = numpy_loops.state_values(transition, reward, gamma, policy, num_steps)
        np.testing.assert_allclose(values.state_values(mdp, policy, num_steps), expected, rtol=1e-12)
        np.testing.assert_allclose(values.expected_return(mdp, policy, num_steps), initial @ expected, rtol=1e-12)
        visits = numpy_loops.occupancy(initial, transition, gamma, policy, num_steps)
        np.testing.assert_allclose(values.occupancy(mdp, policy, num_steps), visits, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.999])
def test_infinite_horizon_is_the_limit_to_1e_6_in_float64(gamma):
    initial, transition, reward, policy = tables()
    with jax.enable_x64(True):
        mdp, _ = example(gamma)
        horizon = 200 if gamma < 0.99 else 20_000
        limit, visits = np.zeros(3), np.zeros(3)
        chain, state_probs = np.einsum("xa,xay->xy", policy, transition), initial
        for t in range(horizon):
            limit = (policy * reward).sum(1) + gamma * chain @ limit
            visits += gamma**t * state_probs
            state_probs = state_probs @ chain
        np.testing.assert_allclose(values.state_values(mdp, policy), limit, atol=1e-6)
        np.testing.assert_allclose(values.occupancy(mdp, policy), visits, atol=1e-6)
        assert float(values.occupancy(mdp, policy).sum()) == pytest.approx(1 / (1 - gamma))


def test_float32_at_gamma_0_999():
    mdp, policy = example(0.999, num_states=50)
    with jax.enable_x64(True):
        exact, policy64 = example(0.999, num_states=50)
        exact = values.state_values(exact, policy64)
    np.testing.assert_allclose(values.state_values(mdp, policy), exact, rtol=2e-3, atol=2e-3 * np.abs(exact).max())


@pytest.mark.parametrize("num_steps", [None, 0, 1, 5])
def test_identities(num_steps):
    with jax.enable_x64(True):
        mdp, policy = example(0.9)
        v, q = values.state_values(mdp, policy, num_steps), values.action_values(mdp, policy, num_steps)
        np.testing.assert_allclose(v, values.state_values_from_action_values(policy, q), atol=1e-12)
        np.testing.assert_allclose(values.advantages(mdp, policy, num_steps), q - v[:, None], atol=1e-12)
        np.testing.assert_allclose((policy * values.advantages(mdp, policy, num_steps)).sum(1), 0, atol=1e-12)
        mean_reward = (policy * mdp.reward).sum(1)
        objective = values.expected_return(mdp, policy, num_steps)
        np.testing.assert_allclose(values.occupancy(mdp, policy, num_steps) @ mean_reward, objective, atol=1e-12)


def test_the_backup_contracts_by_gamma():
    mdp, _ = example(0.9)
    first, second = np.random.default_rng(1).normal(size=(2, 3))
    gap = lambda f: float(np.abs(f(first) - f(second)).max())
    assert gap(lambda v: values.bellman_backup(mdp, v).max(axis=1)) <= 0.9 * gap(lambda v: v) + 1e-6


def all_policy_functions(mdp, policy, num_steps):
    return [function(mdp, policy, num_steps) for function in POLICY_FUNCTIONS]


@pytest.mark.parametrize("num_steps", [None, 3])
def test_gradients_through_policy_and_tables(num_steps):
    with jax.enable_x64(True):
        mdp, policy = example(0.9)
        check = jax.jit(lambda p, m: all_policy_functions(m, p, num_steps))
        check_grads(check, (policy, mdp), order=1, modes=("rev",), rtol=1e-6, atol=1e-6, eps=1e-5)


@pytest.mark.parametrize("num_steps", [None, 2])
def test_jit_vmap_and_dtypes(num_steps):
    mdp, policy = example(0.9)
    policies = jnp.stack([policy, policy[:, ::-1]])
    batched = jax.jit(jax.vmap(lambda p: all_policy_functions(mdp, p, num_steps)))(policies)
    for together, alone in zip(batched, all_policy_functions(mdp, policies[1], num_steps), strict=True):
        np.testing.assert_allclose(together[1], alone, rtol=1e-5, atol=1e-6)
        assert together.dtype == alone.dtype == jnp.float32


def test_changing_gamma_does_not_recompile():
    mdp, policy = example(0.9)
    before = values.state_values._cache_size()
    for gamma in (0.3, 0.4):
        values.state_values(mdp._replace(gamma=jnp.float32(gamma)), policy, 11)
    assert values.state_values._cache_size() == before + 1


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_policy_iteration_agree_and_nothing_is_better(gamma, seed):
    with jax.enable_x64(True):
        mdp, _ = example(gamma, seed=seed, num_states=6, num_actions=3)
        best = values.optimal_state_values(mdp)
        np.testing.assert_allclose(values.value_iteration(mdp, 1e-8), best, atol=2e-8)
        np.testing.assert_allclose(values.policy_iteration(mdp), best, rtol=1e-10)
        np.testing.assert_allclose(values.bellman_backup(mdp, best).max(axis=1), best, rtol=1e-10)
        policy = values.optimal_policy(mdp)
        np.testing.assert_allclose(values.state_values(mdp, policy), best, rtol=1e-12)
        assert set(np.unique(policy)) == {0.0, 1.0}
        assert (policy.sum(axis=1) == 1).all()


def test_optimum_beats_every_deterministic_policy():
    with jax.enable_x64(True):
        mdp, _ = example(0.9)
        choices = np.array(np.meshgrid(*[[0, 1]] * 3)).reshape(3, -1).T
        everyone = jax.vmap(lambda p: values.state_values(mdp, p))(np.eye(2)[choices])
        np.testing.assert_allclose(values.optimal_state_values(mdp), everyone.max(axis=0), rtol=1e-12)


def test_value_iteration_keeps_its_promise_and_ends():
    mdp, _ = example(0.999)
    with jax.enable_x64(True):
        exact = values.optimal_state_values(example(0.999)[0])
        for tolerance in (1e-1, 1e-4, 1e-8):
            error = np.abs(values.value_iteration(example(0.999)[0], tolerance) - exact).max()
            assert tolerance / 100 < error <= tolerance, "no more sweeps than the promise takes"
    for tolerance in (1e-3, 1e-30, 0.0):
        loose = values.value_iteration(mdp, tolerance)
        np.testing.assert_allclose(loose, exact, rtol=1e-3)
    np.testing.assert_array_equal(values.value_iteration(mdp._replace(reward=jnp.zeros((3, 2)))), np.zeros(3))


@pytest.mark.parametrize("num_states", [4, 30])
def test_policy_iteration_ends_in_float32_with_ties(num_states):
    mdp, _ = example(0.999, num_states=num_states, num_actions=4)
    twins = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=1) if x.ndim > 1 else x, mdp)
    np.testing.assert_allclose(values.policy_iteration(twins), values.value_iteration(mdp, 1e-4), rtol=1e-3)


def test_optimal_values_differentiate_into_the_tables():
    with jax.enable_x64(True):
        mdp, _ = example(0.9)
        optimum = lambda r, p: values.optimal_state_values(mdp._replace(reward=r, transition=p))
        check_grads(optimum, (mdp.reward, mdp.transition), order=1, modes=("rev",), rtol=1e-6, atol=1e-6, eps=1e-5)


def test_the_infinite_horizon_without_discount_is_nan_not_garbage():
    mdp, policy = example(1.0)
    assert all(jnp.isnan(result).all() for result in all_policy_functions(mdp, policy, None))
    assert all(jnp.isfinite(result).all() for result in all_policy_functions(mdp, policy, 4))
    for function in (values.value_iteration, values.policy_iteration, values.optimal_policy):
        assert jnp.isnan(function(mdp)).all()
