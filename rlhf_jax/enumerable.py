"""Languages small enough to list every string, where the optimum of RLHF is known exactly.

Strings are the rows of one table; a policy over them is a vector of N log-probabilities in nats, one a string.
With a prompt, the table is that prompt's completions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from rlhf_jax import kl
from rlhf_jax import log_probs as lp
from rlhf_jax._typing import Scalar, check_same_shape


def all_strings(
    vocab_size: int, length: int, eos_id: int | None = None
) -> tuple[Int[Array, "N L"], Bool[Array, "N L"]]:
    """Every string of at most `length` tokens, in lexicographic order, and the mask of its tokens.

    Without `eos_id` all V^L strings have full length. With it a string ends at its first EOS, which its mask keeps;
    strings of full length without an EOS are listed too. Then N = (V − 1)^L + Σ_{l=1}^{L} (V − 1)^{l−1}, and every
    policy's string probabilities sum to 1. What follows an EOS is masked and filled with `eos_id`.

    Raises:
        ValueError: if a size is not positive or `eos_id` is not in the vocabulary.
    """
    if vocab_size < 1 or length < 1:
        raise ValueError(f"vocab_size and length must be positive, got {vocab_size} and {length}")
    if eos_id is not None and not 0 <= eos_id < vocab_size:
        raise ValueError(f"eos_id {eos_id} is not in a vocabulary of {vocab_size}")
    tokens = np.indices((vocab_size,) * length, dtype=np.int32).reshape(length, -1).T
    mask = np.ones(tokens.shape, bool)
    if eos_id is not None:
        ended = np.cumsum(tokens == eos_id, axis=1)
        mask[:, 1:] = ended[:, :-1] == 0
        listed = (mask | (tokens == eos_id)).all(1)
        tokens, mask = tokens[listed], mask[listed]
    return jnp.asarray(tokens), jnp.asarray(mask)


@jax.jit
def optimal_log_probs(
    ref_log_probs: Float[ArrayLike, " N"], rewards: Float[ArrayLike, " N"], beta: Scalar
) -> Float[Array, " N"]:
    """log π*(y) = log π_ref(y) + r(y)/β − log Z,   Z = Σ_y π_ref(y) exp(r(y)/β).

    The policy that maximises `regularized_objective`; the maximum is β log Z.

    Args:
        ref_log_probs: log π_ref(y) of every string; −inf stays −inf.
        rewards: r(y), in reward units.
        beta: β > 0, reward units per nat.

    Reference: Rafailov et al. (2023), equation 4.
    """
    check_same_shape(ref_log_probs=ref_log_probs, rewards=rewards)
    return jax.nn.log_softmax(ref_log_probs + rewards / beta)


@jax.jit
def regularized_objective(
    log_probs: Float[ArrayLike, " N"],
    ref_log_probs: Float[ArrayLike, " N"],
    rewards: Float[ArrayLike, " N"],
    beta: Scalar,
) -> Float[Array, ""]:
    """J(π) = Σ_y π(y) r(y) − β KL(π ‖ π_ref), in reward units.

    J(π) = β log Z − β KL(π ‖ π*), so its maximiser is `optimal_log_probs`. −inf where π gives mass to a string that
    π_ref excludes. Gradients flow into all array arguments.

    Args:
        log_probs: log π(y) of every string, normalised; −inf allowed.
        ref_log_probs: log π_ref(y), normalised; −inf allowed.
        rewards: r(y), in reward units.
        beta: β > 0, reward units per nat.

    Reference: Rafailov et al. (2023), equation 3.
    """
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs, rewards=rewards)
    return jnp.sum(jnp.exp(log_probs) * rewards) - beta * kl.exact_kl(log_probs, ref_log_probs)


@jax.jit
def frontier(
    ref_log_probs: Float[ArrayLike, " N"], rewards: Float[ArrayLike, " N"], betas: Float[ArrayLike, " M"]
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """(KL(π*_β ‖ π_ref), E_{π*_β}[r]) for each β: no policy has more reward at the same divergence.

    Returns:
        The divergences, in nats, and the rewards, in reward units; the slope of the reward against the KL is β.
    """

    def point(beta):
        log_probs = optimal_log_probs(ref_log_probs, rewards, beta)
        return kl.exact_kl(log_probs, ref_log_probs), jnp.sum(jnp.exp(log_probs) * rewards)

    return jax.vmap(point)(jnp.asarray(betas))


def string_log_probs(logits_fn, tokens: Int[ArrayLike, "N L"], mask: Bool[ArrayLike, "N L"]) -> Float[Array, " N"]:
    """log π(y) = Σ_{t : mask_t} log π(y_t | y_0 … y_{t−1}).

    Args:
        logits_fn: tokens [N, L] -> logits [N, L, V] where logits[:, t] scores tokens[:, t] **given tokens[:, :t]**:
            logits[:, 0] is the distribution of the first token, which no token precedes. A causal model whose
            position t scores token t + 1 is shown the strings after a BOS token (or a prompt) and without their last
            token. Its parameters are what it closes over.
        tokens: the strings, as `all_strings` lists them.
        mask: True at the tokens that count, the EOS among them.

    Not jit-compiled: `logits_fn` is a function, and the caller's `jit` or `grad` goes around this call.
    """
    check_same_shape(tokens=tokens, mask=mask)
    return _masked_log_probs(logits_fn(tokens), tokens, mask)


@jax.jit
def _masked_log_probs(logits, tokens, mask):
    kept = jnp.where(mask[..., None], logits, 0)
    return jnp.where(mask, lp.categorical_log_probs(kept, tokens), 0).sum(-1)
