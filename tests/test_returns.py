import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax import numpy_loops, returns

REWARDS = np.array([1.0, 0.0, 2.0, -1.0, 0.5])
VALUES = np.array([0.5, -1.0, 2.0, 0.0, 1.0, 3.0])
TERMINATING = 0.9 * np.array([1.0, 1.0, 0.0, 1.0, 1.0])
LAMBDA = 0.8
BOOTSTRAPPED = [
    functools.partial(returns.lambda_returns, lambda_=LAMBDA),
    functools.partial(returns.gae, lambda_=LAMBDA),
    functools.partial(returns.n_step_returns, n=2),
]


def test_discounted_return_and_rewards_to_go_by_hand():
    assert float(returns.discounted_return(np.array([1.0, 2.0, 4.0]), 0.5)) == 1 + 1 + 1
    np.testing.assert_array_equal(returns.rewards_to_go(np.array([1.0, 2.0, 4.0]), 0.5), [3, 4, 4])
    np.testing.assert_array_equal(returns.rewards_to_go(np.array([1.0, 2.0, 4.0]), np.array([0.5, 0, 0.5])), [2, 2, 4])


def test_gae_by_hand():
    """Two steps, gamma 1/2, lambda 1/2: delta = (1 + 1 - 3, 2 + 4 - 2) = (-1, 4); A = (-1 + 4/4, 4)."""
    np.testing.assert_array_equal(returns.gae(np.array([1.0, 2.0]), 0.5, np.array([3.0, 2.0, 8.0]), 0.5), [0, 4])


def test_n_step_returns_by_hand():
    """Truncation shortens the sum and bootstraps from the last value."""
    targets = returns.n_step_returns(np.array([1.0, 2.0, 4.0]), 0.5, np.array([9.0, 9.0, 8.0, 16.0]), 2)
    np.testing.assert_array_equal(targets, [1 + 1 + 2, 2 + 2 + 4, 4 + 8])


@pytest.mark.parametrize("discounts", [np.full(5, 0.9), TERMINATING], ids=["truncated", "terminating"])
def test_every_function_equals_its_loop(discounts):
    with jax.enable_x64(True):
        compare = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
        compare(returns.discounted_return(REWARDS, 0.9), numpy_loops.discounted_return(REWARDS, 0.9))
        compare(returns.rewards_to_go(REWARDS, discounts), numpy_loops.rewards_to_go(REWARDS, discounts))
        for n in (0, 1, 2, 4, 5, 9):
            expected = numpy_loops.n_step_returns(REWARDS, discounts, VALUES, n)
            compare(returns.n_step_returns(REWARDS, discounts, VALUES, n), expected)
        for name in ("lambda_returns", "gae"):
            for lambda_ in (0.0, 0.4, 1.0):
                expected = getattr(numpy_loops, name)(REWARDS, discounts, VALUES, lambda_)
                compare(getattr(returns, name)(REWARDS, discounts, VALUES, lambda_), expected)


@pytest.mark.parametrize("discounts", [0.9, TERMINATING])
def test_the_ends_of_lambda_and_n(discounts):
    errors = REWARDS + discounts * VALUES[1:] - VALUES[:-1]
    np.testing.assert_allclose(returns.gae(REWARDS, discounts, VALUES, 0), errors, rtol=1e-6)
    one_step = returns.n_step_returns(REWARDS, discounts, VALUES, 1)
    np.testing.assert_allclose(returns.lambda_returns(REWARDS, discounts, VALUES, 0), one_step, rtol=1e-6)
    whole = returns.n_step_returns(REWARDS, discounts, VALUES, 5)
    np.testing.assert_allclose(returns.lambda_returns(REWARDS, discounts, VALUES, 1), whole, rtol=1e-5)
    unbootstrapped = np.append(VALUES[:-1], 0)
    to_go = returns.rewards_to_go(REWARDS, discounts)
    np.testing.assert_allclose(returns.n_step_returns(REWARDS, discounts, unbootstrapped, 5), to_go, rtol=1e-5)
    np.testing.assert_allclose(
        returns.gae(REWARDS, discounts, VALUES, LAMBDA),
        returns.lambda_returns(REWARDS, discounts, VALUES, LAMBDA) - VALUES[:-1],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("function", BOOTSTRAPPED)
def test_termination_is_not_truncation(function):
    """After a terminating step nothing leaks back; a truncated trajectory depends on its last value."""
    later = np.array([0, 0, 0, 5.0, 5.0])
    changed = function(REWARDS + later, TERMINATING, VALUES + 7 * np.array([0, 0, 0, 1, 1, 1]))
    np.testing.assert_array_equal(changed[:3], function(REWARDS, TERMINATING, VALUES)[:3])
    last_value = lambda v, d: function(REWARDS, d, jnp.asarray(VALUES).at[-1].set(v))[-1]
    assert float(jax.grad(last_value)(3.0, 0.9)) == pytest.approx(0.9)
    assert float(jax.grad(last_value)(3.0, 0.9 * np.array([1.0, 1, 1, 1, 0]))) == 0


@pytest.mark.parametrize("function", BOOTSTRAPPED)
def test_gradients_in_float64_and_under_jit_vmap(function):
    with jax.enable_x64(True):
        arguments = (REWARDS, TERMINATING + 0.05, VALUES)
        check_grads(jax.jit(function), arguments, order=1, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)
        batch = [np.stack([a, 2 * a, -a]) for a in arguments]
        together = jax.jit(jax.vmap(function))(*batch)
        for i in range(3):
            np.testing.assert_allclose(together[i], function(*(a[i] for a in batch)), rtol=1e-12)


def test_static_and_traced_arguments_pass_by_position_through_vmap():
    rewards, values = np.stack([REWARDS, -REWARDS]), np.stack([VALUES, VALUES])
    for function, last in ((returns.n_step_returns, 2), (returns.gae, 0.9), (returns.lambda_returns, 0.9)):
        batched = jax.vmap(function, (0, None, 0, None))(rewards, 0.9, values, last)
        np.testing.assert_allclose(batched[1], function(-REWARDS, 0.9, VALUES, last), rtol=1e-6)


def test_the_gradient_in_gamma_is_finite_at_zero():
    value, gradient = jax.value_and_grad(returns.discounted_return, argnums=1)(REWARDS, 0.0)
    assert value == REWARDS[0]
    assert gradient == REWARDS[1]
    assert jnp.isfinite(jax.grad(lambda d: returns.rewards_to_go(REWARDS, d).sum())(np.zeros(5))).all()


@pytest.mark.parametrize("function", BOOTSTRAPPED)
def test_an_empty_trajectory(function):
    assert function(np.zeros(0), 0.9, np.ones(1)).shape == (0,)
    assert returns.rewards_to_go(np.zeros(0), 0.9).shape == (0,)
    assert returns.discounted_return(np.zeros(0), 0.9) == 0


def test_bfloat16_comes_back_but_sums_run_in_float32():
    rewards = jnp.ones(1000, jnp.bfloat16)
    total = returns.discounted_return(rewards, 0.99)
    assert total.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(total), (1 - 0.99**1000) / 0.01, rtol=0.01)
    for function in BOOTSTRAPPED:
        assert function(rewards, 0.99, jnp.ones(1001, jnp.bfloat16)).dtype == jnp.bfloat16
    assert returns.gae(rewards, 0.99, jnp.ones(1001, jnp.float32), 0.95).dtype == jnp.float32


def test_changing_a_coefficient_does_not_recompile():
    for function in (returns.gae, returns.lambda_returns):
        before = function._cache_size()
        for gamma, lambda_ in ((0.9, 0.5), (0.8, 0.7)):
            function(REWARDS[:4], gamma, VALUES[:5], lambda_)
        assert function._cache_size() == before + 1


def test_lengths_are_checked_without_the_annotation_hook():
    script = """
import numpy as np
from rlhf_jax import returns
r, v = np.zeros(4, np.float32), np.zeros(5, np.float32)
calls = [
    lambda: returns.discounted_return(r, np.zeros(4)),
    lambda: returns.rewards_to_go(r, np.zeros(1)),
    lambda: returns.rewards_to_go(r[:, None], 0.9),
    lambda: returns.n_step_returns(r, 0.9, v[1:], 2),
    lambda: returns.lambda_returns(r, np.zeros(5), v, 0.9),
    lambda: returns.gae(r, 0.9, v[:, None], 0.9),
    lambda: returns.gae(np.zeros((4, 4)), 0.9, np.zeros((5, 4)), 0.9),
]
for number, call in enumerate(calls):
    try:
        call()
    except ValueError as error:
        assert "shape" in str(error) or "values [T+1]" in str(error) or "discounts" in str(error), error
    else:
        raise SystemExit(f"call {number} broadcast silently")
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
