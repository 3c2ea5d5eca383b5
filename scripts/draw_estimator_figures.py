"""Draw figures/estimators_*.png, described in docs/estimators.md: every number is exact, nothing is sampled.

python scripts/draw_estimator_figures.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import enumerable, estimators, group, kl, plots
from rlhf_jax.moments import all_groups, moments

KL_COLORS = {"k1": plots.ORANGE, "k2": plots.SKY, "k3": plots.PURPLE}
KL_ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}

# --- Bias and deviation of policy-gradient estimators


@jax.jit
def standardised_scales(rates, members):
    """E[standardised gradient] / true gradient of a question that is answered right with each of these rates."""

    def scale(right):
        log_probs = jnp.log(jnp.stack([right, 1 - right]))[:, None]
        scores = jnp.stack([1 - right, -right])[:, None, None]
        estimates = estimators.group_gradients(
            log_probs,
            scores,
            jnp.ones((2, 1), bool),
            jnp.array([1.0, 0.0]),
            members,
            group.standardized_advantages,
            functools.partial(group.fixed_length_mean, length=1),
        )
        return -(jnp.exp(log_probs[members, 0].sum(axis=1)) @ estimates)[0] / (right * (1 - right))

    return jax.lax.map(scale, rates)


def draw_gradient():
    rows = [row for row in estimators.estimator_table() if row.quantity == "gradient"]
    rows = rows[: [row.name for row in rows].index("k1")]
    progress = np.array([row.length * np.cos(np.radians(row.degrees)) for row in rows])
    noise = np.array([row.relative_std for row in rows]) / progress
    kinds = {"REINFORCE": plots.BLUE, "GAE": plots.GREEN}
    colors = [kinds.get(row.name.partition(" ")[0].rstrip(","), plots.VERMILLION) for row in rows]
    figure, axes = plots.subplots(1, 4, width=10.8, height=3.6, gridspec_kw={"width_ratios": [1, 1, 1, 1.6]})
    places = -np.arange(len(rows))
    columns = (
        (axes[0], progress, 1, "Mean: length along ∇J", "in lengths of ∇J"),
        (axes[1], [row.degrees for row in rows], 0, "Mean: angle to ∇J", "degrees"),
        (axes[2], noise, None, "Noise of four strings", "deviation / mean length"),
    )
    for axis, numbers, exact, title, label in columns:
        axis.scatter(numbers, places, color=colors, zorder=4)
        if exact is not None:
            axis.axvline(exact, **plots.EXACT)
        axis.set(title=title, xlabel=label, yticks=places, yticklabels=[])
    axes[0].set(yticklabels=[row.name for row in rows], xlim=(0, 1.2))
    axes[1].set_xlim(-1, 21)
    axes[2].set_xlim(0, 2.25)

    rates = np.linspace(0.02, 0.98, 25)
    for size, shade in ((2, plots.SKY), (4, plots.ORANGE), (8, plots.PURPLE), (16, plots.VERMILLION)):
        scales = standardised_scales(rates, all_groups(np.full(2, 0.5), size).members)
        axes[3].plot(rates, scales, color=shade, label=f"standardised, G = {size}")
        print(f"standardised, G = {size}: {scales.min():.3f} to {scales.max():.3f} of the true gradient")
    axes[3].axhline(1, **plots.EXACT, label="leave-one-out, any G")
    axes[3].axhline(0.75, color=plots.GREY, linestyle=":", label="centred, G = 4")
    axes[3].legend(loc="upper center")
    axes[3].set(
        title="Standardised: by question",
        xlabel="probability of the right answer",
        ylabel="mean gradient / true gradient",
        ylim=(0, 5.5),
    )
    return figure


# --- GAE with a wrong critic


@jax.jit
def gae_curves(lambdas, noise):
    language = estimators.small_language()
    strings = language.log_probs.sum(axis=1)
    probs, truth = jnp.exp(strings), -(jnp.exp(strings) * language.rewards) @ language.scores.sum(axis=1)
    exact = estimators.prefix_values(probs, language.rewards, language.tokens, language.mask)
    errors = jnp.stack([0 * exact, 0 * exact + 0.5, noise, -exact])

    def point(error, lambda_):
        estimates = estimators.gae_gradients(
            language.log_probs, language.scores, language.mask, language.rewards, exact + error, lambda_
        )
        found = moments(probs, estimates, truth)
        size = jnp.linalg.norm(truth)
        batch = jnp.sqrt(found.averaged(64).mean_squared_error)
        return jnp.linalg.norm(found.bias) / size, jnp.sqrt(found.variance) / size, batch / size

    return jax.vmap(lambda error: jax.vmap(functools.partial(point, error))(lambdas))(errors)


def draw_gae():
    noise = (
        0.5
        * np.random.default_rng(0).normal(size=13)[enumerable.prefix_rows(enumerable.all_strings(3, 3, eos_id=0)[0], 3)]
    )
    names = ("exact V", "V + ½", "V + noise of deviation ½", "0 for every prefix")
    lambdas = np.linspace(0, 1, 41)
    curves = gae_curves(lambdas, noise)
    figure, axes = plots.subplots(1, 3, width=9.6, height=3.3)
    for axis, numbers, title, label in zip(
        axes,
        curves,
        ("Bias", "Noise of one string", "Error of a batch of 64 strings"),
        ("‖bias‖ / ‖gradient‖", "standard deviation / ‖gradient‖", "root mean square error / ‖gradient‖"),
        strict=True,
    ):
        for name, color, line in zip(names, (plots.GREEN, plots.ORANGE, plots.PURPLE, plots.SKY), numbers, strict=True):
            axis.plot(lambdas, line, color=color, label=name)
        axis.set(title=title, xlabel="λ", ylabel=label, xlim=(0, 1))
        axis.set_ylim(0, None)
    axes[0].axhline(0, **plots.EXACT)
    axes[0].set_ylim(-0.04, None)
    axes[1].legend(title="critic", loc="lower right", alignment="left")
    bias, deviation, error = map(np.asarray, curves)
    for c, name in enumerate(names):
        best = error[c].argmin()
        print(
            f"{name}: bias {bias[c, 0]:.3f} at λ = 0, {bias[c, 38]:.3f} at 0.95; deviation {deviation[c, 0]:.3f} at 0,"
            f" {deviation[c, -1]:.3f} at 1; 64 strings: least error {error[c, best]:.3f} at λ = {lambdas[best]:.3f}"
        )
    return figure


# --- k1, k2, k3


@jax.jit
def kl_curves(temperatures, logits):
    """At policies of logits temperature · `logits`: the divergence, and bias and deviation of values and gradients."""

    def at(temperature):
        language = estimators.small_language(temperature * logits)
        strings, scores, ref = language.log_probs.sum(axis=1), language.scores.sum(axis=1), language.ref_log_probs
        probs = jnp.exp(strings)
        truth, slope = jax.value_and_grad(kl.exact_kl)(strings, ref)
        size = jnp.linalg.norm(slope @ scores)
        found = []
        for estimator in KL_ESTIMATORS.values():
            value = moments(probs, estimator(strings, ref)[:, None], truth[None])
            gradient = moments(probs, estimators.string_gradients(estimator, strings, scores, ref), slope @ scores)
            of_value = [value.bias[0] / truth, jnp.sqrt(value.variance) / truth]
            found.append([*of_value, jnp.linalg.norm(gradient.bias) / size, jnp.sqrt(gradient.variance) / size])
        return truth, jnp.array(found)

    return jax.vmap(at)(temperatures)


@functools.partial(jax.jit, static_argnames="cost")
def descend(cost, logits, rate):
    """KL(π ‖ π_ref) before every step of gradient descent on `cost`(log π of all strings, log π_ref)."""

    def step(logits, _):
        def loss(logits):
            language = estimators.small_language(logits)
            strings = language.log_probs.sum(axis=1)
            return cost(strings, language.ref_log_probs), kl.exact_kl(strings, language.ref_log_probs)

        slope, divergence = jax.grad(loss, has_aux=True)(logits)
        return logits - rate * slope, divergence

    return jax.lax.scan(step, logits, length=120)[1]


def sampled_loss(estimator):
    """E_π[estimator] as a trainer differentiates it: the strings are data, only the log-probabilities move."""
    return lambda own, ref: jnp.sum(jax.lax.stop_gradient(jnp.exp(own)) * estimator(own, ref))


def draw_kl():
    logits = 3.0 * jnp.cos(2.0 * jnp.arange(39.0)).reshape(13, 3)
    divergence, found = map(np.asarray, kl_curves(jnp.geomspace(0.03, 1.0, 40), logits))
    figure, axes = plots.subplots(2, 3, width=8.3, height=4.5)
    titles = ("As a value: bias", "As a value: noise", "As a loss: bias", "As a loss: noise")
    labels = (
        "bias / KL",
        "deviation / KL",
        "‖bias‖ / ‖∇KL‖",
        "deviation / ‖∇KL‖",
    )
    for place, (title, label) in enumerate(zip(titles, labels, strict=True)):
        axis = axes[divmod(place, 2)]
        for k, (name, color) in enumerate(KL_COLORS.items()):
            axis.plot(
                divergence, found[:, k, place], color=color, label=name, linestyle=":" if k == 2 and place == 0 else "-"
            )
        axis.set(title=title, xlabel="KL(π‖π_ref) [nats]" if place > 1 else "", ylabel=label, xscale="log")
        if place % 2:
            axis.set_yscale("log")
        else:
            axis.axhline(0, **plots.EXACT)
        axis.minorticks_off()
    axes[0, 1].legend()

    gaussian = axes[0, 2]
    gaussian.set_yscale("log")
    shifts = np.linspace(0.05, 1.5, 30)
    for name, estimator in KL_ESTIMATORS.items():
        line = [float(jnp.sqrt(estimators.gaussian_kl_moments(estimator, mu).variance)) / (mu**2 / 2) for mu in shifts]
        gaussian.plot(shifts, line, color=KL_COLORS[name])
    printed = {"k1": (20, 2), "k2": (1.42, 1.73), "k3": (1.42, 1.7)}
    for name, numbers in printed.items():
        gaussian.plot((0.1, 1), numbers, "x", color=KL_COLORS[name], markersize=8, markeredgewidth=2)
    plots.label(gaussian, 0.45, 12, "× printed by\nSchulman (2020)", plots.BLACK, xytext=(0, 0))
    gaussian.set_yticks((1, 2, 5, 10, 20, 40), ("1", "2", "5", "10", "20", "40"))
    gaussian.minorticks_off()
    gaussian.set(title="Two Gaussians µ apart: noise", xlabel="µ [standard deviations]", ylabel="deviation / KL")

    path = axes[1, 2]
    rate = 0.5
    for name, estimator in KL_ESTIMATORS.items():
        line = descend(sampled_loss(estimator), logits, rate)
        path.plot(line, color=KL_COLORS[name], linewidth=3)
        print(f"descent on {name}: KL {line[0]:.4f} -> {line[-1]:.4f} nats")
    exact = {
        "KL(π‖π_ref)": kl.exact_kl,
        "KL(π_ref‖π)": lambda own, ref: kl.exact_kl(ref, own),
    }
    for cost in exact.values():
        path.plot(descend(cost, logits, rate), **plots.EXACT)
    path.plot([], [], **plots.EXACT, label="exact KL, either way")
    path.set(
        title="Descending the loss",
        xlabel="steps of exact gradient descent",
        ylabel="KL(π‖π_ref) [nats]",
        ylim=(0, 1.09),
    )
    path.legend(loc="upper right", bbox_to_anchor=(1.02, 0.9))
    ends = (("k1", 119, 1.0, (0, 7)), ("k2", 119, 0.36, (0, 8)), ("k3", 75, 0.15, (0, 8)))
    for name, x, y, offset in ends:
        plots.label(path, x, y, name, KL_COLORS[name], xytext=offset, ha="right")
    return figure


FIGURES = {
    "estimators_gradient": draw_gradient,
    "estimators_gae": draw_gae,
    "estimators_kl": draw_kl,
}

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    for name, draw in FIGURES.items():
        with jax.enable_x64(True), plots.style():
            print(plots.save(draw(), name).path)
