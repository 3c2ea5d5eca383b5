"""The documentation's parts fit together: every public name has its place, every page is reachable, every link leads.

Nothing is built here: `make docs` does that, and executes the lessons.
"""

import ast
import importlib.util
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCS, PACKAGE, TUTORIALS = ROOT / "docs", ROOT / "rlhf_jax", ROOT / "tutorials"
LESSONS = sorted(TUTORIALS.glob("[0-9]*.py"))
MADE = {DOCS / "ladder.md", DOCS / "changelog.md"}  # by docs/conf.py
PAGES = sorted(
    {page for page in DOCS.rglob("*.md") if page.relative_to(DOCS).parts[0] not in ("_build", "course")} | MADE
)
WRITTEN = [page for page in PAGES if page not in MADE]

CORE = [
    "masking",
    "mdp",
    "returns",
    "values",
    "estimation",
    "policy_gradient",
    "log_probs",
    "kl",
    "ppo",
    "group",
    "reward_model",
    "dpo",
    "dpo_variants",
    "enumerable",
    "population",
    "moments",
    "estimators",
]
WITHOUT_EQUATION = {
    "mdp.make_mdp",
    "enumerable.check_bytes",
    "population.sample_choices",
    "estimators.pair_gradients",
    "estimators.group_gradients",
    "estimators.small_language",
    "estimators.estimator_table",
}
ENTRY = re.compile(r"^\.\. (?:auto(?:function|class)|py:data):: ([\w.]+)\n((?:\n|   .*\n)*)", re.MULTILINE)


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            yield ".".join(parts), ast.parse(path.read_text(encoding="utf-8"))


def _public_names(module, tree):
    for node in tree.body:
        names = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not module.startswith(
            ("rlhf_jax.cli", "rlhf_jax.commands")
        ):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        yield from (f"{module}.{name}" for name in names if not name.startswith("_"))


MODULES = dict(_modules())
REFERENCE = {
    page.stem: ENTRY.findall(page.read_text(encoding="utf-8"))
    for page in sorted((DOCS / "reference").glob("*.md"))
    if page.stem != "index"
}


def test_every_module_has_its_page_in_the_reference():
    assert {f"rlhf_jax.{page}" for page in REFERENCE} == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference_once(module):
    page = module.removeprefix("rlhf_jax.")
    text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert text.count(f".. automodule:: {module}\n   :no-members:\n") == 1
    # A constant's entry is its plain name: the page's module is the current one.
    listed = [name if "." in name else f"{module}.{name}" for name, _ in REFERENCE[page]]
    assert listed == list(_public_names(module, MODULES[module]))


@pytest.mark.parametrize("module", CORE)
def test_every_function_of_the_core_has_its_equation_typeset(module):
    functions = {node.name for node in MODULES[f"rlhf_jax.{module}"].body if isinstance(node, ast.FunctionDef)}
    equations = {}
    for name, content in REFERENCE[module]:
        for equation in re.findall(r"^   \.\. math:: (.+)$", content, re.MULTILINE):
            assert equation.count("{") == equation.count("}"), name
            assert len(re.findall(r"\\left\b", equation)) == len(re.findall(r"\\right\b", equation)), name
            equations[name.removeprefix("rlhf_jax.")] = equation
    wanted = {f"{module}.{name}" for name in functions if not name.startswith("_")}
    assert set(equations) == wanted - WITHOUT_EQUATION


def _reachable():
    todo, seen = [DOCS / "index.md"], set()
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        if page in MADE or not page.exists():
            continue
        for block in re.findall(
            r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            for line in block.splitlines():
                if line and not line.startswith(":"):
                    entry = re.sub(r".*<(.*)>", r"\1", line.strip())
                    todo += [] if "*" in entry else [page.parent / f"{entry}.md"]
    return seen


def test_every_page_is_reachable_from_the_first():
    reachable = _reachable()
    assert sorted(page for page in reachable if page not in MADE and not page.exists()) == []
    assert sorted(set(PAGES) - reachable) == []


@pytest.mark.parametrize("path", [*WRITTEN, *TUTORIALS.rglob("*.py")], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    text = re.sub(r"^(```+)(?!\{(?!code|eval)).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)\s]*)?\)", text)
    links += [f"{link}.md" for link in re.findall(r"^:link: (\S+)$", text, re.MULTILINE)]
    wrong = [link for link in links if not (file := (path.parent / link).resolve()).exists() and file not in MADE]
    assert wrong == []


def test_the_course_has_a_row_for_every_lesson():
    rows = re.findall(
        r"^\| \[(\d+)\]\(\.\./tutorials/(\w+)\.py\) \| (.+?) \| .+ \|$", (DOCS / "course.md").read_text(), re.M
    )
    titles = {path.stem: re.search(r"^# # \d+\. (.+)$", path.read_text(), re.MULTILINE)[1] for path in LESSONS}
    assert {name: title for _, name, title in rows} == titles
    assert [int(number) for number, *_ in rows] == [int(name[:2]) for _, name, _ in rows]


make_notebooks = _load(ROOT / "scripts" / "make_notebooks.py")
check_site = _load(ROOT / "scripts" / "check_site.py")
SOURCE = "rlhf-jax[lm] @ git+https://example.org/me/rlhf_jax.git"


@pytest.mark.parametrize(
    ("remote", "source"),
    [
        ("https://example.org/me/rlhf_jax.git\n", SOURCE),
        ("https://name:secret@example.org/me/rlhf_jax.git", SOURCE),
        ("git@example.org:me/rlhf_jax.git", SOURCE),
        ("ssh://git@example.org/me/rlhf_jax.git", SOURCE),
        ("ssh://git@example.org:2222/me/rlhf_jax.git", SOURCE),
        ("https://example.org:8443/me/r", "rlhf-jax[lm] @ git+https://example.org:8443/me/r"),
        ("/srv/git/rlhf_jax", None),
        ("../rlhf_jax", None),
        ("file:///srv/git/rlhf_jax", None),
        ("", None),
    ],
)
def test_a_remote_becomes_what_pip_installs(remote, source):
    assert make_notebooks.source_of(remote) == source


@pytest.mark.parametrize("source", [None, SOURCE])
def test_the_notebooks_are_valid_empty_and_lead_to_each_other(tmp_path, source):
    folder = tmp_path / "notebooks"
    (tmp_path / "docs").symlink_to(DOCS)
    assert len(make_notebooks.write(folder, source)) == len(list(TUTORIALS.rglob("[0-9]*.py")))
    for path in LESSONS:
        book = nbformat.read(folder / f"{path.stem}.ipynb", as_version=4)
        nbformat.validate(book)
        install, title, *_ = book.cells
        assert [
            cell for cell in book.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)
        ] == []
        assert {cell.cell_type for cell in book.cells} == {"markdown", "code"}
        assert re.match(rf"# {int(path.stem[:2])}\. .+\?", title.source)
        assert install.source.count("%pip") == (source is not None)
        assert (source or "pip install") in install.source
        exec(re.sub("%pip .*", "raise AssertionError", install.source), {})
        prose = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
        links = re.findall(r"\]\((?!https?:)([^)#\s]+)\)", prose)
        assert [link for link in links if not (folder / link).exists()] == []


def test_a_notebook_has_the_code_of_its_lesson():
    for path in LESSONS:
        cells = make_notebooks.notebook(path).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(path.read_text(encoding="utf-8")))


def test_the_script_writes_notebooks_from_any_folder(tmp_path):
    script = ROOT / "scripts" / "make_notebooks.py"
    command = [sys.executable, str(script), "--source", SOURCE, "--out", str(tmp_path)]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"notebooks in {tmp_path}" in finished.stdout
    assert SOURCE in (tmp_path / "01_mdp_and_trajectories.ipynb").read_text()


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (
            '<a href="b.html#there">b</a> <a href="https://example.org">far</a> <img src="data:image/png;base64,AA">',
            None,
        ),
        ('<a href="c.html">c</a>', "a.html leads to c.html, which does not exist"),
        ('<a href="b.html#gone">b</a>', "a.html leads to b.html#gone, a place which does not exist"),
        ('<img src="figure.png">', "a.html leads to figure.png, which does not exist"),
        ('<script src="https://cdn.example.org/x.js"></script>', "a.html fetches https://cdn.example.org/x.js"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "a.html fetches //example.org/x.css"),
    ],
)
def test_a_broken_link_or_a_remote_file_is_found(tmp_path, page, problem):
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text('<h1 id="there">b</h1>')
    assert check_site.problems(tmp_path) == ([problem] if problem else [])


def test_a_remote_font_is_found(tmp_path):
    (tmp_path / "site.css").write_text(
        "@font-face { src: url('https://fonts.example.org/x.woff2') } a { background: url(b.png) }"
    )
    assert check_site.problems(tmp_path) == ["site.css fetches https://fonts.example.org/x.woff2"]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[l](05_ppo.py)", "[l](/course/05_ppo.ipynb)"),
        ("[s](solutions/05_ppo.py#a)", "[s](/course/solutions/05_ppo.ipynb#a)"),
        ("[n](../docs/notation.md)", "[n](/notation.md)"),
        ("[`kl.k3`](../rlhf_jax/kl.py)", "[`kl.k3`](/reference/kl.md)"),
        ("![f](../figures/f.png)", "![f](/../figures/f.png)"),
        ("[w](https://example.org/a.py)", "[w](https://example.org/a.py)"),
        ("`kl.k3`, `k3`, `kl.py`, ``kl.k3``", "{py:obj}`kl.k3 <rlhf_jax.kl.k3>`, `k3`, `kl.py`, ``kl.k3``"),
        ("`f[0](x)`\n```python\nf[0](x)  # `kl.k3`\n```", "`f[0](x)`\n```python\nf[0](x)  # `kl.k3`\n```"),
        ("```{code-cell}\nf[0](x)\n```\n[n](../docs/a.md)", "```{code-cell}\nf[0](x)\n```\n[n](/a.md)"),
        ("```{figure} f.png\n[n](../docs/a.md)\n```", "```{figure} f.png\n[n](/a.md)\n```"),
    ],
)
def test_a_lesson_s_prose_leads_to_pages_and_its_code_stays(monkeypatch, written, shown):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    assert _load(DOCS / "_ext" / "pages.py").rewritten(written, "tutorials") == shown
