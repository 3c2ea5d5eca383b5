import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax import mdp as mdps
from rlhf_jax import numpy_loops, values

INITIAL = [0.75, 0.25]
TRANSITION = [[[0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.2, 0.8]]]
REWARD = [[1.0, -1.0], [0.0, 2.0]]
POLICY = np.array([[0.4, 0.6], [1.0, 0.0]])
GAMMA = 0.9


def small_mdp():
    return mdps.make_mdp(INITIAL, TRANSITION, REWARD, GAMMA)


def trajectory(states, actions):
    return mdps.Trajectory(jnp.array(states), jnp.array(actions, int), jnp.zeros(len(actions)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("initial", [0.5, 0.4], r"the sum of initial is 0\.9"),
        ("initial", [1.0, 0.0, 0.0], r"initial has shape \(3,\), expected \(2,\)"),
        ("initial", [1.5, -0.5], r"initial\[1\] is -0\.5: a probability cannot be negative"),
        ("transition", [[[0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.3, 0.8]]], r"the sum of transition\[1, 1\] is 1\.1"),
        ("transition", [[[0.5, 0.5]], [[np.nan, 1.0]]], r"reward has shape|transition\[1, 0, 0\] is nan"),
        ("transition", [[0.5, 0.5], [0.5, 0.5]], r"transition has shape \(2, 2\)"),
        ("transition", np.zeros((2, 0, 2)), r"transition has shape \(2, 0, 2\)"),
        ("reward", [[0.0, np.nan], [0.0, 0.0]], r"reward\[0, 1\] is nan: it must be finite"),
        ("reward", [[0.0, 0.0], [-np.inf, 0.0]], r"reward\[1, 0\] is -inf"),
        ("gamma", 1.01, r"gamma is 1\.01: it must lie in \[0, 1\]"),
        ("gamma", np.nan, r"gamma is nan"),
        ("gamma", np.array([0.9, 0.9]), r"gamma has shape \(2,\)"),
    ],
)
def test_make_mdp_names_the_field_and_the_index(field, value, message):
    tables = {"initial": INITIAL, "transition": TRANSITION, "reward": REWARD, "gamma": GAMMA}
    with pytest.raises(ValueError, match=message):
        mdps.make_mdp(**(tables | {field: value}))


def test_make_mdp_takes_float32_tables_and_both_ends_of_gamma():
    rows = np.random.default_rng(0).dirichlet(np.ones(100), (100, 3)).astype(np.float32)
    for gamma in (0, 1):
        mdp = mdps.make_mdp(np.ones(100) / 100, rows, np.zeros((100, 3)), gamma)
        assert all(field.dtype == jnp.float32 for field in mdp)


def test_trajectory_prob_by_hand():
    probability = mdps.trajectory_prob(small_mdp(), POLICY, trajectory([0, 1, 0], [1, 0]))
    assert float(probability) == pytest.approx(0.75 * 0.6 * 1.0 * 1.0 * 1.0)
    log_prob = mdps.trajectory_log_prob(small_mdp(), POLICY, trajectory([0, 0, 1], [0, 0]))
    assert float(log_prob) == pytest.approx(np.log(0.75 * 0.4 * 0.5 * 0.4 * 0.5))


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_enumeration_is_complete_and_probabilities_sum_to_one(num_steps):
    mdp = small_mdp()
    everything = mdps.enumerate_trajectories(mdp, num_steps)
    expected = numpy_loops.enumerate_trajectories(2, 2, num_steps)
    assert len(expected) == 2 ** (num_steps + 1) * 2**num_steps
    np.testing.assert_array_equal(everything.states, [states for states, _ in expected])
    np.testing.assert_array_equal(everything.actions, np.reshape([a for _, a in expected], (len(expected), num_steps)))

    probs = jax.vmap(mdps.trajectory_prob, (None, None, 0))(mdp, POLICY, everything)
    loops = [numpy_loops.trajectory_prob(INITIAL, TRANSITION, POLICY, *sequence) for sequence in expected]
    np.testing.assert_allclose(probs, loops, rtol=1e-6)
    assert float(probs.sum()) == pytest.approx(1, rel=1e-6)
    log_probs = jax.vmap(mdps.trajectory_log_prob, (None, None, 0))(mdp, POLICY, everything)
    np.testing.assert_allclose(jnp.exp(log_probs), loops, rtol=1e-5)
    assert (jnp.isneginf(log_probs) == (np.array(loops) == 0)).all()


def test_enumerated_expectation_of_the_return_is_the_objective():
    mdp = small_mdp()
    everything = mdps.enumerate_trajectories(mdp, 3)
    probs = jax.vmap(mdps.trajectory_prob, (None, None, 0))(mdp, POLICY, everything)
    returns = everything.rewards @ GAMMA ** np.arange(3)
    assert float(probs @ returns) == pytest.approx(float(values.expected_return(mdp, POLICY, 3)), rel=1e-5)


def test_trajectory_prob_has_the_true_gradient_at_zeros():
    with jax.enable_x64(True):
        mdp = small_mdp()
        one_zero = trajectory([0, 0, 1], [1, 0])
        gradient = jax.grad(mdps.trajectory_prob)(mdp, POLICY, one_zero)
        # P(0 | 0, 1) = 0 is the only zero factor: its derivative is the product of the others.
        np.testing.assert_allclose(gradient.transition[0, 1, 0], 0.75 * 0.6 * 0.4 * 0.5)
        np.testing.assert_allclose(gradient.transition[0, 0, 1], 0, atol=1e-15)
        # Two zero factors: every derivative is 0, and finite.
        two_zeros = jax.grad(mdps.trajectory_prob, argnums=(0, 1))(mdp, POLICY, trajectory([0, 0, 1, 1], [1, 0, 1]))
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(two_zeros))
        check_grads(lambda m, p: mdps.trajectory_prob(m, p, one_zero), (mdp, jnp.array(POLICY)), order=2)


def test_trajectory_log_prob_gradient_stays_finite_through_impossible_factors():
    mdp = small_mdp()
    logits = jnp.array([[0.3, -0.2], [1.0, -jnp.inf]])
    log_prob = lambda logits, path: mdps.trajectory_log_prob(mdp, jax.nn.softmax(logits), path)
    possible, impossible = trajectory([0, 1, 0], [1, 0]), trajectory([0, 1, 0], [1, 1])

    value, gradient = jax.value_and_grad(log_prob)(logits, possible)
    assert jnp.isfinite(value)
    value, at_impossible = jax.value_and_grad(log_prob)(logits, impossible)
    assert jnp.isneginf(value)
    policy = jax.nn.softmax(logits)
    np.testing.assert_allclose(at_impossible, [[-policy[0, 0], 1 - policy[0, 1]], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(gradient, at_impossible, rtol=1e-6)

    tables = jax.grad(mdps.trajectory_log_prob)(mdp, POLICY, trajectory([0, 0, 1], [1, 0]))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tables))
    assert tables.transition[0, 1, 0] == 0
    assert float(tables.transition[0, 0, 1]) == pytest.approx(1 / 0.5)


def test_a_nan_probability_propagates():
    spoiled = POLICY.copy()
    spoiled[0, 1] = np.nan
    for function in (mdps.trajectory_prob, mdps.trajectory_log_prob):
        assert jnp.isnan(function(small_mdp(), spoiled, trajectory([0, 1, 0], [1, 0])))
        assert jnp.isfinite(function(small_mdp(), spoiled, trajectory([0, 0], [0])))


def test_rollout_frequencies_match_trajectory_probabilities():
    mdp, num_samples = small_mdp(), 40_000
    with jax.debug_key_reuse(True):
        keys = jax.random.split(jax.random.key(1), num_samples)
        sampled = jax.vmap(mdps.rollout, (0, None, None, None))(keys, mdp, POLICY, 2)
    everything = mdps.enumerate_trajectories(mdp, 2)
    code = lambda path: path.states @ np.array([16, 4, 1]) + path.actions @ np.array([8, 2])
    frequencies = np.bincount(np.array(code(sampled)), minlength=32) / num_samples
    order = np.array(code(everything))
    probs = np.array(jax.vmap(mdps.trajectory_prob, (None, None, 0))(mdp, POLICY, everything))
    assert (frequencies[order][probs == 0] == 0).all()
    np.testing.assert_allclose(frequencies[order], probs, atol=4.5 * np.sqrt(0.25 / num_samples))
    np.testing.assert_allclose(sampled.rewards, np.array(REWARD)[sampled.states[:, :-1], sampled.actions])


def test_rollout_never_draws_an_impossible_entry():
    """Rows whose rounded sum falls short of 1, with zeros at both ends."""
    row = np.full(50, 1 / 43)
    row[[0, 1, 20, 21, 47, 48, 49]] = 0
    mdp = mdps.make_mdp(row, np.tile(row, (50, 2, 1)), np.zeros((50, 2)), 0.9)
    mdp = mdp._replace(initial=mdp.initial * 0.99, transition=mdp.transition * 0.99)
    policy = np.tile([1.0, 0.0], (50, 1))
    sampled = jax.vmap(mdps.rollout, (0, None, None, None))(jax.random.split(jax.random.key(0), 500), mdp, policy, 50)
    drawn = np.bincount(np.array(sampled.states).ravel(), minlength=50)
    assert (drawn[row == 0] == 0).all()
    assert (drawn[row > 0] > 0).all()
    assert (sampled.actions == 0).all()


def test_draw_at_the_ends_of_the_unit_interval():
    edges = mdps._lower_edges(jnp.array([0.0, 0.3, 0.0, 0.7, 0.0]))
    assert mdps._draw(edges, 0.0) == 1
    assert mdps._draw(edges, 0.29999) == 1
    assert mdps._draw(edges, 0.3001) == 3
    assert mdps._draw(edges, jnp.nextafter(jnp.float32(1), 0)) == 3


def test_rollout_shapes_dtypes_and_one_compilation_per_length():
    mdp = small_mdp()
    empty = mdps.rollout(jax.random.key(0), mdp, POLICY, 0)
    assert [leaf.shape for leaf in empty] == [(1,), (0,), (0,)]
    before = mdps.rollout._cache_size()
    for gamma in (0.1, 0.2):
        mdps.rollout(jax.random.key(0), mdp._replace(gamma=jnp.float32(gamma)), POLICY, 7)
    assert mdps.rollout._cache_size() == before + 1
    gradient = jax.grad(lambda reward: mdps.rollout(jax.random.key(0), mdp._replace(reward=reward), POLICY, 7)[2].sum())
    assert gradient(mdp.reward).sum() == 7
    rounded = jnp.asarray(POLICY, jnp.bfloat16)
    low, high = (mdps.rollout(jax.random.key(0), mdp, p, 7) for p in (rounded, rounded.astype(jnp.float32)))
    np.testing.assert_array_equal(low.actions, high.actions)
    with jax.enable_x64(True):
        assert mdps.rollout(jax.random.key(0), small_mdp(), POLICY, 3).rewards.dtype == jnp.float64
