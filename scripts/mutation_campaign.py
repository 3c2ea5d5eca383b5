"""Break one formula at a time and see whether a test notices.

    python scripts/mutation_campaign.py --out mutants.jsonl [--per-module 12] [--seed 0] [MODULE ...]

A mutant is the module with one place of its syntax tree changed: a sign, an operator, a comparison, a number, a
minimum for a maximum, a mask or a stop_gradient dropped. The module's own test files run against it in a copy of
the repository until the first failure. Survivors are printed with their line; some are equal programs (a bound that
is never reached, a shape that broadcasts the same), which a reader has to judge.
"""

import argparse
import ast
import copy
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
TESTS = {
    "masking": ["test_masking"],
    "mdp": ["test_mdp"],
    "environments": ["test_environments", "test_token_mdp"],
    "returns": ["test_returns"],
    "values": ["test_values"],
    "estimation": ["test_estimation"],
    "policy_gradient": ["test_policy_gradient"],
    "log_probs": ["test_log_probs"],
    "kl": ["test_kl"],
    "ppo": ["test_ppo"],
    "group": ["test_group"],
    "reward_model": ["test_reward_model"],
    "dpo": ["test_dpo", "test_dpo_unpaired"],
    "dpo_variants": ["test_dpo_variants"],
    "enumerable": ["test_enumerable", "test_enumerable_gradients"],
    "population": ["test_population"],
    "estimators": ["test_estimators", "test_estimator_figures"],
    "moments": ["test_estimators"],
    "audit": ["test_audit"],
    "invariants": ["test_invariants", "test_invariants_of_others", "test_pitfalls"],
    "pipeline_invariants": ["test_invariants", "test_pitfalls"],
    "training/ppo": ["training/test_ppo", "training/test_ppo_iteration"],
    "training/dpo": ["training/test_dpo"],
    "training/grpo": ["training/test_grpo"],
    "training/language": ["training/test_exact"],
    "lm/table": ["lm/test_table"],
}
SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
RENAMED = {"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min", "sum": "mean", "mean": "sum"}
RENAMED |= {"any": "all", "all": "any", "exp": "expm1", "expm1": "exp", "log": "log1p", "square": "abs"}


def changes(node: ast.AST):
    """Ways to break this node in place, as (description, function of a copy of the node returning the new node)."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        other = SWAPS[type(node.op)]
        yield f"{type(node.op).__name__} -> {other.__name__}", lambda n: setattr(n, "op", other()) or n
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        other = SWAPS[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} -> {other.__name__}", lambda n: setattr(n, "ops", [other()]) or n
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert):
        yield f"{type(node.op).__name__} dropped", lambda n: n.operand
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield f"{node.value} -> {node.value + 1}", lambda n: ast.Constant(n.value + 1)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in RENAMED:
            yield f"{name} -> {RENAMED[name]}", lambda n: setattr(n.func, "attr", RENAMED[name]) or n
        if name == "where" and len(node.args) == 3:
            yield "where: its first value", lambda n: n.args[1]
        if name in ("stop_gradient", "clip", "log_sigmoid", "sigmoid") and node.args:
            yield f"{name} dropped", lambda n: n.args[0]


def formulas(tree: ast.Module):
    """The nodes of function bodies, without signatures, decorators, docstrings, messages and annotations."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.Lambda):
            body = function.body if isinstance(function.body, list) else [function.body]
            for statement in body:
                if isinstance(statement, ast.Raise | ast.FunctionDef):
                    continue
                for node in ast.walk(statement):
                    if hasattr(node, "lineno") and not _inside_raise(statement, node):
                        yield node


def _inside_raise(statement, node):
    return any(node in ast.walk(each) for each in ast.walk(statement) if isinstance(each, ast.Raise | ast.JoinedStr))


def mutants(source: str):
    """(line, description, mutated source) of every single change."""
    tree = ast.parse(source)
    places = {id(node): node for node in formulas(tree)}
    order = [node for node in ast.walk(tree) if id(node) in places]
    index_of = {id(node): number for number, node in enumerate(ast.walk(tree))}
    for node in order:
        for description, change in changes(node):
            other = copy.deepcopy(tree)
            target = list(ast.walk(other))[index_of[id(node)]]
            yield node.lineno, description, ast.unparse(_Replace(target, change).visit(other))


class _Replace(ast.NodeTransformer):
    def __init__(self, target, change):
        self.target, self.change = target, change

    def visit(self, node):
        return self.change(node) if node is self.target else self.generic_visit(node)


def killed(copy_of_root: pathlib.Path, tests: list[str]) -> bool:
    files = [f"tests/{name}.py" for name in tests if (copy_of_root / f"tests/{name}.py").exists()]
    environment = os.environ | {
        "PYTHONPATH": str(copy_of_root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(copy_of_root / ".compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    try:
        finished = subprocess.run(command, cwd=copy_of_root, env=environment, capture_output=True, timeout=600)
    except subprocess.TimeoutExpired:
        return True
    return finished.returncode != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)}; all by default")
    parser.add_argument("--per-module", type=int, default=12, help="mutants drawn from a module; 0 takes all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="one JSON line a mutant is appended here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "clone"
        ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, root, ignore=ignored)
        for module in given.modules or TESTS:
            path = root / f"rlhf_jax/{module}.py"
            source = path.read_text()
            assert not killed(root, TESTS[module]), f"the tests of {module} fail before anything is broken"
            found = list(mutants(source))
            drawn = random.Random(given.seed).sample(found, min(given.per_module or len(found), len(found)))
            survivors = 0
            for line, description, mutated in sorted(drawn):
                path.write_text(mutated)
                dead = killed(root, TESTS[module])
                survivors += not dead
                record = {"module": module, "line": line, "change": description, "killed": dead}
                with given.out.open("a") as out:
                    out.write(json.dumps(record) + "\n")
                if not dead:
                    print(f"  survived: {module}:{line}: {description}: {source.splitlines()[line - 1].strip()}")
            path.write_text(source)
            print(f"{module}: {len(drawn)} of {len(found)} mutants, {survivors} survived", flush=True)


if __name__ == "__main__":
    main()
