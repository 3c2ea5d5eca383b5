"""The visual language: colours apart for colour-blind eyes, bands that hold every seed, the same bytes twice."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from rlhf_jax import plots

CURVES = [plots.BLUE, plots.VERMILLION, plots.GREEN, plots.ORANGE, plots.PURPLE, plots.SKY, plots.BLACK]
# What an eye without red, green or blue cones sees of a linear RGB colour: Machado, Oliveira and Fernandes (2009).
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(linear):
    """CIE L*a*b* under D65, in which two colours at a distance of 2.3 can just be told apart."""
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    share = to_xyz @ np.clip(linear, 0, 1) / to_xyz.sum(axis=1)
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", BLIND)
def test_curves_can_be_told_apart_by_every_eye(eye):
    rgb = np.array([to_rgb(color) for color in CURVES])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = [lab(np.array(BLIND[eye]) @ color) for color in linear]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 15


def test_a_band_spans_every_run_about_their_median():
    runs = np.array([[1.0, 4.0, 2.0], [3.0, 0.0, 2.0], [2.0, 1.0, 5.0]])
    _, axes = plots.subplots()
    plots.band(axes, np.arange(3), runs, plots.PPO, label="PPO")
    (line,), (area,) = axes.lines, axes.collections
    assert line.get_ydata().tolist() == [2, 1, 2]
    assert line.get_label() == "PPO"
    corners = {tuple(corner) for corner in area.get_paths()[0].vertices}
    assert {(0, 1), (0, 3), (1, 0), (1, 4), (2, 2), (2, 5)} <= corners


def test_a_figure_is_saved_as_the_same_bytes_twice_and_shows_in_a_notebook(tmp_path, monkeypatch):
    def draw():
        with plots.style():
            figure, axes = plots.subplots(width=3.0, height=2.0)
            axes.plot([0, 1], **plots.EXACT)
            plots.label(axes, 1, 1, "exact", plots.BLACK)
        return figure

    monkeypatch.setenv("RLHF_JAX_FIGURES", str(tmp_path))
    first, second = plots.save(draw(), "first"), plots.save(draw(), "second", tmp_path / "folder")
    assert first.path == tmp_path / "first.png"
    assert first._repr_png_() == second._repr_png_() == first.path.read_bytes()
