# ---
# jupytext:
#   text_representation:
#     extension: .py
#     format_name: percent
# kernelspec:
#   display_name: Python 3
#   language: python
#   name: python3
# ---

# %% [markdown]
# # 8. Can a policy learn from comparisons, with no reward model?
#
# People find it hard to give an answer a mark, and easy to say which of two answers they prefer. So the data of
# RLHF are comparisons: a prompt $x$, a chosen answer $y^+$, a rejected answer $y^-$.
#
# The older road has two steps. Fit a reward model to the choices; then improve the policy $\pi(y|x)$ against it by
# reinforcement learning, while a penalty holds it near the model it started from, the reference
# $\pi_\text{ref}(y|x)$. Direct preference optimisation (DPO) walks both steps at once, with a loss on $\pi$ alone.
#
# We derive it on a language so small that every string can be listed. There, the answer is known exactly.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import dpo, enumerable, kl, numpy_losses, plots, reward_model

# %% [markdown]
# ## A language of nine strings
#
# Three words, strings of two words. The reference has learned from text that "film" comes last and that both
# adjectives are equally common; it has no opinion about films. The prompt is always the same, so we leave $x$ out.
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
assert jnp.isclose(jnp.exp(ref_log_probs).sum(), 1, atol=1e-6)

# %% [markdown]
# ## From rewards to choices: Bradley and Terry
#
# People are not consistent, so a choice is a coin whose bias grows with the lead in reward:
#
# $$P(y_1 \succ y_2) = \frac{e^{r(y_1)}}{e^{r(y_1)} + e^{r(y_2)}} = \sigma(r(y_1) - r(y_2)),
# \qquad \sigma(z) = \frac{1}{1 + e^{-z}}.$$
#
# A lead of one is a preference of 73 %. Only **differences** of rewards show in choices: add the same number to
# every reward and nobody can tell. That is the gap through which DPO will slip.

# %%
assert np.isclose(numpy_losses.sigmoid(1.0), 0.731, atol=1e-3)

by_loop = numpy_losses.bradley_terry_loss(chosen_reward=1.0, rejected_reward=0.0, margin=0.0)
assert np.isclose(by_loop, -np.log(0.731), atol=1e-3)
assert np.isclose(reward_model.bradley_terry_loss(1.0, 0.0), by_loop, atol=1e-6)
assert np.isclose(reward_model.bradley_terry_loss(101.0, 100.0), by_loop, atol=1e-5)

# %% [markdown]
# ## What the policy should become
#
# RLHF looks for the policy with much reward that stays close to the reference:
#
# $$J(\pi) = \mathbb{E}_{y \sim \pi}[r(y)] - \beta\, \mathrm{KL}(\pi \,\|\, \pi_\text{ref}).$$
#
# $\beta > 0$ is the price, in reward, of one nat of divergence. Write $J$ as a single divergence and the best
# policy can be read off. With $Z = \sum_y \pi_\text{ref}(y)\, e^{r(y)/\beta}$,
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

best = enumerable.regularized_objective(optimum, ref_log_probs, rewards, beta)
log_z = jax.nn.logsumexp(ref_log_probs + rewards / beta)
assert np.isclose(best, beta * log_z, atol=1e-5)

others = jax.nn.log_softmax(optimum + 0.1 * jax.random.normal(jax.random.key(0), (1000, 9)))
scores = jax.vmap(enumerable.regularized_objective, (0, None, None, None))(others, ref_log_probs, rewards, beta)
assert (scores < best).all()

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
# Now fit $\pi$ to the recorded choices by maximum likelihood, as one fits any classifier. That is DPO, in full:
#
# $$\text{loss} = -\log \sigma(\beta h).$$
#
# Without a reference and with $\beta = 1$ it is minus the short form
# $L^\text{DPO} = \log \sigma\big(f(y^+|x) - f(y^-|x)\big)$ with $f = \log \pi$. No reward appears in either.

# %%
chosen, rejected = strings.index("good film"), strings.index("film bad")
pair = optimum[chosen], optimum[rejected]
ref_pair = ref_log_probs[chosen], ref_log_probs[rejected]
by_loop = numpy_losses.dpo_loss(*pair, *ref_pair, beta=beta)
assert np.isclose(dpo.dpo_loss(*pair, *ref_pair, beta=beta), by_loop, atol=1e-6)
assert np.isclose(by_loop, reward_model.bradley_terry_loss(rewards[chosen], rewards[rejected]), atol=1e-5)

assert np.isclose(dpo.dpo_loss(*pair), -np.log(numpy_losses.sigmoid(pair[0] - pair[1])), atol=1e-6)

# %% [markdown]
# Two numbers every DPO run must show at its first step, where $\pi = \pi_\text{ref}$ and so $h = 0$: the loss is
# $\ln 2$, and its gradient is $-\beta/2$ for the chosen log-probability, $+\beta/2$ for the rejected one. If yours
# differ, the two models do not score the same tokens.

# %%
value, gradient = jax.value_and_grad(dpo.dpo_loss, argnums=(0, 1))(*ref_pair, *ref_pair, beta=beta)
assert np.isclose(value, np.log(2), atol=1e-6)
assert np.allclose(gradient, (-beta / 2, beta / 2), atol=1e-6)

# %% [markdown]
# ## Does it arrive?
#
# Let the crowd compare every pair of strings, without end: each ordered pair then has the share
# $P(y^+ \succ y^-)$. The policy is free, one logit a string, and starts at the reference. We train four policies,
# one for each $\beta$; `vmap` runs them side by side. The reward enters only through who won.

# %%
winners, losers = np.nonzero(~np.eye(9, dtype=bool))
shares = jax.nn.sigmoid(rewards[winners] - rewards[losers])


def population_loss(logits, ref, beta):
    log_probs = jax.nn.log_softmax(logits)
    losses = dpo.dpo_loss(log_probs[winners], log_probs[losers], ref[winners], ref[losers], beta=beta)
    return jnp.sum(shares * losses) / jnp.sum(shares)


def descend(logits, ref, beta):
    return logits - 20 / beta**2 * jax.grad(population_loss)(logits, ref, beta)


betas = jnp.array([2.0, 1.0, 0.5, 0.25])
step = jax.jit(jax.vmap(descend, (0, None, 0)))
logits = jnp.tile(ref_log_probs, (4, 1))
for _ in range(100):
    logits = step(logits, ref_log_probs, betas)
learned = jax.nn.log_softmax(logits)

optima = jax.vmap(enumerable.optimal_log_probs, (None, None, 0))(ref_log_probs, rewards, betas)
assert np.allclose(learned, optima, atol=1e-4)

# %% [markdown]
# Every log-probability of every string agrees with the closed form. Comparisons were enough.
#
# And the reward is not lost: "your language model is secretly a reward model". Read it from the policy as
# $\beta \log(\pi/\pi_\text{ref})$; it is the crowd's taste, up to the constant $\beta \log Z$.

# %%
implicit = dpo.implicit_reward(learned[2], ref_log_probs, beta=betas[2])
assert np.allclose(implicit - rewards, -beta * log_z, atol=1e-4)

# %% [markdown]
# ## What the reference is for
#
# Leave it out. Any constant put in its place cancels in $h$, so "no reference" means a reference that finds all
# strings equally likely. By the same derivation the short form must arrive at $\pi(y) \propto e^{r(y)}$.
#
# The crowd said nothing about grammar, so the short form forgets it. The reference answers every question that the
# choices leave open: it is how the policy remembers language while it learns taste.

# %%
logits = ref_log_probs[None]
for _ in range(100):
    logits = step(logits, jnp.zeros(9), jnp.ones(1))
short = jax.nn.log_softmax(logits[0])
assert np.allclose(short, enumerable.optimal_log_probs(jnp.full(9, -jnp.log(9.0)), rewards, 1.0), atol=1e-4)

ends_in_film = np.array([string.endswith("film") for string in strings])
grammatical = [float(jnp.exp(policy)[ends_in_film].sum()) for policy in (ref_log_probs, learned[1], short)]
print("share that ends in 'film': reference {:.2f}, DPO {:.2f}, short form {:.2f}".format(*grammatical))
assert grammatical[1] > 0.8 > 0.3 > grammatical[2]

# %% [markdown]
# The frontier says the same in two numbers. For each divergence from the reference there is a largest reward, and
# $\pi^*_\beta$ attains it. DPO's policies lie on that line. The short form's lies below: it spent its divergence on
# forgetting.

# %%
line_kl, line_reward = enumerable.frontier(ref_log_probs, rewards, jnp.geomspace(0.16, 50, 100))
dpo_kl = kl.exact_kl(learned, jnp.tile(ref_log_probs, (4, 1)))
dpo_reward = jnp.exp(learned) @ rewards
short_kl, short_reward = kl.exact_kl(short, ref_log_probs), jnp.exp(short) @ rewards
assert np.allclose(dpo_reward, np.interp(dpo_kl, line_kl[::-1], line_reward[::-1]), atol=0.01)
assert short_reward < np.interp(short_kl, line_kl[::-1], line_reward[::-1]) - 0.2

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.7, width_ratios=[1.25, 1])
    order, rows = np.lexsort((ref_log_probs, rewards)), np.arange(9)
    left.barh(rows, jnp.exp(ref_log_probs)[order], color=plots.PALE, label="reference")
    left.plot(jnp.exp(optima[1])[order], rows, "|", color=plots.BLACK, ms=15, mew=1.5, label="exact optimum, β = 1")
    left.plot(jnp.exp(learned[1])[order], rows, "o", color=plots.DPO, label="DPO, β = 1")
    left.plot(jnp.exp(short)[order], rows, "D", color=plots.ORANGE, label="no reference, β = 1")
    left.set_yticks(rows, [f"{strings[i]}  ({rewards[i]:.0f})" for i in order])
    left.grid(axis="y", visible=False)
    left.set(xlabel="probability", title="The nine strings (reward in brackets)")
    left.legend(loc="lower right")
    right.plot(line_kl, line_reward, **plots.EXACT, label="exact frontier")
    right.plot(0, jnp.exp(ref_log_probs) @ rewards, "s", color=plots.REFERENCE, label="reference")
    right.plot(dpo_kl, dpo_reward, "o", color=plots.DPO, label="DPO, at each β")
    right.plot(short_kl, short_reward, "D", color=plots.ORANGE, label="no reference, β = 1")
    for b, x, y in zip(betas, dpo_kl, dpo_reward, strict=True):
        plots.label(right, x, y, f"{b:g}", plots.DPO, xytext=(6, -6))
    right.set(xlabel="KL to the reference (nats)", ylabel="expected reward", title="Reward bought with divergence")
    right.legend(loc="lower right")
plots.save(figure, "08_dpo_optimum")

# %% [markdown]
# The left-hand panel: DPO (blue) sits on the exact optimum (black) at every string. It moved mass from "bad film" to
# "good film", and little to strings that are not language. The short form (orange) likes "good good" best.
#
# ## What the reference is not
#
# It is often called a leash. It is not one when a choice is **certain**. Suppose "good film" beat "bad film" every
# time, as in any data set that shows each pair once. Then $-\log \sigma(\beta h)$ falls for ever as $h$ grows: the
# loss has no minimum, with a reference or without. For one pair and small steps $h$ can be solved for; after
# training time $t$ (steps × step size), starting from equal probabilities,
#
# $$e^{\beta h} + \beta h = 1 + 2 \beta^2 t, \qquad \text{so } h \approx \tfrac{1}{\beta} \ln(2 \beta^2 t)
# \text{ without bound.}$$
#
# What stopped $h$ above was the crowd's indecision: each choice was sometimes made the other way, and the minimum is
# where $\sigma(\beta h)$ equals the share. Label smoothing $\varepsilon$ puts that indecision back by hand: it takes a
# share $\varepsilon$ of the choices to be mistakes, and $\beta h$ stops at $\ln \frac{1 - \varepsilon}{\varepsilon}$.

# %%
rejected = strings.index("bad film")
ref_pair = ref_log_probs[chosen], ref_log_probs[rejected]
certain_losses = {
    "no reference": lambda lp: dpo.dpo_loss(lp[chosen], lp[rejected]),
    "reference, β = 0.5": lambda lp: dpo.dpo_loss(lp[chosen], lp[rejected], *ref_pair, beta=0.5),
    "smoothed, ε = 0.1": lambda lp: dpo.dpo_loss(lp[chosen], lp[rejected], label_smoothing=0.1),
}
step_size = 0.1


def path_of_descent(loss, start, num_steps):
    step = lambda params, _: (params - step_size * jax.grad(loss)(params), params)
    return jax.lax.scan(step, start, length=num_steps)[1]  # a `for` loop, compiled; the parameters before each step


time = step_size * np.arange(20_000)
gaps = {}
for name, loss in certain_losses.items():
    log_probs = jax.nn.log_softmax(path_of_descent(lambda x, f=loss: f(jax.nn.log_softmax(x)), ref_log_probs, 20_000))
    gaps[name] = log_probs[:, chosen] - log_probs[:, rejected]
    assert (np.diff(log_probs[:, chosen]) > -1e-5).all(), "with one logit a string, the chosen one rises"

for name, b in [("no reference", 1.0), ("reference, β = 0.5", 0.5)]:
    predicted_time = (np.exp(b * gaps[name]) + b * gaps[name] - 1) / (2 * b**2)
    assert np.allclose(predicted_time[1000:], time[1000:], rtol=0.03)
    assert np.isclose(gaps[name][-1] - gaps[name][2_000], np.log(10) / b, rtol=0.02)
assert np.isclose(gaps["smoothed, ε = 0.1"][-1], np.log(9), atol=1e-4)

# %% [markdown]
# ## The loss improves and the chosen answer gets rarer
#
# The loss rewards a **gap**. Nothing says that the chosen log-probability has to rise; the rejected one may just fall
# faster. With one logit a string it did rise. But a network shares its parameters between strings, so take the
# extreme case: one logit a **word**, the same at both places, and a single certain choice, "good film" over
# "good good". (Start at equal logits; a reference that is equal too cancels, so we use the short form.)
#
# The two strings differ in one word, so DPO raises "film" and lowers "good". Then
# $\pi(\text{good film}) = p_\text{good}\, p_\text{film}$ falls, and the mass goes to "film film", which nobody was
# shown. In closed form, $\log \pi(\text{good film}) = -2 \ln(1 + 2 \cosh \frac{h}{2})$.

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
    colors = [plots.ORANGE, plots.DPO, plots.GREEN]
    for name, color, shift in zip(gaps, colors, [-46, 7, 7], strict=True):
        left.plot(time, gaps[name], color=color)
        plots.label(left, time[-1], gaps[name][-1], name, color, xytext=(-2, shift), ha="right")
    line = np.linspace(0.1, 14, 200)
    left.plot((np.exp(line) + line - 1) / 2, line, **plots.EXACT, label="exact")
    left.plot((np.exp(line / 2) + line / 2 - 1) * 2, line, **plots.EXACT)
    left.axhline(np.log(9), **plots.EXACT)
    left.set(xscale="log", xlim=(0.1, 2000), ylim=(0, 14.5), title="A choice that never varies: no bound")
    left.set(xlabel="training time (steps × step size)", ylabel="gap h, chosen over rejected (nats)")
    left.legend(loc="upper left")
    steps, colors = np.arange(200), [plots.DPO, plots.VERMILLION, plots.PURPLE]
    names = ["chosen:\ngood film", "rejected:\ngood good", "never shown:\nfilm film"]
    for log_probs, name, color, shift in zip(seen.T, names, colors, [0, 5, -9], strict=True):
        right.plot(steps, log_probs, color=color)
        plots.label(right, 200, log_probs[-1], name, color, xytext=(5, shift))
    right.plot(steps, exact_chosen, **plots.EXACT, label="exact")
    right.plot(steps, word_losses, color=plots.GREY)
    plots.label(right, 200, word_losses[-1], "DPO loss", plots.GREY, xytext=(5, 8))
    right.set(xlabel="steps of size 0.1", ylabel="log-probability, loss (nats)", xticks=range(0, 201, 50))
    right.set(xlim=(-5, 285), title="Shared parameters: the chosen string falls")
    right.legend(loc="lower left")
plots.save(figure, "08_dpo_pitfalls")

# %% [markdown]
# In a real run, plot the chosen log-probability beside the loss. If it sinks while the accuracy of the implicit
# reward rises, this is what you see.
#
# ## Where to go next
#
# - Rafailov et al. (2023), "Direct Preference Optimization": equations 4, 5 and 7 are `enumerable.optimal_log_probs`,
#   `dpo.implicit_reward` and `dpo.dpo_loss`.
# - Mitchell (2023), "A note on DPO with noisy preferences": `label_smoothing`. Chowdhury et al. (2024) make it
#   unbiased: `dpo.robust_dpo_loss`.
# - Azar et al. (2023), "A General Theoretical Paradigm to Understand Learning from Human Preferences", saw the missing
#   bound and give the gap a finite target: `dpo.ipo_loss`.
# - Razin et al. (2024), "Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization".
# - The same `dpo.dpo_loss` trains GPT-2: `rlhf_jax/training/dpo.py`.
