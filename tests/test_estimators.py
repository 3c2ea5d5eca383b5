"""The lab against NumPy loops over all draws, hand-worked cases, and what the literature proves."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import dpo, environments, estimators, group, kl, mdp, numpy_losses, policy_gradient, population, values
from rlhf_jax import moments as mo
from rlhf_jax.returns import gae

SUMMED = functools.partial(group.fixed_length_mean, length=1)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@functools.cache
def language():
    """As NumPy arrays: tokens, mask, log_probs, scores, ref_log_probs, rewards, and strings' log-probs and scores."""
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, jax.jit(estimators.small_language)())
    return *found, found.log_probs.sum(1), found.scores.sum(1)


def loop_moments(probs, estimates, target):
    """Mean and trace of the covariance, draw by draw."""
    mean = sum(p * g for p, g in zip(probs, estimates, strict=True))
    variance = sum(p * sum((x - m) ** 2 for x, m in zip(g, mean, strict=True)) for p, g in zip(probs, estimates))  # noqa: B905
    return mean, mean - target, variance


def relative_bias(found, truth):
    return float(np.linalg.norm(found.bias) / np.linalg.norm(truth))


def degrees(mean, truth):
    return float(np.degrees(np.arccos(mean @ truth / np.linalg.norm(mean) / np.linalg.norm(truth))))


def test_moments_by_hand_and_by_the_loop():
    found = mo.moments(np.array([0.25, 0.75]), np.array([[4.0, 0.0], [0.0, 4.0]]), np.array([1.0, 1.0]))
    np.testing.assert_allclose(found.mean, [1, 3])
    np.testing.assert_allclose(found.bias, [0, 2])
    np.testing.assert_allclose(found.variance, 0.25 * 18 + 0.75 * 2)
    np.testing.assert_allclose(found.mean_squared_error, 4 + 6)
    np.testing.assert_allclose(found.averaged(3).mean_squared_error, 4 + 2)

    rng = np.random.default_rng(0)
    probs, estimates, target = rng.dirichlet(np.ones(5)), rng.normal(size=(5, 3)), rng.normal(size=3)
    for number, expected in zip(mo.moments(probs, estimates, target), loop_moments(probs, estimates, target)):  # noqa: B905
        np.testing.assert_allclose(number, expected, rtol=1e-12)


def test_averaged_is_what_listing_the_pairs_of_draws_gives():
    rng = np.random.default_rng(1)
    probs, estimates, target = rng.dirichlet(np.ones(4)), rng.normal(size=(4, 3)), rng.normal(size=3)
    pairs = mo.all_groups(probs, 2)
    listed = mo.moments(pairs.probs, estimates[np.asarray(pairs.members)].mean(axis=1), target)
    for number, expected in zip(mo.moments(probs, estimates, target).averaged(2), listed, strict=True):
        np.testing.assert_allclose(number, expected, rtol=1e-12)


def test_all_groups_are_listed_with_their_probabilities():
    probs = np.array([0.2, 0.3, 0.5])
    groups = mo.all_groups(probs, 2)
    assert [tuple(map(int, each)) for each in groups.members] == list(itertools.product(range(3), repeat=2))
    np.testing.assert_allclose(groups.probs, [probs[i] * probs[j] for i in range(3) for j in range(3)])


def test_too_many_groups_are_refused_with_their_number():
    with pytest.raises(ValueError, match="groups of 5 from 15 are 759,375, more than the 100,000 allowed"):
        mo.all_groups(np.full(15, 1 / 15), 5)


def test_reinforce_on_two_strings_by_hand():
    """π(y₁) = σ(θ), r = (1, 0): ∇J = σ(1 − σ), and −r ∇ log π(y) is −(1 − σ) or 0."""
    theta, up = jnp.asarray(0.4), 1 / (1 + np.exp(-0.4))
    log_probs = jax.nn.log_sigmoid(jnp.stack([theta, -theta]))
    scores = np.array([[1 - up], [-up]])
    rewards = np.array([1.0, 0.0])
    estimates = estimators.string_gradients(policy_gradient.reinforce_loss, log_probs, scores, rewards)
    np.testing.assert_allclose(estimates, [[-(1 - up)], [0]], rtol=1e-12)
    found = mo.moments(jnp.exp(log_probs), estimates, np.array([-up * (1 - up)]))
    np.testing.assert_allclose(found.bias, 0, atol=1e-15)
    np.testing.assert_allclose(found.variance, up * (1 - up) ** 2 - (up * (1 - up)) ** 2, rtol=1e-12)
    best = estimators.optimal_baseline(jnp.exp(log_probs), scores, rewards)
    np.testing.assert_allclose(best, 1 - up, rtol=1e-12)
    quiet = estimators.string_gradients(policy_gradient.reinforce_loss, log_probs, scores, rewards - best)
    np.testing.assert_allclose(mo.moments(jnp.exp(log_probs), quiet, np.zeros(1)).variance, 0, atol=1e-15)


def test_any_constant_baseline_is_unbiased_and_the_optimal_one_has_least_variance():
    *_, rewards, log_probs, scores = language()
    probs = np.exp(log_probs)
    truth = -(probs * rewards) @ scores
    best = float(estimators.optimal_baseline(probs, scores, rewards))

    @jax.jit
    def at(baseline):
        estimates = estimators.string_gradients(policy_gradient.reinforce_loss, log_probs, scores, rewards - baseline)
        return mo.moments(probs, estimates, truth)

    for baseline in (0.0, -3.0, best):
        found = at(baseline)
        loop = [-(r - baseline) * score for r, score in zip(rewards, scores, strict=True)]
        for number, expected in zip(found, loop_moments(probs, loop, truth), strict=True):
            np.testing.assert_allclose(number, expected, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(found.bias, 0, atol=1e-14)
    least, below, above = (float(at(best + step).variance) for step in (0.0, -1e-2, 1e-2))
    weight = probs @ np.square(scores).sum(1)
    np.testing.assert_allclose([below - least, above - least], weight * 1e-4, rtol=1e-8)


def loop_group_gradient(members, advantages, per_length):
    """−(1/G) Σ_i A_i Σ_t ∇ log π(y_t), the inner sum divided by |y_i| if `per_length`."""
    _, mask, _, scores, *_ = language()
    total = np.zeros(scores.shape[-1])
    for string, advantage in zip(members, advantages, strict=True):
        inner = sum(scores[string, t] for t in range(3) if mask[string, t])
        total -= advantage * inner / (mask[string].sum() if per_length else 1) / len(members)
    return total


CENTRED = lambda rewards: np.array([r - sum(rewards) / len(rewards) for r in rewards])
GROUPS = {
    "rloo": (group.rloo_advantages, numpy_losses.rloo_advantages),
    "centred": (group.centered_advantages, CENTRED),
    "standardised": (group.standardized_advantages, functools.partial(numpy_losses.standardized_advantages, eps=1e-4)),
}


@functools.cache
def group_moments(name, per_length, size):
    """The lab's estimates for every group, their moments, and the truth."""
    _, mask, log_probs, scores, _, rewards, strings, string_scores = language()
    groups = mo.all_groups(np.exp(strings), size)
    truth = -(np.exp(strings) * rewards) @ string_scores
    aggregate = group.sequence_mean if per_length else SUMMED
    arguments = (log_probs, scores, mask, rewards, groups.members, GROUPS[name][0], aggregate)
    estimates = jax.jit(estimators.group_gradients, static_argnums=(5, 6))(*arguments)
    return groups, estimates, mo.moments(groups.probs, estimates, truth), truth


@pytest.mark.parametrize("per_length", [False, True])
@pytest.mark.parametrize("name", GROUPS)
def test_group_gradients_equal_the_loop(name, per_length):
    rewards = language()[5]
    groups, estimates, _, _ = group_moments(name, per_length, 2)
    members = np.asarray(groups.members)
    expected = [loop_group_gradient(each, GROUPS[name][1](rewards[each]), per_length) for each in members]
    np.testing.assert_allclose(estimates, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_is_unbiased_and_the_shared_mean_only_shrinks(size):
    _, rloo, unbiased, truth = group_moments("rloo", False, size)
    _, centred, shrunk, _ = group_moments("centred", False, size)
    np.testing.assert_allclose(unbiased.bias, 0, atol=1e-14)
    np.testing.assert_allclose(centred, (size - 1) / size * rloo, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(shrunk.bias, -truth / size, rtol=1e-10, atol=1e-14)


def test_standardising_and_dividing_by_length_turn_the_gradient():
    """The numbers of G = 3 on `small_language`, so that a change of either is seen."""
    expected = {
        ("rloo", False): (0.0, 0.0),
        ("rloo", True): (0.5265, 10.33),
        ("standardised", False): (0.3979, 17.08),
        ("standardised", True): (0.6841, 18.99),
    }
    for (name, per_length), (bias, angle) in expected.items():
        _, _, found, truth = group_moments(name, per_length, 3)
        np.testing.assert_allclose(relative_bias(found, truth), bias, atol=5e-5)
        np.testing.assert_allclose(degrees(found.mean, truth), angle, atol=5e-3)


@pytest.mark.parametrize("size", [2, 4])
def test_standardised_gradients_of_a_question_by_hand(size):
    """Two strings, one right with probability p: k right of G give (1/G) sqrt(k (G − k) (G − 1) / G)."""
    advantages = functools.partial(group.standardized_advantages, eps=1e-12)

    @jax.jit
    def mean(right):
        log_probs = jnp.log(jnp.stack([right, 1 - right]))[:, None]
        scores = jnp.stack([1 - right, -right])[:, None, None]
        groups = mo.all_groups(jnp.exp(log_probs[:, 0]), size)
        arguments = (log_probs, scores, np.full((2, 1), True), jnp.array([1.0, 0.0]), groups.members)
        return -groups.probs @ estimators.group_gradients(*arguments, advantages, SUMMED)

    for right in (0.5, 0.9, 0.99):
        chance = lambda k, p=right: math.comb(size, k) * p**k * (1 - p) ** (size - k)
        given = lambda k: math.sqrt(k * (size - k) * (size - 1) / size) / size
        expected = sum(chance(k) * given(k) for k in range(size + 1))
        np.testing.assert_allclose(mean(right), [expected], rtol=1e-9)
        if size == 2:
            np.testing.assert_allclose(expected, right * (1 - right) / math.sqrt(2), rtol=1e-12)


def test_prefix_values_are_conditional_expectations():
    tokens, mask, *_, rewards, log_probs, _ = language()
    probs = np.exp(log_probs)
    found = estimators.prefix_values(probs, rewards, tokens, mask)
    for n, t in itertools.product(range(len(tokens)), range(3)):
        same = [m for m in range(len(tokens)) if (tokens[m, :t] == tokens[n, :t]).all()]
        expected = sum(probs[m] * rewards[m] for m in same) / sum(probs[m] for m in same) if mask[n, t] else 0
        np.testing.assert_allclose(found[n, t], expected, rtol=1e-12, atol=1e-15)
    assert jnp.isfinite(estimators.prefix_values(np.eye(15)[3], rewards, tokens, mask)).all()


CRITICS = ("exact", "nothing", "too high", "noisy")


@functools.cache
def gae_moments():
    """By critic and λ: estimates and moments, in one compilation."""
    tokens, mask, log_probs, scores, _, rewards, strings, string_scores = language()
    probs = np.exp(strings)
    exact = np.asarray(estimators.prefix_values(probs, rewards, tokens, mask))
    noise = np.random.default_rng(0).normal(size=3)  # a wrong critic need not even be a function of the prefix
    critics = dict(zip(CRITICS, (exact, 0 * exact, exact + 0.5, exact + noise), strict=True))

    @jax.jit
    def every(critics, lambdas):
        of = functools.partial(estimators.gae_gradients, log_probs, scores, mask, rewards)
        estimates = jax.vmap(jax.vmap(of, (None, 0)), (0, None))(critics, lambdas)
        truth = -(probs * rewards) @ string_scores
        weigh = jax.vmap(jax.vmap(mo.moments, (None, 0, None)), (None, 0, None))
        return estimates, weigh(probs, estimates, truth), truth

    return critics, every(np.stack(list(critics.values())), np.array([0.0, 0.5, 1.0]))


def loop_gae_gradient(string, critic, lambda_):
    """−Σ_t A_t ∇ log π(y_t), A_t = Σ_k λ^k δ_{t+k}, the end worth 0."""
    _, mask, _, scores, _, rewards, *_ = language()
    length = mask[string].sum()
    value = [*critic[string, :length], 0.0]
    errors = [(rewards[string] if t == length - 1 else 0) + value[t + 1] - value[t] for t in range(length)]
    advantages = [sum(lambda_**k * errors[t + k] for k in range(length - t)) for t in range(length)]
    return -sum(advantages[t] * scores[string, t] for t in range(length))


def test_gae_gradients_equal_the_loop():
    critics, (estimates, _, _) = gae_moments()
    for (c, critic), (i, lambda_) in itertools.product(enumerate(critics.values()), enumerate((0.0, 0.5, 1.0))):
        expected = [loop_gae_gradient(string, critic, lambda_) for string in range(15)]
        np.testing.assert_allclose(estimates[c, i], expected, rtol=1e-9, atol=1e-12)


def test_gae_is_unbiased_for_lambda_1_and_otherwise_only_with_the_exact_critic():
    _, (_, found, truth) = gae_moments()
    relative = np.linalg.norm(found.bias, axis=-1) / np.linalg.norm(truth)
    np.testing.assert_allclose(relative[:, 2], 0, atol=1e-14)
    np.testing.assert_allclose(relative[CRITICS.index("exact")], 0, atol=1e-14)
    assert (relative[1:, :2] > 0.05).all()
    assert (relative[1:, 0] > relative[1:, 1]).all()


def test_the_exact_critic_with_small_lambda_has_least_variance():
    _, (_, found, _) = gae_moments()
    exact = found.variance[CRITICS.index("exact")]
    assert exact[0] < exact[1] < exact[2] < found.variance[CRITICS.index("nothing"), 2]


def test_gae_on_an_mdp_estimates_the_policy_gradient_theorem():
    """Two towns, three days: right on average with the exact values of the days left, or with λ = 1 and any."""
    world, logits, num_steps = environments.two_state(gamma=1.0), jnp.array([[0.2, -0.4], [0.5, 0.1]]), 3
    scores = jax.jacobian(jax.nn.log_softmax)(logits).reshape(2, 2, 4)

    @jax.jit
    def biases(lambdas):
        policy = jax.nn.softmax(logits)
        every = mdp.enumerate_trajectories(world, num_steps)
        probs = jax.vmap(mdp.trajectory_prob, (None, None, 0))(world, policy, every)
        exact = jnp.stack([values.state_values(world, policy, num_steps - t) for t in range(num_steps + 1)])
        wrong = exact.at[:-1].add(jnp.array([0.5, -1.0]))
        truth = -policy_gradient.policy_gradient(world, logits, num_steps).ravel()

        def bias(critic, lambda_):
            def loss(log_policy, trajectory):
                states, actions, rewards = trajectory
                advantages = gae(rewards, world.gamma, critic[jnp.arange(num_steps + 1), states], lambda_)
                return policy_gradient.reinforce_loss(log_policy[states[:-1], actions], advantages).sum()

            return mo.moments(probs, mo.sample_gradients(loss, jnp.log(policy), scores, every), truth).bias

        return jax.vmap(jax.vmap(bias, (None, 0)), (0, None))(jnp.stack([exact, wrong]), lambdas), truth

    found, truth = biases(np.array([0.0, 0.7, 1.0]))
    relative = np.linalg.norm(found, axis=-1) / np.linalg.norm(truth)
    np.testing.assert_allclose(relative[0], 0, atol=1e-13)
    np.testing.assert_allclose(relative[1, 2], 0, atol=1e-13)
    assert relative[1, 0] > relative[1, 1] > 0.1


def test_an_error_of_the_values_becomes_an_error_of_the_advantages():
    """A = G^λ − v: an error e of every value gives −e + (1 − λ) Σ_k λ^k e = −λ^{T−t} e, since the end is known."""
    rewards, exact = np.array([0.0, 0.0, 1.0]), np.array([0.3, 0.6, 0.8, 0.0])
    for lambda_ in (0.0, 0.5, 1.0):
        wrong = exact + np.array([0.2, 0.2, 0.2, 0.0])
        change = gae(rewards, np.array([1.0, 1.0, 0.0]), wrong, lambda_) - gae(rewards, 1.0, exact, lambda_)
        expected = [-0.2 * lambda_ ** (2 - t) for t in range(3)]
        np.testing.assert_allclose(change, expected, rtol=1e-10, atol=1e-15)


def test_the_gaussian_table_of_schulman():
    """Relative bias and deviation; the closed forms are 2/µ for k1's deviation and µ²/4 for k2's bias."""
    printed = {
        (0.1, kl.k1): (0.0, 20.0),
        (0.1, kl.k2): (0.00250, 1.418),
        (0.1, kl.k3): (0.0, 1.417),
        (1.0, kl.k1): (0.0, 2.000),
        (1.0, kl.k2): (0.250, 1.732),
        (1.0, kl.k3): (0.0, 1.695),
    }
    for (shift, estimator), (bias, deviation) in printed.items():
        found, truth = estimators.gaussian_kl_moments(estimator, shift), shift**2 / 2
        np.testing.assert_allclose(found.bias[0] / truth, bias, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(np.sqrt(found.variance) / truth, deviation, rtol=5e-4)
        doubled = estimators.gaussian_kl_moments(estimator, shift, num_nodes=128)
        np.testing.assert_allclose(found.variance, doubled.variance, rtol=1e-12)


def test_what_each_kl_estimate_does_as_a_loss():
    """E[∇ k1] = 0, E[∇ k2] = ∇ KL(π ‖ π_ref), E[∇ k3] = ∇ KL(π_ref ‖ π); weighted by the ratio, ∇ KL(π ‖ π_ref)."""
    *_, ref, _, log_probs, scores = language()
    probs, old = np.exp(log_probs), np.log(np.random.default_rng(2).dirichlet(np.ones(15)))
    reverse = jax.grad(kl.exact_kl)(jnp.asarray(log_probs), jnp.asarray(ref)) @ scores
    forward = -np.exp(ref) @ scores

    @jax.jit
    def means():
        def mean(weights, loss, *data):
            return mo.moments(weights, estimators.string_gradients(loss, log_probs, scores, *data), reverse).mean

        def weighted(estimator, drawn_from):
            loss = lambda own, ref, old: kl.importance_weighted(estimator(own, ref), own, old)
            return mean(np.exp(drawn_from), loss, ref, drawn_from)

        plain = [mean(probs, estimator, ref) for estimator in (kl.k1, kl.k2, kl.k3)]
        return plain, [weighted(*each) for each in itertools.product((kl.k1, kl.k3), (log_probs, old))]

    plain, weighted = means()
    for found, expected in zip(plain, (0 * reverse, reverse, forward), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)
    for found in weighted:
        np.testing.assert_allclose(found, reverse, rtol=1e-9, atol=1e-13)


def test_dpo_gradients_of_finite_samples():
    """Equal to the closed form −β σ(−β h) (∇ log π(y⁺) − ∇ log π(y⁻)); flips bias them, the robust loss does not."""
    *_, ref, rewards, log_probs, scores = language()
    beta = 0.5
    data = population.bradley_terry_population(ref, rewards)
    flipped = population.bradley_terry_population(ref, rewards, flip_prob=0.2)
    plain = functools.partial(dpo.dpo_loss, beta=beta)
    robust = functools.partial(dpo.robust_dpo_loss, beta=beta, label_smoothing=0.2)
    of_pairs = lambda loss: estimators.pair_gradients(loss, log_probs, scores, ref, data.chosen, data.rejected)
    chosen, rejected = np.asarray(data.chosen), np.asarray(data.rejected)
    gap = (log_probs - ref)[chosen] - (log_probs - ref)[rejected]
    expected = -beta / (1 + np.exp(beta * gap))[:, None] * (scores[chosen] - scores[rejected])
    estimates = of_pairs(plain)
    np.testing.assert_allclose(estimates, expected, rtol=1e-10, atol=1e-14)

    truth = np.asarray(data.weight) @ expected
    honest = mo.moments(data.weight, estimates, truth)
    np.testing.assert_allclose(honest.bias, 0, atol=1e-14)
    np.testing.assert_allclose(honest.averaged(64).mean_squared_error, honest.variance / 64, rtol=1e-12)
    assert relative_bias(mo.moments(flipped.weight, estimates, truth), truth) > 0.1
    mended = mo.moments(flipped.weight, of_pairs(robust), truth)
    np.testing.assert_allclose(mended.bias, 0, atol=1e-14)
    assert mended.variance > honest.variance
