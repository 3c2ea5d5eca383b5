"""The loop around a train step: batches in, metrics out, checkpoints on the way."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.training import checkpoint, state

State = TypeVar("State")


class NonFiniteLoss(UserError):
    """A step's loss or gradient was NaN or infinite; the checkpoints on disk are older and sound."""


def fit(
    step: Callable[[State, Any], tuple[State, state.Metrics]],
    current: State,
    batch_at: Callable[[int], Any],
    num_steps: int,
    *,
    start: int = 0,
    record: Callable[[int, dict[str, float]], None],
    checkpoints: Path | None = None,
    checkpoint_every: int = 0,
) -> State:
    """Run steps start … num_steps − 1 on `batch_at(step)`, handing each step's metrics to `record`.

    Data and randomness are functions of the step number, so a run continued from a checkpoint sees what an
    uninterrupted one would. A checkpoint named n holds the state after n steps.

    Raises:
        NonFiniteLoss: naming the step, before anything of it is recorded or saved.
    """
    for number in range(start, num_steps):
        current, metrics = step(current, batch_at(number))
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                raise NonFiniteLoss(f"{name} is {metrics[name]} at step {number}: try a smaller learning rate")
        record(number, metrics)
        done = number + 1
        if checkpoints is not None and (done == num_steps or (checkpoint_every and done % checkpoint_every == 0)):
            checkpoint.save(checkpoints, done, current)
    return current


def shuffled_rows(num_rows: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Row numbers of batch `step`: every epoch is a new permutation, its incomplete last batch left out.

    Raises:
        ValueError: if there are fewer rows than a batch takes.
    """
    per_epoch = num_rows // batch_size
    if per_epoch == 0:
        raise ValueError(f"{num_rows} rows cannot fill a batch of {batch_size}")
    epoch, index = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    return order[index * batch_size : (index + 1) * batch_size]


def epochs(num_rows: int, batch_size: int, num_epochs: int) -> int:
    """Number of steps that `num_epochs` passes take."""
    return num_epochs * (num_rows // batch_size)


def in_batches(num_rows: int, batch_size: int) -> Iterator[np.ndarray]:
    """Row numbers of consecutive full batches; the last one repeats rows so that one shape is compiled."""
    for begin in range(0, num_rows, batch_size):
        yield np.resize(np.arange(begin, min(begin + batch_size, num_rows)), batch_size)
