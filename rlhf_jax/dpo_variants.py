"""Rarer losses on a chosen and a rejected string, beside those of `dpo`.

The arguments are those of `dpo`: log-probabilities summed over a string's tokens, gradients into all of them. Below,
u⁺ = log π(y⁺|x) − log π_ref(y⁺|x), u⁻ the same of y⁻, and h = u⁺ − u⁻. Under DPO both strings may lose probability
while h grows; CPO, DPOP, APO, NCA and SPPO look at u⁺ by itself too.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from rlhf_jax import kl
from rlhf_jax._typing import Scalar, check_same_shape
from rlhf_jax.dpo import _log_ratios, dpo_loss

LogProbs = Float[ArrayLike, "*s"]
RefLogProbs = Float[ArrayLike, "*s"] | Float[ArrayLike, ""]


@jax.jit
def cpo_loss(
    chosen_log_probs: LogProbs, rejected_log_probs: LogProbs, *, beta: Scalar, nll_weight: Scalar = 1.0
) -> Float[Array, "*s"]:
    """Contrastive preference optimisation: DPO with a uniform reference, plus the chosen string's likelihood.

    −log σ(β [log π(y⁺|x) − log π(y⁻|x)]) − w log π(y⁺|x).

    Args:
        nll_weight: w; the paper's is 1. Here both terms are sums over a string's tokens; TRL's second term is a mean
            over the batch's tokens (times `cpo_alpha`): add that to `dpo_loss` for its numbers.

    Reference: Xu et al. (2024), "Contrastive Preference Optimization".
    """
    return dpo_loss(chosen_log_probs, rejected_log_probs, beta=beta) - nll_weight * chosen_log_probs


@jax.jit
def dpop_loss(
    chosen_log_probs: LogProbs,
    rejected_log_probs: LogProbs,
    ref_chosen_log_probs: RefLogProbs = 0.0,
    ref_rejected_log_probs: RefLogProbs = 0.0,
    *,
    beta: Scalar,
    penalty_weight: Scalar,
) -> Float[Array, "*s"]:
    """DPO-positive: −log σ(β [h − λ max(0, −u⁺)]), a penalty for a chosen string less likely than it was.

    At π = π_ref it is ln 2. The penalty has a kink there, whose gradient is taken as 0: the first step is DPO's.

    Args:
        penalty_weight: λ; 0 is `dpo_loss`.

    Reference: Pal et al. (2024), "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive".
    """
    chosen, rejected = _log_ratios(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    return -jax.nn.log_sigmoid(beta * (chosen - rejected - penalty_weight * jax.nn.relu(-chosen)))


@jax.jit
def apo_zero_loss(
    chosen_log_probs: LogProbs,
    rejected_log_probs: LogProbs,
    ref_chosen_log_probs: RefLogProbs = 0.0,
    ref_rejected_log_probs: RefLogProbs = 0.0,
    *,
    beta: Scalar,
) -> Float[Array, "*s"]:
    """Anchored preference optimisation, "zero": 1 − σ(β u⁺) + σ(β u⁻) raises the chosen and lowers the rejected string.

    It is `kto_loss` of the two strings with baseline 0, added. At π = π_ref it is 1 and the gradients are ∓β/4.

    Reference: D'Oosterlinck et al. (2024), "Anchored Preference Optimization". The 1 is TRL's; rlhf-book leaves it out.
    """
    chosen, rejected = _log_ratios(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)


@jax.jit
def apo_down_loss(
    chosen_log_probs: LogProbs,
    rejected_log_probs: LogProbs,
    ref_chosen_log_probs: RefLogProbs = 0.0,
    ref_rejected_log_probs: RefLogProbs = 0.0,
    *,
    beta: Scalar,
) -> Float[Array, "*s"]:
    """Anchored preference optimisation, "down": σ(β u⁺) + 1 − σ(β h) lowers the chosen string and keeps the gap.

    For a policy that is better than the chosen strings. At π = π_ref it is 1 and the gradients are 0 and β/4.

    Reference: D'Oosterlinck et al. (2024), "Anchored Preference Optimization". The 1 is TRL's; rlhf-book leaves it out.
    """
    chosen, rejected = _log_ratios(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    return jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(-beta * (chosen - rejected))


@jax.jit
def exo_pair_loss(
    chosen_log_probs: LogProbs,
    rejected_log_probs: LogProbs,
    ref_chosen_log_probs: RefLogProbs = 0.0,
    ref_rejected_log_probs: RefLogProbs = 0.0,
    *,
    beta: Scalar,
    label_smoothing: Scalar,
) -> Float[Array, "*s"]:
    """Efficient exact optimisation of a pair: KL(p ‖ q), p = (σ(β h), σ(−β h)), q = (1 − ε, ε).

    `dpo_loss` with the same ε is KL(q ‖ p) plus q's entropy; both are smallest at p = q, β h = ln((1 − ε)/ε). The
    gradient into log π(y⁺|x) is β σ(β h) σ(−β h) (β h − ln((1 − ε)/ε)): unlike DPO's it fades for a pair that is
    ranked wrong by far. At π = π_ref the loss is −ln 2 − ½ ln(ε (1 − ε)), the gradients ∓(β/4) ln((1 − ε)/ε).

    Args:
        label_smoothing: 0 < ε < ½, the share of choices taken to be flipped; 0.001 in the paper. At 0 it is infinite.

    Reference: Ji et al. (2024), "Towards Efficient Exact Optimization of Language Model Alignment", equation 16.
    """
    chosen, rejected = _log_ratios(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    logits = beta * (chosen - rejected)
    log_probs = jax.nn.log_sigmoid(jnp.stack([logits, -logits], -1))
    targets = jnp.stack([jnp.log1p(-label_smoothing), jnp.log(label_smoothing)])
    return kl.exact_kl(log_probs, jnp.broadcast_to(targets.astype(log_probs.dtype), log_probs.shape))


@jax.jit
def nca_pair_loss(
    chosen_log_probs: LogProbs,
    rejected_log_probs: LogProbs,
    ref_chosen_log_probs: RefLogProbs = 0.0,
    ref_rejected_log_probs: RefLogProbs = 0.0,
    *,
    beta: Scalar,
) -> Float[Array, "*s"]:
    """Noise contrastive alignment of a pair: −log σ(β u⁺) − ½ log σ(−β u⁺) − ½ log σ(−β u⁻).

    At π = π_ref it is 2 ln 2 and the gradients are ∓β/4. In u⁺ alone it is smallest at β u⁺ = ln 2.

    Reference: Chen et al. (2024), "Noise Contrastive Alignment of Language Models with Explicit Rewards".
    """
    chosen, rejected = _log_ratios(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    noise = jax.nn.log_sigmoid(-beta * chosen) + jax.nn.log_sigmoid(-beta * rejected)
    return -jax.nn.log_sigmoid(beta * chosen) - 0.5 * noise


@jax.jit
def sppo_loss(
    chosen_log_probs: LogProbs,
    rejected_log_probs: LogProbs,
    ref_chosen_log_probs: RefLogProbs = 0.0,
    ref_rejected_log_probs: RefLogProbs = 0.0,
    *,
    beta: Scalar,
    chosen_win_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 1.0,
    rejected_win_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "*s"]:
    """Self-play preference optimisation: (u⁺ − (P⁺ − ½)/β)² + (u⁻ − (P⁻ − ½)/β)².

    The reference is the policy that the strings were drawn from. With the defaults (TRL's `sppo_hard`) it is
    ½ [`ipo_loss` at β/2] + ½ (u⁺ + u⁻)²; at π = π_ref that is 1/(2β²), the gradients ∓1/β.

    Args:
        beta: 1/η of the paper, 1/nats.
        chosen_win_probs: P⁺, the chosen string's chance to beat a string of the reference.
        rejected_win_probs: P⁻, the rejected string's.

    Reference: Wu et al. (2024), "Self-Play Preference Optimization for Language Model Alignment".
    """
    chosen, rejected = _log_ratios(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    check_same_shape(chosen=chosen, chosen_win_probs=chosen_win_probs, rejected_win_probs=rejected_win_probs)
    chosen_target, rejected_target = (chosen_win_probs - 0.5) / beta, (rejected_win_probs - 0.5) / beta
    return jnp.square(chosen - chosen_target) + jnp.square(rejected - rejected_target)


@jax.jit
def length_normalized_dpo_loss(
    chosen_log_probs: LogProbs,
    rejected_log_probs: LogProbs,
    ref_chosen_log_probs: RefLogProbs,
    ref_rejected_log_probs: RefLogProbs,
    chosen_lengths: Real[ArrayLike, "*s"],
    rejected_lengths: Real[ArrayLike, "*s"],
    *,
    beta: Scalar,
) -> Float[Array, "*s"]:
    """−log σ(β (u⁺/|y⁺| − u⁻/|y⁻|)): `dpo_loss` of log-ratios averaged over tokens, TRL's `sigmoid_norm`.

    At π = π_ref it is ln 2 and the gradients are ∓β/(2 |y|), each with its own string's length.

    Args:
        chosen_lengths: |y⁺|, the tokens that the sums are over; 0 counts as 1.
        rejected_lengths: |y⁻|.
        beta: per token, so larger than for `dpo_loss`; 5 in the paper.

    Reference: Lambert et al. (2024), "Tülu 3".
    """
    chosen, rejected = _log_ratios(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    check_same_shape(chosen=chosen, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    return dpo_loss(chosen / jnp.maximum(chosen_lengths, 1), rejected / jnp.maximum(rejected_lengths, 1), beta=beta)
