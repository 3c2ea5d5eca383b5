import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.lm.sequences import Sequences, pad_left, pad_right
from rlhf_jax.training import sft, state


@pytest.fixture(scope="module")
def value_and_grad(config):
    return jax.jit(jax.value_and_grad(functools.partial(sft.sft_loss, config=config), has_aux=True))


@pytest.fixture(scope="module")
def batch(draw_sequences):
    return draw_sequences(1, 6)


def test_loss_is_the_mean_over_completion_tokens_of_each_row_scored_alone(
    value_and_grad, params, batch, unpadded_log_probs
):
    """Padding, positions and the shift by one, all against rows that have none of them."""
    tokens = np.concatenate(unpadded_log_probs(params, batch))
    (loss, metrics), _ = value_and_grad(params, batch)
    np.testing.assert_allclose(loss, -tokens.mean(), rtol=2e-5)
    assert metrics["tokens"] == len(tokens) == batch.completion_mask.sum()


def test_more_padding_on_both_sides_changes_neither_loss_nor_gradient(value_and_grad, params, batch, pad_more):
    (loss, _), gradient = value_and_grad(params, batch)
    (padded_loss, _), padded_gradient = value_and_grad(params, pad_more(batch, 2, 3))
    np.testing.assert_allclose(padded_loss, loss, rtol=2e-5)
    close = functools.partial(np.testing.assert_allclose, atol=2e-5)
    jax.tree.map(close, padded_gradient, gradient)


def test_prompt_tokens_are_read_but_not_learnt(value_and_grad, params):
    """log π(yz|x) = log π(y|x) + log π(z|xy): moving the border moves tokens out of the sum, and nothing else."""
    text = np.random.default_rng(0).integers(1, 11, (6, 8))

    def total(begin, end):
        batch = Sequences(*pad_left(list(text[:, :begin]), 5), *pad_right(list(text[:, begin:end]), 6))
        return float(value_and_grad(params, batch)[0][0]) * (end - begin)

    np.testing.assert_allclose(total(2, 8), total(2, 5) + total(5, 8), rtol=1e-5)


def test_an_empty_completion_costs_nothing(value_and_grad, params, batch):
    nothing = batch._replace(completion_mask=np.zeros_like(batch.completion_mask))
    (loss, _), gradient = value_and_grad(params, nothing)
    assert loss == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_the_gradient_is_that_of_the_loss_in_float64(value_and_grad, wide_params, batch):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), wide_params)
        moved = lambda size: jax.tree.map(lambda leaf, step: leaf + size * step, wide_params, direction)
        gradient = value_and_grad(wide_params, batch)[1]
        slope = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
        above, below = (value_and_grad(moved(size), batch)[0][0] for size in (1e-6, -1e-6))
        np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-7)


def test_steps_lower_the_loss_and_leave_the_given_parameters_alone(config, params, batch):
    optimizer = optax.adam(1e-2)
    step, current = sft.make_sft_step(config, optimizer), state.create(params, optimizer)
    losses = []
    for _ in range(30):
        current, metrics = step(current, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0]
    assert current.step == 30
    assert metrics["grad_norm"] > 0
    assert step._cache_size() == 1
    assert not params["wte"]["weight"].is_deleted()
