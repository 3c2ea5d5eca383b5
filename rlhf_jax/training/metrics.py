"""A run's folder: config.json, metrics.jsonl, TensorBoard events, checkpoints/ and model/."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from rlhf_jax.errors import UserError
from rlhf_jax.training import checkpoint

Record = Callable[[int, dict[str, float]], None]


class RunFolder:
    """The folder of one training run, new or resumed. Nothing is written before `recording`.

    Raises:
        UserError: if the folder holds a run and `resume` is false, or `resume` is true and it holds none, or one of
            other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, resume: bool):
        self.path, self.settings = path, settings
        self.checkpoints, self.model = path / "checkpoints", path / "model"
        self.start = 0
        """Number of steps that the newest checkpoint has behind it."""
        if resume:
            _check_same(path / "config.json", settings)
            self.start = checkpoint.latest_step(self.checkpoints) or 0
        elif (path / "config.json").exists():
            raise UserError(f"{path} already holds a run: add --resume to continue it, or give another --out")

    @contextmanager
    def recording(self, num_steps: int, shown: Sequence[str]) -> Iterator[Record]:
        """Gives the function that records a step: a line in metrics.jsonl, TensorBoard scalars, the progress bar.

        Lines of steps that a resumed run makes again are dropped first. The bar names the metrics `shown`; it is
        silent where standard error is no terminal.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.json").write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        kept = [line for line in self._lines() if json.loads(line)["step"] < self.start]
        with (
            (self.path / "metrics.jsonl").open("w", encoding="utf-8") as file,
            closing(SummaryWriter(str(self.path), purge_step=self.start)) as board,
            tqdm(total=num_steps, initial=self.start, unit="step", disable=None) as bar,
        ):
            file.writelines(kept)
            begin = last = time.perf_counter()

            def record(step: int, metrics: dict[str, float]) -> None:
                nonlocal last
                now = time.perf_counter()
                timing = {"step_seconds": now - last, "seconds": now - begin}
                last = now
                file.write(json.dumps({"step": step, **metrics, "timing": timing}) + "\n")
                file.flush()
                for name, value in metrics.items():
                    board.add_scalar(name, value, step)
                bar.set_postfix({name: f"{metrics[name]:.3g}" for name in shown}, refresh=False)
                bar.update()

            yield record

    def _lines(self) -> list[str]:
        """The complete lines of metrics.jsonl: one that an interruption cut short has no end."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [line for line in lines if line.endswith("\n")]


def _check_same(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        raise UserError(f"{path.parent} holds no run to resume: leave --resume out to start one")
    stored = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if stored.get(name) != value:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{path}: the run has {flag} {stored.get(name)}, not {value}: give the same, or another --out"
            )
