"""Example arguments for a loss, found by their names: what `rlhf-jax audit` tries a function on."""

import functools
import inspect
import re
import zlib
from collections.abc import Callable
from typing import Any, get_args

import numpy as np

from rlhf_jax.errors import UserError

SIZES = {"B": 4, "T": 6, "V": 5, "A": 5, "D": 3}
OTHER_SIZE = 6
DATA = {"advantages", "advantage", "returns", "discounts", "kl_baseline"}
OTHERS = {"logits", "hidden", "embedding", "tokens", "mask"} | {
    "losses",
    "estimates",
    "desirable",
    "tied",
    "best",
    "betas",
}
COEFFICIENTS = {
    "beta": 0.1,
    "label_smoothing": 0.1,
    "margin": 0.5,
    "weight": 0.1,
    "nll_weight": 1.0,
    "penalty_weight": 5.0,
    "tie_weight": 0.5,
    "alpha": 0.5,
    "clip_eps": 0.2,
    "clip_eps_low": 0.2,
    "clip_eps_high": 0.28,
    "dual_clip": 3.0,
    "gamma": 0.99,
    "lambda_": 0.95,
    "length": 6,
    "eps": 1e-4,
}
SPELLINGS = (
    (r"log_?p(rob)?s?$", "log_probs"),
    (r"policy_|per_token_|completion_", ""),
    (r"reference_", "ref_"),
    (r"^adv$", "advantages"),
)


def with_known_names(function: Callable) -> tuple[Callable, dict[str, str]]:
    """The function under the argument names used here, and those that it spells otherwise, as TRL does."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return function, {}
    known = {name: _known_name(name) for name in signature.parameters}
    spelt = {name: other for name, other in known.items() if name != other}
    if not spelt or len(set(known.values())) < len(known):
        return function, {}
    own_name = {other: name for name, other in known.items()}

    @functools.wraps(function)
    def renamed(**arguments):
        return function(**{own_name[name]: value for name, value in arguments.items()})

    parameters = [parameter.replace(name=known[name]) for name, parameter in signature.parameters.items()]
    renamed.__signature__ = signature.replace(parameters=parameters)
    return renamed, spelt


def _known_name(name):
    other = name
    for pattern, spelling in SPELLINGS:
        other = re.sub(pattern, spelling, other)
    return other if _kind(name) is None and name not in COEFFICIENTS and _kind(other) is not None else name


def example_arguments(function: Callable, target: str, numbers: dict[str, int | float]) -> dict[str, Any]:
    """A value for each argument by its name and, where annotated with jaxtyping, its shape; defaults stay.

    Raises:
        UserError: if a name is not known and has no default, or a number is given for an argument that is not there.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise UserError(f"{target} has no signature to read: wrap it in a function of named arguments") from None
    if strange := sorted(numbers.keys() - parameters.keys()):
        raise UserError(f"{target} has no argument {strange[0]!r}: it takes {', '.join(parameters)}")
    arguments = {}
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = _kind(name)
        if name in numbers:
            arguments[name] = numbers[name]
        elif kind is not None:
            shape = _annotated_shape(parameter.annotation)
            arguments[name] = _values(name, kind, _usual_shape(name, kind, parameters) if shape is None else shape)
        elif parameter.default is parameter.empty:
            if name not in COEFFICIENTS:
                raise UserError(
                    f"{target}: no example value is known for the argument {name!r}: if it is a number, give "
                    f"--set {name}=0.5; if an array or a pytree, wrap the function in one whose arguments have names "
                    "that rlhf-jax audit --help lists"
                )
            arguments[name] = COEFFICIENTS[name]
    return arguments


def _kind(name):
    """How an argument of this name is filled; None if the name says nothing."""
    if name.endswith(("log_probs", "log_ratio")):
        return "log_probs"
    if name.endswith(("values", "rewards", "lengths", "win_probs")):
        return name.rpartition("_")[2]
    plain = name.removeprefix("ref_")
    return plain if plain in DATA or plain in OTHERS else None


def _annotated_shape(annotation):
    """The shape that a jaxtyping annotation gives, `*s` being [4, 6]; None if it gives none."""
    dims = next((each.dim_str for each in (annotation, *get_args(annotation)) if hasattr(each, "dim_str")), "...")
    shape = []
    for word in dims.split():
        symbol, plus, more = word.partition("+")
        if word.startswith("*"):
            shape += [SIZES["B"], SIZES["T"]]
        elif symbol.isalpha():
            shape.append(SIZES.get(symbol, OTHER_SIZE) + (int(more) if plus else 0))
        else:
            return None
    return tuple(shape)


def _usual_shape(name, kind, parameters):
    if kind in ("kl_baseline", "advantage", "best"):
        return ()
    if "chosen" in name or "rejected" in name:
        return (8,)
    if kind == "rewards" and "log_probs" in parameters:
        return (SIZES["B"],)
    return (SIZES["B"], SIZES["T"]) + ((SIZES["V"],) if kind == "logits" else ())


def _values(name, kind, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    draw = {
        "log_probs": lambda: -rng.uniform(0.5, 1.5, shape),
        "probs": lambda: rng.uniform(0.1, 0.9, shape),
        "lengths": lambda: rng.integers(3, 9, shape),
        "betas": lambda: rng.uniform(0.1, 1, shape),
        "discounts": lambda: rng.uniform(0.8, 1, shape),
        "kl_baseline": lambda: np.full(shape, 0.3),
    }
    if kind == "mask":
        lengths = shape[-1] - 1 - np.arange(np.prod(shape[:-1], dtype=int)) % shape[-1]
        return np.arange(shape[-1]) < lengths.reshape(*shape[:-1], 1)
    if kind in ("desirable", "tied"):
        return rng.uniform(size=shape) < 0.5
    if kind in ("tokens", "best"):
        return np.asarray(rng.integers(0, SIZES["V"], shape), np.int32)
    return np.asarray(draw.get(kind, lambda: rng.normal(size=shape))(), np.float32)


def differentiated(arguments: dict[str, Any]) -> list[str]:
    """Names of the arrays that are the policy's or model's own; of all arrays if they are all data."""
    arrays = floats(arguments)
    scored = any(name.endswith("log_probs") for name in arrays)
    data = DATA | {"rewards"} if scored else DATA
    is_data = lambda name: name in data or name.startswith(("old_", "ref_")) or name.endswith(("lengths", "win_probs"))
    return [name for name in arrays if not is_data(name)] or arrays


def floats(arguments: dict[str, Any]) -> list[str]:
    """Names of the arrays of floats."""
    return [name for name, value in arguments.items() if getattr(value, "dtype", None) == np.float32]
