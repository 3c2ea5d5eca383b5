"""The project's one visual language: a palette that colour-blind readers can tell apart, a style, and saving.

Figures are `matplotlib.figure.Figure` objects drawn by Agg: no pyplot, no display, nothing to close. A colour means
the same thing in every figure, and an exact answer is always the black dashed line.

Reference: Okabe and Ito (2008), "Color Universal Design".
"""

import os
from pathlib import Path
from typing import NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
from jaxtyping import ArrayLike, Num
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_jax._typing import Scalar

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, PALE = "#8C8C8C", "#D9D9D9"

REFERENCE, DPO, PPO, REWARD = GREY, BLUE, VERMILLION, GREEN
EXACT = {"color": BLACK, "linestyle": "--", "linewidth": 1.2, "zorder": 3}

_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 140,
}


class Saved(NamedTuple):
    """A figure on disk; a notebook shows it where a cell ends with one."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


def style():
    """A context in which figures are drawn: `with style(): figure, axes = subplots(1, 2)`."""
    return matplotlib.style.context(["default", _STYLE])


def subplots(rows: int = 1, columns: int = 1, *, width: float = 7.2, height: float = 3.2, **options):
    """A figure of `width` x `height` inches and its axes, as `pyplot.subplots` returns them."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def label(axes: Axes, x: Scalar, y: Scalar, text: str, color: str, **options) -> None:
    """Write a curve's name beside it in the curve's colour, at the point (x, y) of the data."""
    axes.annotate(
        text, (x, y), **{"xytext": (5, 0), "textcoords": "offset points", "va": "center"} | options, color=color
    )


def band(axes: Axes, x: Num[ArrayLike, " M"], runs: Num[ArrayLike, "N M"], color: str, **options) -> None:
    """Draw N runs, one a seed, as their median and the pale band from the lowest to the highest.

    Args:
        runs: runs[i, j] is what run i has at x[j].
        options: of the median's line.
    """
    axes.fill_between(x, np.min(runs, axis=0), np.max(runs, axis=0), color=color, alpha=0.2, linewidth=0)
    axes.plot(x, np.median(runs, axis=0), **{"color": color} | options)


def save(figure: Figure, name: str, folder: str | Path | None = None) -> Saved:
    """Write `folder`/`name`.png, the same bytes for the same figure.

    Args:
        folder: by default `$RLHF_JAX_FIGURES`, and where that is not set, `figures` in the working directory.
    """
    path = Path(folder or os.environ.get("RLHF_JAX_FIGURES") or "figures") / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(path, metadata={"Software": None})
    return Saved(path)
