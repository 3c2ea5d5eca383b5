"""`rlhf-jax audit --library`: every gradient, the distance to the known optimum, and the table of estimators."""

import functools
import inspect
from collections.abc import Callable, Iterator

from rlhf_jax import (
    dpo,
    dpo_variants,
    enumerable,
    estimators,
    group,
    kl,
    log_probs,
    masking,
    policy_gradient,
    ppo,
    returns,
    reward_model,
)
from rlhf_jax.audit import GradientReport
from rlhf_jax.commands import audit, audit_worlds
from rlhf_jax.commands.examples import example_arguments
from rlhf_jax.training import exact

MODULES = (dpo, dpo_variants, enumerable, group, kl, log_probs, masking, policy_gradient, ppo, returns, reward_model)
GIVEN = {"f_prime": dpo.jensen_shannon_f_prime, "n": 2}
NOT_CHECKED = {
    "enumerable.all_strings",
    "enumerable.check_bytes",
    "enumerable.num_prefixes",
    "enumerable.prefix_rows",
    "kl.adaptive_kl_coefficient",
    "ppo.clip_fraction",
    "ppo.max_ratio_deviation",
}
IN_WORLDS = {
    "enumerable.string_log_probs",
    "enumerable.objective_gradient",
    "enumerable.objective_hvp",
    "enumerable.best_of_n_log_probs",
    "policy_gradient.policy_gradient",
}
BY_DESIGN = {"group.cispo_loss": "the clipped ratio is a constant weight"}


def functions() -> Iterator[tuple[str, Callable]]:
    """Every public function of arrays alone whose gradient is that of its value, by name."""
    for module in MODULES:
        for name, function in vars(module).items():
            full = f"{module.__name__.removeprefix('rlhf_jax.')}.{name}"
            own = getattr(function, "__module__", "") == module.__name__ and callable(function)
            if own and not name.startswith("_") and not {full} & (NOT_CHECKED | IN_WORLDS | BY_DESIGN.keys()):
                yield full, function


def gradients() -> dict[str, GradientReport]:
    """The gradient check of each of `functions`, and of what takes an MDP or a language."""
    reports = {}
    for name, function in functions():
        given = {key: value for key, value in GIVEN.items() if key in inspect.signature(function).parameters}
        arguments = example_arguments(functools.partial(function, **given), name, {})
        reports[name] = audit.check_gradient(functools.partial(function, **given), arguments)
    return reports | audit_worlds.gradients()


def report() -> Iterator[tuple[str, bool]]:
    """The three tables as text, each as soon as it is known, and whether what it shows is as it should be.

    Every gradient is to be right, and every run to end as near to π* as was measured before; the runs take minutes.
    """
    reports = gradients()
    yield gradient_table(reports), all(each.ok for each in reports.values())
    yield estimator_table(estimators.estimator_table()), True
    ends = exact.distances()
    yield distance_table(ends), all(row.kl <= row.at_most for row in ends)


def gradient_table(reports: dict[str, GradientReport]) -> str:
    """The worst deviation by module, and what failed."""
    entries = sum(each.num_entries for each in reports.values())
    lines = [
        f"gradients of {len(reports)} functions, {entries} entries, against float64 differences: worst deviations",
        *("  {:18}{:.1e}  {}".format(*row) for row in _worst_by_module(reports)),
    ]
    lines += [f"  left out: {name}, as {why}" for name, why in BY_DESIGN.items()]
    lines += [f"\nFAILED: {name}\n{each}" for name, each in reports.items() if not each.ok]
    return "\n".join(lines)


def _worst_by_module(reports):
    for module in dict.fromkeys(name.partition(".")[0] for name in reports):
        mine = {name: each for name, each in reports.items() if name.partition(".")[0] == module}
        name = max(mine, key=lambda name: mine[name].worst.deviation)
        worst = mine[name].worst
        yield module, worst.deviation, f"{name}, {worst.place}"


def distance_table(ends: list[exact.Row]) -> str:
    """KL(π ‖ π*) at the end of every run, and what it is to stay below."""
    lines = ["trainers, from the reference towards the known optimum pi*", _DISTANCE_HEAD]
    for row in ends:
        bound = "FAILED" if row.kl > row.at_most else "" if row.at_most == float("inf") else f"{row.at_most:.0e}"
        lines.append(f"  {row.method:24}{row.policy:8}{row.steps:6}{row.samples:9}{row.kl:13.1e}  {bound}".rstrip())
    return "\n".join(lines)


_DISTANCE_HEAD = f"  {'method':24}{'policy':8}{'steps':>6}{'samples':>9}{'KL to pi*':>13}  at most"


def estimator_table(rows: list[estimators.Row]) -> str:
    """Bias and deviation of the estimators on a language of fifteen strings, relative to the length of the truth."""
    lines = ["estimators, exactly             of       bias    std  length  degrees"]
    for row in rows:
        lines.append(
            f"  {row.name:30}{row.quantity:9}{row.relative_bias:5.2f}{row.relative_std:7.2f}{row.length:8.2f}"
            f"{row.degrees:9.1f}"
        )
    return "\n".join(lines)
