"""Where a preference loss on the population of choices starts, and where it has many minima, or none.

The language and the notation are those of `test_population_optimum`; c(y) and d(y) are how often a string is chosen
and rejected, W(i, j) how often i is chosen over j.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import dpo, dpo_variants, enumerable, log_probs, population

TOKENS, MASK = map(np.asarray, enumerable.all_strings(3, 3, 2))
N, LENGTHS = len(TOKENS), MASK.sum(1)
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=N)
REF = np.log(RNG.dirichlet(np.full(N, 3.0)))
SHOWN = np.log(RNG.dirichlet(np.full(N, 5.0)))
EVEN = np.full(N, -np.log(N))
BETA, EPS = 0.5, 0.2


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def choices(rewards=REWARDS, shown=SHOWN, **annotator):
    return population.PairWeights(*map(np.asarray, population.bradley_terry_population(shown, rewards, **annotator)))


def share(strings, pairs):
    return np.bincount(strings, pairs.weight, minlength=N)


def mean_loss(loss, pairs, ref=REF, lengths=1.0):
    """The population's mean as a function of the policy, one log-probability a string."""
    scores = lambda policy: (policy[pairs.chosen], policy[pairs.rejected], ref[pairs.chosen], ref[pairs.rejected])
    return lambda policy: jnp.sum(pairs.weight * loss(*scores(policy / lengths)))


def of_logits(loss):
    return lambda logits: loss(log_probs.log_softmax(logits))


def descend(loss, rate, start=REF, num_steps=5000):
    step = lambda _, logits: logits - rate * jax.grad(of_logits(loss))(logits)
    return log_probs.log_softmax(jax.jit(lambda x: jax.lax.fori_loop(0, num_steps, step, x))(jnp.asarray(start)))


def without_reference(loss, **coefficients):
    return lambda chosen, rejected, *_: loss(chosen, rejected, **coefficients)


def normalised_by_length(chosen, rejected, ref_chosen, ref_rejected):
    """Every string taken to be three tokens long."""
    three = np.full(len(ref_chosen), 3)
    return dpo_variants.length_normalized_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, three, three, beta=BETA)


def kto(chosen, rejected, ref_chosen, ref_rejected, baseline=0.0):
    score = functools.partial(dpo.kto_loss, beta=BETA)
    return score(chosen, ref_chosen, True, baseline) + score(rejected, ref_rejected, False, baseline)


with_beta = lambda loss, **more: functools.partial(loss, beta=BETA, **more)
LN2, MARGIN, MEAN = np.log(2), 0.6, -np.log(N) / 3
# name: the loss, its value at the reference, and its slopes in the log-probability of a chosen and a rejected string
AT_REFERENCE = {
    "dpo": (with_beta(dpo.dpo_loss), LN2, -BETA / 2, BETA / 2),
    "conservative": (with_beta(dpo.dpo_loss, label_smoothing=EPS), LN2, -BETA * (0.5 - EPS), BETA * (0.5 - EPS)),
    "robust": (with_beta(dpo.robust_dpo_loss, label_smoothing=EPS), LN2, -BETA / 2 / 0.6, BETA / 2 / 0.6),
    "ipo": (with_beta(dpo.ipo_loss), 0.25 / BETA**2, -1 / BETA, 1 / BETA),
    "hinge": (with_beta(dpo.hinge_loss), 1, -BETA, BETA),
    "f_dpo_forward": (with_beta(dpo.f_dpo_loss, f_prime=dpo.forward_kl_f_prime), LN2, -BETA / 2, BETA / 2),
    "f_dpo_jensen": (with_beta(dpo.f_dpo_loss, f_prime=dpo.jensen_shannon_f_prime), LN2, -BETA / 4, BETA / 4),
    "kto": (kto, 1, -BETA / 4, BETA / 4),
    "apo_zero": (with_beta(dpo_variants.apo_zero_loss), 1, -BETA / 4, BETA / 4),
    "apo_down": (with_beta(dpo_variants.apo_down_loss), 1, 0, BETA / 4),
    "exo": (with_beta(dpo_variants.exo_pair_loss, label_smoothing=EPS),
            -LN2 - np.log(EPS * (1 - EPS)) / 2, -BETA / 4 * np.log(4), BETA / 4 * np.log(4)),
    "nca": (with_beta(dpo_variants.nca_pair_loss), 2 * LN2, -BETA / 4, BETA / 4),
    "sppo": (with_beta(dpo_variants.sppo_loss), 0.5 / BETA**2, -1 / BETA, 1 / BETA),
    "dpop": (with_beta(dpo_variants.dpop_loss, penalty_weight=5.0), LN2, -BETA / 2, BETA / 2),
    "length_normalised": (normalised_by_length, LN2, -BETA / 6, BETA / 6),
    # no reference: at the even policy, of three tokens a string
    "cpo": (without_reference(dpo_variants.cpo_loss, beta=BETA), LN2 - 3 * MEAN, -BETA / 2 - 1, BETA / 2),
    "simpo": (lambda chosen, rejected, *_: dpo.simpo_loss(chosen / 3, rejected / 3, beta=BETA, margin=MARGIN),
              np.log1p(np.exp(MARGIN)), -BETA / (1 + np.exp(-MARGIN)) / 3, BETA / (1 + np.exp(-MARGIN)) / 3),
    "orpo": (lambda chosen, rejected, *_: dpo.orpo_loss(chosen / 3, rejected / 3, weight=0.5),
             -MEAN + LN2 / 2, (-1 - 0.25 / (1 - np.exp(MEAN))) / 3, 0.25 / (1 - np.exp(MEAN)) / 3),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_REFERENCE)
def test_at_the_reference_the_population_gradient_is_the_frequencies(name):
    """∂L/∂ log π(y) = a c(y) + b d(y); in logits, less π(y) times its sum. DPO's: −(β/2) (c − d)."""
    loss, value, slope_chosen, slope_rejected = AT_REFERENCE[name]
    pairs, ref = choices(), EVEN if name in ("cpo", "simpo", "orpo") else REF
    measured, gradient = jax.value_and_grad(of_logits(mean_loss(loss, pairs, ref)))(jnp.asarray(ref))
    slopes = slope_chosen * share(pairs.chosen, pairs) + slope_rejected * share(pairs.rejected, pairs)
    np.testing.assert_allclose(measured, value, rtol=1e-12)
    np.testing.assert_allclose(gradient, slopes - np.exp(ref) * slopes.sum(), rtol=1e-9, atol=1e-15)


# --- Without a reference, or with one minimum of no closed form


@pytest.mark.parametrize(
    ("loss", "lengths", "rate"),
    [
        (without_reference(dpo_variants.cpo_loss, beta=BETA), 1.0, 4),
        (without_reference(dpo.orpo_loss, weight=0.5), LENGTHS, 10),
        (without_reference(dpo.simpo_loss, beta=2.0, margin=MARGIN), LENGTHS, 10),
    ],
    ids=["cpo", "orpo", "simpo"],
)
def test_losses_without_a_reference_forget_where_they_began(loss, lengths, rate):
    """The reference enters as the start alone: two of them, one end. It is a policy of full support, and no tilt."""
    mean = mean_loss(loss, choices(), lengths=lengths)
    found, other = descend(mean, rate), descend(mean, rate, RNG.normal(size=N))
    np.testing.assert_allclose(found, other, atol=1e-6)
    np.testing.assert_allclose(jax.grad(of_logits(mean))(found), 0, atol=1e-7)
    lead = (found - REF)[:, None] - (found - REF)
    assert np.abs(lead - (REWARDS[:, None] - REWARDS) / BETA).max() > 0.5


def test_exo_on_other_rewards_ends_at_one_policy_that_is_not_rlhfs():
    """Each pair asks for log-odds of (2p − 1) ln((1 − ε)/ε), which no rewards of strings give to all of them."""
    mean = mean_loss(with_beta(dpo_variants.exo_pair_loss, label_smoothing=EPS), choices())
    found, other = descend(mean, 60), descend(mean, 60, EVEN)
    np.testing.assert_allclose(found, other, atol=1e-9)
    np.testing.assert_allclose(jax.grad(of_logits(mean))(found), 0, atol=1e-12)
    assert np.abs(found - enumerable.optimal_log_probs(REF, REWARDS, BETA)).max() > 0.5


# --- Many minima


def test_strings_that_are_in_no_pair_keep_any_mass():
    """Missing support: with π*'s odds among the strings shown, any probability of the others is a minimum of DPO."""
    hidden = np.arange(N) % 4 == 0
    pairs = choices(shown=np.where(hidden, -np.inf, SHOWN))
    best = np.asarray(enumerable.optimal_log_probs(REF, REWARDS, BETA))
    loss = jax.jit(jax.value_and_grad(of_logits(mean_loss(with_beta(dpo.dpo_loss), pairs))))
    for shift in (-3.0, 0.0, 3.0):
        value, gradient = loss(best + np.where(hidden, shift + RNG.normal(size=N), 0))
        np.testing.assert_allclose(value, loss(best)[0], rtol=1e-12)
        np.testing.assert_allclose(gradient, 0, atol=1e-15)


def test_groups_that_are_never_compared_may_trade_mass():
    """Pairs within two groups alone: DPO has a minimum for every split between them; RLHF has one."""
    group = np.arange(N) % 2
    pairs = choices()
    kept = group[pairs.chosen] == group[pairs.rejected]
    within = pairs._replace(weight=np.where(kept, pairs.weight, 0))
    best = np.asarray(enumerable.optimal_log_probs(REF, REWARDS, BETA))
    of_pairs = lambda pairs: jax.jit(jax.value_and_grad(of_logits(mean_loss(with_beta(dpo.dpo_loss), pairs))))
    value, _ = of_pairs(within)(best)
    other, gradient = of_pairs(within)(best + 2 * group)
    np.testing.assert_allclose(other, value, rtol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-15)
    assert of_pairs(pairs)(best + 2 * group)[0] > of_pairs(pairs)(best)[0] + 0.01


def pair_mean(loss, prob, gap):
    """Mean loss of one pair of strings whose first wins with this probability, as a function of h."""
    zeros = np.zeros_like(gap)
    return prob * loss(gap, zeros, zeros, zeros) + (1 - prob) * loss(zeros, gap, zeros, zeros)


def test_hinge_hears_who_wins_and_not_how_often():
    """One pair: smallest at β h = 1 for any p > ½; a tie is content with any |β h| ≤ 1, a sure win with any h ≥ 1/β."""
    mean = functools.partial(pair_mean, with_beta(dpo.hinge_loss))
    gaps = np.linspace(-8, 8, 1601)
    for prob in (0.51, 0.75, 0.99):
        np.testing.assert_allclose(gaps[np.argmin(mean(prob, gaps))], 1 / BETA)
    for prob, expected in ((0.5, np.abs(gaps) <= 1 / BETA), (1.0, gaps >= 1 / BETA)):
        losses = mean(prob, gaps)
        np.testing.assert_array_equal(losses < losses.min() + 1e-9, expected)


def test_dpops_penalty_can_hold_the_policy_at_the_reference():
    """Two strings, π_ref = (a, 1 − a): the reference is the minimum as soon as λ ≥ (2p − 1) / ((1 − p) a).

    The loss is convex in the logits, but has a kink at the reference: neither of its slopes leads down from there,
    although the gradient that is given for the kink (DPO's) does.
    """
    first, prob = 0.4, 0.7
    bound = (2 * prob - 1) / ((1 - prob) * first)
    pairs = population.PairWeights(np.array([0, 1]), np.array([1, 0]), np.array([prob, 1 - prob]))
    ref = np.log([first, 1 - first])
    for weight, held in ((0.9 * bound, False), (1.1 * bound, True)):
        mean = of_logits(mean_loss(with_beta(dpo_variants.dpop_loss, penalty_weight=weight), pairs, ref))
        nearby = [mean(ref + np.array([step, 0.0])) for step in (-1e-3, 0.0, 1e-3)]
        assert (np.argmin(nearby) == 1) == held


# --- No minimum


def test_sure_choices_have_no_minimum_under_dpo_and_have_one_under_ipo():
    """Without doubt DPO's loss falls along any policy that ranks right, to 0 at infinite log-ratios; IPO's regression
    on P(y) stays finite, and a smoothed label gives DPO a minimum again."""
    sure = choices(temperature=1e-3)
    assert sure.weight.min() < 1e-30
    scales = np.array([1.0, 4.0, 16.0, 64.0])
    along = lambda loss: [of_logits(mean_loss(loss, sure))(REF + scale * REWARDS) for scale in scales]
    falling = np.array(along(with_beta(dpo.dpo_loss)))
    assert (np.diff(falling) < 0).all()
    assert falling[-1] < 0.02
    for loss in (with_beta(dpo.ipo_loss), with_beta(dpo.dpo_loss, label_smoothing=0.1)):
        assert along(loss)[-1] > along(loss)[0]
    ranks = REWARDS[:, None] > REWARDS
    win_rates = (ranks + 0.5 * np.eye(N)) @ np.exp(SHOWN)
    found = descend(mean_loss(with_beta(dpo.ipo_loss), sure), 3)
    np.testing.assert_allclose(found, enumerable.optimal_log_probs(REF, win_rates, BETA), atol=1e-6)


def test_robust_dpo_falls_without_end_when_it_expects_more_flips_than_there_are():
    """The choice probability that it infers, (p − ε)/(1 − 2ε), is above 1 for p > 1 − ε."""
    gaps = np.array([10.0, 100.0, 1000.0])
    loss = with_beta(dpo.robust_dpo_loss, label_smoothing=0.1)
    losses = pair_mean(loss, 0.95, gaps)
    assert (np.diff(losses) < 0).all()
    np.testing.assert_allclose(losses[1:] / gaps[1:], -BETA * (0.95 - 0.9) / 0.8, rtol=1e-6)
    assert (np.diff(pair_mean(loss, 0.85, gaps)) > 0).all()


@pytest.mark.parametrize("loss", [with_beta(dpo_variants.apo_zero_loss), functools.partial(kto, baseline=0.4)])
def test_kto_and_apo_zero_have_no_stationary_policy_and_empty_the_losers(loss):
    """∂L/∂ log π(y) has the sign of d(y) − c(y) at every policy. Stationary policies need it proportional to π(y),
    of one sign; with strings that win and strings that lose there are none, and descent sends the losers to 0."""
    pairs = choices()
    lead = share(pairs.chosen, pairs) - share(pairs.rejected, pairs)
    mean = mean_loss(loss, pairs)
    slopes = jax.vmap(jax.grad(mean))(log_probs.log_softmax(3 * RNG.normal(size=(20, N))))
    np.testing.assert_array_equal(np.sign(slopes), np.broadcast_to(-np.sign(lead), slopes.shape))
    found = descend(mean, 20)
    assert np.exp(REF)[lead < 0].sum() > 0.5
    assert np.exp(found)[lead < 0].sum() < 1e-5


def test_apo_down_may_end_on_the_worst_string():
    """It lowers whatever is chosen: on the whole population the loss falls while all mass moves to the string that
    is chosen least, and the log-ratios of all others run away, in the order of their rewards."""
    pairs = choices()
    mean = mean_loss(with_beta(dpo_variants.apo_down_loss), pairs)
    found = [descend(mean, 20, num_steps=steps) for steps in (4_000, 16_000)]
    worst = np.argmin(REWARDS)
    assert worst == np.argmin(share(pairs.chosen, pairs))
    assert found[0][worst] > -1e-6
    assert mean(found[1]) < mean(found[0]) < mean(enumerable.optimal_log_probs(REF, REWARDS, BETA))
    assert (np.delete(found[1] - found[0], worst) < -2).all()
    order = [string for string in np.argsort(found[1] - REF) if string != worst]
    assert order == [string for string in np.argsort(REWARDS) if string != worst]
