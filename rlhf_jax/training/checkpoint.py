"""Checkpoints of a train state, by Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


def save(folder: str | Path, step: int, state: Any, *, keep: int = 2) -> None:
    """Write `state` (a tree of arrays) as checkpoint `step` and drop all but the newest `keep`."""
    with _manager(folder, keep) as manager:
        manager.save(step, args=ocp.args.StandardSave(state))


def latest_step(folder: str | Path) -> int | None:
    """The newest complete checkpoint, or None."""
    if not Path(folder).is_dir():
        return None
    with _manager(folder) as manager:
        return manager.latest_step()


def restore(folder: str | Path, like: Any, step: int | None = None) -> Any:
    """The newest checkpoint (or `step`) as a tree of the structure, shapes, dtypes and placement of `like`.

    Raises:
        FileNotFoundError: if the folder holds no such checkpoint.
    """
    step = latest_step(folder) if step is None else step
    if step is None or not (Path(folder) / str(step)).is_dir():
        raise FileNotFoundError(f"{folder} holds no checkpoint" + ("" if step is None else f" {step}"))
    with _manager(folder) as manager:
        return manager.restore(step, args=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)))


def _manager(folder: str | Path, keep: int | None = None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)
