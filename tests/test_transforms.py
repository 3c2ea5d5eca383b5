"""What every public function of the loss modules must do: jit, vmap, grad, dtypes, one compilation, shape errors.

Run as a script, without the annotation checker of conftest.py, it prints each function's message for bad shapes.
"""

import functools
import inspect
import json
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import (
    dpo,
    dpo_variants,
    enumerable,
    group,
    kl,
    log_probs,
    masking,
    policy_gradient,
    population,
    ppo,
    reward_model,
)

MODULES = (dpo, dpo_variants, enumerable, group, kl, log_probs, masking, policy_gradient, population, ppo, reward_model)
RNG = np.random.default_rng(0)
ELEMENTS = (4,)
VECTORS = (4, 5)
IDS = RNG.integers(0, 5, (4, 3))
KEPT = np.array([True, False, True, True])
LENGTHS = np.array([3, 1, 4, 2])
KEPT_ROWS = np.array([KEPT, ~KEPT])
KEPT_DTYPE = lambda dtype: dtype
WIDENED = lambda dtype: jnp.promote_types(dtype, jnp.float32)


class Case(NamedTuple):
    """Array arguments as shapes to fill or as integer and boolean arrays; what the result's dtype is."""

    function: object
    arguments: tuple
    coefficients: dict = {}  # noqa: RUF012
    result_dtype: object = KEPT_DTYPE


CASES = [
    Case(dpo.dpo_loss, (ELEMENTS,) * 4, {"beta": 0.1, "label_smoothing": 0.1}),
    Case(dpo.robust_dpo_loss, (ELEMENTS,) * 4, {"beta": 0.1, "label_smoothing": 0.1}),
    Case(dpo.ipo_loss, (ELEMENTS,) * 4, {"beta": 0.1}),
    Case(dpo.hinge_loss, (ELEMENTS,) * 4, {"beta": 0.1}),
    Case(dpo.implicit_reward, (ELEMENTS,) * 2, {"beta": 0.1}),
    Case(dpo.kto_loss, (ELEMENTS, ELEMENTS, KEPT, ELEMENTS), {"beta": 0.1}),
    Case(dpo.simpo_loss, (ELEMENTS,) * 2, {"beta": 2.0, "margin": 0.5}),
    Case(dpo.orpo_loss, (ELEMENTS,) * 2, {"weight": 0.3}),
    Case(dpo.reverse_kl_f_prime, (ELEMENTS,)),
    Case(dpo.forward_kl_f_prime, (ELEMENTS,)),
    Case(dpo.jensen_shannon_f_prime, (ELEMENTS,)),
    Case(dpo.alpha_f_prime, (ELEMENTS, ())),
    Case(dpo_variants.cpo_loss, (ELEMENTS,) * 2, {"beta": 0.1, "nll_weight": 0.5}),
    Case(dpo_variants.dpop_loss, (ELEMENTS,) * 4, {"beta": 0.1, "penalty_weight": 5.0}),
    Case(dpo_variants.apo_zero_loss, (ELEMENTS,) * 4, {"beta": 0.1}),
    Case(dpo_variants.apo_down_loss, (ELEMENTS,) * 4, {"beta": 0.1}),
    Case(dpo_variants.exo_pair_loss, (ELEMENTS,) * 4, {"beta": 0.1, "label_smoothing": 0.01}),
    Case(dpo_variants.nca_pair_loss, (ELEMENTS,) * 4, {"beta": 0.1}),
    Case(dpo_variants.sppo_loss, (ELEMENTS,) * 4, {"beta": 0.1, "chosen_win_probs": 0.9, "rejected_win_probs": 0.2}),
    Case(dpo_variants.length_normalized_dpo_loss, (*(ELEMENTS,) * 4, LENGTHS, LENGTHS), {"beta": 2.0}),
    Case(reward_model.bradley_terry_loss, (ELEMENTS,) * 2, {"margin": 0.5}),
    Case(reward_model.plackett_luce_loss, (ELEMENTS,)),
    Case(reward_model.best_of_k_loss, (ELEMENTS, np.array(2))),
    Case(reward_model.davidson_loss, (ELEMENTS, ELEMENTS, KEPT), {"tie_weight": 0.5}),
    Case(reward_model.centering_loss, (ELEMENTS,) * 2),
    Case(group.centered_advantages, (ELEMENTS,)),
    Case(group.standardized_advantages, (ELEMENTS,), {"eps": 0.1}),
    Case(group.rloo_advantages, (ELEMENTS,)),
    Case(group.rloo_loss, (ELEMENTS,) * 2),
    Case(group.grpo_loss, (ELEMENTS,) * 4, {"clip_eps": 0.2, "beta": 0.1}),
    Case(group.dapo_loss, (ELEMENTS,) * 3, {"clip_eps_low": 0.2, "clip_eps_high": 0.3}),
    Case(group.gspo_loss, (ELEMENTS, ELEMENTS, (), KEPT), {"clip_eps_low": 0.2, "clip_eps_high": 0.3}),
    Case(group.cispo_loss, (ELEMENTS,) * 3, {"clip_eps_low": 0.2, "clip_eps_high": 0.3}),
    Case(group.token_mean, ((2, 4), KEPT_ROWS)),
    Case(group.sequence_mean, ((2, 4), KEPT_ROWS)),
    Case(group.fixed_length_mean, ((2, 4), KEPT_ROWS, ())),
    Case(kl.k1, (ELEMENTS,) * 2),
    Case(kl.k2, (ELEMENTS,) * 2),
    Case(kl.k3, (ELEMENTS,) * 2),
    Case(kl.exact_kl, (VECTORS,) * 2),
    Case(kl.categorical_kl, (VECTORS,) * 2, result_dtype=WIDENED),
    Case(kl.importance_weighted, (ELEMENTS,) * 3),
    Case(kl.adaptive_kl_coefficient, ((), ()), {"target": 6.0, "gain": 0.1}),
    Case(ppo.probability_ratio, (ELEMENTS,) * 2),
    Case(ppo.clipped_surrogate_loss, (ELEMENTS,) * 3, {"clip_eps": 0.2}),
    Case(ppo.dual_clip_loss, (ELEMENTS,) * 3, {"clip_eps": 0.2, "dual_clip": 3.0}),
    Case(ppo.clipped_value_loss, (ELEMENTS,) * 3, {"clip_eps": 0.2}),
    Case(ppo.entropy, (VECTORS,), result_dtype=WIDENED),
    Case(ppo.clip_fraction, (ELEMENTS, ELEMENTS, KEPT), {"clip_eps": 0.2}, result_dtype=lambda _: jnp.float32),
    Case(ppo.approximate_kl, (ELEMENTS, ELEMENTS, KEPT)),
    Case(ppo.max_ratio_deviation, (ELEMENTS, ELEMENTS, KEPT)),
    Case(log_probs.log_ratio, (ELEMENTS,) * 2),
    Case(log_probs.log_softmax, (VECTORS,), result_dtype=WIDENED),
    Case(log_probs.categorical_log_probs, (VECTORS, IDS[:, 0]), result_dtype=WIDENED),
    Case(log_probs.token_log_probs, ((4, 3, 5), IDS), result_dtype=WIDENED),
    Case(log_probs.chunked_token_log_probs, ((4, 3, 2), (5, 2), IDS), result_dtype=WIDENED),
    Case(masking.masked_sum, (ELEMENTS, KEPT)),
    Case(masking.masked_mean, (ELEMENTS, KEPT)),
    Case(masking.masked_whiten, (ELEMENTS, KEPT), {"eps": 0.1}),
    Case(policy_gradient.reinforce_loss, (ELEMENTS,) * 2),
    Case(enumerable.optimal_log_probs, (ELEMENTS, ELEMENTS, ())),
    Case(enumerable.regularized_objective, (ELEMENTS, ELEMENTS, ELEMENTS, ())),
    Case(enumerable.log_partition, (ELEMENTS, ELEMENTS, ())),
    Case(enumerable.optimal_value, (ELEMENTS, ELEMENTS, ())),
    Case(enumerable.expected_reward, (ELEMENTS,) * 2),
    Case(population.choice_probs, (ELEMENTS,) * 2, {"temperature": 0.5, "position_bias": 0.3, "flip_prob": 0.1}),
]
# Not of arrays alone, or of two results: their own modules' tests do the same for them.
ELSEWHERE = {
    dpo.f_dpo_loss,
    enumerable.all_strings,
    enumerable.check_bytes,
    enumerable.num_prefixes,
    enumerable.prefix_rows,
    enumerable.best_of_n_log_probs,
    enumerable.objective_gradient,
    enumerable.objective_hvp,
    enumerable.string_log_probs,
    enumerable.frontier,
    policy_gradient.policy_gradient,
    population.PairWeights,
    population.Choices,
    population.bradley_terry_population,
    population.sample_choices,
}
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.function.__name__)


def fill(case, dtype, batch=()):
    rng = np.random.default_rng(1)
    for argument in case.arguments:
        if isinstance(argument, tuple):
            yield jnp.asarray(rng.uniform(0.1, 2, batch + argument), dtype)
        else:
            yield jnp.broadcast_to(argument, batch + argument.shape)


def test_no_public_function_is_missing():
    public = {
        function
        for module in MODULES
        for name, function in vars(module).items()
        if callable(function) and getattr(function, "__module__", "") == module.__name__ and not name.startswith("_")
    }
    assert public == {case.function for case in CASES} | ELSEWHERE


@cases
def test_vmap_equals_a_loop_and_nesting_in_jit_changes_nothing(case):
    function = functools.partial(case.function, **case.coefficients)
    batched = list(fill(case, jnp.float32, batch=(3,)))
    rows = [function(*(argument[i] for argument in batched)) for i in range(3)]
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(*batched), jnp.stack(rows), rtol=2e-6, atol=1e-6)


@cases
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype_is_kept_or_widened_to_float32_and_gradients_are_finite(case, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        arguments = list(fill(case, dtype))
        floats = [i for i, argument in enumerate(arguments) if jnp.issubdtype(argument.dtype, jnp.floating)]
        total = lambda *arguments: (jnp.sum(out := case.function(*arguments, **case.coefficients)), out)
        gradients, out = jax.jit(jax.grad(total, floats, has_aux=True))(*arguments)
        assert out.dtype == case.result_dtype(dtype)
        for gradient in gradients:
            assert gradient.dtype == dtype
            assert jnp.isfinite(gradient).all()


@cases
def test_a_changed_coefficient_does_not_recompile(case):
    arguments = list(fill(case, jnp.float32))
    case.function(*arguments, **case.coefficients)
    compiled = case.function._cache_size()
    for factor in (0.5, 0.25):
        case.function(*arguments, **{name: factor * value for name, value in case.coefficients.items()})
    assert case.function._cache_size() == compiled


def shapes_of(case):
    return [argument.shape for argument in fill(case, jnp.float32)]


def mismatched(case):
    """The message for each array argument in turn with an axis more than the others: (4,) beside (4, 1)."""
    names = list(inspect.signature(case.function).parameters)
    arguments = list(fill(case, jnp.float32))
    for i, argument in enumerate(arguments):
        if argument.shape == () or sum(shape != () for shape in shapes_of(case)) < 2:
            continue
        bad = [*arguments[:i], argument[..., None], *arguments[i + 1 :]]
        try:
            case.function(*bad, **case.coefficients)
        except ValueError as error:
            yield names[i], str(error)
        else:
            yield names[i], "no error"


def test_mismatched_shapes_are_refused_by_name_without_the_annotation_checker():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    script = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True, env=environment)
    messages = json.loads(script.stdout)
    coupled = {case.function.__name__ for case in CASES if sum(argument != () for argument in shapes_of(case)) > 1}
    assert {function for function, *_ in messages} == coupled
    for function, name, message in messages:
        assert name in message, f"{function}({name}): {message}"


if __name__ == "__main__":
    print(json.dumps([(case.function.__name__, *pair) for case in CASES for pair in mismatched(case)]))
