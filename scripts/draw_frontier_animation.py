"""Draw figures/frontier.gif: a policy moves to the known optimum as PPO and as DPO train it.

Left, where each policy stands in the plane of KL and reward, beside the exact frontier; right, the probabilities of the
strings after one prompt, beside those of the optimum. Everything shown is a sum over all strings. The policy is a table
of logits, the train steps are those that train GPT-2 (`rlhf_jax.training.exact`).

python scripts/draw_frontier_animation.py
"""

import argparse
import functools
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from rlhf_jax import enumerable, plots
from rlhf_jax.training import exact, language

NUM_FRAMES, MILLISECONDS, HOLD_MILLISECONDS = 46, 90, 2200
NUM_BARS, DPI, NUM_COLORS = 12, 100, 256
METHODS = (("PPO", plots.PPO), ("DPO, every pair", plots.DPO))


def follow(problem, policy, method):
    """Steps shown, and where the policy stands and what it says of the first prompt's strings at step 0 and at each."""

    def measure(params):
        return language.measure(problem, policy.config, params), log_probs(params)[0]

    log_probs = functools.partial(language.string_log_probs, problem, policy.config)
    (setting,) = (setting for setting in exact.SETTINGS["table"] if setting.method == method)
    wanted = np.geomspace(1, setting.steps, NUM_FRAMES - 1).round().astype(np.int32)
    marks, frames = np.unique(wanted, return_inverse=True)
    optimizer = setting.optimizer(setting.learning_rate, setting.steps * setting.updates)
    path, strings = exact.follow(setting.setup(problem, policy, optimizer), measure, marks)
    rows = np.concatenate([[0], 1 + frames])
    return np.concatenate([[0], wanted]), np.array(path.kl)[rows], np.array(path.reward)[rows], np.exp(strings)[rows]


def likeliest(problem):
    """The first prompt's strings, the most probable under π* first, and their names."""
    probs = np.exp(language.optimum(problem)[0])
    tokens, mask = enumerable.all_strings(language.VOCAB, language.LENGTH, language.EOS)
    letters = np.array(["." if token == language.EOS else "abcdefgh"[token] for token in range(language.VOCAB)])
    names = ["".join(letters[row[keep]]) for row, keep in zip(np.array(tokens), np.array(mask), strict=True)]
    order = np.argsort(-probs, kind="stable")
    return probs, order, [names[i] for i in order[:NUM_BARS]] + [f"{len(order) - NUM_BARS} others"]


def gather(probs, order):
    """Probabilities of the bars: the likeliest strings, and all others together."""
    return np.append(probs[order[:NUM_BARS]], probs[order[NUM_BARS:]].sum())


def frames(problem, policy):
    """The pictures, one a frame."""
    optimum, order, names = likeliest(problem)
    runs = [(name, color, *follow(problem, policy, name)) for name, color in METHODS]
    betas = np.geomspace(0.2, 60, 120)
    line = jax.vmap(enumerable.frontier, (0, 0, None))(problem.ref_log_probs, problem.rewards, betas)
    line_kl, line_reward = (np.mean(values, axis=0) for values in line)
    best = [np.interp(problem.beta, betas, values) for values in (line_kl, line_reward)]
    rows = np.arange(NUM_BARS + 1)

    with plots.style():
        figure, (plane, *bars) = plots.subplots(1, 3, width=8.8, height=4.0, width_ratios=[1.5, 1, 1])
        plane.plot(line_kl, line_reward, **plots.EXACT)
        plots.label(plane, line_kl[30], line_reward[30], "exact frontier", plots.BLACK, xytext=(-6, 9), ha="right")
        plane.plot(*best, "*", color=plots.YELLOW, markeredgecolor=plots.BLACK, markersize=17, zorder=4)
        plots.label(plane, *best, "π*", plots.BLACK, xytext=(-7, 13), ha="right", fontsize=13)
        plots.label(plane, 0, line_reward[-1], "reference", plots.BLACK, xytext=(9, -7))
        plane.set(xlabel="KL(π ‖ π_ref) [nats a string]", ylabel="expected reward [reward units]")
        plane.set(xlim=(-0.03, 1.05), ylim=(-0.27, 1.32), title="The policy as it trains")
        moving = []
        for axes, (name, color, *_), height in zip(bars, runs, (0.15, 0.07), strict=True):
            axes.barh(rows, gather(optimum, order), facecolor="none", edgecolor=plots.BLACK, linestyle="--", zorder=3)
            filled = axes.barh(rows, 0 * rows, color=color)
            axes.set_yticks(rows, names if axes is bars[0] else [""] * len(rows))
            axes.grid(axis="y", visible=False)
            axes.invert_yaxis()
            axes.set(xlabel="probability", xlim=(0, 0.32), title=name)
            axes.text(0.97, 0.3, "dashed: π*", transform=axes.transAxes, ha="right")
            text = axes.text(0.97, 0.38, "", color=color, transform=axes.transAxes, ha="right")
            (trail,) = plane.plot([], [], color=color, linewidth=1.5)
            (point,) = plane.plot([], [], "o", color=color, markersize=8, zorder=5)
            plane.text(0.97, height, name, color=color, transform=plane.transAxes, ha="right")
            moving.append((filled, trail, point, text))
        bars[0].set_ylabel('strings after one prompt, "." ends')
        figure.set_dpi(DPI)
        figure.canvas.draw()
        figure.set_layout_engine("none")
        for number in range(NUM_FRAMES):
            for (*_, steps, kl, reward, probs), (filled, trail, point, text) in zip(runs, moving, strict=True):
                for bar, width in zip(filled, gather(probs[number], order), strict=True):
                    bar.set_width(width)
                trail.set_data(kl[: number + 1], reward[: number + 1])
                point.set_data(kl[number : number + 1], reward[number : number + 1])
                text.set_text(f"step {steps[number]:,}")
            figure.canvas.draw()
            yield Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def palette_of(picture):
    """Its most frequent colours, none within 12 of a more frequent one: white stays white."""
    chosen = []
    for _, color in sorted(picture.getcolors(2**16), reverse=True):
        near = any(sum(abs(one - other) for one, other in zip(color, kept, strict=True)) <= 12 for kept in chosen)
        chosen += [] if near else [color]
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for color in chosen[:NUM_COLORS] for channel in color])
    return palette


def save(pictures, path):
    """An endless GIF with one palette and no dithering, so that only what moves is stored; the last frame is held."""
    palette = palette_of(pictures[len(pictures) // 2])
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [MILLISECONDS] * (len(pictures) - 1) + [HOLD_MILLISECONDS]
    path.parent.mkdir(parents=True, exist_ok=True)
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=durations, loop=0)


def main():
    parser = argparse.ArgumentParser(description="Draw figures/frontier.gif.")
    parser.add_argument("--out", type=Path, default=Path("figures/frontier.gif"), help="the file to write")
    path = parser.parse_args().out
    policy = language.policies()["table"]
    save(list(frames(language.make_problem(policy), policy)), path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
