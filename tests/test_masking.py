import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import masking

VALUES = np.array([[1.0, 2.0, 4.0], [7.0, -3.0, 0.5]], np.float32)
MASK = np.array([[True, False, True], [True, True, False]])


def test_masked_sum_and_mean_by_hand():
    assert masking.masked_sum(VALUES, MASK) == 1 + 4 + 7 - 3
    assert masking.masked_mean(VALUES, MASK) == 9 / 4


def test_a_single_kept_entry_is_its_own_mean_and_has_no_deviation():
    single = np.array([[False, False, True], [False, False, False]])
    assert masking.masked_mean(VALUES, single) == 4
    assert (masking.masked_whiten(VALUES, single) == 0).all()


def test_masked_whiten_equals_whitening_the_kept_subset():
    kept = VALUES[MASK]
    expected = (kept - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8)
    whitened = masking.masked_whiten(VALUES, MASK)
    np.testing.assert_allclose(whitened[MASK], expected, rtol=1e-6)
    assert (whitened[~MASK] == 0).all()


@pytest.mark.parametrize("function", [masking.masked_sum, masking.masked_mean, masking.masked_whiten])
def test_a_masked_nan_reaches_neither_value_nor_gradient(function):
    spoiled = jnp.where(MASK, VALUES, jnp.nan)
    value, gradient = jax.value_and_grad(lambda v: function(v, MASK).sum())(spoiled)
    clean, clean_gradient = jax.value_and_grad(lambda v: function(v, MASK).sum())(jnp.asarray(VALUES))
    assert value == clean
    np.testing.assert_array_equal(gradient, clean_gradient)
    assert (gradient[~MASK] == 0).all()


def test_an_unmasked_nan_propagates():
    assert jnp.isnan(masking.masked_mean(jnp.where(MASK, jnp.nan, VALUES), MASK))


@pytest.mark.parametrize("function", [masking.masked_sum, masking.masked_mean, masking.masked_whiten])
def test_an_empty_mask_gives_zero_and_zero_gradient(function):
    nothing = np.zeros_like(MASK)
    assert (function(VALUES, nothing) == 0).all()
    assert (jax.grad(lambda v: function(v, nothing).sum())(VALUES) == 0).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtype_is_kept(dtype):
    assert masking.masked_whiten(VALUES.astype(dtype), MASK).dtype == dtype
