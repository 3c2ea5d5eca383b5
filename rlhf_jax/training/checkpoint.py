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
    """The newest checkpoint (or `step`) as a tree shaped `like`.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
    """
    if latest_step(folder) is None:
        raise FileNotFoundError(f"{folder} holds no checkpoint")
    with _manager(folder) as manager:
        step = manager.latest_step() if step is None else step
        return manager.restore(step, args=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)))


def _manager(folder: str | Path, keep: int | None = None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)
