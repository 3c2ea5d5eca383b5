"""Pages made from other files: lessons and solutions from tutorials/, the ladder from README.md, links between them."""

import posixpath
import re
import sys
from pathlib import Path

import names
import nbformat

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "scripts"))

from make_notebooks import TUTORIALS, lessons, notebook  # noqa: E402

# A block of code, `code` (perhaps as the text of a link), or the target of a link; figures and cards hold Markdown.
BLOCK = r"^( *)(```+|~~~+)(?!\{(?!code|eval)).*?^\1\2 *$"
SPAN = r"(\[?)(?<!`)(``?)(?!`)((?:(?!\n\n).)+?)\4(?!`)"
TARGET = r"\]\(([^):#\s]+)(#[^)\s]*)?\)"
MARKUP = re.compile(f"{BLOCK}|{SPAN}|{TARGET}", re.MULTILINE | re.DOTALL)


def rewritten(text: str, folder: str) -> str:
    """Markdown of the repository's `folder` as this site's: links to files lead to pages, names to the reference."""

    def change(match):
        *_, bracket, ticks, code, target, anchor = match.groups()
        if target:
            return f"]({page_of(posixpath.normpath(posixpath.join(folder, target)))}{anchor or ''})"
        full = (
            names.resolve(code) if ticks == "`" and not bracket and "." in code and not code.endswith(".py") else None
        )
        return f"{{py:obj}}`{code} <{full}>`" if full else match[0]

    return MARKUP.sub(change, text)


def page_of(path: str) -> str:
    """The page of this site that shows a file of the repository, or the file."""
    if found := re.fullmatch(r"tutorials/((?:solutions/)?\d\d_\w+)\.py", path):
        return f"/course/{found[1]}.ipynb"
    if found := re.fullmatch(r"rlhf_jax/([\w/]+)\.py", path):
        return f"/reference/{found[1].replace('/', '.')}.md"
    if found := re.fullmatch(r"docs/(.+\.md)", path):
        return f"/{found[1]}"
    return "/changelog.md" if path == "CHANGELOG.md" else f"/{posixpath.relpath(path, 'docs')}"


def write_course() -> None:
    """docs/course/NN_name.ipynb and docs/course/solutions/NN_name.ipynb; a figure's alternative text is its titles."""
    for path in lessons():
        folder = str(path.parent.relative_to(ROOT))
        book = notebook(path, lambda text, folder=folder: rewritten(text, folder))
        for cell in book.cells:
            if "plots.save(" in cell.source:
                titles = re.findall(r"""(?:title=|set_title\()["']([^"']+)""", cell.source)
                titles += re.findall(r"""plots\.save\(\w+, "\d\d_(\w+)""", cell.source) if not titles else []
                cell.metadata["mystnb"] = {"image": {"alt": "Figure: " + "; ".join(titles).replace("_", " ")}}
        _write(DOCS / "course" / path.relative_to(TUTORIALS).with_suffix(".ipynb"), nbformat.writes(book))


def write_ladder() -> None:
    """docs/ladder.md from the README's table: functions lead to the reference, tutorials to the course."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## The ladder\n")[1].split("\n## ")[0]
    section = re.sub(r"\[(`[\w.]+`)\]\(rlhf_jax/[\w/]+\.py\)", r"\1", section)
    section = re.sub(r"\[test\]\(tests/([\w/]+\.py)\)", r"`\1`", section)
    _write(
        DOCS / "ladder.md",
        "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n# The ladder\n\n"
        + rewritten(section.strip().replace("\n### ", "\n## "), "")
        + "\n",
    )


def write_changelog() -> None:
    _write(DOCS / "changelog.md", rewritten((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), ""))


def _write(path: Path, text: str) -> None:
    """Only where it changed: Sphinx reads again what is newer than its last build."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def on_source_read(app, docname, source) -> None:
    """Links and names in the hand-written pages; the made ones have been rewritten."""
    if app.env.doc2path(docname).suffix == ".md" and docname not in ("ladder", "changelog"):
        source[0] = rewritten(source[0], posixpath.dirname(f"docs/{docname}"))


def spread(app, env, docnames) -> None:
    """Lessons take minutes, other pages moments: deal them out, so that parallel readers get as many of each."""
    lessons = [name for name in docnames if re.match(r"course/\d", name)]
    others = [name for name in docnames if name not in lessons]
    step = max(1, len(docnames) // max(1, len(lessons)))
    for place, name in enumerate(lessons[::2] + lessons[1::2]):
        others.insert(place * step, name)
    docnames[:] = others
