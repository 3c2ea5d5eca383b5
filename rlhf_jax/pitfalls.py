"""Twenty mistakes that RLHF code bases make, each as a few wrong lines beside right ones, and the invariant that tells.

    for pitfall in GALLERY:
        print(pitfall, pitfall.invariant(pitfall.wrong), pitfall.invariant(pitfall.right), sep="\\n")

To try your own function, give it the signature of `right` and pass it to `invariant`.
"""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import dpo, dpo_variants, group, kl, masking, policy_gradient, ppo, returns
from rlhf_jax import invariants as on
from rlhf_jax import log_probs as lp
from rlhf_jax import pipeline_invariants as along

_RNG = np.random.default_rng(0)
_EOS = 0
_MASK = np.arange(4) < np.array([[4], [3], [1]])
_TOKENS = np.where(_MASK, _RNG.integers(1, 5, _MASK.shape), _EOS)
_LOGITS = _RNG.normal(size=(3, 4, 5)).astype(np.float32)
_LOG_PROBS = -_RNG.uniform(0.1, 3, _MASK.shape).astype(np.float32)
_REWARDS = np.array([1, 0.5, -1], np.float32)
_CHOSEN, _REJECTED = -_RNG.uniform(20, 60, (2, 6)).astype(np.float32)
_HIDDEN, _EMBEDDING = (_RNG.normal(size=size).astype(np.float32) for size in ((2, 17, 4), (64, 4)))


class Pitfall(NamedTuple):
    """`invariant(implementation)` fails for `wrong` and holds for `right`."""

    number: int
    name: str
    symptom: str
    wrong: Callable
    right: Callable
    invariant: Callable[[Callable], on.Check]
    threads: tuple[str, ...]

    def __str__(self) -> str:
        links = " ".join("https://github.com/{}/issues/{}".format(*thread.split("#")) for thread in self.threads)
        return f"{self.number}. {self.name}: {self.symptom}\n    {links}"


def _encode(text):
    """A tokenizer of three tokens, the longest match first."""
    return [("ab", "a", "b").index(token) for token in re.findall("ab|a|b", text)]


def _kl_of_top_2_samples(log_probs, ref_log_probs):
    kept = log_probs >= jnp.sort(log_probs)[-2]
    sampler = jax.nn.softmax(jnp.where(kept, log_probs, -jnp.inf))
    return jnp.sum(sampler * kl.k1(log_probs, ref_log_probs))


def _dpo_with_a_bfloat16_reference(chosen, rejected, ref_chosen, ref_rejected):
    rounded = (jnp.asarray(ref, jnp.bfloat16).astype(jnp.float32) for ref in (ref_chosen, ref_rejected))
    return dpo.dpo_loss(chosen, rejected, *rounded, beta=0.5)


def _token_log_probs(key, dropout):
    kept = jax.random.bernoulli(key, 1 - dropout, _HIDDEN.shape)
    states = jnp.where(kept, _HIDDEN, 0) / (1 - dropout)
    return lp.log_softmax(jnp.matmul(states, _EMBEDDING.T))


def _mean_of_means(micro_batches):
    return jnp.mean(jnp.stack([masking.masked_mean(*batch) for batch in micro_batches]))


def _sum_over_count(micro_batches):
    total = sum(masking.masked_sum(*batch) for batch in micro_batches)
    return total / sum(mask.sum() for _, mask in micro_batches)


def _grpo_as_published(log_probs, rewards, mask):
    advantages = jnp.broadcast_to(group.standardized_advantages(rewards)[:, None], mask.shape)
    return group.sequence_mean(policy_gradient.reinforce_loss(log_probs, advantages), mask)


def _dr_grpo(log_probs, rewards, mask):
    advantages = jnp.broadcast_to(group.centered_advantages(rewards)[:, None], mask.shape)
    return group.fixed_length_mean(policy_gradient.reinforce_loss(log_probs, advantages), mask, mask.shape[1])


def _entropy_by_hand(logits):
    probs = jax.nn.softmax(logits)
    return -jnp.where(probs > 0, probs * jnp.log(probs), 0).sum(-1)


def _never_holds_logits(token_log_probs):
    tokens = np.zeros(_HIDDEN.shape[:2], np.int32)
    slope = jax.grad(lambda hidden: token_log_probs(hidden, _EMBEDDING, tokens).sum())
    return along.vocabulary_is_never_held(slope, _HIDDEN, vocab_size=len(_EMBEDDING), num_tokens=tokens[:, 1:].size)


GALLERY = (
    Pitfall(
        1,
        "mean for sum of log-probabilities",
        "beta is then per token and not per string; TRL's IPO does so on purpose, DPO's optimum needs the sum",
        jax.vmap(masking.masked_mean),
        jax.vmap(masking.masked_sum),
        lambda string_log_probs: on.is_summed(string_log_probs, _LOG_PROBS, _MASK),
        ("huggingface/trl#1265", "eric-mitchell/direct-preference-optimization#67"),
    ),
    Pitfall(
        2,
        "tokens merge across the border of prompt and completion",
        "the mask made from the prompt's length is off by a token",
        lambda prompt, completion: _encode(prompt + completion),
        lambda prompt, completion: _encode(prompt) + _encode(completion),
        lambda encode_pair: along.prompt_stays_a_prefix(encode_pair, _encode, "a", "a", "b", "ab"),
        ("huggingface/trl#2054", "huggingface/trl#1153"),
    ),
    Pitfall(
        3,
        "padding is EOS, so the mask drops EOS",
        "the model never learns to stop",
        lambda tokens: tokens != _EOS,
        lambda tokens: np.cumsum(tokens == _EOS, axis=1) - (tokens == _EOS) == 0,
        lambda mask_of: along.eos_is_kept(mask_of, _TOKENS, _EOS),
        ("huggingface/trl#1623", "huggingface/trl#3091", "huggingface/trl#6357"),
    ),
    Pitfall(
        4,
        "padding or prompt counted in log-probabilities",
        "the loss changes with the longest row of the batch",
        lambda log_probs, mask: log_probs.sum(1),
        jax.vmap(masking.masked_sum),
        lambda string_log_probs: on.padding_is_ignored(string_log_probs, _LOG_PROBS, _MASK),
        ("OpenRLHF/OpenRLHF#237", "0xallam/Direct-Preference-Optimization#4"),
    ),
    Pitfall(
        5,
        "position ids count the padding on the left",
        "GPT-2 writes and scores something else in a batch than alone",
        lambda tokens, mask: jnp.sin(tokens + 0.5 * jnp.arange(tokens.shape[1])),
        lambda tokens, mask: jnp.sin(tokens + 0.5 * (jnp.cumsum(mask, axis=1) - 1)),
        lambda scores_of: along.padding_side_is_irrelevant(scores_of, _TOKENS, _MASK),
        ("huggingface/trl#469", "huggingface/trl#6800"),
    ),
    Pitfall(
        6,
        "the PPO ratio is not 1 at the first update",
        "the clip acts before anything was learnt; here the sampler reports tempered log-probabilities",
        lambda logits, tokens: lp.categorical_log_probs(logits / 0.7, tokens),
        lp.categorical_log_probs,
        lambda sampler: on.ratio_is_one(lp.categorical_log_probs(_LOGITS, _TOKENS), sampler(_LOGITS, _TOKENS), _MASK),
        ("CarperAI/trlx#107", "huggingface/trl#454"),
    ),
    Pitfall(
        7,
        "negative KL",
        "a penalty that pays; here k1 on samples of the top 2 tokens, which are not the policy's",
        _kl_of_top_2_samples,
        kl.exact_kl,
        lambda divergence: on.kl_is_nonnegative(divergence, lp.log_softmax(_LOGITS[0]), lp.log_softmax(2 * _LOGITS[0])),
        ("huggingface/trl#235", "huggingface/trl#925"),
    ),
    Pitfall(
        8,
        "a KL estimator used as a loss",
        "k1's gradient is 0 on average, so the penalty does nothing; k3's is that of the KL the other way round",
        kl.k1,
        kl.k2,
        lambda estimator: on.kl_loss_descends_the_kl(estimator, _LOGITS[0, 0], _LOGITS[0, 1]),
        ("huggingface/trl#4967", "verl-project/verl#2953"),
    ),
    Pitfall(
        9,
        "the chosen log-probability falls under DPO",
        "the loss improves while chosen and rejected both become unlikely",
        functools.partial(dpo.dpo_loss, beta=0.1),
        functools.partial(dpo_variants.dpop_loss, beta=0.1, penalty_weight=5.0),
        lambda loss: on.falling_chosen_costs(loss, _CHOSEN, _REJECTED),
        ("eric-mitchell/direct-preference-optimization#32", "huggingface/trl#800"),
    ),
    Pitfall(
        10,
        "truncation empties a completion",
        "0/0 turns the whole batch into NaN",
        lambda losses, mask: jnp.where(mask, losses, 0).sum(1) / mask.sum(1),
        jax.vmap(masking.masked_mean),
        lambda mean: on.empty_mask_is_finite(mean, _LOG_PROBS, _MASK),
        ("huggingface/trl#6548", "huggingface/trl#3382"),
    ),
    Pitfall(
        11,
        "the policy differs from the reference at step 0",
        "DPO's first loss is not ln 2; here the reference's numbers were kept in bfloat16",
        _dpo_with_a_bfloat16_reference,
        functools.partial(dpo.dpo_loss, beta=0.5),
        lambda loss: on.ln2_at_the_reference(loss, _CHOSEN, _REJECTED),
        ("NVIDIA/NeMo-Aligner#227", "huggingface/trl#744"),
    ),
    Pitfall(
        12,
        "dropout left on",
        "policy, sampler and reference disagree at random",
        functools.partial(_token_log_probs, dropout=0.1),
        functools.partial(_token_log_probs, dropout=0.0),
        along.randomness_is_off,
        ("huggingface/trl#639", "huggingface/trl#2042"),
    ),
    Pitfall(
        13,
        "memory for the logits",
        "an array of batch x time x vocabulary, often twice, is what runs out of memory",
        lambda hidden, embedding, tokens: lp.token_log_probs(jnp.matmul(hidden, embedding.T), tokens),
        functools.partial(lp.chunked_token_log_probs, chunk_size=2),
        _never_holds_logits,
        ("huggingface/trl#5853", "hiyouga/LLaMA-Factory#10720"),
    ),
    Pitfall(
        14,
        "log-softmax in bfloat16",
        "probabilities that do not sum to 1, ratios that are not 1",
        jax.nn.log_softmax,
        lp.log_softmax,
        lambda log_softmax: along.log_probs_are_normalised(
            log_softmax, jnp.asarray(_LOGITS.reshape(2, 30), jnp.bfloat16)
        ),
        ("huggingface/trl#5853",),
    ),
    Pitfall(
        15,
        "the reward read or written at the wrong token",
        "it lands on padding and is masked away, or is another token's",
        lambda scores, mask: jnp.where(jnp.arange(mask.shape[1]) == mask.sum(1)[:, None], scores[:, None], 0),
        lambda scores, mask: jnp.where(jnp.arange(mask.shape[1]) == mask.sum(1)[:, None] - 1, scores[:, None], 0),
        lambda place: along.reward_lands_on_the_last_token(place, _REWARDS, _MASK),
        ("huggingface/transformers#35352", "huggingface/trl#3750"),
    ),
    Pitfall(
        16,
        "a value head that starts at random",
        "its noise is the first advantages, and on a shared trunk the first gradients",
        lambda hidden: hidden @ np.random.default_rng(1).normal(size=hidden.shape[-1]),
        lambda hidden: hidden @ np.zeros(hidden.shape[-1]),
        lambda values_of: along.first_values_are_zero(values_of(_HIDDEN)),
        ("CarperAI/trlx#203", "huggingface/trl#1783"),
    ),
    Pitfall(
        17,
        "a mean of means under gradient accumulation",
        "tokens of short micro-batches weigh more, and the result depends on the batch size that fits",
        _mean_of_means,
        _sum_over_count,
        lambda accumulate: on.batch_split_is_irrelevant(accumulate, _LOG_PROBS, _MASK),
        ("huggingface/transformers#34191", "pytorch/torchtune#1875"),
    ),
    Pitfall(
        18,
        "length and difficulty bias of group advantages",
        "long wrong answers are cheap, and prompts that all but agree weigh most",
        _grpo_as_published,
        _dr_grpo,
        lambda loss: on.group_weights_are_fair(loss, _LOG_PROBS, _REWARDS, _MASK),
        ("huggingface/trl#3256", "sail-sg/understand-r1-zero#10"),
    ),
    Pitfall(
        19,
        "NaN gradients through a masked softmax or `where`",
        "the value is fine, the gradient of the branch not taken is 0 x inf",
        _entropy_by_hand,
        ppo.entropy,
        lambda entropy: on.gradient_is_finite(entropy, np.where(_LOGITS > 1, -np.inf, _LOGITS)),
        ("jax-ml/jax#17117", "jax-ml/jax#17070"),
    ),
    Pitfall(
        20,
        "truncation taken for termination in GAE",
        "being cut off looks like a reward of 0 for ever after",
        lambda rewards, ended, cut, values: returns.gae(rewards, 1.0 - (ended | cut), values, 0.95),
        lambda rewards, ended, cut, values: returns.gae(rewards, 1.0 - ended, values, 0.95),
        along.truncation_bootstraps,
        ("vwxyzjn/cleanrl#198", "anthonytorlucci/rlevo#170"),
    ),
)
