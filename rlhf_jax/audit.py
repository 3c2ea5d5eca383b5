"""Is this gradient right? Any loss, one's own or a library's, against float64 finite differences and a closed form."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = 1e-6
FLOAT32_TOLERANCE = 1e-2
_STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_FLOOR, _LEAST_SCALE = 1e-3, 1e-8
_ONE_SIDED_STEP = 1e-5


class Entry(NamedTuple):
    """One entry of the gradient; `weights` says of which total: the output's "sum", or that with "random weights"."""

    argument: str
    path: str
    index: tuple[int, ...]
    weights: str
    automatic: float
    numeric: float
    closed_form: float | None
    deviation: float

    @property
    def place(self) -> str:
        """As one would write it in Python: `params['w'][0, 1]`."""
        return f"{self.argument}{self.path}" + (f"[{', '.join(map(str, self.index))}]" if self.index else "")


class GradientReport(NamedTuple):
    """What `check_gradient` found; `print` it, or `assert report.ok, report`."""

    worst: Entry
    """The entry that deviates most, each entry judged at the step that agrees best."""
    study: dict[float, float]
    """Its deviation at each step h: falling with h near a kink, rising where the loss is rounded inside."""
    one_sided: tuple[float, float]
    """Its derivatives from below and from above: two different numbers at a kink."""
    mode_deviation: float | None
    """Forward against reverse mode in a random direction; None where the loss has a reverse mode only."""
    narrowed: tuple[str, ...]
    """The dtypes below float64 that floating-point numbers are cast to inside."""
    stopped: bool
    """Whether `stop_gradient` is used inside: the gradient may then differ from the value's by design."""
    num_entries: int

    @property
    def tolerance(self) -> float:
        """What rounding allows: of float64, of float32 where the loss casts to it, of nothing narrower."""
        return {(): TOLERANCE, ("float32",): FLOAT32_TOLERANCE}.get(self.narrowed, 0.0)

    @property
    def ok(self) -> bool:
        return max(self.worst.deviation, self.mode_deviation or 0.0) <= self.tolerance and self.tolerance > 0

    def __bool__(self) -> bool:
        return self.ok

    @property
    def verdict(self) -> str:
        if self.ok:
            return f"ok to {self.tolerance:.0%} only: cast to float32 inside" if self.narrowed else "ok"
        if self.tolerance == 0:
            return f"cast to {', '.join(self.narrowed)} inside: no check is possible"
        if self.worst.deviation <= self.tolerance:
            return "WRONG: forward and reverse mode differ"
        below, above = self.one_sided
        if not np.isfinite([self.worst.automatic, self.worst.numeric, below, above]).all():
            return "not finite"
        if abs(above - below) > 1e-2 * max(abs(above), abs(below)):
            return f"a kink: {below:.4g} from below, {above:.4g} from above"
        if self.stopped:
            return "not the value's gradient, with a stop_gradient inside: right only if it is meant"
        return "WRONG: this is not the loss's gradient"

    def __str__(self) -> str:
        worst, step = self.worst, min(self.study, key=self.study.get)
        closed_form = [] if worst.closed_form is None else [("closed form", f"{worst.closed_form:.10g}")]
        modes = "reverse mode only" if self.mode_deviation is None else f"{self.mode_deviation:.1e}"
        rows = [
            ("gradient", f"{self.verdict} ({self.num_entries} entries)"),
            ("worst", f"{worst.place}, of the output's {worst.weights}"),
            ("automatic", f"{worst.automatic:.10g}"),
            ("numeric", f"{worst.numeric:.10g} at h = {step:.0e}"),
            *closed_form,
            ("deviation", f"{worst.deviation:.1e}"),
            ("by step", "  ".join(f"{h:.0e}: {deviation:.0e}" for h, deviation in self.study.items())),
            ("jvp - vjp", modes),
        ]
        return "\n".join(f"{name:12}{text}" for name, text in rows)


def check_gradient(loss: Callable, *arguments: Any, closed_form: Callable | None = None) -> GradientReport:
    """Automatic differentiation of `loss` against central differences in float64, entry by entry.

    (L(x + h e_i) − L(x − h e_i)) / 2h,   h = 10⁻² … 10⁻⁶ times max(1, |x_i|), each entry at the h that agrees best.
    A deviation is relative to the largest of the compared numbers and 10⁻³ of the loss's and gradient's own scale
    (10⁻⁸ at least).

    Args:
        loss: of the arguments; traceable by `jax.jit`. An output of several numbers, or a pytree, is checked in two
            totals: its sum, and a sum with fixed random weights, in which wrong entries do not cancel.
        arguments: any pytrees. Floating-point leaves are converted to float64 and differentiated; integers, booleans,
            keys and all else are constants: close over what the loss takes as data (`lambda log_probs: ...`). NaN and
            infinities are allowed where the loss ignores them.
        closed_form: of the same arguments; the gradient of the output's sum, a tuple with an entry an argument (or
            that of the only argument alone), `None` for an argument that it does not cover.
    """
    with jax.enable_x64(True):
        leaves, structure = jax.tree_util.tree_flatten_with_path(arguments)
        floats = [i for i, (_, leaf) in enumerate(leaves) if _is_floating(leaf)]
        if not floats:
            raise ValueError("there is nothing to differentiate: no argument has a floating-point leaf")
        shapes = [np.shape(leaves[i][1]) for i in floats]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        point = jnp.asarray(np.concatenate([np.asarray(leaves[i][1], np.float64).ravel() for i in floats]))

        def rebuild(flat):
            full = [leaf for _, leaf in leaves]
            for i, part, shape in zip(floats, jnp.split(flat, ends[:-1]), shapes, strict=True):
                full[i] = part.reshape(shape)
            return jax.tree_util.tree_unflatten(structure, full)

        output = lambda flat: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(loss(*rebuild(flat)))])
        weights = _weights(jax.eval_shape(output, point).size)
        totals = lambda flat: weights @ output(flat).astype(float)
        size = lambda flat: jnp.abs(weights) @ jnp.abs(output(flat))
        found = _evaluate(totals, size, point)
        automatic = found["automatic"]
        scale = max(_FLOOR * max(_largest(automatic), _largest(found["size"])), _LEAST_SCALE)
        numeric, one_sided = _differences(point, found["value"], found["moved"])
        inside = list(equations(jax.make_jaxpr(totals)(point)))
        by_step, reverse = _deviation(automatic, numeric, scale), automatic @ found["direction"]
        deviations = np.where(np.isfinite(one_sided).all(0), by_step.min(0), np.inf)
        stated = dict(_stated(closed_form, rebuild(point), structure, floats, shapes)) if closed_form else {}
        for entry, number in stated.items():
            deviations[0, entry] = max(deviations[0, entry], _deviation(automatic[0, entry], number, scale))
        row, column = np.unravel_index(np.argmax(deviations), deviations.shape)
        leaf = int(np.searchsorted(ends, column, side="right"))
        offset = column - ends[leaf] + int(np.prod(shapes[leaf]))
        worst = Entry(
            *_names(loss, leaves[floats[leaf]][0]),
            index=tuple(map(int, np.unravel_index(offset, shapes[leaf]))),
            weights=("sum", "random weights")[row],
            automatic=float(automatic[row, column]),
            numeric=float(numeric[by_step[:, row, column].argmin(), row, column]),
            closed_form=stated.get(column) if row == 0 else None,
            deviation=float(deviations[row, column]),
        )
        return GradientReport(
            worst,
            dict(zip(_STEPS, by_step[:, row, column].tolist(), strict=True)),
            tuple(one_sided[:, row, column].tolist()),
            None if found["forward"] is None else float(_deviation(reverse, found["forward"], scale).max()),
            _narrowed(inside),
            any(equation.primitive.name == "stop_gradient" for equation in inside),
            automatic.shape[1],
        )


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those inside it."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from equations(inner)


def _is_jaxpr(value):
    return hasattr(value, "jaxpr") or hasattr(value, "eqns")


def _is_floating(leaf):
    arrays = (float, np.generic, np.ndarray, jax.Array)
    return isinstance(leaf, arrays) and jnp.issubdtype(getattr(leaf, "dtype", float), jnp.floating)


def _weights(size):
    """Rows of weights [totals, outputs]: the sum's, and random ones where there are several outputs."""
    random = np.random.default_rng(0).uniform(0.5, 1.5, size)
    return jnp.asarray(np.stack([np.ones(size), random])[: min(size, 2)])


def _largest(numbers):
    return np.abs(np.where(np.isfinite(numbers), numbers, 0)).max()


def _narrowed(inside):
    """Names of the dtypes narrower than float64 that a float64, not just a Python number, is converted to."""
    casts = [equation for equation in inside if equation.primitive.name == "convert_element_type"]
    source = lambda equation: equation.invars[0].aval
    wide = [each for each in casts if source(each).dtype == jnp.float64 and not source(each).weak_type]
    found = {equation.outvars[0].aval.dtype for equation in wide}
    return tuple(sorted(str(dtype) for dtype in found if jnp.issubdtype(dtype, jnp.floating) and dtype != jnp.float64))


def _distances(point):
    """How far each entry is moved at each step, [steps, entries]."""
    flat = np.asarray(point)
    return np.outer(_STEPS, np.maximum(1, np.abs(np.where(np.isfinite(flat), flat, 1))))


def _evaluate(totals, size, point):
    """In one program: `totals` and `size` at the point, the totals' gradients, forward mode in a random direction, and
    the totals `moved` up and down, [2, steps, entries, totals]."""
    direction = np.random.default_rng(1).normal(size=point.shape)
    distances = np.stack([_distances(point), -_distances(point)])
    entries = np.broadcast_to(np.arange(point.size), distances.shape)

    def program(flat, direction, distances, forward):
        at = lambda pair: totals(flat.at[pair[0]].add(pair[1]))
        moved = jax.lax.map(at, (entries.ravel(), distances.ravel()))
        value, pull_back = jax.vjp(totals, flat)
        rows = [pull_back(row)[0] for row in jnp.eye(value.size)]
        found = {"forward": jax.jvp(totals, (flat,), (direction,))[1]} if forward else {}
        moved = moved.reshape(*entries.shape, -1)
        return found | {"value": value, "size": size(flat), "automatic": jnp.stack(rows), "moved": moved}

    jitted = jax.jit(program, static_argnames="forward")
    try:
        found = jitted(point, direction, distances, forward=True)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        found = jitted(point, direction, distances, forward=False)
    return {"direction": direction, "forward": None} | {name: np.asarray(each) for name, each in found.items()}


def _differences(point, value, moved):
    """Central differences [steps, totals, entries]; those from below and above, [2, totals, entries]."""
    distances, (up, down) = _distances(point)[..., None], moved
    small = _STEPS.index(_ONE_SIDED_STEP)
    one_sided = np.stack([value - down[small], up[small] - value]) / distances[small]
    return ((up - down) / (2 * distances)).swapaxes(1, 2), one_sided.swapaxes(1, 2)


def _stated(closed_form, arguments, structure, floats, shapes):
    """(entry, closed form) of the entries that the closed form covers."""
    gradients = closed_form(*arguments)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    if len(gradients) != len(arguments):
        raise ValueError(f"closed_form gave {len(gradients)} gradients for {len(arguments)} arguments")
    unsaid = lambda argument: jax.tree.map(lambda _: None, argument)
    filled = tuple(unsaid(argument) if g is None else g for g, argument in zip(gradients, arguments, strict=True))
    leaves, entry = structure.flatten_up_to(filled), 0
    for i, shape in zip(floats, shapes, strict=True):
        if leaves[i] is not None:
            yield from enumerate(np.broadcast_to(leaves[i], shape).ravel().tolist(), entry)
        entry += int(np.prod(shape))


def _deviation(automatic, reference, scale):
    """|a − b| relative to the larger of them, or to `scale` where that is larger still; not finite counts as inf."""
    size = np.maximum(np.maximum(np.abs(automatic), np.abs(reference)), scale)
    with np.errstate(invalid="ignore"):
        deviation = np.abs(automatic - reference) / size
    return np.where(np.isfinite(deviation), deviation, np.inf)


def _names(loss, path):
    """The argument's name, or its number where the signature does not tell, and the path inside it."""
    try:
        names = [
            name for name, parameter in inspect.signature(loss).parameters.items() if parameter.kind in _POSITIONAL
        ]
    except (TypeError, ValueError):
        names = []
    number = path[0].idx
    name = names[number] if number < len(names) else f"argument {number}"
    return name, jax.tree_util.keystr(path[1:])


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
