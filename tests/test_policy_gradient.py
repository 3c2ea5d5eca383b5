import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax import environments, mdp, numpy_loops, policy_gradient, returns, values

LOGITS = np.array([[0.3, -0.5], [0.0, 1.2], [-0.7, 0.1]])


def world(gamma=0.9):
    return environments.random_mdp(jax.random.key(3), 3, 2, gamma)


def objective(world, logits, num_steps):
    return values.expected_return(world, jax.nn.softmax(logits), num_steps)


def enumerated(world, logits, num_steps):
    """Every trajectory, its probability, its rewards-to-go times gamma^t, and the summed REINFORCE loss of one."""
    paths = mdp.enumerate_trajectories(world, num_steps)
    probs = jax.vmap(mdp.trajectory_prob, (None, None, 0))(world, jax.nn.softmax(logits), paths)
    to_go = jax.vmap(returns.rewards_to_go, (0, None))(paths.rewards, world.gamma)
    weights = to_go * world.gamma ** jnp.arange(num_steps)

    def loss(logits, path, advantages):
        log_probs = jax.nn.log_softmax(logits)[path.states[:-1], path.actions]
        return policy_gradient.reinforce_loss(log_probs, advantages).sum()

    gradients = jax.vmap(jax.grad(loss), (None, 0, 0))
    return paths, probs, weights, gradients


def test_bandit_by_hand():
    """One state, one step, rewards 1 and 3, uniform policy: pi A = 1/2 (1 - 2), 1/2 (3 - 2)."""
    bandit = mdp.make_mdp([1.0], [[[1.0], [1.0]]], [[1.0, 3.0]], 1.0)
    np.testing.assert_allclose(policy_gradient.policy_gradient(bandit, np.zeros((1, 2)), 1), [[-0.5, 0.5]])
    np.testing.assert_array_equal(policy_gradient.policy_gradient(bandit, np.zeros((1, 2)), 0), [[0, 0]])


@functools.partial(jax.jit, static_argnums=2)
def derivatives(world, logits, num_steps):
    return (
        policy_gradient.policy_gradient(world, logits, num_steps),
        jax.grad(objective, 1)(world, logits, num_steps),
        jax.jacobian(policy_gradient.policy_gradient, 1)(world, logits, num_steps),
        jax.hessian(objective, 1)(world, logits, num_steps),
    )


@pytest.mark.parametrize(("num_steps", "gamma"), [(None, 0.9), (None, 0.0), (0, 0.9), (1, 0.9), (6, 0.9), (6, 1.0)])
def test_the_theorem_is_the_gradient_of_the_objective_and_its_jacobian_the_hessian(num_steps, gamma):
    with jax.enable_x64(True):
        exact, gradient, jacobian, hessian = derivatives(world(gamma), jnp.array(LOGITS), num_steps)
        np.testing.assert_allclose(exact, gradient, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(exact.sum(axis=1), 0, atol=1e-12)
        np.testing.assert_allclose(jacobian, hessian, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_theorem_equals_the_sum_over_all_trajectories(num_steps):
    with jax.enable_x64(True):
        mdp_ = world()
        tables = [np.array(field) for field in mdp_]
        expected = numpy_loops.policy_gradient(*tables, LOGITS, num_steps)
        np.testing.assert_allclose(policy_gradient.policy_gradient(mdp_, LOGITS, num_steps), expected, rtol=1e-10)


def test_occupancy_times_advantages_is_not_the_finite_horizon_gradient():
    mdp_, policy = world(), jax.nn.softmax(LOGITS)
    wrong = values.occupancy(mdp_, policy, 3)[:, None] * policy * values.advantages(mdp_, policy, 3)
    exact = policy_gradient.policy_gradient(mdp_, LOGITS, 3)
    assert np.abs(wrong - exact).max() > 0.05 * np.abs(exact).max()


def test_reinforce_is_unbiased_and_a_baseline_only_lowers_its_variance():
    with jax.enable_x64(True):
        mdp_, logits, num_steps = world(), jnp.array(LOGITS), 3
        paths, probs, to_go, gradients = enumerated(mdp_, logits, num_steps)
        discounts = mdp_.gamma ** jnp.arange(num_steps)
        whole_return = jnp.broadcast_to((paths.rewards @ discounts)[:, None], to_go.shape)
        policy = jax.nn.softmax(logits)
        steps_left = jnp.stack([values.state_values(mdp_, policy, num_steps - t) for t in range(num_steps)])
        baseline = discounts * steps_left[jnp.arange(num_steps), paths.states[:, :-1]]

        exact, variances = policy_gradient.policy_gradient(mdp_, logits, num_steps), []
        for advantages in (whole_return, to_go, to_go - baseline):
            estimates = -gradients(logits, paths, advantages)
            mean = jnp.einsum("n,nsa->sa", probs, estimates)
            np.testing.assert_allclose(mean, exact, rtol=1e-10, atol=1e-13)
            variances.append(float(probs @ jnp.square(estimates - mean).sum(axis=(1, 2))))
        assert variances[0] > variances[1] > variances[2]


def test_sampled_reinforce_approaches_the_theorem():
    mdp_, policy, num_steps, num_samples = world(), jax.nn.softmax(LOGITS), 4, 20_000
    keys = jax.random.split(jax.random.key(0), num_samples)
    paths = jax.vmap(mdp.rollout, (0, None, None, None))(keys, mdp_, policy, num_steps)
    to_go = jax.vmap(returns.rewards_to_go, (0, None))(paths.rewards, mdp_.gamma)

    def mean_loss(logits):
        log_probs = jax.nn.log_softmax(logits)[paths.states[:, :-1], paths.actions]
        discounted = to_go * mdp_.gamma ** jnp.arange(num_steps)
        return policy_gradient.reinforce_loss(log_probs, discounted).sum(axis=1).mean()

    exact = policy_gradient.policy_gradient(mdp_, LOGITS, num_steps)
    np.testing.assert_allclose(-jax.grad(mean_loss)(jnp.array(LOGITS)), exact, atol=0.05)


def test_following_the_gradient_reaches_the_optimum():
    mdp_ = world()
    ascend = lambda _, logits: logits + 5 * policy_gradient.policy_gradient(mdp_, logits)
    logits = jax.lax.fori_loop(0, 500, ascend, jnp.zeros((3, 2)))
    best = float(mdp_.initial @ values.optimal_state_values(mdp_))
    assert float(objective(mdp_, logits, None)) == pytest.approx(best, rel=1e-2)


def test_impossible_actions_get_no_gradient_and_no_nan():
    logits = jnp.array(LOGITS).at[1, 0].set(-jnp.inf)
    for num_steps in (None, 3):
        gradient = policy_gradient.policy_gradient(world(), logits, num_steps)
        assert jnp.isfinite(gradient).all()
        assert (gradient[1] == 0).all()
        _, _, jacobian, _ = derivatives(world(), logits, num_steps)
        assert jnp.isfinite(jacobian).all()


def test_jit_vmap_dtype_and_no_recompilation():
    mdp_, batch = world(), jnp.stack([jnp.array(LOGITS), -jnp.array(LOGITS)])
    for num_steps in (None, 3):
        run = jax.jit(jax.vmap(lambda logits: policy_gradient.policy_gradient(mdp_, logits, num_steps)))  # noqa: B023
        together = run(batch)
        np.testing.assert_allclose(together[1], policy_gradient.policy_gradient(mdp_, -LOGITS, num_steps), atol=1e-6)
        assert together.dtype == jnp.float32
    before = policy_gradient.policy_gradient._cache_size()
    for gamma in (0.2, 0.3):
        policy_gradient.policy_gradient(mdp_._replace(gamma=jnp.float32(gamma)), batch[0], 8)
    assert policy_gradient.policy_gradient._cache_size() == before + 1


def test_reinforce_loss_by_hand_and_its_gradients():
    log_probs, advantages = np.array([-1.0, -2.0]), np.array([3.0, -0.5])
    np.testing.assert_array_equal(policy_gradient.reinforce_loss(log_probs, advantages), [3, -1])
    loss = lambda *arguments: policy_gradient.reinforce_loss(*arguments).sum()
    to_log_probs, to_advantages = jax.grad(loss, (0, 1))(log_probs, advantages)
    np.testing.assert_array_equal(to_log_probs, -advantages)
    np.testing.assert_array_equal(to_advantages, [0, 0])
    scaled = jax.vmap(policy_gradient.reinforce_loss, (0, None))(log_probs, 2.0)
    np.testing.assert_array_equal(scaled, -2 * log_probs)
    half = policy_gradient.reinforce_loss(jnp.bfloat16(-1.0), jnp.bfloat16(2.0))
    assert (half, half.dtype) == (2, jnp.bfloat16)
    with jax.enable_x64(True):
        check_grads(lambda x: policy_gradient.reinforce_loss(x, advantages), (log_probs,), order=2)
