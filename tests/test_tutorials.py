"""Every tutorial runs as a script, its asserts hold, and it draws its figures; shapes are checked as in the tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
RUN = """
import runpy, sys
from jaxtyping import install_import_hook
install_import_hook("rlhf_jax", "beartype.beartype")
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_the_tutorial_runs_and_draws_its_figures(path, tmp_path):
    environment = os.environ | {"RLHF_JAX_FIGURES": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", RUN, str(path)]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]

    drawn = {figure.name: figure.read_bytes() for figure in tmp_path.iterdir()}
    assert drawn
    assert drawn.keys() == {figure.name for figure in (ROOT / "figures").glob(f"{path.stem[:2]}_*.png")}
    for name, content in drawn.items():
        assert content.startswith(b"\x89PNG"), name
        assert len(content) < 150_000, name


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_the_tutorial_has_the_form_of_the_course(path):
    text = path.read_text()
    code = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= 150
    assert re.search(rf"^# # {int(path.stem[:2])}\. .*\?$", text, re.MULTILINE), "the title asks one question"
    assert "# ## Where to go next" in text
    assert "\nassert " in text
