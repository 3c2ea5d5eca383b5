"""PPO on GPT-2 as practised: sample, score, penalise the KL, estimate advantages, then a few clipped epochs.

One iteration is three pure functions: `rollout` (the policy writes), `experience` (rewards, advantages and
returns, once a score is known) and the train step of `make_ppo_step`.

Reference: Ziegler et al. (2019); Stiennon et al. (2020), section 3.4; Huang et al. (2024), "The N+ Implementation
Details of RLHF with PPO".
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from rlhf_jax import kl, log_probs, masking, ppo, returns
from rlhf_jax._typing import Scalar
from rlhf_jax.lm import gpt2
from rlhf_jax.lm.architecture import Config
from rlhf_jax.lm.generate import generate
from rlhf_jax.lm.sequences import Sequences, completion_log_probs, completion_states, take
from rlhf_jax.training import state


class Rollout(NamedTuple):
    """Completions of the current policy: what it, its value head and the reference said of each token."""

    sequences: Sequences
    log_probs: Float[Array, "B C"]
    ref_log_probs: Float[Array, "B C"]
    values: Float[Array, "B C+1"]


class PPOBatch(NamedTuple):
    """What the clipped losses read; everything in it is a constant for them."""

    sequences: Sequences
    old_log_probs: Float[ArrayLike, "B C"]
    old_values: Float[ArrayLike, "B C"]
    advantages: Float[ArrayLike, "B C"]
    returns: Float[ArrayLike, "B C"]


def init(params: gpt2.Params) -> gpt2.Params:
    """A copy of GPT-2's parameters with a value head `v_head` on the shared trunk; it says 0 at first."""
    weight = jnp.zeros_like(params["wte"]["weight"][0])
    return jax.tree.map(jnp.array, params) | {"v_head": {"weight": weight, "bias": jnp.zeros((), weight.dtype)}}


def state_values(params: gpt2.Params, states: Float[ArrayLike, "*B D"]) -> Float[Array, "*B"]:
    """V(s) = w · h(s) + b, in reward units."""
    return states @ params["v_head"]["weight"] + params["v_head"]["bias"]


@functools.partial(jax.jit, static_argnums=0, static_argnames=("max_new_tokens", "eos_id"))
def rollout(
    config: Config,
    params: gpt2.Params,
    ref_params: gpt2.Params,
    prompts: Int[ArrayLike, "B P"],
    prompt_mask: Bool[ArrayLike, "B P"],
    key: Key[Array, ""],
    *,
    max_new_tokens: int,
    eos_id: int | None,
) -> Rollout:
    """Sample one completion a prompt at temperature 1; the log-probabilities are those of the sampling itself."""
    new = generate(config, params, prompts, prompt_mask, key, max_new_tokens=max_new_tokens, eos_id=eos_id)
    sequences = Sequences(prompts, prompt_mask, new.tokens, new.mask)
    values = state_values(params, completion_states(config, params, sequences))
    return Rollout(sequences, new.log_probs, completion_log_probs(config, ref_params, sequences), values)


@jax.jit
def token_rewards(
    log_probs: Float[ArrayLike, "B C"],
    ref_log_probs: Float[ArrayLike, "B C"],
    scores: Float[ArrayLike, " B"],
    mask: Bool[ArrayLike, "B C"],
    kl_coef: Scalar,
) -> Float[Array, "B C"]:
    """r_t = −β (log π(y_t) − log π_ref(y_t)), plus the score at the last real token; 0 at padding.

    Reference: Ziegler et al. (2019), equation 2, spread over the tokens.
    """
    last = mask & ~jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    penalty = jnp.where(mask, -kl_coef * kl.k1(log_probs, ref_log_probs), 0)
    return penalty + jnp.where(last, scores[:, None], 0)


@jax.jit
def experience(
    rolled: Rollout, scores: Float[ArrayLike, " B"], *, kl_coef: Scalar, gamma: Scalar, lambda_: Scalar
) -> tuple[PPOBatch, state.Metrics]:
    """Token rewards, GAE and value targets of a rollout; advantages are whitened over the batch's real tokens.

    An episode terminates at its last real token, be that the end of the text or the length limit: the score is of
    what was written, and every later state is worth 0 and gives no reward.
    """
    mask = rolled.sequences.completion_mask
    rewards = token_rewards(rolled.log_probs, rolled.ref_log_probs, scores, mask, kl_coef)
    all_values = jnp.where(jnp.pad(mask, ((0, 0), (0, 1))), rolled.values, 0)
    raw = jax.vmap(returns.gae, (0, None, 0, None))(rewards, gamma, all_values, lambda_)
    values = all_values[:, :-1]
    batch = PPOBatch(rolled.sequences, rolled.log_probs, values, masking.masked_whiten(raw, mask), raw + values)
    lengths = mask.sum(1)
    return batch, {
        "score": scores.mean(),
        "kl": jnp.where(mask, kl.k1(rolled.log_probs, rolled.ref_log_probs), 0).sum(1).mean(),
        "length": lengths.mean(dtype=jnp.float32),
        "explained_variance": _explained_variance(values, raw + values, mask),
    }


def _explained_variance(values, targets, mask):
    """1 − Var[R − V] / Var[R] over the real tokens."""
    variance = lambda x: masking.masked_mean(jnp.square(x - masking.masked_mean(x, mask)), mask)
    return 1 - variance(targets - values) / jnp.maximum(variance(targets), 1e-8)


def ppo_loss(
    params: gpt2.Params,
    batch: PPOBatch,
    *,
    config: Config,
    clip_eps: Scalar,
    value_clip_eps: Scalar,
    value_weight: Scalar,
) -> tuple[Float[Array, ""], state.Metrics]:
    """L = mean_t [−L^PPO + c_v L^V] over the minibatch's real tokens.

    Reference: Schulman et al. (2017), equation 9. Differs: the entropy is logged, not rewarded, as RLHF codes do;
    the KL penalty in the rewards keeps the policy broad.
    """
    mask = batch.sequences.completion_mask
    states = completion_states(config, params, batch.sequences)[:, :-1]
    logits = gpt2.unembed(params, states)
    new_log_probs = log_probs.categorical_log_probs(logits, batch.sequences.completions)
    surrogate = ppo.clipped_surrogate_loss(new_log_probs, batch.old_log_probs, batch.advantages, clip_eps=clip_eps)
    value_loss = ppo.clipped_value_loss(
        state_values(params, states), batch.old_values, batch.returns, clip_eps=value_clip_eps
    )
    metrics = {
        "policy_loss": masking.masked_mean(surrogate, mask),
        "value_loss": masking.masked_mean(value_loss, mask),
        "entropy": masking.masked_mean(ppo.entropy(jax.lax.stop_gradient(logits)), mask),
        "clip_fraction": ppo.clip_fraction(new_log_probs, batch.old_log_probs, mask, clip_eps=clip_eps),
        "approximate_kl": ppo.approximate_kl(new_log_probs, batch.old_log_probs, mask),
        "max_ratio_deviation": ppo.max_ratio_deviation(new_log_probs, batch.old_log_probs, mask),
    }
    return metrics["policy_loss"] + value_weight * metrics["value_loss"], metrics


def minibatch_rows(key: Key[Array, ""], num_rows: int, num_epochs: int, num_minibatches: int) -> Int[Array, "M N"]:
    """Row numbers of every minibatch: each epoch is a new permutation, cut into `num_minibatches` equal parts.

    Raises:
        ValueError: if the rows cannot be cut into that many equal parts.
    """
    if num_rows % num_minibatches:
        raise ValueError(f"{num_rows} rows cannot be cut into {num_minibatches} equal minibatches")
    orders = jax.vmap(lambda key: jax.random.permutation(key, num_rows))(jax.random.split(key, num_epochs))
    return orders.reshape(num_epochs * num_minibatches, num_rows // num_minibatches)


def make_minibatch_step(
    loss: state.Loss, optimizer: optax.GradientTransformation, *, num_epochs: int, num_minibatches: int
) -> state.Step:
    """A jitted `(state, (batch, key)) -> (state, metrics)`: all epochs of shuffled minibatches, state donated.

    Metrics are means over the minibatches, but `first_ratio_deviation`: max |π/π_old − 1| before the first update,
    from the loss's metric `max_ratio_deviation`.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(current: state.TrainState, batch_and_key: tuple[Any, Key[Array, ""]]):
        batch, key = batch_and_key
        minibatches = minibatch_rows(key, len(batch.advantages), num_epochs, num_minibatches)
        minibatch_step = lambda carry, rows: state.update(carry, take(batch, rows), loss, optimizer)
        current, metrics = jax.lax.scan(minibatch_step, current, minibatches)
        first = metrics.pop("max_ratio_deviation")[0]
        return current, jax.tree.map(jnp.mean, metrics) | {"first_ratio_deviation": first}

    return step


def make_ppo_step(
    config: Config,
    optimizer: optax.GradientTransformation,
    *,
    num_epochs: int,
    num_minibatches: int,
    clip_eps: float = 0.2,
    value_clip_eps: float = 0.2,
    value_weight: float = 0.1,
) -> state.Step:
    """`make_minibatch_step` of `ppo_loss`, on `(PPOBatch, key)`."""
    coefficients = {"clip_eps": clip_eps, "value_clip_eps": value_clip_eps, "value_weight": value_weight}
    loss = functools.partial(ppo_loss, config=config, **coefficients)
    return make_minibatch_step(loss, optimizer, num_epochs=num_epochs, num_minibatches=num_minibatches)


def iterate(
    current: state.TrainState,
    batch: tuple[Int[ArrayLike, "B P"], Bool[ArrayLike, "B P"], Key[Array, ""]],
    kl_coef: Scalar,
    *,
    config: Config,
    ppo_step: state.Step,
    ref_params: gpt2.Params,
    score: Callable[[Sequences], Float[ArrayLike, " B"]],
    max_new_tokens: int,
    eos_id: int | None,
    gamma: float = 1.0,
    lambda_: float = 1.0,
) -> tuple[state.TrainState, state.Metrics]:
    """One iteration on the batch (prompts, prompt_mask, key): rollout, `score`, experience, then `ppo_step`.

    `score` may be any function of the sequences, on the device (a reward model) or on the host (text).
    """
    prompts, prompt_mask, key = batch
    sample_key, shuffle_key = jax.random.split(key)
    lengths = {"max_new_tokens": max_new_tokens, "eos_id": eos_id}
    rolled = rollout(config, current.params, ref_params, prompts, prompt_mask, sample_key, **lengths)
    ready, measured = experience(rolled, score(rolled.sequences), kl_coef=kl_coef, gamma=gamma, lambda_=lambda_)
    current, metrics = ppo_step(current, (ready, shuffle_key))
    return current, measured | metrics


def make_ppo_iteration(*, kl_coef: float, **settings) -> state.Step:
    """`(state, (prompts, prompt_mask, key)) -> (state, metrics)`: `iterate` with its settings and a fixed β."""
    return lambda current, batch: iterate(current, batch, kl_coef, **settings)


class AdaptiveState(NamedTuple):
    """A `TrainState` with the KL coefficient β of its next iteration, in rewards a nat."""

    params: gpt2.Params
    opt_state: optax.OptState
    step: Int[Array, ""]
    kl_coef: Float[Array, ""]


def make_adaptive_ppo_iteration(*, kl_target: float, kl_gain: float, **settings) -> state.Step:
    """`(AdaptiveState, (prompts, prompt_mask, key)) -> (AdaptiveState, metrics)`: β follows the KL it allowed.

    β ← β (1 + gain · clip(KL / target − 1, −0.2, 0.2)) after each iteration, KL in nats a completion, so that runs
    with weak and with strong reward models end at about the same distance from the reference.

    Reference: Ziegler et al. (2019), section 2.2.
    """

    def iteration(current: AdaptiveState, batch):
        *train_state, kl_coef = current
        updated, metrics = iterate(state.TrainState(*train_state), batch, kl_coef, **settings)
        following = kl.adaptive_kl_coefficient(kl_coef, metrics["kl"], target=kl_target, gain=kl_gain)
        return AdaptiveState(*updated, following), metrics | {"kl_coef": kl_coef}

    return iteration


def check_first_ratio(deviation: float, *, tolerance: float = 1e-3) -> None:
    """At the first minibatch the policy is the one that sampled, so every ratio is 1 up to rounding.

    Raises:
        RuntimeError: if not: sampling and training disagree (temperature, dropout, padding, positions, dtype).
    """
    if not deviation <= tolerance:
        raise RuntimeError(f"PPO's first ratios deviate from 1 by {deviation:.2e}: sampling and training disagree")
