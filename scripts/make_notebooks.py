"""Write notebooks/NN_name.ipynb from tutorials/NN_name.py, each with a first cell that installs the package in Colab.

python scripts/make_notebooks.py [--source REQUIREMENT] [--out FOLDER]
"""

import argparse
import re
import subprocess
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "tutorials"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
INSTALL = """\
# Where rlhf_jax is missing, as in Colab, this installs it; in the environment of a clone it does nothing.
import importlib.util

if importlib.util.find_spec("rlhf_jax") is None:
    %pip install --quiet "{source}"
"""
NOTHING_TO_INSTALL = """\
# This notebook needs rlhf_jax: run it from the environment of its clone (pip install ".[lm]" in the clone's folder).
import rlhf_jax
"""


def lessons() -> list[Path]:
    """The tutorials, then their solutions."""
    return sorted(TUTORIALS.glob("[0-9]*.py")) + sorted(TUTORIALS.glob("solutions/[0-9]*.py"))


def notebook(path: Path, rewrite=lambda text: text, first_cell: str | None = None) -> nbformat.NotebookNode:
    """A tutorial as a notebook without outputs, the same on every call; `rewrite` changes the text of its prose."""
    book = jupytext.read(path, fmt="py:percent")
    book.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = rewrite(cell.source)
    if first_cell is not None:
        book.cells.insert(0, nbformat.v4.new_code_cell(first_cell.rstrip()))
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
    book.nbformat, book.nbformat_minor = 4, 5
    nbformat.validate(book)
    return book


def links_of_notebooks(text: str) -> str:
    """Links between lessons, and from a lesson to its solutions, lead to the notebooks."""
    return re.sub(r"\]\(((?:\.\./|solutions/)?\d\d_\w+)\.py\)", r"](\1.ipynb)", text)


def source_of(remote: str) -> str | None:
    """What pip installs from a clone's remote, without whatever stands before the @; None if it is no web address."""
    remote = re.sub(r"^(?:ssh://)?[\w.-]+@([\w.-]+):(?!\d+/)", r"https://\1/", remote.strip())  # git@host:owner/repo
    found = re.fullmatch(
        r"(?:(?:ssh|git)://(?:[^/@]*@)?([^/:\s]+)(?::\d+)?|https?://(?:[^/@]*@)?([^/\s]+))/(\S+)", remote
    )
    return f"rlhf-jax[lm] @ git+https://{found[1] or found[2]}/{found[3]}" if found else None


def write(folder: Path, source: str | None) -> list[Path]:
    """Every lesson and every solution, under `folder`."""
    written = []
    for path in lessons():
        install = INSTALL.format(source=source) if source else NOTHING_TO_INSTALL
        file = (folder / path.relative_to(TUTORIALS)).with_suffix(".ipynb")
        file.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(path, links_of_notebooks, install), file)
        written.append(file)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="what pip installs in Colab; by default the remote `origin` of this clone")
    parser.add_argument("--out", type=Path, default=ROOT / "notebooks", help="the folder, by default notebooks/")
    options = parser.parse_args()
    remote = subprocess.run(
        ["git", "-C", str(ROOT), "remote", "get-url", "origin"], capture_output=True, text=True, check=False
    ).stdout
    written = write(options.out, options.source or source_of(remote))
    print(f"{len(written)} notebooks in {options.out}")


if __name__ == "__main__":
    main()
