import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.lm.sequences import take
from rlhf_jax.training import checkpoint, sft, state
from rlhf_jax.training.loop import NonFiniteLoss, epochs, fit, in_batches, shuffled_rows


@pytest.fixture
def steps():
    """`(record, list of what it was given)`."""
    seen = []
    return lambda number, metrics: seen.append((number, metrics)), seen


def quadratic(params, batch):
    return jnp.sum(jnp.square(params - batch)), {}


def make(loss):
    optimizer = optax.sgd(0.1)
    return state.make_step(loss, optimizer), state.create(jnp.zeros(2), optimizer)


def test_every_step_is_recorded_with_numbers_of_python(steps):
    record, seen = steps
    step, current = make(quadratic)
    last = fit(step, current, lambda number: jnp.full(2, float(number)), 3, record=record)
    assert [number for number, _ in seen] == [0, 1, 2]
    assert seen[1][1] == pytest.approx({"loss": 2.0, "grad_norm": 8**0.5})
    assert all(type(value) is float for _, metrics in seen for value in metrics.values())
    assert last.step == 3


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (lambda params, batch: (jnp.log(batch) + params.sum(), {}), "loss is -inf at step 3"),
        (lambda params, batch: (jnp.sqrt(batch * params[0]) + params.sum(), {}), "grad_norm is (nan|inf) at step 3"),
    ],
)
def test_a_non_finite_loss_or_gradient_stops_and_keeps_the_last_good_checkpoint(tmp_path, steps, loss, named):
    """A finite loss with a gradient that is not would otherwise save spoilt parameters."""
    record, seen = steps
    guarded = lambda params, batch: jax.lax.cond(
        batch > 0, lambda: quadratic(params, batch), lambda: loss(params, batch)
    )
    step, current = make(guarded)
    batch_at = lambda number: jnp.array(0.0 if number == 3 else 1.0)
    with pytest.raises(NonFiniteLoss, match=named):
        fit(step, current, batch_at, 9, record=record, checkpoints=tmp_path, checkpoint_every=1)
    assert [number for number, _ in seen] == [0, 1, 2]
    assert checkpoint.latest_step(tmp_path) == 3
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpoint.restore(tmp_path, make(quadratic)[1])))


def test_checkpoints_come_when_asked_for_and_at_the_end(tmp_path, steps, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, number, current: saved.append((number, int(current.step))))
    step, current = make(quadratic)
    run = functools.partial(fit, step, batch_at=jnp.float32, num_steps=5, record=steps[0])
    run(current=current)
    assert saved == []
    run(current=make(quadratic)[1], checkpoints=tmp_path)
    assert saved == [(5, 5)]
    run(current=make(quadratic)[1], checkpoints=tmp_path, checkpoint_every=2)
    assert saved[1:] == [(2, 2), (4, 4), (5, 5)]


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    tmp_path, config, params, draw_sequences, steps
):
    data, optimizer = draw_sequences(11, 10), optax.adamw(1e-2)
    step = sft.make_sft_step(config, optimizer)
    batch_at = lambda number: take(data, shuffled_rows(10, 4, number, seed=1))
    run = functools.partial(fit, step, batch_at=batch_at, record=steps[0])
    uninterrupted = run(current=state.create(params, optimizer), num_steps=6)
    run(current=state.create(params, optimizer), num_steps=3, checkpoints=tmp_path)
    restored = checkpoint.restore(tmp_path, state.create(params, optimizer))
    resumed = run(current=restored, num_steps=6, start=3)
    jax.tree.map(np.testing.assert_array_equal, resumed, uninterrupted)
    assert [metrics for _, metrics in steps[1][:6]] == [metrics for _, metrics in steps[1][6:]]


def test_an_epoch_of_batches_holds_each_row_once():
    rows = [shuffled_rows(11, 3, step, seed=5) for step in range(9)]
    orders = [np.concatenate(rows[3 * epoch : 3 * epoch + 3]) for epoch in range(3)]
    for order in orders:
        assert len(set(order.tolist())) == 9
        assert set(order.tolist()) <= set(range(11))
    assert len({tuple(order) for order in orders}) == 3
    np.testing.assert_array_equal(shuffled_rows(11, 3, 4, seed=5), rows[4])
    assert (shuffled_rows(11, 11, 0, seed=5) != shuffled_rows(11, 11, 0, seed=6)).any()
    assert epochs(11, 3, 3) == 9
    with pytest.raises(ValueError, match="2 rows cannot fill a batch of 3"):
        shuffled_rows(2, 3, 0, seed=0)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 4), (8, 4), (3, 4), (1, 4)])
def test_consecutive_batches_have_one_shape_and_begin_with_every_row_in_order(num_rows, batch_size):
    batches = list(in_batches(num_rows, batch_size))
    assert {batch.shape for batch in batches} == {(batch_size,)}
    flat = np.concatenate(batches)
    np.testing.assert_array_equal(flat[:num_rows], np.arange(num_rows))
    assert collections.Counter(flat.tolist()).keys() == set(range(num_rows))
