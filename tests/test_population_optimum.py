"""Which policy each preference loss is smallest at, on the population of all choices; and that descent arrives there.

Three letters, at most three tokens, the third letter ends a string: 15 strings. The annotators are Bradley and
Terry's. Log-ratios u(y) = log π(y) − log π_ref(y); c(y) and d(y) are how often a string is chosen and rejected.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import dpo, dpo_variants, enumerable, kl, log_probs, population

VOCAB, LENGTH, EOS = 3, 3, 2
TOKENS, MASK = map(np.asarray, enumerable.all_strings(VOCAB, LENGTH, EOS))
N, LENGTHS = len(TOKENS), MASK.sum(1)
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=N)
REF = np.log(RNG.dirichlet(np.full(N, 3.0)))
SHOWN = RNG.dirichlet(np.full(N, 5.0))
EVEN = np.full(N, -np.log(N))
GOOD = np.where(REWARDS > 0, 1.0, 0.0)
BETA = 0.5


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def choices(rewards=REWARDS, shown=SHOWN, **annotator):
    """Pairs are drawn from a policy that is neither the reference nor the policy: it must not matter."""
    return population.PairWeights(
        *map(np.asarray, population.bradley_terry_population(np.log(shown), rewards, **annotator))
    )


def paired(loss, ref=REF, **coefficients):
    return lambda policy, i, j: loss(policy[i], policy[j], ref[i], ref[j], **coefficients)


def token_means(loss, **coefficients):
    """The same function on log-probabilities averaged over a string's tokens."""
    return lambda policy, i, j: paired(loss, REF / LENGTHS, **coefficients)(policy / LENGTHS, i, j)


def reference_free(loss, **coefficients):
    return lambda policy, i, j: loss((policy / LENGTHS)[i], (policy / LENGTHS)[j], **coefficients)


def mean_loss(loss, pairs):
    """The population's mean as a function of a logit for each string."""

    def measure(logits):
        return jnp.sum(pairs.weight * loss(log_probs.log_softmax(logits), pairs.chosen, pairs.rejected))

    return measure


def descend(loss, rate, start=REF, num_steps=5000):
    """Plain gradient descent on the logits, every step the same."""
    step = lambda _, logits: logits - rate * jax.grad(loss)(logits)
    return log_probs.log_softmax(jax.jit(lambda x: jax.lax.fori_loop(0, num_steps, step, x))(jnp.asarray(start)))


def tilted(rewards, beta=BETA, ref=REF):
    return np.asarray(enumerable.optimal_log_probs(ref, rewards, beta))


def normalised(weigh, top=50.0):
    """log weigh(c) at the c < top where Σ_y weigh(c)(y) = 1, weigh growing in c: by bisection."""
    low = -50.0
    for _ in range(100):
        middle = (low + top) / 2
        low, top = (low, middle) if weigh(middle).sum() > 1 else (middle, top)
    return np.log(weigh(low))


def f_optimum(inverse, top):
    """f'(π/π_ref) = r/β + c: the constant makes it sum to 1; `top` is the supremum of f'."""
    return normalised(lambda c: np.exp(REF) * inverse(REWARDS / BETA + c), top - REWARDS.max() / BETA - 1e-12)


def log_odds(prob):
    return np.log(prob / (1 - prob))


def smoothed(eps):
    """The log-odds that a good string, worth 1, beats a bad one, worth 0, once a share of choices is flipped."""
    return log_odds(eps + (1 - 2 * eps) / (1 + np.exp(-1)))


def mean_win_rates(**annotator):
    """How often each string beats one drawn from those that are shown, itself included (a draw: ½)."""
    first = functools.partial(population.choice_probs, **annotator)
    own, other = np.repeat(REWARDS[:, None], N, 1), np.repeat(REWARDS[None], N, 0)
    return np.asarray(first(own, other) + 1 - first(other, own)) / 2 @ SHOWN


def simpo_lead(prob, margin):
    """exp(β (m⁺ − m⁻)) = x of SimPO on one pair: p g/(g + x) = (1 − p) g x/(g x + 1), g = exp(γ)."""
    g = np.exp(margin)
    return np.log(((2 * prob - 1) * g + np.sqrt((2 * prob - 1) ** 2 * g**2 + 4 * prob * (1 - prob))) / (2 - 2 * prob))


ODD = {"position_bias": 0.8, "flip_prob": 0.1}
FLIPS = {"label_smoothing": 0.2}
F_DPO = {
    "forward": (dpo.forward_kl_f_prime, lambda x: 1 / (1 - x), 1.0),
    "jensen_shannon": (dpo.jensen_shannon_f_prime, lambda x: 1 / (2 * np.exp(-x) - 1), np.log(2)),
    "alpha": (lambda u: dpo.alpha_f_prime(u, 0.5), lambda x: (1 - x / 2) ** -2, 2.0),
}
RATES = {"forward": 12, "jensen_shannon": 60, "alpha": 30}
# name: the loss, the choices, the closed form, the step. A step is below 2 over the largest curvature on the way.
OPTIMA = {
    # beta and the temperature of the choices multiply: pi* of RLHF at beta is for temperature 1
    "dpo": lambda: (paired(dpo.dpo_loss, beta=BETA), choices(), tilted(REWARDS), 100),
    "dpo_temperature": lambda: (
        paired(dpo.dpo_loss, beta=BETA), choices(temperature=0.7), tilted(REWARDS, 0.7 * BETA), 100),
    # where rewards have two values the log-odds of smoothed choices still are differences of one number a string
    "conservative": lambda: (
        paired(dpo.dpo_loss, beta=BETA, **FLIPS), choices(GOOD), tilted(GOOD * smoothed(0.2)), 100),
    "robust": lambda: (
        paired(dpo.robust_dpo_loss, beta=BETA, **FLIPS), choices(flip_prob=0.2), tilted(REWARDS), 100),
    # Azar et al. (2023): pi_ref exp(P(y beats those shown) / tau), whatever the annotators are
    "ipo": lambda: (paired(dpo.ipo_loss, beta=BETA), choices(**ODD), tilted(mean_win_rates(**ODD)), 3),
    **{
        name: lambda f_prime=f_prime, inverse=inverse, top=top, rate=RATES[name]: (
            paired(dpo.f_dpo_loss, beta=BETA, f_prime=f_prime), choices(), f_optimum(inverse, top), rate)
        for name, (f_prime, inverse, top) in F_DPO.items()
    },
    # u(y) = |y| (r/beta + c): the reward of a token, so that long strings gain or lose more than under pi*
    "length_normalised": lambda: (
        lambda policy, i, j: dpo_variants.length_normalized_dpo_loss(
            policy[i], policy[j], REF[i], REF[j], LENGTHS[i], LENGTHS[j], beta=BETA),
        choices(), normalised(lambda c: np.exp(REF + LENGTHS * (REWARDS / BETA + c))), 100),
    "ipo_per_token": lambda: (
        token_means(dpo.ipo_loss, beta=BETA), choices(),
        normalised(lambda c: np.exp(REF + LENGTHS * (mean_win_rates() / BETA + c))), 3),
    # log pi(y) = |y| (r/beta + c), without the reference
    "simpo": lambda: (
        reference_free(dpo.simpo_loss, beta=2.0, margin=0.0), choices(),
        normalised(lambda c: np.exp(LENGTHS * (REWARDS / 2 + c))), 10),
    "simpo_margin": lambda: (
        reference_free(dpo.simpo_loss, beta=2.0, margin=0.6), choices(GOOD),
        normalised(lambda c: np.exp(LENGTHS * (GOOD * simpo_lead(1 / (1 + np.exp(-1)), 0.6) / 2 + c))), 10),
    # without its odds ratio ORPO is maximum likelihood per token: c(y) / |y|
    "orpo_weight_0": lambda: (
        reference_free(dpo.orpo_loss, weight=0.0), choices(),
        np.log(chosen_share(choices()) / LENGTHS / (chosen_share(choices()) / LENGTHS).sum()), 10),
    # sigma(beta h) is the geometric, not the arithmetic, mean of the targets: log-odds (2p − 1) ln((1 − eps)/eps)
    "exo": lambda: (
        paired(dpo_variants.exo_pair_loss, beta=BETA, **FLIPS), choices(GOOD),
        tilted(GOOD * (2 / (1 + np.exp(-1)) - 1) * np.log(4)), 100),
    # at beta 1, pairs of an even reference: exactly the frequencies of the chosen strings, far from pi*
    "nca": lambda: (
        paired(dpo_variants.nca_pair_loss, EVEN, beta=1.0), choices(shown=np.exp(EVEN)),
        np.log(chosen_share(choices(shown=np.exp(EVEN)))), 20),
}  # fmt: skip


def chosen_share(pairs):
    return np.bincount(pairs.chosen, pairs.weight, minlength=N)


@pytest.mark.parametrize("name", OPTIMA)
def test_gradient_descent_arrives_at_the_closed_form(name):
    loss, pairs, best, rate = OPTIMA[name]()
    np.testing.assert_allclose(np.exp(best).sum(), 1, rtol=1e-9)
    found = descend(mean_loss(loss, pairs), rate)
    assert np.abs(REF - best).max() > 0.5
    np.testing.assert_allclose(found, best, atol=1e-6)
    assert abs(kl.exact_kl(found, best)) < 1e-12


def test_dpos_optimum_is_the_only_one():
    """No gradient there, and a Hessian that is positive but for the shift of all logits; the loss is convex."""
    loss, pairs, best, _ = OPTIMA["dpo"]()
    gradient = jax.jit(jax.grad(mean_loss(loss, pairs)))
    assert np.abs(gradient(REF)).max() > 1e-3
    np.testing.assert_allclose(gradient(best), 0, atol=1e-15)
    curvatures = np.linalg.eigvalsh(jax.jacfwd(gradient)(best))
    assert abs(curvatures[0]) < 1e-12
    assert curvatures[1] > 1e-4


def test_f_dpo_with_reverse_kl_is_dpo_so_that_its_optimum_is_too():
    pairs, policy = choices(), tilted(REWARDS, 2.0)
    losses = [
        mean_loss(paired(loss, beta=BETA, **extra), pairs)(policy)
        for loss, extra in ((dpo.dpo_loss, {}), (dpo.f_dpo_loss, {"f_prime": dpo.reverse_kl_f_prime}))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-14)


@pytest.mark.parametrize(("name", "rate", "num_steps"), [("dpo", 20, 20_000), ("ipo", 0.5, 3_000)])
def test_an_autoregressive_table_of_logits_arrives_there_too(name, rate, num_steps):
    """13 prefixes, and the string's log-probability as the sum over its tokens, from a table of zeros."""
    loss, pairs, best, _ = OPTIMA[name]()
    rows = np.asarray(enumerable.prefix_rows(TOKENS, VOCAB))
    policy = lambda table: enumerable.string_log_probs(lambda _: table[rows], TOKENS, MASK)
    step = lambda _, table: table - rate * jax.grad(lambda t: mean_loss(loss, pairs)(policy(t)))(table)
    start = jnp.zeros((enumerable.num_prefixes(VOCAB, LENGTH), VOCAB))
    found = policy(jax.jit(lambda x: jax.lax.fori_loop(0, num_steps, step, x))(start))
    np.testing.assert_allclose(found, best, atol=1e-6)


def win_rates(pairs, lead):
    """How often each string wins when a pair's choice has these log-odds, over the pairs it is shown in."""
    shown = np.zeros((N, N))
    np.add.at(shown, (pairs.chosen, pairs.rejected), pairs.weight)
    return ((shown + shown.T) / (1 + np.exp(-lead))).sum(1)


def test_conservative_dpo_on_other_rewards_only_matches_each_strings_win_rate():
    """Its optimum is not a tilt by any closed form: log-odds of smoothed choices are not differences.

    Stationary means Σ_j w_ij (σ(β h_ij) − p_ij) = 0, the win rates; the single pairs' choices are missed.
    """
    pairs = choices()
    found = np.asarray(descend(mean_loss(paired(dpo.dpo_loss, beta=BETA, label_smoothing=0.2), pairs), 100)) - REF
    flipped = choices(flip_prob=0.2)
    lead = BETA * (found[:, None] - found)
    np.testing.assert_allclose(win_rates(pairs, lead), chosen_share(flipped), atol=1e-9)
    probs = np.asarray(population.choice_probs(*np.broadcast_arrays(REWARDS[:, None], REWARDS), flip_prob=0.2))
    assert np.abs(1 / (1 + np.exp(-lead)) - probs).max() > 0.02


def test_sppo_approaches_ipos_optimum_as_the_cube_of_its_step():
    """u(y) = (P(y) − ½)/β needs a normaliser that the loss does not have: with pairs of an even reference the
    distance from π_ref exp(P/β)/Z falls by 8 each time that β doubles."""
    pairs = choices(shown=np.exp(EVEN))
    distances = []
    for beta in (2.0, 4.0, 8.0):
        loss = mean_loss(paired(dpo_variants.sppo_loss, EVEN, beta=beta), pairs)
        target = tilted(chosen_share(pairs) * N / 2, beta, EVEN)
        distances.append(np.abs(descend(loss, 3, EVEN, 500) - target).max())
    np.testing.assert_allclose(np.divide(distances[:-1], distances[1:]), 8, rtol=0.06)
    assert distances[0] < 1e-3
