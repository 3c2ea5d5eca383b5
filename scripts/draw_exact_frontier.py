"""Draw figures/exact_frontier.png: the trainers' paths to the known optimum, for a table and for a small GPT-2.

Every point is exact: divergences and rewards are sums over all strings. Prints the ends as a table.

python scripts/draw_exact_frontier.py
"""

import jax
import numpy as np

from rlhf_jax import enumerable, plots
from rlhf_jax.training import exact, language

STYLES = {
    "exact policy gradient": (plots.BLACK, "-"),
    "DPO, every pair": (plots.BLUE, "-"),
    f"DPO, {exact.NUM_CHOICES:,} choices": (plots.SKY, "-"),
    "PPO": (plots.VERMILLION, "-"),
    "GRPO": (plots.GREEN, "-"),
    "RLOO": (plots.ORANGE, "-"),
    "REINFORCE, no baseline": (plots.PURPLE, "-"),
    "GRPO, k3 in the loss": (plots.GREEN, ":"),
}
BETAS = np.geomspace(0.12, 60, 120)


def draw_plane(axes, problem, runs, title):
    at = lambda betas: np.mean(
        jax.vmap(enumerable.frontier, (0, 0, None))(problem.ref_log_probs, problem.rewards, betas), axis=1
    )
    (frontier,) = axes.plot(*at(BETAS), **plots.EXACT, label="exact frontier")
    for run in runs:
        color, line = STYLES[run.method]
        axes.plot(run.path.kl, run.path.reward, line, color=color, linewidth=1.4)
        axes.plot(run.path.kl[-1], run.path.reward[-1], "o", color=color, markersize=5, zorder=5)
    divergence, reward = at(np.array([problem.beta]))
    axes.plot(divergence, reward, "*", color=plots.YELLOW, markeredgecolor=plots.BLACK, markersize=17, zorder=4)
    plots.label(axes, divergence[0], reward[0], "π*", plots.BLACK, xytext=(-7, 13), ha="right", fontsize=13)
    start = np.mean(jax.vmap(enumerable.expected_reward)(problem.ref_log_probs, problem.rewards))
    plots.label(axes, 0, start, "reference", plots.BLACK, xytext=(7, -5))
    axes.set(
        title=title,
        xlabel="KL(π ‖ π_ref) [nats a string]",
        ylabel="expected reward [reward units]",
        xlim=(-0.03, 1.38),
        ylim=(-0.27, 1.32),
    )
    return frontier


def draw_distances(axes, problem, runs):
    for run in runs:
        color, line = STYLES[run.method]
        axes.plot(run.marks, run.path.distance[1:], line, color=color, linewidth=1.4)
    theory = {
        "REINFORCE, no baseline": language.expected_reinforce_distance(problem, 4.0, exact.BATCH_SIZE),
        f"DPO, {exact.NUM_CHOICES:,} choices": language.expected_dpo_distance(problem, exact.NUM_CHOICES),
    }
    for method, distance in theory.items():
        axes.plot(6000, distance, "<", color=STYLES[method][0], markersize=7, clip_on=False)
    plots.label(axes, 6000, max(theory.values()), "theory", plots.BLACK, xytext=(3, 10), ha="right")
    axes.set(
        title="Distance from the optimum (table)",
        xlabel="steps",
        ylabel="KL(π ‖ π*) [nats a string]",
        xscale="log",
        yscale="log",
        xlim=(1, 8000),
        ylim=(1e-9, 3),
    )


def main():
    policies = language.policies()
    problem = language.make_problem(policies["table"])
    runs = exact.runs()
    by_policy = {name: [run for run in runs if run.policy == name] for name in policies}
    with plots.style():
        figure, axes = plots.subplots(1, 3, width=10.8, height=4.1)
        frontier = draw_plane(axes[0], problem, by_policy["table"], "A table of logits")
        draw_plane(axes[1], problem, by_policy["GPT-2"], "A GPT-2 of 6,720 parameters")
        draw_distances(axes[2], problem, by_policy["table"])
        handles = [frontier] + [
            axes[0].plot([], [], line, color=color, label=name)[0] for name, (color, line) in STYLES.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
    saved = plots.save(figure, "exact_frontier")
    for run in runs:
        print(
            f"{run.method:24}{run.policy:7}{run.steps:6} steps{run.learning_rate:7} rate{run.samples:8} samples"
            f"{run.path.distance[-1]:10.1e} nats from π*"
        )
    print(f"{saved.path}: {saved.path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
