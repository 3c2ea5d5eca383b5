import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import log_probs, numpy_losses

B, T, V, D = 2, 7, 40, 3
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, V, (B, T))
HIDDEN = RNG.normal(size=(B, T, D))
EMBEDDING = RNG.normal(size=(V, D))
LOGITS = HIDDEN @ EMBEDDING.T


def test_token_log_probs_by_hand():
    logits = np.log(np.array([[[1.0, 1.0, 2.0], [5.0, 3.0, 2.0], [9.0, 9.0, 9.0]]], np.float32))
    tokens = np.array([[0, 2, 1]])
    np.testing.assert_allclose(log_probs.token_log_probs(logits, tokens), np.log([[2 / 4, 3 / 10]]), rtol=1e-6)


def test_token_log_probs_equal_the_loop():
    expected = [numpy_losses.token_log_probs(*row) for row in zip(LOGITS, TOKENS, strict=True)]
    with jax.enable_x64(True):
        np.testing.assert_allclose(log_probs.token_log_probs(LOGITS, TOKENS), expected, rtol=1e-12)


def test_the_gradient_is_one_hot_minus_softmax_and_the_last_position_has_none():
    with jax.enable_x64(True):
        gradient = jax.grad(lambda logits: log_probs.token_log_probs(logits, TOKENS).sum())(jnp.asarray(LOGITS))
    gradient = np.array(gradient)
    expected = np.eye(V)[TOKENS[:, 1:]] - np.apply_along_axis(numpy_losses.softmax, -1, LOGITS[:, :-1])
    np.testing.assert_allclose(gradient[:, :-1], expected, atol=1e-12)
    assert (gradient[:, -1] == 0).all()


def test_probabilities_over_the_vocabulary_sum_to_one():
    every = jnp.arange(V)
    rows = jnp.broadcast_to(jnp.asarray(LOGITS[0, 0], jnp.float32), (V, V))
    assert abs(jnp.exp(log_probs.categorical_log_probs(rows, every)).sum() - 1) < 1e-6
    np.testing.assert_allclose(log_probs.log_softmax(rows)[0], log_probs.categorical_log_probs(rows, every), atol=1e-6)


def test_low_precision_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 2, 50_000), jnp.bfloat16)
    scored = log_probs.token_log_probs(logits, np.zeros((1, 2), int))
    assert scored.dtype == jnp.float32
    np.testing.assert_allclose(scored, [[-np.log(50_000)]], rtol=1e-6)


def test_huge_and_impossible_logits_keep_values_and_gradients_right():
    logits = jnp.array([[1e4, -1e4, 0.0], [0.0, -jnp.inf, 0.0]])
    tokens = jnp.array([1, 0])
    score = lambda logits: log_probs.categorical_log_probs(logits, tokens)
    np.testing.assert_allclose(score(logits), [-2e4, -np.log(2)], rtol=1e-6)
    gradient = jax.grad(lambda logits: score(logits).sum())(logits)
    np.testing.assert_allclose(gradient, [[-1, 1, 0], [0.5, 0, -0.5]], atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 6, 32])
def test_chunked_values_and_gradients_equal_the_dense_ones(chunk_size):
    """T − 1 = 6: chunks that divide it, one that does not, one that is larger."""

    def dense(hidden, embedding):
        scored = log_probs.token_log_probs(hidden @ embedding.T, TOKENS)
        return jnp.sum(jnp.square(scored)), scored

    def chunked(hidden, embedding):
        scored = log_probs.chunked_token_log_probs(hidden, embedding, TOKENS, chunk_size=chunk_size)
        return jnp.sum(jnp.square(scored)), scored

    with jax.enable_x64(True):
        arguments = jnp.asarray(HIDDEN), jnp.asarray(EMBEDDING)
        gradients, scored = jax.grad(chunked, (0, 1), has_aux=True)(*arguments)
        expected_gradients, expected = jax.grad(dense, (0, 1), has_aux=True)(*arguments)
    np.testing.assert_allclose(scored, expected, rtol=1e-12)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-12)


def test_chunked_accumulates_bfloat16_products_in_float32():
    hidden, embedding = jnp.asarray(HIDDEN, jnp.bfloat16), jnp.asarray(EMBEDDING, jnp.bfloat16)
    scored = log_probs.chunked_token_log_probs(hidden, embedding, TOKENS)
    exact = log_probs.token_log_probs(hidden.astype(jnp.float32) @ embedding.T.astype(jnp.float32), TOKENS)
    assert scored.dtype == jnp.float32
    np.testing.assert_allclose(scored, exact, atol=1e-5)
    hidden_gradient = jax.grad(lambda h: log_probs.chunked_token_log_probs(h, embedding, TOKENS).sum())(hidden)
    assert hidden_gradient.dtype == jnp.bfloat16


def _array_sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _array_sizes(inner)


def test_the_chunked_program_never_holds_all_logits_forward_or_backward():
    dense = lambda hidden, embedding: log_probs.token_log_probs(hidden @ embedding.T, TOKENS).sum()
    chunked = lambda hidden, embedding: log_probs.chunked_token_log_probs(hidden, embedding, TOKENS, chunk_size=2).sum()
    arguments = jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(EMBEDDING, jnp.float32)

    def largest(function):
        return max(_array_sizes(jax.make_jaxpr(function)(*arguments).jaxpr))

    for transform in (lambda f: f, lambda f: jax.grad(f, (0, 1))):
        assert largest(transform(dense)) >= B * (T - 1) * V
        assert largest(transform(chunked)) == B * 2 * V


def test_a_single_token_has_nothing_to_score():
    assert log_probs.token_log_probs(LOGITS[:, :1], TOKENS[:, :1]).shape == (B, 0)
    assert log_probs.chunked_token_log_probs(HIDDEN[:, :1], EMBEDDING, TOKENS[:, :1]).shape == (B, 0)


def test_log_ratio_is_the_difference_until_it_saturates():
    assert log_probs.log_ratio(-1.5, -3.0) == 1.5
    bound = 0.5 * np.log(np.finfo(np.float32).max)
    np.testing.assert_allclose(log_probs.log_ratio(1e3, 0.0), bound, rtol=1e-6)
    assert log_probs.log_ratio(-1e3, 0.0) == -1e3
    for difference, slope in itertools.product([1e3, np.inf], [0.0]):
        assert jax.grad(log_probs.log_ratio)(difference, 0.0) == slope
    assert jnp.isnan(log_probs.log_ratio(jnp.nan, 0.0))
