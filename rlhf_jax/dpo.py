"""Direct preference optimisation: losses on the log-probabilities of a chosen and a rejected string.

Every loss takes the same four arguments: log π(y⁺|x), log π(y⁻|x), log π_ref(y⁺|x) and log π_ref(y⁻|x), each
summed over the string's tokens. Gradients flow into all four; reference numbers are data, computed once. Below,

    h = [log π(y⁺|x) − log π_ref(y⁺|x)] − [log π(y⁻|x) − log π_ref(y⁻|x)].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from rlhf_jax._typing import Scalar, check_same_shape


def _log_ratio_gap(chosen_log_probs, rejected_log_probs, ref_chosen_log_probs, ref_rejected_log_probs) -> Array:
    check_same_shape(
        chosen_log_probs=chosen_log_probs,
        rejected_log_probs=rejected_log_probs,
        ref_chosen_log_probs=ref_chosen_log_probs,
        ref_rejected_log_probs=ref_rejected_log_probs,
    )
    return (chosen_log_probs - ref_chosen_log_probs) - (rejected_log_probs - ref_rejected_log_probs)


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

    At π = π_ref it is ln 2 and its gradient −β/2 for the chosen string, +β/2 for the rejected one (ε = 0); its
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
    `dpo_loss` on the true choices. It is unbounded below: one pair alone has no minimum.

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

    Log-probabilities are summed over tokens, as in the paper; TRL divides each string's log-ratio by its length: pass
    means for that.

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
    """max(0, 1 − β h): the gradient is that of −β h until the gap reaches 1/β, then 0.

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
