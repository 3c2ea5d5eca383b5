"""Direct preference optimisation: losses on the log-probabilities of a chosen and a rejected string.

Most take the same four arguments: log π(y⁺|x), log π(y⁻|x), log π_ref(y⁺|x) and log π_ref(y⁻|x), each summed over
the string's tokens. Gradients flow into all four; reference numbers are data, computed once. Below,

    h = [log π(y⁺|x) − log π_ref(y⁺|x)] − [log π(y⁻|x) − log π_ref(y⁻|x)].

SimPO and ORPO have no reference and take means over tokens; KTO takes single strings. Rarer losses: `dpo_variants`.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from rlhf_jax import log_probs as lp
from rlhf_jax._typing import Scalar, check_same_shape


def _log_ratios(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs):
    check_same_shape(
        chosen_log_probs=chosen_log_probs,
        rejected_log_probs=rejected_log_probs,
        ref_chosen_log_probs=ref_chosen_log_probs,
        ref_rejected_log_probs=ref_rejected_log_probs,
    )
    return chosen_log_probs - ref_chosen_log_probs, rejected_log_probs - ref_rejected_log_probs


def _log_ratio_gap(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs):
    chosen, rejected = _log_ratios(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    return chosen - rejected


@jax.jit
def dpo_loss(
    chosen_log_probs: Float[ArrayLike, "*s"],
    rejected_log_probs: Float[ArrayLike, "*s"],
    ref_chosen_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
    ref_rejected_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
    *,
    beta: Scalar = 1.0,
    label_smoothing: Scalar = 0.0,
) -> Float[Array, "*s"]:
    """The sigmoid loss of direct preference optimisation, −L^DPO.

    With the defaults, L^DPO = log σ(f(y⁺|x) − f(y⁻|x)), f = log π. In general

    −(1 − ε) log σ(β h) − ε log σ(−β h).

    At π = π_ref it is ln 2 and its gradient −(1 − 2ε) β/2 for the chosen string, plus that for the rejected one; its
    minimum is at β h = ln((1 − ε)/ε). With ε = 0 an impossible rejected string (log-probability −inf) costs 0.

    Args:
        beta: β, the weight of the KL to the reference that the optimum obeys; 0.1 to 0.5 with a reference.
        label_smoothing: ε, the share of choices taken to be flipped; 0 < ε < ½ is conservative DPO.

    Reference: Rafailov et al. (2023), equation 7; ε is Mitchell (2023), "A note on DPO with noisy preferences".
    """
    logits = beta * _log_ratio_gap(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    flipped = jnp.where(label_smoothing == 0, 0, label_smoothing * jax.nn.log_sigmoid(-logits))
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(logits) - flipped


@jax.jit
def robust_dpo_loss(
    chosen_log_probs: Float[ArrayLike, "*s"],
    rejected_log_probs: Float[ArrayLike, "*s"],
    ref_chosen_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
    ref_rejected_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
    *,
    beta: Scalar,
    label_smoothing: Scalar,
) -> Float[Array, "*s"]:
    """DPO's loss made unbiased under flipped choices.

    [−(1 − ε) log σ(β h) + ε log σ(−β h)] / (1 − 2ε): its mean over choices that are flipped with probability ε is
    `dpo_loss` on the true choices. It is unbounded below: one pair alone has no minimum. At π = π_ref it is ln 2 and
    the gradients are ∓β / (2 (1 − 2ε)).

    Args:
        label_smoothing: ε < ½, the probability that a recorded choice is flipped; 0 is `dpo_loss`.

    Reference: Chowdhury et al. (2024), "Provably Robust DPO".
    """
    logits = beta * _log_ratio_gap(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    kept, flipped = -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


@jax.jit
def ipo_loss(
    chosen_log_probs: Float[ArrayLike, "*s"],
    rejected_log_probs: Float[ArrayLike, "*s"],
    ref_chosen_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
    ref_rejected_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
    *,
    beta: Scalar,
) -> Float[Array, "*s"]:
    """Identity preference optimisation: (h − 1/(2β))², regression of the gap on a finite target.

    At π = π_ref it is 1/(4β²) and the gradients are ∓1/β.

    Log-probabilities are summed over tokens, as in the paper and in the code of DPO's authors; TRL's DPO trainer
    divides each log-ratio by the string's length: for that, pass means over tokens in all four places.

    Args:
        beta: β, the paper's τ, in 1/nats.

    Reference: Azar et al. (2023), equation 17.
    """
    gap = _log_ratio_gap(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    return jnp.square(gap - 0.5 / beta)


@jax.jit
def hinge_loss(
    chosen_log_probs: Float[ArrayLike, "*s"],
    rejected_log_probs: Float[ArrayLike, "*s"],
    ref_chosen_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
    ref_rejected_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
    *,
    beta: Scalar,
) -> Float[Array, "*s"]:
    """max(0, 1 − β h): the gradient is that of −β h until the gap reaches 1/β, then 0; 1 and ∓β at π = π_ref.

    Reference: Liu et al. (2023), "Statistical Rejection Sampling Improves Preference Optimization";
    without a reference it is the calibration loss of Zhao et al. (2023), "SLiC-HF".
    """
    gap = _log_ratio_gap(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    return jnp.maximum(0, 1 - beta * gap)


@jax.jit
def implicit_reward(
    log_probs: Float[ArrayLike, "*s"], ref_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""], *, beta: Scalar
) -> Float[Array, "*s"]:
    """r(x, y) = β (log π(y|x) − log π_ref(y|x)), up to a function of x alone.

    The reward for which π is the optimum of RLHF; a pair's accuracy is whether the chosen string's is the larger.

    Reference: Rafailov et al. (2023), equation 5.
    """
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return beta * (log_probs - ref_log_probs)


@functools.partial(jax.jit, static_argnames="f_prime")
def f_dpo_loss(
    chosen_log_probs: Float[ArrayLike, "*s"],
    rejected_log_probs: Float[ArrayLike, "*s"],
    ref_chosen_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
    ref_rejected_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""] = 0.0,
    *,
    beta: Scalar,
    f_prime: Callable[[Array], Array],
) -> Float[Array, "*s"]:
    """DPO with β Σ_y π_ref(y) f(ρ(y)), ρ = π/π_ref, in the place of β KL(π ‖ π_ref).

    −log σ(β [f′(ρ(y⁺)) − f′(ρ(y⁻))]). At π = π_ref it is ln 2, and the gradients are ∓β f″(1) / 2.

    Args:
        f_prime: f′ as a function of log ρ, such as `reverse_kl_f_prime` (then this is `dpo_loss`). It is static: a new
            function compiles anew, so one that closes over a changing coefficient belongs inside the caller's jit.

    Reference: Wang et al. (2023), "Beyond Reverse KL". A constant added to f′ cancels.
    """
    chosen, rejected = _log_ratios(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs)
    return -jax.nn.log_sigmoid(beta * (f_prime(chosen) - f_prime(rejected)))


@jax.jit
def reverse_kl_f_prime(log_ratio: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
    """log ρ, of KL(π ‖ π_ref), f(ρ) = ρ log ρ; every f′ here is 0 at ρ = 1, so a constant may be left out."""
    return jnp.asarray(log_ratio)


@jax.jit
def forward_kl_f_prime(log_ratio: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
    """1 − 1/ρ, of KL(π_ref ‖ π), f(ρ) = −log ρ. 1/ρ saturates as in `log_probs.log_ratio`."""
    return -jnp.expm1(lp.log_ratio(0.0, log_ratio))


@jax.jit
def jensen_shannon_f_prime(log_ratio: Float[ArrayLike, "*s"]) -> Float[Array, "*s"]:
    """log(2ρ / (1 + ρ)), of twice the Jensen-Shannon divergence, f(ρ) = ρ log ρ − (1 + ρ) log((1 + ρ)/2); f″(1) = ½."""
    return math.log(2) + jax.nn.log_sigmoid(log_ratio)


@jax.jit
def alpha_f_prime(log_ratio: Float[ArrayLike, "*s"], alpha: Scalar) -> Float[Array, "*s"]:
    """(1 − ρ^−α) / α, from `reverse_kl_f_prime` at its limit α = 0 to `forward_kl_f_prime` at α = 1.

    ρ^−α saturates as in `log_probs.log_ratio`. α is the paper's; TRL's coefficient is 1 − α.
    """
    power = jnp.expm1(lp.log_ratio(0.0, alpha * jnp.where(alpha == 0, 0, log_ratio)))
    return jnp.where(alpha == 0, log_ratio, -power / jnp.where(alpha == 0, 1, alpha))


@jax.jit
def kto_loss(
    log_probs: Float[ArrayLike, "*s"],
    ref_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    desirable: Bool[ArrayLike, "*s"] | Bool[ArrayLike, ""],
    kl_baseline: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
    *,
    beta: Scalar,
) -> Float[Array, "*s"]:
    """Kahneman-Tversky optimisation: strings labelled one by one, u = log π − log π_ref against a baseline z.

    1 − σ(β (u − z)) of a desirable string, 1 − σ(β (z − u)) of an undesirable one. At u = z it is ½ and the gradient
    ∓β/4. The paper's weights λ_D and λ_U are the caller's product.

    Args:
        desirable: True where the string was liked.
        kl_baseline: z ≥ 0, an estimate of KL(π ‖ π_ref) in nats that couples the batch; it receives no gradient. The
            paper and TRL: max(0, mean log-ratio) of prompts with the completions of other prompts. rlhf-book's
            default: the log-ratios of the batch's own rejected strings.

    Reference: Ethayarajh et al. (2024), "KTO: Model Alignment as Prospect Theoretic Optimization".
    """
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs, desirable=desirable, kl_baseline=kl_baseline)
    lead = log_probs - ref_log_probs - jax.lax.stop_gradient(kl_baseline)
    return jax.nn.sigmoid(-beta * jnp.where(desirable, lead, -lead))


@jax.jit
def simpo_loss(
    chosen_mean_log_probs: Float[ArrayLike, "*s"],
    rejected_mean_log_probs: Float[ArrayLike, "*s"],
    *,
    beta: Scalar,
    margin: Scalar,
) -> Float[Array, "*s"]:
    """−log σ(β m⁺ − β m⁻ − γ), m = (1/|y|) log π(y|x), nats a token; no reference.

    At m⁺ = m⁻ it is log(1 + e^γ) and the gradients are ∓β σ(γ).

    Args:
        margin: γ, added after β. rlhf-book's `gamma` is γ/β; TRL's `simpo_gamma` is γ.

    Reference: Meng et al. (2024), "SimPO", equation 6.
    """
    check_same_shape(chosen_mean_log_probs=chosen_mean_log_probs, rejected_mean_log_probs=rejected_mean_log_probs)
    return -jax.nn.log_sigmoid(beta * jnp.subtract(chosen_mean_log_probs, rejected_mean_log_probs) - margin)


@jax.jit
def orpo_loss(
    chosen_mean_log_probs: Float[ArrayLike, "*s"], rejected_mean_log_probs: Float[ArrayLike, "*s"], *, weight: Scalar
) -> Float[Array, "*s"]:
    """Negative log-likelihood of the chosen string plus a weighted log odds ratio; no reference.

    −m⁺ − λ log σ(log odds⁺ − log odds⁻),   odds = e^m / (1 − e^m),   m = (1/|y|) log π(y|x).

    At m⁺ = m⁻ = m it is −m + λ ln 2 and the gradients are −1 − λ/(2 (1 − e^m)) and λ/(2 (1 − e^m)).

    Args:
        chosen_mean_log_probs: m⁺ < 0. The odds treat m as at most −ε, the dtype's rounding unit (−1.2e-7 in float32),
            with no gradient beyond; Tunix stops at −1e-7, rlhf-book at −1e-6, TRL nowhere (not finite at m = 0).
        weight: λ; TRL and Tunix call it β. TRL's likelihood term counts the prompt's tokens too.

    Reference: Hong et al. (2024), "ORPO", equations 6 and 7.
    """
    check_same_shape(chosen_mean_log_probs=chosen_mean_log_probs, rejected_mean_log_probs=rejected_mean_log_probs)
    log_odds_ratio = _log_odds(chosen_mean_log_probs) - _log_odds(rejected_mean_log_probs)
    return -chosen_mean_log_probs - weight * jax.nn.log_sigmoid(log_odds_ratio)


def _log_odds(log_prob):
    capped = jnp.minimum(log_prob, -jnp.finfo(jnp.result_type(log_prob)).eps)
    return capped - jax.nn.log1mexp(-capped)
