"""The Kullback-Leibler divergence KL(π ‖ π_ref), exactly and estimated from samples of π; in nats.

An unbiased value does not make an unbiased gradient. Over samples of π (the last row: of any π_old),

    estimate                            mean value       mean gradient, used as a loss
    k1                                  KL(π ‖ π_ref)    0
    k2                                  biased           ∇ KL(π ‖ π_ref)
    k3                                  KL(π ‖ π_ref)    ∇ KL(π_ref ‖ π)
    importance_weighted of k1 or k3     KL(π ‖ π_ref)    ∇ KL(π ‖ π_ref)
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from rlhf_jax import log_probs as lp
from rlhf_jax._typing import Scalar, check_same_shape

_SERIES_RADIUS = 0.5
_SERIES = tuple(1 / math.factorial(k) for k in range(15, 1, -1))
_MAX_RELATIVE_ERROR = 0.2


@jax.jit
def exact_kl(log_probs: Float[ArrayLike, "*s V"], ref_log_probs: Float[ArrayLike, "*s V"]) -> Float[Array, "*s"]:
    """KL(p ‖ q) = Σ_v p_v (log p_v − log q_v) of listed, normalised distributions.

    0 log 0 = 0, and +inf where p_v > 0 = q_v. The gradient into both is that of the finite terms, always finite.

    Args:
        log_probs: log p_v, −inf allowed.
        ref_log_probs: log q_v, −inf allowed.
    """
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    possible = jnp.not_equal(log_probs, -jnp.inf)
    both = possible & jnp.not_equal(ref_log_probs, -jnp.inf)
    ratio = jnp.where(both, log_probs, 0) - jnp.where(both, ref_log_probs, 0)
    return (jnp.exp(log_probs) * ratio).sum(-1) + jnp.where((possible & ~both).any(-1), jnp.inf, 0)


@jax.jit
def categorical_kl(logits: Float[ArrayLike, "*s V"], ref_logits: Float[ArrayLike, "*s V"]) -> Float[Array, "*s"]:
    """KL(softmax(logits) ‖ softmax(ref_logits)) over the last axis, exactly, in float32 or wider.

    0 log 0 = 0, and +inf where p > 0 = q. Gradients flow into both and are finite.
    """
    check_same_shape(logits=logits, ref_logits=ref_logits)
    return exact_kl(lp.log_softmax(logits), lp.log_softmax(ref_logits))


@jax.jit
def k1(
    log_probs: Float[ArrayLike, "*s"], ref_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""]
) -> Float[Array, "*s"]:
    """k1 = log π(x) − log π_ref(x) for x drawn from π: unbiased, of either sign, of large variance.

    An estimate to report or to put in a reward, not a loss: E_π[∇ k1] = 0, so minimising it on-policy does nothing.

    Reference: Schulman (2020), "Approximating KL Divergence".
    """
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return jnp.subtract(log_probs, ref_log_probs)


@jax.jit
def k2(
    log_probs: Float[ArrayLike, "*s"], ref_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""]
) -> Float[Array, "*s"]:
    """k2 = ½ (log π(x) − log π_ref(x))² for x drawn from π: biased, never negative, of small variance.

    E_π[∇ k2] is the gradient of KL(π ‖ π_ref), although E_π[k2] is not the divergence.

    Reference: Schulman (2020), "Approximating KL Divergence".
    """
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return 0.5 * jnp.square(jnp.subtract(log_probs, ref_log_probs))


@jax.jit
def k3(
    log_probs: Float[ArrayLike, "*s"], ref_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""]
) -> Float[Array, "*s"]:
    """k3 = exp(u) − 1 − u with u = log π_ref(x) − log π(x), for x drawn from π: unbiased and never negative.

    Computed as expm1(u) − u, and by the exponential's series where |u| < 0.5, so that no digits are lost near 0.
    Its value is an unbiased estimate, its gradient is not: E_π[∇ k3] is the gradient of KL(π_ref ‖ π).
    u saturates as in `log_probs.log_ratio`.

    Reference: Schulman (2020), "Approximating KL Divergence".
    """
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    log_ratio = lp.log_ratio(ref_log_probs, log_probs)
    near = jnp.abs(log_ratio) < _SERIES_RADIUS
    small = jnp.where(near, log_ratio, 0)
    series = jnp.square(small) * jnp.polyval(jnp.asarray(_SERIES, small.dtype), small)
    return jnp.where(near, series, jnp.expm1(log_ratio) - log_ratio)


@jax.jit
def importance_weighted(
    estimates: Float[ArrayLike, "*s"],
    log_probs: Float[ArrayLike, "*s"],
    old_log_probs: Float[ArrayLike, "*s"] | Float[ArrayLike, ""],
) -> Float[Array, "*s"]:
    """(π(x) / π_old(x)) k(x) for x drawn from π_old, the gradient flowing through both factors.

    With k1 or k3 its mean is KL(π ‖ π_ref) and its gradient's mean ∇ KL(π ‖ π_ref), on-policy and off: at π = π_old
    the value is k itself but the gradient is not. Over tokens each ratio weighs its own token alone, as in TRL
    (`use_bias_correction_kl`); Tunix has no weight.

    Args:
        estimates: k(x), a function of `log_probs` still to be differentiated.
        old_log_probs: log π_old(x), of the policy that drew x; receives no gradient.

    Reference: DeepSeek-AI (2025), "DeepSeek-V3.2".
    """
    check_same_shape(estimates=estimates, log_probs=log_probs, old_log_probs=old_log_probs)
    return jnp.exp(lp.log_ratio(log_probs, jax.lax.stop_gradient(old_log_probs))) * estimates


@jax.jit
def adaptive_kl_coefficient(coefficient: Scalar, kl: Scalar, *, target: Scalar, gain: Scalar = 0.1) -> Float[Array, ""]:
    """The KL coefficient of the next step, steering the measured divergence to a target.

    e = clip((KL − target) / target, −0.2, 0.2),   β ← β (1 + gain · e).

    Args:
        coefficient: β of the step that produced `kl`.
        kl: measured KL(π ‖ π_ref), nats per string.
        target: nats per string.
        gain: K_β; the authors' code uses batch size / 10,000.

    Reference: Ziegler et al. (2019), section 2.2.
    """
    error = jnp.clip(kl / target - 1, -_MAX_RELATIVE_ERROR, _MAX_RELATIVE_ERROR)
    return coefficient * (1 + gain * error)
