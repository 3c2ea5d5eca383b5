"""The estimators that RLHF samples, each at everything it could have seen, for `moments` to weigh.

Below, `log_probs` are those of N listed strings or of their L tokens (0 where masked) and `scores` their Jacobian in
the D parameters, ∇ log π. Gradients come from the library's own losses and are signed as those are: an estimate of a
policy gradient is one of −∇ E_π[r].
"""

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from rlhf_jax import dpo, enumerable, group, kl, policy_gradient, population, returns
from rlhf_jax import log_probs as lp
from rlhf_jax._typing import Scalar
from rlhf_jax.masking import masked_sum
from rlhf_jax.moments import Moments, all_groups, moments, sample_gradients


def string_gradients(
    loss: Callable, log_probs: Float[ArrayLike, " N"], scores: Float[ArrayLike, "N D"], *data: Float[ArrayLike, " N"]
) -> Float[Array, "N D"]:
    """∇ loss(log π(y), data(y)) for every string y; the loss is elementwise, such as `reinforce_loss` or `kl.k3`."""
    return jax.vmap(jax.grad(loss))(jnp.asarray(log_probs), *map(jnp.asarray, data))[:, None] * scores


def pair_gradients(
    loss: Callable,
    log_probs: Float[ArrayLike, " N"],
    scores: Float[ArrayLike, "N D"],
    ref_log_probs: Float[ArrayLike, " N"],
    chosen: Int[ArrayLike, " M"],
    rejected: Int[ArrayLike, " M"],
) -> Float[Array, "M D"]:
    """∇ loss of every pair; the loss is one of `dpo` with its coefficients bound."""
    ref_log_probs = jnp.asarray(ref_log_probs)
    of_pair = lambda log_probs, pair: loss(*log_probs[pair], *ref_log_probs[pair])
    return sample_gradients(of_pair, log_probs, scores, jnp.stack([chosen, rejected], axis=1))


def group_gradients(
    log_probs: Float[ArrayLike, "N L"],
    scores: Float[ArrayLike, "N L D"],
    mask: Bool[ArrayLike, "N L"],
    rewards: Float[ArrayLike, " N"],
    members: Int[ArrayLike, "M G"],
    advantages: Callable,
    aggregate: Callable,
) -> Float[Array, "M D"]:
    """The gradient that each group gives, at the policy that drew it (ratio 1).

    Args:
        advantages: rewards [G] -> [G], such as `group.standardized_advantages`.
        aggregate: (losses [G, L], mask [G, L]) -> [], such as `group.sequence_mean`.
    """
    rewards, mask = jnp.asarray(rewards), jnp.asarray(mask)

    def loss(log_probs, drawn):
        weights = jnp.broadcast_to(advantages(rewards[drawn])[:, None], (drawn.size, mask.shape[1]))
        return aggregate(policy_gradient.reinforce_loss(log_probs[drawn], weights), mask[drawn])

    return sample_gradients(loss, log_probs, scores, jnp.asarray(members))


def gae_gradients(
    log_probs: Float[ArrayLike, "N L"],
    scores: Float[ArrayLike, "N L D"],
    mask: Bool[ArrayLike, "N L"],
    rewards: Float[ArrayLike, " N"],
    values: Float[ArrayLike, "N L"],
    lambda_: Scalar,
) -> Float[Array, "N D"]:
    """−Σ_t A_t ∇ log π(y_t|y_{<t}) of every string, A by `returns.gae`: undiscounted, r(y) paid at the last token.

    Unbiased for λ = 1 whatever the critic, and for the exact critic, `prefix_values`, whatever λ.

    Args:
        values: the critic's v before each token; the end of a string is worth 0.
    """
    rewards, values, mask = jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(mask)
    last = mask & ~jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))

    def loss(log_probs, drawn):
        paid = jnp.where(last[drawn], rewards[drawn], 0)
        discounts = jnp.where(last[drawn], 0, jnp.ones_like(paid))
        advantages = returns.gae(paid, discounts, jnp.append(values[drawn], 0), lambda_)
        return masked_sum(policy_gradient.reinforce_loss(log_probs[drawn], advantages), mask[drawn])

    return sample_gradients(loss, log_probs, scores, jnp.arange(len(rewards)))


@jax.jit
def prefix_values(
    probs: Float[ArrayLike, " N"],
    rewards: Float[ArrayLike, " N"],
    tokens: Int[ArrayLike, "N L"],
    mask: Bool[ArrayLike, "N L"],
) -> Float[Array, "N L"]:
    """V(y_{<t}) = E_π[r | the first t tokens]: the exact value before each token, E_π[r] at t = 0, and 0 if masked."""
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    same = jnp.cumprod(tokens[:, None] == tokens, axis=-1, dtype=bool)
    agree = jnp.concatenate([jnp.ones_like(same[..., :1]), same[..., :-1]], axis=-1)
    weights = jnp.where(agree, jnp.asarray(probs)[:, None], 0)
    total = weights.sum(axis=1)
    values = jnp.einsum("nml,m->nl", weights, rewards, precision="highest") / jnp.where(total > 0, total, 1)
    return jnp.where(mask, values, 0)


@jax.jit
def optimal_baseline(
    probs: Float[ArrayLike, " N"], scores: Float[ArrayLike, "N D"], rewards: Float[ArrayLike, " N"]
) -> Float[Array, ""]:
    """b = E[‖∇ log π‖² r] / E[‖∇ log π‖²], the constant baseline of least variance.

    Reference: Greensmith, Bartlett and Baxter (2004), "Variance Reduction Techniques for Gradient Estimates in
    Reinforcement Learning".
    """
    weights = probs * jnp.square(jnp.asarray(scores)).sum(axis=1)
    return jnp.sum(weights * rewards) / weights.sum()


def gaussian_kl_moments(estimator: Callable, shift: Scalar, num_nodes: int = 64) -> Moments:
    """Moments of an estimate of KL(π ‖ π_ref) = µ²/2 for π = N(0, 1) and π_ref = N(µ, 1), by Gauss-Hermite quadrature.

    Reference: Schulman (2020), "Approximating KL Divergence": its table is that of µ = 0.1 and 1.
    """
    nodes, weights = map(jnp.asarray, np.polynomial.hermite_e.hermegauss(num_nodes))
    estimates = estimator(-0.5 * jnp.square(nodes), -0.5 * jnp.square(nodes - shift))
    return moments(weights / weights.sum(), estimates[:, None], jnp.asarray([0.5 * shift**2]))


class Language(NamedTuple):
    """The strings of a small language under a tabular policy."""

    tokens: Int[Array, "N L"]
    mask: Bool[Array, "N L"]
    log_probs: Float[Array, "N L"]
    scores: Float[Array, "N L D"]
    ref_log_probs: Float[Array, " N"]
    rewards: Float[Array, " N"]


def small_language(logits: Float[ArrayLike, "13 3"] | None = None) -> Language:
    """The fifteen strings of at most three tokens of which 0 ends a string, 1 is worth 1 and 2 is worth −½.

    Args:
        logits: of the next token for every prefix, in the order of `enumerable.prefix_rows`; by default cos(2i) for
            the i-th of them. The reference's are 0.
    """
    tokens, mask = enumerable.all_strings(3, 3, eos_id=0)
    rows = enumerable.prefix_rows(tokens, 3)
    logits = jnp.cos(2.0 * jnp.arange(39.0)).reshape(13, 3) if logits is None else jnp.asarray(logits)

    def token_log_probs(logits):
        return jnp.where(mask, lp.categorical_log_probs(logits[rows], tokens), 0)

    ref_log_probs = token_log_probs(jnp.zeros_like(logits)).sum(axis=1)
    rewards = jnp.asarray([0.0, 1.0, -0.5], logits.dtype)[tokens].sum(axis=1)
    scores = jax.jacobian(token_log_probs)(logits).reshape(*tokens.shape, logits.size)
    return Language(tokens, mask, token_log_probs(logits), scores, ref_log_probs, rewards)


class Row(NamedTuple):
    """One estimator in `estimator_table`."""

    name: str
    quantity: str
    """What is estimated: a "gradient" or a "value"."""
    relative_bias: float
    """‖bias‖ / ‖truth‖"""
    relative_std: float
    """sqrt(variance) / ‖truth‖"""
    length: float
    """‖mean‖ / ‖truth‖, which a learning rate can mend."""
    degrees: float
    """The angle between mean and truth, which none can; NaN if the mean is 0."""


def estimator_table() -> list[Row]:
    """Bias and deviation of the library's estimators on `small_language`, in float64: always the same numbers.

    An estimate of −∇ E_π[r] costs four strings, one of KL(π ‖ π_ref) or its gradient one string, one of DPO's
    population gradient one pair, drawn from the reference.
    """
    with jax.enable_x64(True):
        language = small_language()
        groups = all_groups(jnp.exp(language.log_probs.sum(axis=1)), 4)
        measured = jax.device_get(_measure(language, groups))
    rows = []
    for (name, quantity), (found, truth) in measured.items():
        size, length = np.linalg.norm(truth), np.linalg.norm(found.mean)
        cosine = found.mean @ truth / (length * size) if length > 1e-9 * size else np.nan
        degrees = np.degrees(np.arccos(np.minimum(cosine, 1)))
        lengths = np.linalg.norm(found.bias), np.sqrt(found.variance), length
        rows.append(Row(name, quantity, *(float(each / size) for each in lengths), float(degrees)))
    return rows


@jax.jit
def _measure(language, groups):
    tokens, mask, log_probs, scores, ref, rewards = language
    strings, string_scores = log_probs.sum(axis=1), scores.sum(axis=1)
    probs = jnp.exp(strings)
    table = collections.OrderedDict()

    def add(name, probs, estimates, truth, *, quantity="gradient", count=1):
        table[name, quantity] = moments(probs, estimates, truth).averaged(count), truth

    truth = -(probs * rewards) @ string_scores
    for name, baseline in (
        ("REINFORCE", 0.0),
        ("REINFORCE, baseline E[r]", probs @ rewards),
        ("REINFORCE, best baseline", optimal_baseline(probs, string_scores, rewards)),
    ):
        estimates = string_gradients(policy_gradient.reinforce_loss, strings, string_scores, rewards - baseline)
        add(name, probs, estimates, truth, count=4)
    values = prefix_values(probs, rewards, tokens, mask)
    for name, critic, lambda_ in (
        ("REINFORCE, exact V", values, 1.0),
        ("GAE 0.95, exact V", values, 0.95),
        ("GAE 0.95, V = 0", 0 * values, 0.95),
        ("GAE 0.95, V + ½", values + 0.5, 0.95),
    ):
        add(name, probs, gae_gradients(log_probs, scores, mask, rewards, critic, lambda_), truth, count=4)
    summed = functools.partial(group.fixed_length_mean, length=1)
    for name, advantages, aggregate in (
        ("leave-one-out (RLOO)", group.rloo_advantages, summed),
        ("centred (Dr. GRPO)", group.centered_advantages, summed),
        ("centred, 1/length", group.centered_advantages, group.sequence_mean),
        ("standardised", group.standardized_advantages, summed),
        ("standardised, 1/length (GRPO)", group.standardized_advantages, group.sequence_mean),
    ):
        estimates = group_gradients(log_probs, scores, mask, rewards, groups.members, advantages, aggregate)
        add(name, groups.probs, estimates, truth)

    divergence, slope = jax.value_and_grad(kl.exact_kl)(strings, ref)
    for name, estimator in (("k1", kl.k1), ("k2", kl.k2), ("k3", kl.k3)):
        add(name, probs, estimator(strings, ref)[:, None], divergence[None], quantity="value")
        add(name, probs, string_gradients(estimator, strings, string_scores, ref), slope @ string_scores)

    data, flipped = (population.bradley_terry_population(ref, rewards, flip_prob=share) for share in (0.0, 0.1))
    plain = functools.partial(dpo.dpo_loss, beta=0.5)
    robust = functools.partial(dpo.robust_dpo_loss, beta=0.5, label_smoothing=0.1)
    of_pairs = lambda loss: pair_gradients(loss, strings, string_scores, ref, data.chosen, data.rejected)
    for name, pairs, loss in (
        ("DPO", data, plain),
        ("DPO, 10% flipped", flipped, plain),
        ("robust DPO, 10% flipped", flipped, robust),
    ):
        add(name, pairs.weight, of_pairs(loss), data.weight @ of_pairs(plain))
    return table
