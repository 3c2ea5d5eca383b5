import json

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.training import checkpoint
from rlhf_jax.training.metrics import RunFolder

SETTINGS = {"learning_rate": 0.1, "data": "pairs.jsonl"}


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_settings_metrics_and_events_and_is_silent_without_a_terminal(tmp_path, capfd):
    path = tmp_path / "runs" / "one"
    run = RunFolder(path, SETTINGS, resume=False)
    assert not path.exists()
    with run.recording(2, ("loss",)) as record:
        record(0, {"loss": 2.0, "accuracy": 0.5})
        record(1, {"loss": 1.0, "accuracy": 0.75})
    assert json.loads((path / "config.json").read_text()) == SETTINGS
    first, second = lines(path)
    timing = second.pop("timing")
    assert second == {"step": 1, "loss": 1.0, "accuracy": 0.75}
    assert 0 < timing["step_seconds"] <= timing["seconds"]
    assert first["step"] == 0
    (events,) = path.glob("events.out.tfevents.*")
    assert b"accuracy" in events.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_drops_the_lines_of_steps_that_it_makes_again(tmp_path, monkeypatch):
    """The run died after step 3, in the middle of a line; its newest checkpoint has two steps behind it."""
    with RunFolder(tmp_path, SETTINGS, resume=False).recording(9, ("loss",)) as record:
        for step in range(4):
            record(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    monkeypatch.setattr(checkpoint, "latest_step", lambda folder: 2)
    run = RunFolder(tmp_path, SETTINGS, resume=True)
    assert run.start == 2
    with run.recording(9, ("loss",)) as record:
        record(2, {"loss": 20.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(0, 0.0), (1, 1.0), (2, 20.0)]


def test_a_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no run to resume"):
        RunFolder(tmp_path, SETTINGS, resume=True)
    with RunFolder(tmp_path, SETTINGS, resume=False).recording(1, ()):
        pass
    assert RunFolder(tmp_path, SETTINGS, resume=True).start == 0
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        RunFolder(tmp_path, SETTINGS, resume=False)
    with pytest.raises(UserError, match=r"config.json: the run has --learning-rate 0.1, not 0.2"):
        RunFolder(tmp_path, SETTINGS | {"learning_rate": 0.2}, resume=True)
