"""What must hold of a loss, whoever wrote it: one call an invariant, which measures and is true or false.

    assert invariants.padding_is_ignored(my_loss, log_probs, advantages, mask)

Token losses are called as `loss(*arrays, mask)`: arrays [B, T] or [B, T, V] and, last, the boolean mask [B, T]; arrays
of other shapes ([B], scalars) may stand among them. Pair losses are called as `loss(chosen, rejected, ref_chosen,
ref_rejected)`, log-probabilities of strings. Results of any shape are summed where one number is needed; losses are
traced by `jax.jit`. Tolerances are float32's: what rounds to bfloat16 inside fails some. What must hold of the road
from text to log-probabilities and rewards is in `pipeline_invariants`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from rlhf_jax import kl, ppo

TOLERANCE = 1e-4


class Check(NamedTuple):
    """True where the invariant holds, so that a test can assert it; `measured` is the number that decided."""

    name: str
    passed: bool
    measured: float
    meaning: str

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name:36}{self.measured:>10.3g}  {self.meaning}"


def check_small(name: str, deviation: Any, meaning: str, tolerance: float = TOLERANCE) -> Check:
    """A check that passes where the largest deviation is at most `tolerance`; NaN fails."""
    largest = float(jnp.max(jnp.abs(jnp.asarray(deviation)), initial=0))
    return Check(name, largest <= tolerance, largest, meaning)


def _gradients(loss, *batches, **jit_options):
    """For each batch of arrays: the sum of the loss, and its gradient into each floating-point array."""
    floats = [i for i, array in enumerate(batches[0]) if jnp.issubdtype(jnp.result_type(array), jnp.floating)]
    both = jax.jit(jax.value_and_grad(lambda *arrays: jnp.sum(loss(*arrays)), floats), **jit_options)
    return [both(*map(jnp.asarray, arrays)) for arrays in batches]


def _where_kept(mask, array, fill):
    """An array [B, T] or [B, T, V] of floats with `fill` at its masked entries, None if it is not such an array.

    Along V it is `fill` to twice that, as a softmax does not see what is added to all logits.
    """
    if array.shape[: mask.ndim] != mask.shape or not jnp.issubdtype(array.dtype, jnp.floating):
        return None
    kept, rest = mask.reshape(mask.shape + (1,) * (array.ndim - mask.ndim)), array.shape[mask.ndim :]
    fills = fill * jnp.linspace(1, 2, math.prod(rest), dtype=array.dtype).reshape(rest)
    return jnp.where(kept, array, fills)


def _filled(arrays, fill):
    """The arrays with multiples of `fill` at the masked entries of floats, another for each, as a loss may be of their
    difference; the mask is the last."""
    *arrays, mask = map(jnp.asarray, arrays)
    fills = [_where_kept(mask, array, fill * (1 + i / 8)) for i, array in enumerate(arrays)]
    if all(filled is None for filled in fills):
        raise ValueError(f"no array of floats has the mask's axes, {mask.shape}: there is nothing to fill")
    return *(a if filled is None else filled for a, filled in zip(arrays, fills, strict=True)), mask


def _relative(one, other):
    return jnp.abs(one - other) / jnp.maximum(1, jnp.abs(other))


# --- Policies at their start


def ratio_is_one(
    log_probs: Float[ArrayLike, "*s"], old_log_probs: Float[ArrayLike, "*s"], mask: Bool[ArrayLike, "*s"]
) -> Check:
    """At the first update, π/π_old = 1 at every kept token: the trainer scores what the sampler scored."""
    deviation = ppo.max_ratio_deviation(log_probs, old_log_probs, mask)
    return check_small("ratio_is_one", deviation, "largest |ratio - 1| at the first update", 1e-3)


def first_update_is_the_policy_gradient(
    loss: Callable, log_probs: Float[ArrayLike, "*s"], advantages: Float[ArrayLike, "*s"]
) -> Check:
    """`loss(log_probs, old_log_probs, advantages)` at π = π_old has a gradient of −A times one positive number.

    For a loss that whitens the advantages inside, give some whose mean is 0.
    """
    log_probs, advantages = jnp.asarray(log_probs), jnp.asarray(advantages)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(loss(x, log_probs, advantages))))(log_probs)
    meaning = "distance of the gradient at ratio 1 from -A, relative"
    return check_small("first_update_is_the_policy_gradient", _unlike(-slope, advantages), meaning)


def ln2_at_the_reference(loss: Callable, chosen: Float[ArrayLike, " N"], rejected: Float[ArrayLike, " N"]) -> Check:
    """Where π = π_ref every pair's sigmoid loss is ln 2, so DPO's first logged loss is 0.6931."""
    first = jnp.asarray(loss(chosen, rejected, chosen, rejected))
    return check_small("ln2_at_the_reference", first - math.log(2), "largest |loss - ln 2| at policy = reference", 1e-3)


def constant_at_the_reference(
    loss: Callable, chosen: Float[ArrayLike, " N"], rejected: Float[ArrayLike, " N"]
) -> Check:
    """Where π = π_ref a pair's loss does not depend on its strings: ln 2 for DPO, 1/(4β²) for IPO, 1 for the hinge.

    A likelihood term added to such a loss does depend on them: set its weight to 0 here.
    """
    other_chosen, other_rejected = jnp.asarray(chosen) - 3, jnp.asarray(rejected) + 2
    first = jnp.asarray(loss(chosen, rejected, chosen, rejected))
    moved = jnp.asarray(loss(other_chosen, other_rejected, other_chosen, other_rejected))
    meaning = f"change of the loss at policy = reference, {float(first.mean()):.4f}, with the strings"
    return check_small("constant_at_the_reference", _relative(moved, first), meaning)


def chosen_is_preferred(loss: Callable, chosen: Float[ArrayLike, " N"], rejected: Float[ArrayLike, " N"]) -> Check:
    """`loss(chosen, rejected)` does not rise as the gap between the two widens; call it where the gap is small."""
    ((_, (of_chosen, of_rejected)),) = _gradients(loss, (chosen, rejected))
    slope = float(jnp.max(of_chosen - of_rejected))
    return Check("chosen_is_preferred", slope <= 0, slope, "largest slope against the gap of chosen and rejected")


def falling_chosen_costs(loss: Callable, chosen: Float[ArrayLike, " N"], rejected: Float[ArrayLike, " N"]) -> Check:
    """Below the reference, a nat less for both strings is not free; DPO, which sees their gap alone, fails."""
    fallen = [jnp.asarray(loss(chosen - fall, rejected - fall, chosen, rejected)) for fall in (1, 2)]
    least = float(jnp.min(fallen[1] - fallen[0]))
    return Check("falling_chosen_costs", least > TOLERANCE, least, "rise of the loss when both strings lose a nat")


# --- Masks


def padding_is_ignored(loss: Callable, *arrays: ArrayLike) -> Check:
    """What stands at masked entries changes neither the value nor a gradient into kept ones."""
    (value, slopes), other = _gradients(loss, *(_filled(arrays, fill) for fill in (-2.0, 0.5)))
    steepest = jnp.stack([jnp.abs(slope).max() for slope in slopes]).max()
    sizes = [jnp.maximum(jnp.abs(value), steepest), *[steepest] * len(slopes)]
    share = lambda one, other, size: jnp.abs(one - other).max() / jnp.where(size > 0, size, 1)
    changes = jnp.stack(list(map(share, [value, *slopes], jax.tree.leaves(other), sizes)))
    return check_small("padding_is_ignored", changes, "change with what stands at masked entries, relative")


def padding_length_is_irrelevant(loss: Callable, *arrays: ArrayLike) -> Check:
    """Twice the length, by padding, changes neither the value nor a gradient: no mean counts the padding."""
    *arrays, mask = map(jnp.asarray, arrays)
    axis = mask.ndim - 1
    longer = lambda a: jnp.concatenate([a, jnp.zeros_like(a)], axis) if a.shape[: mask.ndim] == mask.shape else a
    (value, slopes), (other, longer_slopes) = _gradients(loss, (*arrays, mask), tuple(map(longer, (*arrays, mask))))
    shortened = [slope[tuple(map(slice, short.shape))] for slope, short in zip(longer_slopes, slopes, strict=True)]
    changes = [jnp.abs(one - slope).max() for one, slope in zip(shortened, slopes, strict=True)]
    size = jnp.stack([jnp.abs(value), *(jnp.abs(slope).max() for slope in slopes)]).max()
    relative = jnp.stack([jnp.abs(other - value), *changes]) / jnp.where(size > 0, size, 1)
    return check_small("padding_length_is_irrelevant", relative, "change with twice the length by padding, relative")


def masked_entries_get_no_gradient(loss: Callable, *arrays: ArrayLike) -> Check:
    """∂L/∂x = 0 at every masked entry."""
    mask = jnp.asarray(arrays[-1])
    ((_, slopes),) = _gradients(loss, arrays)
    leaked = [_where_kept(~mask, slope, 0) for slope in slopes]
    largest = jnp.stack([jnp.abs(slope).max() for slope in leaked if slope is not None])
    return check_small("masked_entries_get_no_gradient", largest, "largest gradient at a masked entry", 0.0)


def masked_nan_is_ignored(loss: Callable, *arrays: ArrayLike) -> Check:
    """NaN at masked entries reaches neither the value nor a gradient, as it would through 0 · NaN.

    XLA's simplifier may turn a product with a mask into a choice, which hides it: here that pass is off.
    """
    honest = {"compiler_options": {"xla_disable_hlo_passes": "algsimp"}}
    meaning = "numbers that masked NaN made NaN"
    return _is_finite("masked_nan_is_ignored", loss, [_filled(arrays, jnp.nan)], meaning, **honest)


def empty_mask_is_finite(loss: Callable, *arrays: ArrayLike) -> Check:
    """A string that truncation emptied, and a batch of them, give finite numbers: no 0/0."""
    *arrays, mask = arrays
    masks = jnp.zeros_like(mask), jnp.asarray(mask).at[0].set(False)
    meaning = "numbers that are not finite when a mask is empty"
    return _is_finite("empty_mask_is_finite", loss, [(*arrays, empty) for empty in masks], meaning)


def gradient_is_finite(loss: Callable, *arrays: ArrayLike) -> Check:
    """The value and every gradient are finite."""
    return _is_finite("gradient_is_finite", loss, [arrays], "numbers of value and gradient that are not finite")


def _is_finite(name, loss, batches, meaning, **jit_options):
    broken = [jnp.sum(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(_gradients(loss, *batches, **jit_options))]
    return check_small(name, sum(broken).astype(float), meaning, 0.0)


# --- Batches


def batch_order_is_irrelevant(loss: Callable, *arrays: ArrayLike) -> Check:
    """The rows of the batch in another order give the same loss, row by row where it is unreduced.

    The first array's rows are the batch's; arrays with another number of rows (a scalar, an embedding) stay.
    """
    rows = jnp.shape(arrays[0])[:1] or None
    roll = lambda array: jnp.roll(jnp.asarray(array), 1, axis=0) if jnp.shape(array)[:1] == rows else array
    jitted = jax.jit(lambda *arrays: jnp.asarray(loss(*arrays)))
    first, moved = jitted(*arrays), jitted(*map(roll, arrays))
    return check_small("batch_order_is_irrelevant", _relative(moved, roll(first)), "change with the order of the batch")


def batch_split_is_irrelevant(accumulate: Callable, *arrays: ArrayLike) -> Check:
    """`accumulate(micro_batches)`, a list of tuples like `arrays`, gives what one whole batch gives."""
    whole, arrays = jnp.asarray(accumulate([arrays])), list(map(jnp.asarray, arrays))
    halves = lambda cut: [tuple(array[rows] for array in arrays) for rows in (slice(cut), slice(cut, None))]
    changes = [_relative(jnp.asarray(accumulate(halves(cut))), whole) for cut in range(1, len(arrays[0]))]
    return check_small("batch_split_is_irrelevant", jnp.stack(changes), "change when the batch is split in two")


def is_summed(function: Callable, *arrays: ArrayLike, axis: int = 1) -> Check:
    """Twice the rows (`axis` 0) or tokens (1) give twice the result; a mean gives the same."""
    return _grows("is_summed", 2, function, arrays, axis)


def is_averaged(function: Callable, *arrays: ArrayLike, axis: int = 1) -> Check:
    """Twice the rows (`axis` 0) or tokens (1) give the same result; a sum gives twice as much."""
    return _grows("is_averaged", 1, function, arrays, axis)


def _grows(name, factor, function, arrays, axis):
    twice = [jnp.concatenate([jnp.asarray(a)] * 2, axis) if jnp.ndim(a) > axis else a for a in arrays]
    growth = float(jnp.sum(function(*twice)) / jnp.sum(function(*arrays)))
    meaning = f"growth with twice the {('rows', 'tokens')[axis]}: 2 is a sum, 1 a mean"
    return Check(name, abs(growth - factor) <= TOLERANCE, growth, meaning)


def group_weights_are_fair(
    loss: Callable, log_probs: Float[ArrayLike, "G T"], rewards: Float[ArrayLike, " G"], mask: Bool[ArrayLike, "G T"]
) -> Check:
    """−∂L/∂log π of `loss(log_probs, rewards, mask)` is r_i − mean(r) times one number, for any token and reward scale.

    A mean over each string's tokens makes long strings cheap; division by the group's deviation makes easy and hard
    prompts dear.
    """
    centred = jnp.where(mask, (jnp.asarray(rewards) - jnp.mean(rewards))[:, None], 0)
    slope = jax.jit(jax.grad(lambda x, r: jnp.sum(loss(x, r, jnp.asarray(mask)))))
    weights = [-slope(jnp.asarray(log_probs), scale * jnp.asarray(rewards)) / scale for scale in (1.0, 0.1)]
    return check_small(
        "group_weights_are_fair", _unlike(jnp.stack(weights), centred), "distance of the weights from r - mean(r)"
    )


def _unlike(weights, direction):
    """Distance of `weights` from the nearest positive multiple of `direction`, relative; inf if there is none."""
    factor = jnp.sum(weights * direction) / jnp.sum(jnp.square(direction) * jnp.ones_like(weights))
    distance = jnp.abs(weights - factor * direction).max() / jnp.abs(factor * direction).max()
    return jnp.where(factor > 0, distance, jnp.inf)


# --- Divergences


def kl_is_nonnegative(
    divergence: Callable, log_probs: Float[ArrayLike, "N V"], ref_log_probs: Float[ArrayLike, "N V"]
) -> Check:
    """`divergence(log_probs [V], ref_log_probs [V])` is never negative, and a negative KL is a bug, not luck."""
    values = [divergence(p, q) for p, q in zip(jnp.asarray(log_probs), jnp.asarray(ref_log_probs), strict=True)]
    least = float(jnp.min(jnp.stack(values)))
    return Check("kl_is_nonnegative", least >= -TOLERANCE, least, "smallest divergence, in nats")


def kl_loss_descends_the_kl(
    estimator: Callable, logits: Float[ArrayLike, " V"], ref_logits: Float[ArrayLike, " V"]
) -> Check:
    """E_π[∇ estimator(log_probs, ref_log_probs)], summed over all of V, is the gradient of KL(π ‖ π_ref)."""
    logits, ref = jnp.asarray(logits), jax.nn.log_softmax(jnp.asarray(ref_logits))
    probs = jax.nn.softmax(logits)
    expected = jax.grad(lambda x: jnp.sum(probs * estimator(jax.nn.log_softmax(x), ref)))(logits)
    exact: Array = jax.grad(lambda x: kl.exact_kl(jax.nn.log_softmax(x), ref))(logits)
    deviation = jnp.abs(expected - exact).max() / jnp.abs(exact).max()
    return check_small(
        "kl_loss_descends_the_kl", deviation, "distance of the expected gradient from the KL's, relative"
    )
