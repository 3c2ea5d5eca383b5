"""`rlhf-jax audit`: hold a user's function to the checks that its argument names call for, or the whole library."""

import functools
import importlib
import inspect
import operator
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import audit, invariants, kl
from rlhf_jax.commands.examples import differentiated, example_arguments, floats, with_known_names
from rlhf_jax.commands.options import AuditOptions
from rlhf_jax.errors import UserError
from rlhf_jax.invariants import Check

PAIRS = [(f"chosen_{what}", f"rejected_{what}") for what in ("log_probs", "mean_log_probs", "rewards")]


class Audit(NamedTuple):
    """What the checks said of one function."""

    target: str
    gradient: audit.GradientReport | None
    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return (self.gradient is None or self.gradient.ok) and all(self.checks)

    def __str__(self) -> str:
        gradient = "gradient    no argument to differentiate" if self.gradient is None else str(self.gradient)
        lines = [self.target, *gradient.splitlines(), *map(str, self.checks), *(f"note  {note}" for note in self.notes)]
        failed = [check.name for check in self.checks if not check]
        failed = ["gradient", *failed] if self.gradient is not None and not self.gradient.ok else failed
        lines.append(f"FAILED: {', '.join(failed)}" if failed else "all passed")
        return "\n  ".join(lines)


def run(options: AuditOptions) -> bool:
    """Print the report of each function named, or of the library; whether all passed.

    Raises:
        UserError: if a function is not there, or, after the reports of the others, if one cannot be audited.
    """
    numbers = dict(map(_number, options.set))
    if not options.target and not options.library:
        raise UserError("give module:function, such as rlhf_jax.dpo:dpo_loss, or --library")
    fine, broken = True, []
    for target, function in [(target, load(target)) for target in options.target]:
        try:
            report = audit_function(function, target, numbers)
        except UserError as error:
            broken.append(str(error))
        else:
            print(report, end="\n\n", flush=True)
            fine &= report.ok
    if options.library:
        from rlhf_jax.commands import audit_library

        for table, passed in audit_library.report():
            print(table, end="\n\n", flush=True)
            fine &= passed
    if broken:
        raise UserError("; ".join(broken))
    return fine


def _number(setting: str) -> tuple[str, int | float]:
    name, _, value = setting.partition("=")
    try:
        return name, int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        raise UserError(f"--set {setting}: give name=number, such as beta=0.1") from None


def load(target: str) -> Callable:
    """The function that `module:function` names; modules of the current folder come first.

    Raises:
        UserError: if there is none.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise UserError(f"{target!r}: give module:function, such as rlhf_jax.dpo:dpo_loss")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = ".".join(Path(module_name.removesuffix(".py")).parts)
        raise UserError(f"{target!r}: give the module's dotted name, {dotted}:{name}, from the folder it is in")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{target}: no module named {error.name!r} here or installed") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{target}: importing {module_name} failed: {_one_line(error)}") from error
    try:
        function = operator.attrgetter(name)(module)
    except AttributeError as error:
        raise UserError(f"{target}: {module_name} has no {name!r}") from error
    if inspect.isclass(function):
        raise UserError(f"{target}: {name} is a class: give a function, or an instance that can be called")
    if not callable(function):
        raise UserError(f"{target}: {name} is not a function but {type(function).__name__}")
    return function


def audit_function(function: Callable, target: str, numbers: dict[str, int | float] | None = None) -> Audit:
    """The gradient check and every invariant that the names of the arguments call for.

    Raises:
        UserError: if an argument's name is unknown, the function fails on the example arguments, or no check applies.
    """
    function, spelt = with_known_names(function)
    arguments = example_arguments(function, target, numbers or {})
    given = ", ".join(f"{name} {list(np.shape(value))}" for name, value in arguments.items())
    try:
        loss = _of_one_output(function)
        checks = tuple(applicable(loss, arguments))
        remarks = ["read " + ", ".join(f"{name} as {known}" for name, known in spelt.items())] if spelt else []
        if any(check.name == "constant_at_the_reference" and not check for check in checks):
            remarks.append(
                "a likelihood term of the chosen string moves the loss at the reference: --set its weight to 0"
            )
        report = Audit(target, check_gradient(function, arguments), checks, (*remarks, *notes(loss, arguments)))
    except Exception as error:
        raise UserError(f"{target} failed on {given}: {_one_line(error)}{_where(error, function)}") from error
    if report.gradient is None and not report.checks:
        raise UserError(f"{target}: nothing to check: rlhf-jax audit --help lists the names of arrays that are known")
    return report


def _one_line(error):
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _where(error, function):
    """The last line of the function's own file on the way to the error, as in ` (losses.py:12)`."""
    path = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" ({Path(path).name}:{lines[-1]})" if lines else ""


def _of_one_output(function):
    """`function`, which raises where its output is not one array."""

    @functools.wraps(function)
    def loss(*arguments, **named):
        output = function(*arguments, **named)
        if not jax.tree_util.all_leaves([output]):
            raise TypeError(f"the output is a {type(output).__name__}: give a function that returns the loss alone")
        return output

    return loss


def _of(function, arguments, names):
    """`function` of the named arguments by position, the others fixed."""

    def loss(*arrays):
        return function(**(arguments | dict(zip(names, arrays, strict=True))))

    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    loss.__signature__ = inspect.Signature([inspect.Parameter(name, positional) for name in names])
    return loss


def check_gradient(function: Callable, arguments: dict[str, Any]) -> audit.GradientReport | None:
    """`audit.check_gradient` into the arguments that are not data; None if there are none."""
    names = differentiated(arguments)
    return audit.check_gradient(_of(function, arguments, names), *map(arguments.get, names)) if names else None


def applicable(function: Callable, arguments: dict[str, Any]) -> Iterator[Check]:
    """The invariants that the names of the arguments call for."""
    names = set(arguments)
    advantage = next((name for name in ("advantages", "advantage") if name in names), None)
    if advantage and "log_probs" in names:
        start = arguments | dict.fromkeys(names & {"ref_log_probs"}, arguments["log_probs"])
        start |= {name: np.ones_like(arguments[name]) for name in names & {"mask"}}
        loss = _of(function, start, [name for name in ("log_probs", "old_log_probs", advantage) if name in names])
        loss = loss if "old_log_probs" in names else functools.partial(_without_old, loss)
        values = np.asarray(arguments[advantage])
        centred = values - values.mean() if values.ndim else values
        yield invariants.first_update_is_the_policy_gradient(loss, arguments["log_probs"], centred)
    for chosen, rejected in PAIRS:
        pair, ref_pair = (chosen, rejected), (f"ref_{chosen}", f"ref_{rejected}")
        if names.issuperset(pair):
            level = arguments[chosen]
            start = arguments | dict.fromkeys(names.intersection(ref_pair), level)
            yield invariants.chosen_is_preferred(_of(function, start, pair), level, level)
            if names.issuperset(ref_pair):
                loss = _of(function, arguments, (*pair, *ref_pair))
                yield invariants.constant_at_the_reference(loss, *map(arguments.get, pair))
    if "mask" in names:
        masked = [*floats(arguments), "mask"]
        for invariant in (
            invariants.padding_is_ignored,
            invariants.masked_entries_get_no_gradient,
            invariants.empty_mask_is_finite,
        ):
            yield invariant(_of(function, arguments, masked), *map(arguments.get, masked))
        aligned = [name for name in arguments if np.ndim(arguments[name]) and name != "mask"]
        loss = _of(function, arguments, [*aligned, "mask"])
        yield invariants.padding_length_is_irrelevant(loss, *map(arguments.get, [*aligned, "mask"]))
    if any(name.endswith("log_probs") for name in names):
        rows = [name for name in arguments if np.ndim(arguments[name])]
        yield invariants.batch_order_is_irrelevant(_of(function, arguments, rows), *map(arguments.get, rows))


def _without_old(loss, log_probs, old_log_probs, advantages):
    return loss(log_probs, advantages)


def notes(function: Callable, arguments: dict[str, Any]) -> Iterator[str]:
    """What is worth knowing and is neither right nor wrong."""
    if "mask" in arguments:
        masked = [*floats(arguments), "mask"]
        if not invariants.masked_nan_is_ignored(_of(function, arguments, masked), *map(arguments.get, masked)):
            yield "a NaN at a masked entry reaches the loss or a gradient: finite padding is safe, anything else is not"
    if np.ndim(arguments.get("mask")) == 2:
        arrays = [name for name in arguments if np.ndim(arguments[name])]
        grows = functools.partial(invariants.is_averaged, _of(function, arguments, arrays), *map(arguments.get, arrays))
        rows, tokens = (grows(axis=axis).measured for axis in (0, 1))
        yield f"twice the rows multiply it by {rows:.3g}, twice the tokens by {tokens:.3g}: 1 is a mean, 2 a sum"
    if set(arguments) == {"log_probs", "ref_log_probs"} and arguments["log_probs"].ndim == 2:
        logits = jnp.asarray(arguments["log_probs"][0]), jnp.asarray(arguments["ref_log_probs"][0])
        log_probs, ref_log_probs = map(jax.nn.log_softmax, logits)
        expected = jnp.sum(jnp.exp(log_probs) * function(log_probs, ref_log_probs))
        share = expected / kl.exact_kl(log_probs, ref_log_probs)
        yield f"as an estimate: its expectation is {share:.3g} of KL(policy || reference)"
        check = invariants.kl_loss_descends_the_kl(function, *logits)
        yield f"as a loss: its expected gradient is {check.measured:.2g} of the KL's away from it, 0 where it fits"
