# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8. Can a policy learn from comparisons, with no reward model?
#
# Lesson 7 fitted scores to choices: a prompt $x$, a chosen answer $y^+$, a rejected answer $y^-$. A network that gives
# such scores is a **reward model**. The older road has two steps: train one; then improve the policy $\pi(y|x)$ against
# it by reinforcement learning, while a penalty holds it near the model it started from, the **reference**
# $\pi_\text{ref}(y|x)$. Direct preference optimisation (DPO) walks both steps at once, with a loss on $\pi$ alone.
#
# We derive it on a language so small that every string can be listed. There, the answer is known exactly.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import dpo, enumerable, kl, numpy_losses, plots, population, reward_model

# %% [markdown]
# ## A language of nine strings
#
# Three words, strings of two words (`mask` says which places are in use: all). The reference has learned from text that
# "film" comes last and that both adjectives are equally common; it has no opinion about films. The prompt is always the
# same, so we leave $x$ out.
#
# The hidden taste of our crowd is a reward $r(y)$: +1 for each "good", −1 for each "bad". Note what it leaves out:
# the crowd was never asked about grammar, so "film good" is worth as much as "good film".

# %%
words = ["good", "bad", "film"]
tokens, mask = enumerable.all_strings(vocab_size=3, length=2)
strings = [" ".join(words[token] for token in string) for string in tokens]

first_word = np.array([0.45, 0.45, 0.10])
second_word = np.array([[0.04, 0.06, 0.90], [0.06, 0.04, 0.90], [0.20, 0.20, 0.60]])
ref_log_probs = jnp.log(first_word[:, None] * second_word).reshape(9)
rewards = jnp.array([1.0, -1.0, 0.0])[tokens].sum(axis=1)

for string, log_prob, reward in zip(strings, ref_log_probs, rewards, strict=True):
    print(f"{string:10}  pi_ref = {jnp.exp(log_prob):.3f}   r = {reward:+.0f}")

# %% [markdown]
# The crowd chooses by Bradley and Terry's model of [lesson 7](07_human_preferences.py):
# $P(y_1 \succ y_2) = \sigma(r(y_1) - r(y_2))$ with $\sigma(z) = 1 / (1 + e^{-z})$. Only **differences** of rewards show
# in choices. That is the gap through which DPO will slip.
#
# ## What the policy should become
#
# RLHF looks for the policy with much reward that stays close to the reference:
#
# $$J(\pi) = \mathbb{E}_{y \sim \pi}[r(y)] - \beta\, \mathrm{KL}(\pi \,\|\, \pi_\text{ref}).$$
#
# The divergence, $\mathrm{KL}(\pi \| \pi_\text{ref}) = \sum_y \pi(y) \log \frac{\pi(y)}{\pi_\text{ref}(y)}$, says by
# how many nats $\pi$ on average finds its own strings likelier than the reference does. It is 0 where the two agree,
# and positive elsewhere; $\beta > 0$ is its price in reward. Collect the logarithms, and $J$ becomes a single
# divergence from which the best policy can be read off. With $Z = \sum_y \pi_\text{ref}(y)\, e^{r(y)/\beta}$ (put
# $r = \beta \log e^{r/\beta}$ into $J$, and divide by $Z$ to have probabilities),
#
# $$J(\pi) = \beta \log Z - \beta\, \mathrm{KL}(\pi \,\|\, \pi^*), \qquad
# \pi^*(y) = \frac{1}{Z}\, \pi_\text{ref}(y)\, e^{r(y)/\beta}.$$
#
# Multiply each string's probability by a factor that grows with its reward, and normalise. No language model can
# do this sum over all strings; we can, so we know where every method has to arrive.

# %%
beta = 0.5
by_loop = numpy_losses.optimal_probs(np.exp(ref_log_probs), rewards, beta)
optimum = enumerable.optimal_log_probs(ref_log_probs, rewards, beta)
assert np.allclose(np.exp(optimum), by_loop, atol=1e-6)

log_z = jax.nn.logsumexp(ref_log_probs + rewards / beta)
other = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (9,)))  # any policy
objective = enumerable.regularized_objective(other, ref_log_probs, rewards, beta)
assert np.isclose(objective, beta * log_z - beta * kl.exact_kl(other, optimum), atol=1e-5)

# %% [markdown]
# ## Turn the formula round
#
# Solve the formula of $\pi^*$ for the reward:
#
# $$r(y) = \beta \log \frac{\pi^*(y)}{\pi_\text{ref}(y)} + \beta \log Z.$$
#
# $Z$ is out of reach for a real model. But it is the same for every answer, and choices only show differences. In
# $r(y^+) - r(y^-)$ it cancels, and Bradley and Terry's formula becomes one about policies:
#
# $$P(y^+ \succ y^-) = \sigma(\beta h), \qquad
# h = \log \frac{\pi(y^+)}{\pi_\text{ref}(y^+)} - \log \frac{\pi(y^-)}{\pi_\text{ref}(y^-)}.$$
#
# Now fit $\pi$ to the recorded choices by maximum likelihood, as lesson 7 fitted scores. That is DPO, in full:
#
# $$L^\text{DPO} = \log \sigma(\beta h), \qquad \text{loss} = -L^\text{DPO}.$$
#
# No reward appears in it. Without a reference and with $\beta = 1$ (which is what `dpo.dpo_loss` does if not told
# otherwise) it has a short form, $L^\text{DPO} = \log \sigma\big(\log \pi(y^+) - \log \pi(y^-)\big)$; we shall see what
# it lacks.

# %%
pair = jnp.array([strings.index("good film"), strings.index("film bad")])
by_loop = numpy_losses.dpo_loss(*optimum[pair], *ref_log_probs[pair], beta=beta)
assert np.isclose(dpo.dpo_loss(*optimum[pair], *ref_log_probs[pair], beta=beta), by_loop, atol=1e-6)
assert np.isclose(by_loop, reward_model.bradley_terry_loss(*rewards[pair]), atol=1e-5)
assert np.isclose(dpo.dpo_loss(*optimum[pair]), -np.log(numpy_losses.sigmoid(-np.diff(optimum[pair]))), atol=1e-6)

# %% [markdown]
# Two numbers every DPO run must show at its first step, where $\pi = \pi_\text{ref}$ and so $h = 0$: the loss is
# $\ln 2$, and its gradient is $-\beta/2$ for the chosen log-probability, $+\beta/2$ for the rejected one. If yours
# differ, the two models do not score the same tokens.

# %%
at_start = *ref_log_probs[pair], *ref_log_probs[pair]
value, gradient = jax.value_and_grad(dpo.dpo_loss, argnums=(0, 1))(*at_start, beta=beta)
assert np.isclose(value, np.log(2), atol=1e-6)
assert np.allclose(gradient, (-beta / 2, beta / 2), atol=1e-6)

# %% [markdown]
# ## Does it arrive?
#
# Let the crowd compare every pair of strings, without end: each outcome then has its exact share of the votes. The
# policy is free, one logit a string, and starts at the reference. `vmap` trains five side by side: four with the
# reference, one for each $\beta$, and one without, for later. (The loss bends like $\beta^2$, so the steps are divided
# by that.) The reward enters only through who won.

# %%
everybody_shown = jnp.full(9, -jnp.log(9.0))  # log-probabilities of the nine strings
winners, losers, shares = population.bradley_terry_population(everybody_shown, rewards)


def population_loss(logits, ref, beta):
    log_probs = jax.nn.log_softmax(logits)
    return shares @ dpo.dpo_loss(log_probs[winners], log_probs[losers], ref[winners], ref[losers], beta=beta)


def descend(logits, ref, beta):
    return logits - 20 / beta**2 * jax.grad(population_loss)(logits, ref, beta)


betas = jnp.array([2.0, 1.0, 0.5, 0.25, 1.0])
refs = jnp.tile(ref_log_probs, (5, 1)).at[4].set(0.0)
step = jax.jit(jax.vmap(descend))
logits = jnp.tile(ref_log_probs, (5, 1))
for _ in range(100):
    logits = step(logits, refs, betas)
learned, short = jax.nn.log_softmax(logits)[:4], jax.nn.log_softmax(logits)[4]

optima = jax.vmap(enumerable.optimal_log_probs, (None, None, 0))(ref_log_probs, rewards, betas[:4])
assert np.allclose(learned, optima, atol=1e-4)

implicit = dpo.implicit_reward(learned[2], ref_log_probs, beta=betas[2])
assert np.allclose(implicit - rewards, -beta * log_z, atol=1e-4)

# %% [markdown]
# Every log-probability of every string agrees with the closed form. Comparisons were enough.
#
# And the reward is not lost: "your language model is secretly a reward model". Read it from the policy as
# $\beta \log(\pi/\pi_\text{ref})$; it is the crowd's taste, up to the constant $\beta \log Z$ (the last assert).
#
# ## What the reference is for
#
# Leave it out. Any constant in its place cancels in $h$, so "no reference" means one that finds all strings equally
# likely, and the short form must arrive at $\pi(y) \propto e^{r(y)}$. The crowd said nothing about grammar, so the
# short form forgets it. The reference answers every question that the choices leave open: it is how the policy
# remembers language while it learns taste.

# %%
assert np.allclose(short, jax.nn.log_softmax(rewards), atol=1e-4)

ends_in_film = np.array([string.endswith("film") for string in strings])
grammatical = [float(jnp.exp(policy)[ends_in_film].sum()) for policy in (ref_log_probs, learned[1], short)]
assert grammatical[1] > 0.8 > 0.3 > grammatical[2]

# %% [markdown]
# The **frontier** says the same in two numbers: the largest reward that each divergence from the reference can buy,
# which is that of $\pi^*$ for some $\beta$. DPO's policies lie on that line; the short form spent divergence on
# forgetting.

# %%
line_kl, line_reward = enumerable.frontier(ref_log_probs, rewards, jnp.geomspace(50, 0.16, 100))
on_the_line = lambda divergence: np.interp(divergence, line_kl, line_reward)
dpo_kl = kl.exact_kl(learned, jnp.tile(ref_log_probs, (4, 1)))
dpo_reward = jnp.exp(learned) @ rewards
short_kl, short_reward = kl.exact_kl(short, ref_log_probs), jnp.exp(short) @ rewards
assert np.allclose(dpo_reward, on_the_line(dpo_kl), atol=0.01)
assert short_reward < on_the_line(short_kl) - 0.2

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.7, width_ratios=[1.25, 1])
    order = np.lexsort((ref_log_probs, rewards))
    rows = [f"{strings[i]}  ({rewards[i]:.0f})" for i in order]
    left.barh(rows, jnp.exp(ref_log_probs)[order], color=plots.PALE, label="reference")
    left.plot(jnp.exp(optima[1])[order], rows, "|", color=plots.BLACK, ms=15, mew=1.5, label="exact optimum, β = 1")
    left.plot(jnp.exp(learned[1])[order], rows, "o", color=plots.DPO, label="DPO, β = 1")
    left.plot(jnp.exp(short)[order], rows, "D", color=plots.ORANGE, label="no reference, β = 1")
    left.grid(axis="y", visible=False)
    left.set(xlabel="probability", title="The nine strings (reward in brackets)")
    left.legend(loc="lower right")
    right.plot(line_kl, line_reward, **plots.EXACT, label="exact frontier")
    right.plot(0, jnp.exp(ref_log_probs) @ rewards, "s", color=plots.REFERENCE, label="reference")
    right.plot(dpo_kl, dpo_reward, "o", color=plots.DPO, label="DPO, at each β")
    right.plot(short_kl, short_reward, "D", color=plots.ORANGE, label="no reference, β = 1")
    for place in zip(dpo_kl, dpo_reward, ["2", "1", "0.5", "0.25"], strict=True):
        plots.label(right, *place, plots.DPO, xytext=(6, -6))
    right.set(xlabel="KL to the reference (nats)", ylabel="expected reward", title="Reward bought with divergence")
    right.legend(loc="lower right")
plots.save(figure, "08_dpo_optimum")

# %% [markdown]
# Left: DPO moved mass from "bad film" to "good film", and little to strings that are not language. The short form likes
# "good good" best.
#
# ## What the reference is not
#
# It is often called a leash. It is not one when a choice is **certain**. Suppose "good film" beat "bad film" every
# time, as in any data set that shows each pair once. Then $-\log \sigma(\beta h)$ falls for ever as $h$ grows: the loss
# has no minimum, with a reference or without. With small steps on one pair,
# $\frac{dh}{dt} = 2 \beta\, \sigma(-\beta h)$: exercise 2 derives the gradient, it pushes one logit up and the other
# down, and $t$ is training time, steps × step size. From $h = 0$ that leads to
#
# $$e^{\beta h} + \beta h = 1 + 2 \beta^2 t, \qquad \text{so } h \approx \tfrac{1}{\beta} \ln(2 \beta^2 t)
# \text{ without bound.}$$
#
# What stopped $h$ above was the crowd's indecision: the minimum is where $\sigma(\beta h)$ equals the share of votes.
# Label smoothing puts indecision back by hand. It takes a share $\varepsilon$ of the choices to be mistakes, and
# $\beta h$ stops at $\ln \frac{1 - \varepsilon}{\varepsilon}$.

# %%
pair = jnp.array([strings.index("good film"), strings.index("bad film")])
certain_losses = {
    "no reference": lambda lp: dpo.dpo_loss(*lp[pair]),
    "reference, β = 0.5": lambda lp: dpo.dpo_loss(*lp[pair], *ref_log_probs[pair], beta=0.5),
    "smoothed, ε = 0.1": lambda lp: dpo.dpo_loss(*lp[pair], label_smoothing=0.1),
}
step_size = 0.1


def path_of_descent(loss, start, num_steps):
    step = lambda params, _: (params - step_size * jax.grad(loss)(params), params)
    return jax.lax.scan(step, start, length=num_steps)[1]  # a `for` loop, compiled; the parameters before each step


time = step_size * np.arange(20_000)
gaps = {}
for name, loss in certain_losses.items():
    log_probs = jax.nn.log_softmax(path_of_descent(lambda x, f=loss: f(jax.nn.log_softmax(x)), ref_log_probs, 20_000))
    gaps[name] = log_probs[:, pair[0]] - log_probs[:, pair[1]]
    assert (np.diff(log_probs[:, pair[0]]) > -1e-5).all(), "with one logit a string, the chosen one rises"

for name, b in [("no reference", 1.0), ("reference, β = 0.5", 0.5)]:
    predicted_time = (np.exp(b * gaps[name]) + b * gaps[name] - 1) / (2 * b**2)
    assert np.allclose(predicted_time[1000:], time[1000:], rtol=0.03)
assert np.isclose(gaps["smoothed, ε = 0.1"][-1], np.log(9), atol=1e-4)

# %% [markdown]
# ## The loss improves and the chosen answer gets rarer
#
# The loss rewards a **gap**: the rejected log-probability may fall faster than the chosen one. With one logit a string
# the chosen one did rise. But a network shares its parameters between strings, so take the extreme case: one logit a
# **word**, the same at both places, all equal at first, and one certain choice, "good film" over "good good".
# (`string_log_probs` adds up a string's tokens; it asks for logits at every place of every string, `[9, 2, 3]`.)
#
# The two strings differ in one word, so DPO raises "film" and lowers "good". Then
# $\pi(\text{good film}) = p_\text{good}\, p_\text{film}$ falls, and the mass goes to "film film", which nobody was
# shown. The logits of good, bad and film are $-\frac{h}{2}$, $0$ and $\frac{h}{2}$, so
# $\log \pi(\text{good film}) = -2 \ln(1 + 2 \cosh \frac{h}{2})$.

# %%
watched = jnp.array([strings.index(name) for name in ("good film", "good good", "film film")])
word_policy = lambda word_logits: enumerable.string_log_probs(lambda _: jnp.tile(word_logits, (9, 2, 1)), tokens, mask)
word_loss = lambda word_logits: dpo.dpo_loss(*word_policy(word_logits)[watched[:2]])

word_path = path_of_descent(word_loss, jnp.zeros(3), 200)
word_losses = jax.vmap(word_loss)(word_path)
seen = jax.vmap(word_policy)(word_path)[:, watched]

assert (np.diff(word_losses) < 0).all(), "the loss improves at every step"
assert (np.diff(seen[:, 0]) < 1e-6).all(), "and at every step the chosen string becomes rarer"
assert np.exp(seen[-1, 2]) > 0.5, "the mass went to a string that nobody compared"
exact_chosen = -2 * np.log(1 + 2 * np.cosh((seen[:, 0] - seen[:, 1]) / 2))
assert np.allclose(seen[:, 0], exact_chosen, atol=1e-4)

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.7)
    for (name, gap), color in zip(gaps.items(), [plots.ORANGE, plots.DPO, plots.GREEN], strict=True):
        left.plot(time, gap, color=color, label=name)
    line = np.linspace(0.1, 14, 200)
    for b in (1.0, 0.5):
        left.plot((np.exp(b * line) + b * line - 1) / (2 * b**2), line, **plots.EXACT)
    left.axhline(np.log(9), **plots.EXACT, label="exact")
    left.set(xscale="log", xlim=(0.1, 2000), ylim=(0, 14.5), title="A choice that never varies: no bound")
    left.set(xlabel="training time (steps × step size)", ylabel="gap h, chosen over rejected (nats)")
    left.legend(loc="upper left")
    names = ["chosen:\ngood film", "rejected:\ngood good", "never shown:\nfilm film", "DPO loss"]
    colors = [plots.DPO, plots.VERMILLION, plots.PURPLE, plots.GREY]
    for curve, name, color, shift in zip([*seen.T, word_losses], names, colors, [0, 5, -9, 8], strict=True):
        right.plot(curve, color=color)
        plots.label(right, 200, curve[-1], name, color, xytext=(5, shift))
    right.plot(exact_chosen, **plots.EXACT, label="exact")
    right.set(xlabel="steps of size 0.1", ylabel="log-probability, loss (nats)", xticks=range(0, 201, 50))
    right.set(xlim=(-5, 285), title="Shared parameters: the chosen string falls")
    right.legend(loc="lower left")
plots.save(figure, "08_dpo_pitfalls")

# %% [markdown]
# In a real run, plot the chosen log-probability beside the loss: if it sinks while the loss falls, this is what you
# see.
#
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/08_dpo.py).
#
# **1.** A policy gives $\log \pi(y^+) = -3$ and $\log \pi(y^-) = -2$; the reference gives $-5$ and $-3$; $\beta = 0.5$.
# With which probability does the policy, read as a reward model, expect the crowd to choose $y^+$?


# %%
def exercise_1(chosen, rejected, ref_chosen, ref_rejected, beta):
    return ...


answer = exercise_1(-3.0, -2.0, -5.0, -3.0, 0.5)
assert answer is ... or np.isclose(answer, 0.6225, atol=1e-4), "h is a difference of two log-ratios; here h = 1"
print("Exercise 1:", "to do" if answer is ... else "right")

# %% [markdown]
# **2.** What is the derivative of the loss $-\log \sigma(\beta h)$ with respect to $\log \pi(y^+)$, at any $h$? (Which
# pairs does DPO learn most from, then: those it has right, or those it has wrong?)


# %%
def exercise_2(h, beta):
    return ...


for h in (-2.0, 0.5, 3.0):
    answer, by_machine = exercise_2(h, 0.3), jax.grad(dpo.dpo_loss)(h, 0.0, beta=0.3)
    assert answer is ... or np.isclose(answer, by_machine, atol=1e-6), "mind the sign, the factor, and at which end"
print("Exercise 2:", "to do" if answer is ... else "right")

# %% [markdown]
# **3.** Your data show each pair once, so every choice looks certain. You do not want $h$ to grow without bound: the
# odds of $y^+$ over $y^-$ shall end $k$ times as high as the reference's, $e^h = k$. Which `label_smoothing` does that?


# %%
def exercise_3(factor, beta):
    return ...


for factor, beta in ((20.0, 0.1), (3.0, 1.0)):
    answer = exercise_3(factor, beta)
    if answer is not ...:
        slope = jax.grad(lambda h, b=beta, e=answer: dpo.dpo_loss(h, 0.0, beta=b, label_smoothing=e))(np.log(factor))
        assert np.isclose(slope, 0, atol=1e-5), "the smoothed loss should be level at h = ln k, and is not"
print("Exercise 3:", "to do" if answer is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Rafailov et al. (2023), "Direct Preference Optimization": equations 4, 5 and 7 are `enumerable.optimal_log_probs`,
#   `dpo.implicit_reward` and `dpo.dpo_loss`.
# - Mitchell (2023), "A note on DPO with noisy preferences": `label_smoothing`. Chowdhury et al. (2024) make it
#   unbiased: `dpo.robust_dpo_loss`.
# - Azar et al. (2023), "A General Theoretical Paradigm to Understand Learning from Human Preferences", saw the missing
#   bound and give the gap a finite target: `dpo.ipo_loss`.
# - Razin et al. (2024), "Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization".
# - [Lesson 9](09_exact_rlhf.py) sends DPO and PPO to the same target; lesson 13 trains GPT-2 with this `dpo.dpo_loss`.
