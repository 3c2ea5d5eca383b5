"""A language of 40 strings a prompt as a problem for the trainers: what they sample, score, and should end at."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlhf_jax import enumerable, kl, population
from rlhf_jax.lm import gpt2, table
from rlhf_jax.lm.architecture import Config
from rlhf_jax.lm.sequences import Sequences, sequence_log_probs, take
from rlhf_jax.preferences.pairs import Pairs
from rlhf_jax.training import dpo, state

VOCAB, LENGTH, EOS, PROMPTS = 4, 3, 0, (1, 2)
TABLE_CONFIG = table.TableConfig(VOCAB, 1 + LENGTH)
GPT2_CONFIG = gpt2.GPT2Config(
    vocab_size=VOCAB,
    n_positions=1 + LENGTH,
    n_embd=16,
    n_layer=2,
    n_head=2,
    initializer_range=0.2,
    bos_token_id=EOS,
    eos_token_id=EOS,
)


class Policy(NamedTuple):
    """A model and its parameters: the reference, and where training begins."""

    config: Config
    params: gpt2.Params


class Problem(NamedTuple):
    """Every string after every prompt, what the reference says of it and what it is worth."""

    strings: Sequences
    ref_log_probs: Float[Array, "P N"]
    rewards: Float[Array, "P N"]
    beta: float


class Point(NamedTuple):
    """Where a policy stands, exactly: KL(π ‖ π_ref), E_π[r] and KL(π ‖ π*), means over the prompts, nats a string."""

    kl: Float[Array, "*s"]
    reward: Float[Array, "*s"]
    distance: Float[Array, "*s"]


def policies(seed: int = 0) -> dict[str, Policy]:
    """A GPT-2 of 6,720 random parameters, and a table of the same logits: one reference, two parametrisations."""
    params = gpt2.init(jax.random.key(seed), GPT2_CONFIG)
    tokens, _ = enumerable.all_strings(VOCAB, 1 + LENGTH)
    rows = enumerable.prefix_rows(tokens, VOCAB)[:, 1:]
    logits = jnp.zeros((TABLE_CONFIG.num_rows, VOCAB))
    logits = logits.at[rows].set(gpt2.apply(GPT2_CONFIG, params, tokens)[:, :-1])
    return {"table": Policy(TABLE_CONFIG, table.from_logits(logits)), "GPT-2": Policy(GPT2_CONFIG, params)}


def make_problem(reference: Policy, *, beta: float = 0.5, seed: int = 0) -> Problem:
    """Standard normal rewards, one a string."""
    tokens, mask = enumerable.all_strings(VOCAB, LENGTH, EOS)
    prompts = jnp.repeat(jnp.array(PROMPTS)[:, None], len(tokens), axis=0)
    repeat = lambda array: jnp.tile(array, (len(PROMPTS), 1))
    strings = Sequences(prompts, jnp.ones_like(prompts, bool), repeat(tokens), repeat(mask))
    rewards = np.random.default_rng(seed).normal(size=(len(PROMPTS), len(tokens)))
    log_probs = sequence_log_probs(*reference, strings).reshape(rewards.shape)
    return Problem(strings, log_probs, jnp.asarray(rewards, log_probs.dtype), beta)


def optimum(problem: Problem) -> Float[Array, "P N"]:
    """log π* of every string."""
    return jax.vmap(enumerable.optimal_log_probs, (0, 0, None))(problem.ref_log_probs, problem.rewards, problem.beta)


def string_log_probs(problem: Problem, config: Config, params: gpt2.Params) -> Float[Array, "P N"]:
    """log π of every string."""
    return sequence_log_probs(config, params, problem.strings).reshape(problem.rewards.shape)


def measure(problem: Problem, config: Config, params: gpt2.Params) -> Point:
    """Where the policy stands, by the sums over all strings.

    A divergence is Σ_y π(y) k3(y): its terms are not negative, so that 1e-9 nats are still seen in float32.
    """
    log_probs = string_log_probs(problem, config, params)
    divergence = lambda others: (jnp.exp(log_probs) * kl.k3(log_probs, others)).sum(1).mean()
    reward = jax.vmap(enumerable.expected_reward)(log_probs, problem.rewards).mean()
    return Point(divergence(problem.ref_log_probs), reward, divergence(optimum(problem)))


def score(problem: Problem, sequences: Sequences) -> Float[Array, " B"]:
    """r(x, y) of sampled strings, looked up by their tokens."""
    places = VOCAB ** jnp.arange(1 + LENGTH)
    number = lambda rows: jnp.concatenate([rows.prompts, rows.completions], axis=1) @ places
    values = jnp.zeros(VOCAB ** (1 + LENGTH)).at[number(problem.strings)].set(problem.rewards.reshape(-1))
    return values[number(sequences)]


def exact_loss(params: gpt2.Params, problem: Problem, *, config: Config) -> tuple[Float[Array, ""], state.Metrics]:
    """−J(π), the regularised objective itself: its gradient is the policy gradient without sampling."""
    objective = jax.vmap(enumerable.regularized_objective, (0, 0, 0, None))
    rows = string_log_probs(problem, config, params), problem.ref_log_probs, problem.rewards
    return -objective(*rows, problem.beta).mean(), {}


def choices(problem: Problem) -> list[population.PairWeights]:
    """For each prompt every ordered pair of strings drawn from the reference, and the probability of that choice."""
    rows = zip(problem.ref_log_probs, problem.rewards, strict=True)
    return [population.bradley_terry_population(*row) for row in rows]


def count_choices(problem: Problem, seed: int, num_choices: int) -> list[population.PairWeights]:
    """The same pairs, weighted by how often each was drawn in `num_choices`, shared equally by the prompts."""
    rng, share = np.random.default_rng(seed), num_choices // len(PROMPTS)
    draw = lambda weight: rng.multinomial(share, weight / weight.sum()) / share
    count = lambda pairs: pairs._replace(weight=jnp.asarray(draw(np.asarray(pairs.weight, np.float64)), jnp.float32))
    return [count(pairs) for pairs in choices(problem)]


def dpo_batch(problem: Problem, pairs: list[population.PairWeights]) -> dpo.DPOBatch:
    """Weighted pairs as the batch of DPO's train step: its loss is the mean over all choices."""
    first = np.arange(len(PROMPTS))[:, None] * problem.rewards.shape[1]
    chosen, rejected = ((first + np.stack([each[field] for each in pairs])).reshape(-1) for field in (0, 1))
    weights, refs = jnp.concatenate([each.weight for each in pairs]), problem.ref_log_probs.reshape(-1)
    texts = Pairs(take(problem.strings, chosen), take(problem.strings, rejected))
    return dpo.DPOBatch(texts, refs[chosen], refs[rejected], weights / weights.mean())


def expected_dpo_distance(problem: Problem, num_choices: int) -> float:
    """E[KL(π̂ ‖ π*)] of DPO's minimum on m choices to first order in 1/m: Σ_x tr(C_x L_x⁺) / (2 β² m).

    L_x = Σ_{i<j} w_ij σ(d) σ(−d) (e_i − e_j)(e_i − e_j)^T with d = r_i − r_j is the Fisher information of one choice
    about the rewards, and C_x = diag(π*) − π* π*^T: an error δ of the rewards costs δ^T C_x δ / (2 β²) nats. For any
    policy that can represent every distribution near π*.
    """
    total = 0.0
    for pairs, rewards, best in zip(choices(problem), problem.rewards, optimum(problem), strict=True):
        chosen, rejected, weight, probs = np.asarray(pairs[0]), np.asarray(pairs[1]), pairs.weight, np.exp(best)
        information = np.zeros((len(probs),) * 2)
        np.add.at(information, (chosen, rejected), -weight * jax.nn.sigmoid(rewards[rejected] - rewards[chosen]))
        information -= np.diag(information.sum(1))
        total += np.trace((np.diag(probs) - np.outer(probs, probs)) @ np.linalg.pinv(information))
    return total / (2 * problem.beta**2 * num_choices)


def expected_reinforce_distance(problem: Problem, learning_rate: float, batch_size: int) -> float:
    """E[KL(π ‖ π*)] at which REINFORCE without a baseline stays on a table, to first order in the learning rate η.

    η / (4 β B) mean_x [b_x² tr F_x], with b_x = β log Z(x), the reward less the KL penalty of every string at π*, and
    tr F_x = E_π*[Σ_t (1 − π*(y_t|x, y_<t))] of the Fisher information: the gradient's noise has covariance b² F / B,
    the objective curvature β F. A baseline of b_x leaves no noise.
    """
    best = optimum(problem)
    tokens, mask = (array[: best.shape[1]] for array in problem.strings[2:])
    shared = jnp.cumprod(tokens[:, None] == tokens, axis=-1)

    def noise(log_probs, ref_log_probs, rewards):
        probs = jnp.exp(log_probs)
        reached = jnp.einsum("nml,m->nl", shared, probs)
        conditional = reached / jnp.concatenate([jnp.ones_like(probs)[:, None], reached[:, :-1]], axis=1)
        trace = probs @ jnp.where(mask, 1 - conditional, 0).sum(1)
        return enumerable.optimal_value(ref_log_probs, rewards, problem.beta) ** 2 * trace

    noises = jax.vmap(noise)(best, problem.ref_log_probs, problem.rewards)
    return float(learning_rate * noises.mean() / (4 * problem.beta * batch_size))
