"""The package's public names, read from its source: links to the reference, and signatures as they were written."""

import ast
import functools
import itertools
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "rlhf_jax"


@functools.cache
def definitions() -> dict[str, ast.AST]:
    """Every public name of every public module, `rlhf_jax.dpo.dpo_loss`, with its node; modules with theirs."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if any(part.startswith("_") for part in parts):
            continue
        module = found[".".join(parts)] = ast.parse(path.read_text(encoding="utf-8"))
        for node in module.body:
            for name in defined(node):
                if not name.startswith("_"):
                    found[".".join((*parts, name))] = node
    return found


def defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return []


def resolve(name: str, module: str = "rlhf_jax") -> str | None:
    """The full name of what `name` means to a reader of `module`: a plain word one of its own, else the nearest."""
    if "." not in name:
        return f"{module}.{name}" if f"{module}.{name}" in definitions() else None
    *parents, _ = f"{module}._".split(".")
    while parents:
        full = ".".join((*parents, name))
        if full in definitions():
            return full
        parents.pop()
    endings = [full for full in definitions() if f".{full}".endswith(f".{name}")]
    return endings[0] if len(endings) == 1 else None


@functools.cache
def documented_fields() -> set[str]:
    """The fields that have a line of their own in some class."""
    found = set()
    for node in definitions().values():
        if isinstance(node, ast.ClassDef):
            for field, following in itertools.pairwise(node.body):
                if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr):
                    found.update(defined(field))
    return found


def signature(full: str) -> tuple[str, str] | None:
    """Arguments and result as the source annotates them, `Float[Array, 'T']` without the space that linters want."""
    node, source = definitions().get(full), lambda node: re.sub(r"' (?=[\w{])", "'", ast.unparse(node))
    if isinstance(node, ast.FunctionDef):
        return f"({source(node.args)})", source(node.returns) if node.returns else ""
    if isinstance(node, ast.ClassDef):
        fields = [source(each) for each in node.body if isinstance(each, ast.AnnAssign)]
        return (f"({', '.join(fields)})", "") if fields else None
    return None
