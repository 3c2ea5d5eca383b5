"""Policy gradients relative to a group: G completions a prompt are each other's baseline, and there is no value head.

A method is a choice of two functions: the advantages of a group (`rlhf_jax.group`) and the objective of a batch,

    REINFORCE  rewards less a baseline    `reinforce`        RLOO       `group.rloo_advantages`          `reinforce`
    GRPO       standardized_advantages    `grpo`             Dr. GRPO   `group.centered_advantages`      `dr_grpo`
    DAPO       standardized_advantages    `dapo`             GSPO       `group.standardized_advantages`  `gspo`
    CISPO      standardized_advantages    `cispo`

The KL penalty stands in the reward, R = r(x, y) − β Σ_t k1, as in RLOO's and PPO's papers, because then the known
optimum π* is a fixed point without noise: there r − β log(π*/π_ref) = β log Z(x) for every string, so all members of
a group have one reward and advantage 0. GRPO's paper has β k3 in the loss instead, whose fixed point is not π* (see
`grpo`); and standardised advantages do not vanish as the policy approaches π*, so they need a decaying learning rate.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from rlhf_jax import group, kl, masking, ppo
from rlhf_jax import log_probs as lp
from rlhf_jax._typing import Scalar
from rlhf_jax.lm import gpt2
from rlhf_jax.lm.architecture import Config
from rlhf_jax.lm.generate import generate
from rlhf_jax.lm.sequences import Sequences, completion_log_probs, completion_states
from rlhf_jax.policy_gradient import reinforce_loss
from rlhf_jax.training import state
from rlhf_jax.training.ppo import make_minibatch_step


class GroupRollout(NamedTuple):
    """Completions of the current policy, the G of one prompt in consecutive rows."""

    sequences: Sequences
    log_probs: Float[Array, "B C"]
    ref_log_probs: Float[Array, "B C"]


class GroupBatch(NamedTuple):
    """What an objective reads; everything in it is a constant for it."""

    sequences: Sequences
    old_log_probs: Float[ArrayLike, "B C"]
    ref_log_probs: Float[ArrayLike, "B C"]
    advantages: Float[ArrayLike, " B"]


Advantages = Callable[[Float[Array, " G"]], Float[Array, " G"]]
Objective = Callable[[Float[Array, "B C"], GroupBatch], Float[Array, ""]]


@functools.partial(jax.jit, static_argnums=0, static_argnames=("group_size", "max_new_tokens", "eos_id"))
def rollout(
    config: Config,
    params: gpt2.Params,
    ref_params: gpt2.Params,
    prompts: Int[ArrayLike, "P T"],
    prompt_mask: Bool[ArrayLike, "P T"],
    key: Key[Array, ""],
    *,
    group_size: int,
    max_new_tokens: int,
    eos_id: int | None,
) -> GroupRollout:
    """Sample `group_size` completions a prompt at temperature 1, B = P · G rows."""
    prompts, prompt_mask = (jnp.repeat(array, group_size, axis=0) for array in (prompts, prompt_mask))
    new = generate(config, params, prompts, prompt_mask, key, max_new_tokens=max_new_tokens, eos_id=eos_id)
    sequences = Sequences(prompts, prompt_mask, new.tokens, new.mask)
    return GroupRollout(sequences, new.log_probs, completion_log_probs(config, ref_params, sequences))


@functools.partial(jax.jit, static_argnames=("group_size", "advantages"))
def experience(
    rolled: GroupRollout,
    scores: Float[ArrayLike, " B"],
    *,
    group_size: int,
    advantages: Advantages,
    kl_coef: Scalar,
) -> tuple[GroupBatch, state.Metrics]:
    """R = score − β Σ_t k1(y_t), and the advantages of each group of R."""
    mask = rolled.sequences.completion_mask
    string_kl = jnp.where(mask, kl.k1(rolled.log_probs, rolled.ref_log_probs), 0).sum(1)
    rewards = (scores - kl_coef * string_kl).reshape(-1, group_size)
    batch = GroupBatch(
        rolled.sequences, rolled.log_probs, rolled.ref_log_probs, jax.vmap(advantages)(rewards).reshape(-1)
    )
    return batch, {
        "score": jnp.mean(scores),
        "kl": string_kl.mean(),
        "length": mask.sum(1).mean(dtype=jnp.float32),
        "reward_std": rewards.std(1).mean(),
    }


def _by_token(batch: GroupBatch):
    """Mask, and each string's advantage at all of its tokens."""
    mask = batch.sequences.completion_mask
    return mask, jnp.broadcast_to(jnp.asarray(batch.advantages)[:, None], mask.shape)


def reinforce(log_probs: Float[Array, "B C"], batch: GroupBatch) -> Float[Array, ""]:
    """−(1/B) Σ_i A_i log π(y_i|x): one update a batch, as it knows no ratio."""
    strings = jnp.where(batch.sequences.completion_mask, log_probs, 0).sum(1)
    return reinforce_loss(strings, batch.advantages).mean()


def grpo(log_probs: Float[Array, "B C"], batch: GroupBatch, *, clip_eps: Scalar, beta: Scalar) -> Float[Array, ""]:
    """Mean over strings of the mean over tokens of `group.grpo_loss`.

    Args:
        beta: weight of k3 in the loss; 0 where the KL stands in the reward. With k3 and centred advantages one-token
            strings end at π_ref β / (c − r), c such that it sums to 1, not at π_ref exp(r/β) / Z.
    """
    mask, advantages = _by_token(batch)
    references = batch.old_log_probs, batch.ref_log_probs
    losses = group.grpo_loss(log_probs, *references, advantages, clip_eps=clip_eps, beta=beta)
    return group.sequence_mean(losses, mask)


def dr_grpo(log_probs: Float[Array, "B C"], batch: GroupBatch, *, clip_eps: Scalar) -> Float[Array, ""]:
    """Mean over strings of PPO's clipped loss summed over tokens and divided by the greatest length."""
    mask, advantages = _by_token(batch)
    losses = ppo.clipped_surrogate_loss(log_probs, batch.old_log_probs, advantages, clip_eps=clip_eps)
    return group.fixed_length_mean(losses, mask, mask.shape[1])


def _token_mean(loss, log_probs, batch, **bounds):
    mask, advantages = _by_token(batch)
    return group.token_mean(loss(log_probs, batch.old_log_probs, advantages, **bounds), mask)


def dapo(
    log_probs: Float[Array, "B C"], batch: GroupBatch, *, clip_eps_low: Scalar, clip_eps_high: Scalar
) -> Float[Array, ""]:
    """Mean over all tokens of `group.dapo_loss`."""
    return _token_mean(group.dapo_loss, log_probs, batch, clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high)


def cispo(
    log_probs: Float[Array, "B C"], batch: GroupBatch, *, clip_eps_low: Scalar, clip_eps_high: Scalar
) -> Float[Array, ""]:
    """Mean over all tokens of `group.cispo_loss`."""
    return _token_mean(group.cispo_loss, log_probs, batch, clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high)


def gspo(
    log_probs: Float[Array, "B C"], batch: GroupBatch, *, clip_eps_low: Scalar, clip_eps_high: Scalar
) -> Float[Array, ""]:
    """Mean over strings of `group.gspo_loss`."""
    loss = functools.partial(group.gspo_loss, clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high)
    rows = log_probs, batch.old_log_probs, batch.advantages, batch.sequences.completion_mask
    return jax.vmap(loss)(*map(jnp.asarray, rows)).mean()


def group_loss(
    params: gpt2.Params, batch: GroupBatch, *, config: Config, objective: Objective
) -> tuple[Float[Array, ""], state.Metrics]:
    """The objective at the policy's own log-probabilities; entropy and ratios are logged."""
    mask = batch.sequences.completion_mask
    logits = gpt2.unembed(params, completion_states(config, params, batch.sequences)[:, :-1])
    new_log_probs = lp.categorical_log_probs(logits, batch.sequences.completions)
    return objective(new_log_probs, batch), {
        "entropy": masking.masked_mean(ppo.entropy(jax.lax.stop_gradient(logits)), mask),
        "approximate_kl": ppo.approximate_kl(new_log_probs, batch.old_log_probs, mask),
        "max_ratio_deviation": ppo.max_ratio_deviation(new_log_probs, batch.old_log_probs, mask),
    }


def make_grpo_step(
    config: Config,
    optimizer: optax.GradientTransformation,
    *,
    objective: Objective,
    num_epochs: int = 1,
    num_minibatches: int = 1,
) -> state.Step:
    """`ppo.make_minibatch_step` of `group_loss`, on `(GroupBatch, key)`; a minibatch may cut groups apart."""
    loss = functools.partial(group_loss, config=config, objective=objective)
    return make_minibatch_step(loss, optimizer, num_epochs=num_epochs, num_minibatches=num_minibatches)


def make_grpo_iteration(
    *,
    config: Config,
    grpo_step: state.Step,
    ref_params: gpt2.Params,
    score: Callable[[Sequences], Float[ArrayLike, " B"]],
    advantages: Advantages,
    group_size: int,
    kl_coef: float,
    max_new_tokens: int,
    eos_id: int | None,
) -> state.Step:
    """`(state, (prompts, prompt_mask, key)) -> (state, metrics)`: rollout, `score`, experience, then `grpo_step`.

    `score` may be any function of the sequences, on the device (a reward model) or on the host (text).
    """
    sampling = {"group_size": group_size, "max_new_tokens": max_new_tokens, "eos_id": eos_id}
    judging = {"group_size": group_size, "advantages": advantages, "kl_coef": kl_coef}

    def iteration(current: state.TrainState, batch):
        prompts, prompt_mask, key = batch
        sample_key, shuffle_key = jax.random.split(key)
        rolled = rollout(config, current.params, ref_params, prompts, prompt_mask, sample_key, **sampling)
        ready, measured = experience(rolled, score(rolled.sequences), **judging)
        current, metrics = grpo_step(current, (ready, shuffle_key))
        return current, measured | metrics

    return iteration
