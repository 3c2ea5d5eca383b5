"""The course has one form, its figures are those in the repository, and its exercises can be got right and wrong.

`make docs` runs the lessons from top to bottom, once. Here the exercises run alone, on a lesson's imports: blank, with
the published solutions, and with each solution's answer spoiled.
"""

import ast
import re
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
FIGURE = re.compile(r'plots\.save\(\w+, "(\w+)"\)')


def cells(path):
    """Pairs (is it code, text) of a script in jupytext's percent format."""
    kinds = re.split(r"^# %%(.*)\n", path.read_text(), flags=re.MULTILINE)[1:]
    return [(kind.strip() != "[markdown]", text) for kind, text in zip(kinds[::2], kinds[1::2], strict=True)]


def exercises(path):
    """The lesson's first code cell, and the code cells under its heading Exercises."""
    code = [(place, text) for place, (is_code, text) in enumerate(cells(path)) if is_code]
    begin = next(place for place, (_, text) in enumerate(cells(path)) if "# ## Exercises" in text)
    return code[0][1], [text for place, text in code if place > begin]


def solution(path):
    scope = {}
    for is_code, text in cells(path.parent / "solutions" / path.name):
        if is_code:
            exec(text, scope)
    return scope


def run(path, replaced):
    """Run the exercises on the lesson's imports, with functions of `replaced` in the place of the blank ones."""
    first, rest = exercises(path)
    scope = {}
    exec(first, scope)
    for text in rest:
        tree = ast.parse(text)
        tree.body = [node for node in tree.body if getattr(node, "name", None) not in replaced]
        scope |= replaced
        exec(compile(tree, str(path), "exec"), scope)


def spoiled(answer):
    if callable(answer):
        return lambda *args, **kwargs: spoiled(answer(*args, **kwargs))
    if isinstance(answer, str):
        return answer + "?"
    if isinstance(answer, dict):
        return {key: spoiled(value) for key, value in answer.items()}
    if isinstance(answer, tuple | list | set):
        spoilt = [spoiled(each) for each in answer]
        return type(answer)(*spoilt) if hasattr(answer, "_fields") else type(answer)(spoilt)
    if isinstance(answer, bool) or getattr(answer, "dtype", None) == np.bool_:
        return np.logical_not(answer)
    return answer + answer // 2 + 1 if isinstance(answer, int) else 1.5 * answer + 1


@pytest.fixture(autouse=True)
def precision():
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_has_the_form_of_the_course(path):
    text = path.read_text()
    code = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= 150
    assert re.search(rf"^# # {int(path.stem[:2])}\. .*\?$", text, re.MULTILINE), "the title asks one question"
    assert "# ## Where to go next" in text
    assert text.count("\nassert ") >= 5


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lessons_figures_are_those_in_the_repository(path):
    names = FIGURE.findall(path.read_text())
    committed = list((ROOT / "figures").glob(f"{path.stem[:2]}_*.png"))
    assert 1 <= len(names) <= 3
    assert sorted(names) == sorted(figure.stem for figure in committed)
    for figure in committed:
        assert figure.read_bytes().startswith(b"\x89PNG")
        assert figure.stat().st_size < 150_000, figure.name


def test_every_lesson_has_its_number_and_its_solutions():
    assert [int(path.stem[:2]) for path in LESSONS] == list(range(1, 16))
    assert [path.name for path in sorted((ROOT / "tutorials/solutions").glob("*.py"))] == [p.name for p in LESSONS]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_exercises_take_the_solutions_and_nothing_else(path, capsys):
    run(path, {})
    assert re.findall(r"^Exercise (\d): to do$", capsys.readouterr().out, re.MULTILINE) == ["1", "2", "3"]

    solved = {f"exercise_{k}": solution(path)[f"exercise_{k}"] for k in (1, 2, 3)}
    run(path, solved)
    assert re.findall(r"^Exercise (\d): right$", capsys.readouterr().out, re.MULTILINE) == ["1", "2", "3"]

    for name, function in solved.items():
        with pytest.raises(AssertionError):
            run(path, solved | {name: spoiled(function)})
