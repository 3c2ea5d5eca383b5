"""Languages small enough to list every string, where the optimum of RLHF is known exactly.

Strings are the rows of one table; a policy over them is a vector of N log-probabilities in nats, one a string.
With a prompt, the table is that prompt's completions: `vmap` the functions over a leading axis of prompts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from rlhf_jax import kl
from rlhf_jax import log_probs as lp
from rlhf_jax._typing import Scalar, check_same_shape

_BYTES_OF_A_TOKEN = 5
_MAX_BYTES = 2**30


def all_strings(
    vocab_size: int, length: int, eos_id: int | None = None, *, max_bytes: int = _MAX_BYTES
) -> tuple[Int[Array, "N L"], Bool[Array, "N L"]]:
    """Every string of at most `length` tokens, in lexicographic order, and the mask of its tokens.

    Without `eos_id` all V^L strings have full length. With it a string ends at its first EOS, which its mask keeps;
    strings of full length without an EOS are listed too. Then N = (V − 1)^L + Σ_{l=1}^{L} (V − 1)^{l−1}, and every
    policy's string probabilities sum to 1. What follows an EOS is masked and filled with `eos_id`.

    Raises:
        ValueError: if a size is not positive, `eos_id` is not in the vocabulary, or V^L strings need more than
            `max_bytes`, naming the bytes they need.
    """
    if vocab_size < 1 or length < 1:
        raise ValueError(f"vocab_size and length must be positive, got {vocab_size} and {length}")
    if eos_id is not None and not 0 <= eos_id < vocab_size:
        raise ValueError(f"eos_id {eos_id} is not in a vocabulary of {vocab_size}")
    check_bytes("the strings", _BYTES_OF_A_TOKEN * length * vocab_size**length, max_bytes)
    tokens = np.indices((vocab_size,) * length, dtype=np.int32).reshape(length, -1).T
    mask = np.ones(tokens.shape, bool)
    if eos_id is not None:
        ended = np.cumsum(tokens == eos_id, axis=1)
        mask[:, 1:] = ended[:, :-1] == 0
        listed = (mask | (tokens == eos_id)).all(1)
        tokens, mask = tokens[listed], mask[listed]
    return jnp.asarray(tokens), jnp.asarray(mask)


def check_bytes(what: str, num_bytes: int, max_bytes: int) -> None:
    """Refuse a table that does not fit.

    Raises:
        ValueError: naming the bytes that are needed.
    """
    if num_bytes > max_bytes:
        raise ValueError(f"{what} need {num_bytes:,} bytes, more than max_bytes = {max_bytes:,}")


def num_prefixes(vocab_size: int, length: int) -> int:
    """Σ_{t<L} V^t: the rows of a table of logits that has one for every prefix of 0 to L − 1 tokens."""
    return sum(vocab_size**t for t in range(length))


@functools.partial(jax.jit, static_argnames="vocab_size")
def prefix_rows(tokens: Int[ArrayLike, "N L"], vocab_size: int) -> Int[Array, "N L"]:
    """The row of each token's prefix: `table[prefix_rows(tokens, V)]` are the logits of a table `[num_prefixes, V]`.

    Row t of a string is Σ_{l<t} V^l + (y_0 … y_{t−1} read as a number to the base V), shortest prefixes first: the
    empty prefix is row 0, and row ↦ V · row + token + 1 appends a token. Prefixes that hold an EOS have rows too,
    which no unmasked token uses.
    """
    append = lambda row, token: (vocab_size * row + token + 1, row)
    steps = jnp.asarray(tokens).T
    return jax.lax.scan(append, jnp.zeros_like(steps[0]), steps)[1].T


@jax.jit
def log_partition(
    ref_log_probs: Float[ArrayLike, " N"], rewards: Float[ArrayLike, " N"], beta: Scalar
) -> Float[Array, ""]:
    """log Z = log Σ_y π_ref(y) exp(r(y)/β), in nats. Arguments as in `optimal_log_probs`."""
    check_same_shape(ref_log_probs=ref_log_probs, rewards=rewards)
    return jax.nn.logsumexp(ref_log_probs + rewards / beta)


@jax.jit
def optimal_value(
    ref_log_probs: Float[ArrayLike, " N"], rewards: Float[ArrayLike, " N"], beta: Scalar
) -> Float[Array, ""]:
    """max_π J(π) = β log Z, in reward units: what `regularized_objective` is at `optimal_log_probs`.

    Its gradient in the rewards is π*.
    """
    return beta * log_partition(ref_log_probs, rewards, beta)


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
def expected_reward(log_probs: Float[ArrayLike, " N"], rewards: Float[ArrayLike, " N"]) -> Float[Array, ""]:
    """E_π[r] = Σ_y π(y) r(y), in reward units; log-probabilities of −inf are allowed."""
    check_same_shape(log_probs=log_probs, rewards=rewards)
    return jnp.sum(jnp.exp(log_probs) * rewards)


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
    return expected_reward(log_probs, rewards) - beta * kl.exact_kl(log_probs, ref_log_probs)


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
        return kl.exact_kl(log_probs, ref_log_probs), expected_reward(log_probs, rewards)

    return jax.vmap(point)(jnp.asarray(betas))


@functools.partial(jax.jit, static_argnames="n")
def best_of_n_log_probs(
    ref_log_probs: Float[ArrayLike, " N"], rewards: Float[ArrayLike, " N"], n: int
) -> Float[Array, " N"]:
    """log-probability that y is the best of n independent draws from π_ref, the first drawn if several are best.

    π(y) = π_ref(y) Σ_{k<n} p_≤^{n−1−k} p_<^k,   p_≤ = P(r(Y) ≤ r(y)), p_< = P(r(Y) < r(y)), Y ~ π_ref.

    Its reward is `expected_reward`, its divergence `kl.exact_kl` ≤ log n − (n − 1)/n, the bound being what is
    usually reported. Gradients flow into `ref_log_probs`. Compares all pairs of strings.

    Args:
        ref_log_probs: log π_ref(y), normalised; −inf stays −inf.
        rewards: r(y); only their order and their ties matter.
        n: n ≥ 1; 1 is π_ref.

    Reference: Beirami et al. (2024), "Theoretical guarantees on the best-of-n alignment policy"; the rule for ties
    is added here.
    """
    check_same_shape(ref_log_probs=ref_log_probs, rewards=rewards)
    probs, other, own = jnp.exp(ref_log_probs), jnp.asarray(rewards), jnp.asarray(rewards)[:, None]
    possible = probs > 0
    up_to = jnp.where(possible, jnp.where(other <= own, probs, 0).sum(1), 1)
    share_below = jnp.where(other < own, probs, 0).sum(1) / up_to
    sum_of_powers = jnp.polyval(jnp.ones(n, probs.dtype), share_below)
    return jnp.where(possible, ref_log_probs + (n - 1) * jnp.log(up_to) + jnp.log(sum_of_powers), -jnp.inf)


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


def objective_gradient(
    logits_fn,
    params: PyTree,
    tokens: Int[ArrayLike, "N L"],
    mask: Bool[ArrayLike, "N L"],
    ref_log_probs: Float[ArrayLike, " N"],
    rewards: Float[ArrayLike, " N"],
    beta: Scalar,
) -> PyTree:
    """∇J(π) = E_{y~π}[∇ log π(y) · (r(y) − β log (π(y)/π_ref(y)))], the expectation exact, J `regularized_objective`.

    Not automatic differentiation of J: the mean of the score is left out because it is 0. Differentiable in turn:
    see `objective_hvp`. A string that π or π_ref excludes has no log-ratio, and adds at most its reward.

    Args:
        logits_fn: (params, tokens) -> logits [N, L, V] as in `string_log_probs`: a table or a GPT-2.
        params: any pytree, which the gradient mirrors.

    Not jit-compiled, as `string_log_probs`.
    """
    check_same_shape(ref_log_probs=ref_log_probs, rewards=rewards)
    policy = lambda params: string_log_probs(functools.partial(logits_fn, params), tokens, mask)
    log_probs, pull_back = jax.vjp(policy, params)
    both = jnp.not_equal(log_probs, -jnp.inf) & jnp.not_equal(ref_log_probs, -jnp.inf)
    log_ratio = jnp.where(both, log_probs, 0) - jnp.where(both, ref_log_probs, 0)
    return pull_back(jnp.exp(log_probs) * (rewards - beta * log_ratio))[0]


def objective_hvp(
    logits_fn,
    params: PyTree,
    vector: PyTree,
    tokens: Int[ArrayLike, "N L"],
    mask: Bool[ArrayLike, "N L"],
    ref_log_probs: Float[ArrayLike, " N"],
    rewards: Float[ArrayLike, " N"],
    beta: Scalar,
) -> PyTree:
    """∇²J(π) · v for a `vector` v of the parameters' structure: the derivative of `objective_gradient` along v."""
    gradient = lambda params: objective_gradient(logits_fn, params, tokens, mask, ref_log_probs, rewards, beta)
    return jax.jvp(gradient, (params,), (vector,))[1]
