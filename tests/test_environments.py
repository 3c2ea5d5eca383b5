import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import environments, estimation, mdp, values

FROZEN_LAKE = ("S...", ".H.H", "...H", "H..G")


def test_two_state_by_hand():
    """Without slip, V*(1) = 1 / (1 - 0.9) = 10 and V*(0) = 0.9 * 10 = 9: better than staying for 0.2 / (1 - 0.9)."""
    world = environments.two_state(slip=0)
    np.testing.assert_allclose(values.optimal_state_values(world), [9, 10], rtol=1e-5)
    np.testing.assert_array_equal(values.optimal_policy(world), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(values.optimal_policy(environments.two_state(gamma=0.1, slip=0)), [[1, 0], [1, 0]])
    np.testing.assert_allclose(environments.two_state(slip=0.25).transition[0], [[0.75, 0.25], [0.25, 0.75]])


def test_chain_has_the_textbook_values():
    """Sutton & Barto, example 6.2: 1/6, 2/6, ..., 5/6."""
    world = environments.chain(5, gamma=1.0)
    uniform = np.full((6, 2), 0.5)
    np.testing.assert_allclose(values.state_values(world, uniform, 500), [*np.arange(1, 6) / 6, 0], rtol=1e-5)
    assert world.initial[2] == 1


def test_gridworld_has_the_textbook_utilities():
    """Russell & Norvig, chapter 17: the utilities of the 4 x 3 world without discount."""
    with jax.enable_x64(True):
        world = environments.gridworld(gamma=1 - 1e-7)
        optimal = np.array(values.optimal_state_values(world)).reshape(3, 4)
        policy = np.array(values.optimal_policy(world)).argmax(1).reshape(3, 4)
    published = [[0.812, 0.868, 0.918, 0], [0.762, 0, 0.660, 0], [0.705, 0.655, 0.611, 0.388]]
    np.testing.assert_allclose(optimal, published, atol=6e-4)
    np.testing.assert_array_equal(policy[0, :3], [2, 2, 2])
    np.testing.assert_array_equal(policy[2], [3, 0, 0, 0])


def test_gridworld_moves_as_documented():
    world = environments.gridworld(("S#", ".G"), slip=0.5, step_reward=-1, hole_reward=0)
    left, down, right, up = world.transition[0]
    np.testing.assert_allclose(left, [0.75, 0, 0.25, 0])
    np.testing.assert_allclose(down, [0.5, 0, 0.5, 0])
    np.testing.assert_allclose(right, [0.75, 0, 0.25, 0])
    np.testing.assert_allclose(up, [1, 0, 0, 0])
    np.testing.assert_allclose(world.transition[2, 2], [0.25, 0, 0.25, 0.5])
    np.testing.assert_allclose(world.reward[2, 2], -1 + 0.5)
    for terminal in (1, 3):
        np.testing.assert_array_equal(world.reward[terminal], np.zeros(4))
        np.testing.assert_array_equal(world.transition[terminal], np.tile(np.eye(4)[terminal], (4, 1)))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (("S..", "..", "..G"), r"layout\[1\] is '\.\.'"),
        (("S.x", "..G"), r"layout\[0\] is 'S\.x'"),
        (("...", "..G"), "no start"),
    ],
)
def test_gridworld_names_what_it_cannot_read(layout, message):
    with pytest.raises(ValueError, match=message):
        environments.gridworld(layout)


def test_random_mdp_is_valid_and_batches():
    with jax.debug_key_reuse(True):
        worlds = jax.vmap(lambda key: environments.random_mdp(key, 4, 3))(jax.random.split(jax.random.key(0), 5))
    assert worlds.transition.shape == (5, 4, 3, 4)
    assert len({float(world) for world in worlds.reward[:, 0, 0]}) == 5
    for world in zip(*worlds, strict=True):
        mdp.make_mdp(*world)
    assert values.optimal_state_values(environments.random_mdp(jax.random.key(1), 4, 3)).shape == (4,)


def table_environment():
    """Two states; action 0 ends from state 1 with pay 3, and the successor 0 of that step must not be continued."""
    table = {
        0: {0: [(0.25, 0, 4.0, False), (0.75, 1, 0.0, False)], 1: [(1.0, 0, -1.0, False)]},
        1: {0: [(1.0, 0, 3.0, True)], 1: [(0.5, 1, 0.0, False), (0.5, 1, 2.0, False)]},
    }
    return types.SimpleNamespace(unwrapped=types.SimpleNamespace(P=table, initial_state_distrib=np.array([1.0, 0.0])))


def test_from_gymnasium_sends_termination_to_an_absorbing_state():
    world = environments.from_gymnasium(table_environment(), 0.5)
    np.testing.assert_allclose(world.transition[0, 0], [0.25, 0.75, 0])
    np.testing.assert_allclose(world.transition[1], [[0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(world.transition[2], [[0, 0, 1], [0, 0, 1]])
    np.testing.assert_allclose(world.reward, [[1, -1], [3, 1], [0, 0]])
    np.testing.assert_allclose(world.initial, [1, 0, 0])
    assert values.optimal_state_values(world)[1] == 3


def test_from_gymnasium_refuses_an_environment_without_tables():
    with pytest.raises(ValueError, match="has no tables P"):
        environments.from_gymnasium(types.SimpleNamespace(unwrapped=object()), 0.9)


def test_gymnasiums_frozen_lake_is_this_gridworld():
    gymnasium = pytest.importorskip("gymnasium")
    world = environments.from_gymnasium(gymnasium.make("FrozenLake-v1"), 0.99)
    own = environments.gridworld(FROZEN_LAKE, 0.99, slip=2 / 3, step_reward=0, hole_reward=0)
    policy = np.random.default_rng(0).dirichlet(np.ones(4), 17)
    np.testing.assert_allclose(
        values.state_values(world, policy)[:16], values.state_values(own, policy[:16]), rtol=1e-4, atol=1e-6
    )
    assert float(values.optimal_state_values(world)[0]) == pytest.approx(0.542, abs=5e-4)


def test_gymnasiums_own_steps_follow_the_tables():
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("CliffWalking-v1")
    world = environments.from_gymnasium(env, 0.9)
    env.action_space.seed(0)
    state, _ = env.reset(seed=0)
    assert world.initial[state] == 1
    for _ in range(50):
        action = env.action_space.sample()
        following, reward, terminated, _, _ = env.step(action)
        assert world.transition[state, action, 48 if terminated else following] == 1
        assert world.reward[state, action] == reward
        state = following


def test_every_environment_works_end_to_end():
    for world in (environments.two_state(), environments.chain(), environments.gridworld()):
        num_states, num_actions = world.reward.shape
        policy = estimation.epsilon_greedy(values.bellman_backup(world, values.optimal_state_values(world)), 0.2)
        path = mdp.rollout(jax.random.key(0), world, policy, 30)
        assert jnp.isfinite(mdp.trajectory_log_prob(world, policy, path))
        assert policy.shape == (num_states, num_actions)
