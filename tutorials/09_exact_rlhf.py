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
# # 9. Do PPO and DPO really arrive at the same policy?
#
# We have two roads. Lesson 6: sample, score, take clipped steps (PPO). [Lesson 8](08_dpo.py): fit the policy to choices
# and never sample (DPO). Papers say that both aim at one target. With a large model nobody can check, as nobody knows
# the target. Here we do, to the last digit, and the trainers are the ones that train GPT-2 in lessons 12 and 13.
#
# The question is not only whether they arrive, but how near, and what keeps them away.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import dpo, enumerable, group, kl, numpy_losses, plots, policy_gradient, population, reward_model
from rlhf_jax.training import exact, language

# %% [markdown]
# ## A language of forty strings
#
# Four tokens; token 0 is the end of text, **EOS**. A string ends with it, or after three tokens. That makes 40 strings
# $y$, after each of two prompts $x$. As in a language model, the policy writes token by token,
#
# $$\pi(y|x) = \prod_t \pi(y_t | x, y_0 \dots y_{t-1}),$$
#
# with one row of logits for each beginning. The reference is random, and each string of each prompt gets a reward
# drawn from a normal distribution.

# %%
jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longer than running here
policy = language.policies()["table"]
problem = language.make_problem(policy, beta=0.5)
ref_log_probs, rewards, beta = problem.ref_log_probs, problem.rewards, problem.beta
assert np.allclose(np.exp(ref_log_probs) @ np.ones(40), 1, atol=1e-5), "40 strings a prompt, and nothing else"

# %% [markdown]
# ## The target
#
# The objective is lesson 8's, now a mean over prompts:
#
# $$J(\pi) = \mathbb{E}_x \Big[ \mathbb{E}_{y \sim \pi(\cdot|x)}[r(x,y)]
# - \beta\, \mathrm{KL}\big(\pi(\cdot|x) \,\|\, \pi_\text{ref}(\cdot|x)\big) \Big].$$
#
# A table has its own rows for each prompt, so each prompt can be solved alone, and each has its own $Z$:
#
# $$\pi^*(y|x) = \frac{1}{Z(x)}\, \pi_\text{ref}(y|x)\, e^{r(x,y)/\beta}, \qquad
# Z(x) = \sum_y \pi_\text{ref}(y|x)\, e^{r(x,y)/\beta}.$$
#
# The best $J$ is the mean of $\beta \log Z(x)$. Whoever is not there yet lacks exactly
# $\beta\, \mathrm{KL}(\pi \| \pi^*)$, so one number, the **distance** $\mathrm{KL}(\pi \| \pi^*)$, says how far a run
# has to go, in nats. ($\beta \log Z$ knows still more: its derivative by a string's reward is that string's optimal
# probability.)

# %%
optimum = language.optimum(problem)
optimal_values = jax.vmap(enumerable.optimal_value, (0, 0, None))(ref_log_probs, rewards, beta)  # beta log Z(x)
slopes = jax.jit(jax.vmap(jax.grad(enumerable.optimal_value, argnums=1), (0, 0, None)))(ref_log_probs, rewards, beta)
for x in range(2):
    ref_probs = np.exp(ref_log_probs[x])
    by_loop = numpy_losses.optimal_probs(ref_probs, rewards[x], beta)
    assert np.allclose(np.exp(optimum[x]), by_loop, atol=1e-6)
    best = numpy_losses.regularized_objective(by_loop, ref_probs, rewards[x], beta)
    assert np.isclose(best, optimal_values[x], atol=1e-5)
    assert np.allclose(slopes[x], by_loop, atol=1e-6), "d(beta log Z) / dr = pi*"

# %% [markdown]
# One $\beta$, one target. All of them together are the **frontier**: the most reward for each divergence. Its slope is
# $\beta$: the price of a nat is what the next nat brings.

# %%
betas = jnp.geomspace(0.1, 50, 400)
line_kl, line_reward = np.mean(jax.vmap(enumerable.frontier, (0, 0, None))(ref_log_probs, rewards, betas), axis=1)
assert np.allclose(np.gradient(line_reward, line_kl)[20:300], betas[20:300], rtol=0.02)

# %% [markdown]
# ## The roads that sample
#
# First the road without any noise: ascend the exact gradient of $J$. Then those that see the rewards of sampled
# strings only, 128 a step. Each penalises divergence **in the reward**: a string is paid
# $R = r(x,y) - \beta \log \frac{\pi(y|x)}{\pi_\text{ref}(y|x)}$, whose mean is $J$.
#
# - REINFORCE (lesson 4), without a baseline.
# - PPO (lesson 6), with a learned value function.
# - RLOO (REINFORCE, leave one out): sixteen strings of one prompt; the baseline of each is the mean $R$ of the fifteen
#   others.
#
# The trainers are `rlhf_jax/training`'s own; `exact.make_run` only adds that a run is measured on the way, after the
# numbers of steps in `marks`, by sums over all strings: `path` holds its KL to the reference, its reward and its
# distance. Three more lines of what is printed belong to later sections.

# %%
assert np.allclose(group.rloo_advantages(jnp.array([1.0, 2.0, 6.0])), [1 - 4, 2 - 3.5, 6 - 1.5])
assert np.allclose(numpy_losses.rloo_advantages([1.0, 2.0, 6.0]), [1 - 4, 2 - 3.5, 6 - 1.5])

settings = {setting.method: setting for setting in exact.SETTINGS["table"]}
steps = {"exact policy gradient": 600, "PPO": 600, "RLOO": 600, "REINFORCE, no baseline": 3000}
steps |= {"DPO, every pair": 300, "DPO, 50,000 choices": 300, "GRPO, k3 in the loss": 600}
runs = {}
for name, number in steps.items():
    marks = np.unique(np.concatenate([exact.spread_marks(number), np.arange(100, number + 1, 100)]))
    runs[name] = exact.make_run(problem, "table", policy, settings[name]._replace(steps=number), marks)
    print(f"{name:24}{number:5} steps, KL(pi || pi*) = {runs[name].path.distance[-1]:.1e} nats")

# %% [markdown]
# All start at the reference, more than a nat away. At every point of every path the missing objective is
# $\beta$ times the distance, as promised. And where do they end?

# %%
for run in runs.values():
    missing = optimal_values.mean() - (run.path.reward - beta * run.path.kl)
    assert np.allclose(missing, beta * run.path.distance, atol=1e-5)
    assert run.path.distance[0] > 1

ends = {name: float(run.path.distance[-1]) for name, run in runs.items()}
assert max(ends["exact policy gradient"] * 10, ends["PPO"], ends["RLOO"]) < 1e-3

# %% [markdown]
# PPO and RLOO arrive, from samples. How can they get so near, when every step is noisy? With RLOO the noise dies on
# arrival. Put $\pi^*$ into $R$: $r - \beta \log(\pi^*/\pi_\text{ref}) = \beta \log Z(x)$, the same for **every**
# string. All strings of a group are equally good, and each advantage is 0. PPO scales its advantages to size one,
# however small they are, so its noise stays; what silences it is a learning rate that falls to 0 in the second half of
# the run.
#
# REINFORCE has no baseline, so at $\pi^*$ it still pushes every sampled string up by $\beta \log Z$. On average that is
# nothing; in one step it is noise. With a constant learning rate $\eta$ the policy wanders about $\pi^*$, at a distance
# that the theory of noisy descent foretells (we take it from there, and test it):
# $\eta\, \mathbb{E}_x[b_x^2\, \mathrm{tr} F_x] / (4 \beta B)$, with $b_x = \beta \log Z(x)$, $B$ strings a step and
# $\mathrm{tr} F_x$ the mean of $\| \nabla \log \pi^*(y|x) \|^2$, the diagonal sum of the policy's Fisher information.

# %%
paid = rewards - beta * kl.k1(optimum, ref_log_probs)  # k1 is the log-ratio
assert np.allclose(paid, optimal_values[:, None], atol=1e-4)
assert np.allclose(jax.vmap(group.rloo_advantages)(paid), 0, atol=1e-4)

wandering = runs["REINFORCE, no baseline"]
reinforce_theory = language.expected_reinforce_distance(problem, learning_rate=4.0, batch_size=128)
assert 0.6 < wandering.path.distance[1:][wandering.marks > 1000].mean() / reinforce_theory < 1.7

# %% [markdown]
# ## The road of choices
#
# The crowd sees pairs drawn from the reference and votes by Bradley and Terry's model. `language.choices` lists every
# pair with its exact probability: the whole **population** of votes. DPO on it has no noise: it arrives to many digits.
#
# With 50,000 recorded votes it stops at a distance that no further training removes. It is the statistical error of
# lesson 7. In fact it is *exactly* that: fit scores $\hat r$ to the same votes as in lesson 7, put them into the closed
# form of $\pi^*$, and out comes DPO's policy. With a free table, DPO **is** a reward model followed by perfect RL.
#
# (We fit by Newton's method this time, 40 scores a prompt: divide the gradient by the curvature. The 1/40 added to the
# curvature only concerns the unknown constant.)

# %%
assert ends["DPO, every pair"] < 1e-8


def win_tables(seed, num_choices):
    tables = np.zeros((2, 40, 40))
    for table, pairs in zip(tables, language.count_choices(problem, seed, num_choices), strict=True):
        table[pairs.chosen, pairs.rejected] = pairs.weight
    return jnp.asarray(tables)


@jax.jit
@jax.vmap
def fit(wins):
    loss = lambda r: jnp.sum(wins * reward_model.bradley_terry_loss(*jnp.meshgrid(r, r, indexing="ij")))
    newton = lambda _, r: r - jnp.linalg.solve(jax.hessian(loss)(r) + 1 / 40, jax.grad(loss)(r))
    return jax.lax.fori_loop(0, 12, newton, jnp.zeros(40))


best_for = jax.vmap(enumerable.optimal_log_probs, (0, 0, None))
by_two_steps = best_for(ref_log_probs, fit(win_tables(0, 50_000)), beta)
two_step = [kl.exact_kl(by_two_steps, other).mean() for other in (ref_log_probs, optimum)]
assert np.allclose(two_step, np.array(runs["DPO, 50,000 choices"].path)[::2, -1], rtol=1e-2), "KL to both"

# %% [markdown]
# How large is that error? An error $\delta$ of the scores costs $\delta^\top C\, \delta / (2 \beta^2)$ nats, with $C$
# the covariance matrix of $\pi^*$ (diagonal $\pi^*(y)$, less $\pi^*(y)\, \pi^*(y')$), and lesson 7 gives the covariance
# of $\delta$. Their product, for $M$ votes, is `language.expected_dpo_distance`. Twenty samples of votes each agree:
# four times the votes, a quarter of the distance.

# %%
sizes = [80_000, 320_000, 1_280_000]
fitted = jax.lax.map(fit, jnp.stack([win_tables(seed, size) for size in sizes for seed in range(20)]))
learned = jax.vmap(best_for, (None, 0, None))(ref_log_probs, fitted, beta)
distances = kl.exact_kl(learned, jnp.broadcast_to(optimum, learned.shape)).mean(axis=1).reshape(3, 20)
dpo_theory = np.array([language.expected_dpo_distance(problem, size) for size in sizes])
assert (np.abs(distances.mean(axis=1) - dpo_theory) < 4 * distances.std(axis=1) / np.sqrt(20)).all()

# %%
colors = [plots.GREY, plots.PPO, plots.ORANGE, plots.PURPLE, plots.DPO, plots.SKY, plots.GREEN]
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=4.4)
    left.plot(line_kl, line_reward, **plots.EXACT, label="exact frontier")
    for (name, run), color in zip(runs.items(), colors, strict=True):
        left.plot(run.path.kl, run.path.reward, color=color, linewidth=1.4)
        right.loglog(run.marks, run.path.distance[1:], color=color, label=name)
    best = kl.exact_kl(optimum, ref_log_probs).mean(), np.sum(np.exp(optimum) * rewards, axis=1).mean()
    left.plot(*best, "*", color=plots.YELLOW, markeredgecolor=plots.BLACK, ms=15, zorder=5, label="the optimum π*")
    left.set(ylabel="expected reward", xlim=(-0.03, 1.4), ylim=(-0.3, 1.3), title="Paths from the reference")
    floors = {"theory, DPO": language.expected_dpo_distance(problem, 50_000), "theory, REINFORCE": reinforce_theory}
    for (name, floor), shift in zip(floors.items(), [7, -8], strict=True):
        right.axhline(floor, **plots.EXACT)
        plots.label(right, 1, floor, name, plots.BLACK, xytext=(0, shift))
    left.set_xlabel("KL(π ‖ π_ref) (nats)")
    right.set(xlabel="steps", ylabel="KL(π ‖ π*) (nats)", ylim=(1e-9, 5), title="Distance from the optimum")
    figure.legend(loc="outside lower center", ncols=3)
plots.save(figure, "09_roads")

# %% [markdown]
# Left: DPO without noise (dark blue) and the methods that sample end on the star; only one does not, and we come to it.
# Right: without noise the distance falls on and on; with a noise that stays, it stops where theory says (dashed).
#
# ## When the reward is wrong
#
# Both roads arrive at the optimum of the reward they are **given**. Let $\hat r$ be right about every string but one:
# the worst string of each prompt is taken for the best. Both roads arrive at $\hat \pi \propto \pi_\text{ref}
# e^{\hat r / \beta}$, and what is lost in true objective is known: $\beta\, \mathrm{KL}(\hat \pi \| \pi^*)$.
#
# Follow the frontier of $\hat r$ from the reference outwards. The reward that the optimiser sees rises all the way. The
# true reward rises with it at first, and then falls, below where it began: **over-optimisation**. The mistake was there
# all the time; a large $\beta$ kept the policy too near to the reference to find it.

# %%
wrong = rewards.at[jnp.arange(2), rewards.argmin(axis=1)].set(3.0)
misled = best_for(ref_log_probs, wrong, beta)
true_values = jax.vmap(enumerable.regularized_objective, (0, 0, 0, None))(misled, ref_log_probs, rewards, beta)
assert np.allclose(optimal_values - true_values, beta * kl.exact_kl(misled, optimum), atol=1e-5)
setting = settings["exact policy gradient"]._replace(steps=1500)  # the road without noise
trained = exact.make_run(problem._replace(rewards=wrong), "table", policy, setting, np.array([1500])).path
expected = [kl.exact_kl(misled, ref_log_probs).mean(), 0]  # KL to the reference, distance to the wrong optimum
assert np.allclose([trained.kl[-1], trained.distance[-1]], expected, atol=2e-4)

outwards = jax.vmap(best_for, (None, None, 0))(ref_log_probs, wrong, betas[::-1])
wrong_kl = kl.exact_kl(outwards, jnp.broadcast_to(ref_log_probs, outwards.shape)).mean(axis=1)
seen, true = (np.sum(np.exp(outwards) * reward, axis=2).mean(axis=1) for reward in (wrong, rewards))
assert (np.diff(seen) > 0).all()
assert true.max() - 0.2 > true[0] > true[-1]

# %% [markdown]
# ## When the penalty is another one
#
# One run stayed 0.3 nats away: GRPO (group relative policy optimisation: the group's mean as baseline, advantages
# divided by its standard deviation, PPO's clip) with its penalty **in the loss**, as it was published. The penalty is
# $k_3 = \frac{\pi_\text{ref}}{\pi} - \log \frac{\pi_\text{ref}}{\pi} - 1$ at each sampled token. Its *mean* is
# $\mathrm{KL}(\pi \| \pi_\text{ref})$. But a loss acts through its gradient, and the mean of $k_3$'s gradient is that
# of the divergence the other way round, $\mathrm{KL}(\pi_\text{ref} \| \pi)$.
#
# So another objective is maximised, and it has another optimum. For strings of one token and advantages that are only
# centred, set its derivative to 0:
#
# $$\pi(y) = \pi_\text{ref}(y)\, \frac{\beta}{c - r(y)}, \qquad c \text{ such that the sum is } 1.$$
#
# Here we treat the first prompt's 40 strings as 40 tokens, descend the mean loss, and compare.


# %%
def grpo_mean_loss(logits):
    log_probs = jax.nn.log_softmax(logits)
    probs = jax.lax.stop_gradient(jnp.exp(log_probs))  # sampling is not differentiated
    advantages = rewards[0] - probs @ rewards[0]
    losses = policy_gradient.reinforce_loss(log_probs, advantages) + beta * kl.k3(log_probs, ref_log_probs[0])
    return probs @ losses


other_objective = lambda lp: jnp.exp(lp) @ rewards[0] - beta * kl.exact_kl(ref_log_probs[0], lp)
somewhere = jax.random.normal(jax.random.key(0), (40,))
by_hand = jax.jit(jax.grad(lambda logits: -other_objective(jax.nn.log_softmax(logits))))(somewhere)
slope = jax.jit(jax.grad(grpo_mean_loss))
assert np.allclose(slope(somewhere), by_hand, atol=1e-5)

settled = jax.nn.log_softmax(jax.lax.fori_loop(0, 5000, lambda _, x: x - 2 * slope(x), ref_log_probs[0]))
candidates = np.max(rewards[0]) + np.geomspace(1e-4, beta, 100_000)[:, None]  # c: the sum falls as c grows
weights = np.exp(np.float64(ref_log_probs[0])) * beta / (candidates - rewards[0])
fixed_point = weights[np.argmin(np.abs(weights.sum(axis=1) - 1))]
assert np.allclose(np.exp(settled), fixed_point, atol=1e-4)
assert min(kl.exact_kl(settled, optimum[0]), ends["GRPO, k3 in the loss"]) > 0.1, "and that is not pi*"

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.5)
    left.plot(line_kl, line_reward, **plots.EXACT, label="exact frontier, true reward")
    left.plot(wrong_kl, seen, color=plots.REWARD, label="reward as given")
    left.plot(wrong_kl, true, color=plots.VERMILLION, label="true reward, same policies")
    left.set(xlabel="KL(π ‖ π_ref) (nats)", ylabel="expected reward", ylim=(-2.5, 4.5), title="One string overrated")
    left.legend(loc="upper left")
    plots.band(right, np.array(sizes), distances.T, plots.DPO, label="20 samples: median, range")
    right.plot(sizes, dpo_theory, **plots.EXACT, label="theory, the mean")
    right.set(xscale="log", yscale="log", xlabel="votes M", ylabel="KL(π ‖ π*) (nats)", title="Few choices")
    right.legend(loc="lower left")
plots.save(figure, "09_errors")

# %% [markdown]
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/09_exact_rlhf.py).
#
# **1.** Given $\pi_\text{ref}$, $r$ and $\beta$ for one prompt: what is the largest objective $J$ that any policy can
# have?


# %%
def exercise_1(ref_probs, rewards, beta):
    return ...


answer = exercise_1(np.array([0.75, 0.25]), np.array([0.0, 2 * np.log(3.0)]), 2.0)
assert answer is ... or np.isclose(answer, 2 * np.log(1.5)), "Z = 0.75 x 1 + 0.25 x 3 here"
print("Exercise 1:", "to do" if answer is ... else "right")

# %% [markdown]
# **2.** A language model writes token by token. Strings have two tokens: `ref_first[a]` is $\pi_\text{ref}(a)$,
# `ref_second[a, b]` is $\pi_\text{ref}(b|a)$, `rewards[a, b]` the reward of the string $ab$. Derive $V(a)$, the largest
# objective that can still be had after a first token $a$, and from it the optimal distribution of the first token.
# Return $\pi^*(a)$, an array with an entry for each $a$.


# %%
def exercise_2(ref_first, ref_second, rewards, beta):
    return ...


first, second = np.array([0.3, 0.7]), np.array([[0.9, 0.1], [0.4, 0.6]])
string_rewards = np.array([[0.0, 2.0], [1.0, -1.0]])
answer = exercise_2(first, second, string_rewards, 0.5)
listed = enumerable.optimal_log_probs(np.log(first[:, None] * second).reshape(4), string_rewards.reshape(4), 0.5)
assert answer is ... or np.allclose(answer, np.exp(listed).reshape(2, 2).sum(axis=1)), "V is a log-sum, not a mean"
print("Exercise 2:", "to do" if answer is ... else "right")

# %% [markdown]
# **3.** You want the optimum for your $\beta$ (in reward units). But your annotators are hasty: they choose with
# probability $\sigma((r(y_1) - r(y_2))/T)$, and you know $T$. Which $\beta$ has DPO's loss to be given?


# %%
def exercise_3(beta, temperature):
    return ...


answer = exercise_3(0.5, 3.0)
if answer is not ...:
    ref, taste = jnp.log(jnp.array([0.2, 0.3, 0.5])), jnp.array([1.0, 0.0, -0.5])
    i, j, weight = population.bradley_terry_population(ref, taste, temperature=3.0)
    loss = lambda log_probs: weight @ dpo.dpo_loss(log_probs[i], log_probs[j], ref[i], ref[j], beta=answer)
    gradient = jax.grad(loss)(enumerable.optimal_log_probs(ref, taste, 0.5))
    assert np.allclose(gradient, 0, atol=1e-5), "with this beta, DPO leaves the optimum that you want"
print("Exercise 3:", "to do" if answer is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Rafailov et al. (2023), "Direct Preference Optimization": the closed form is `enumerable.optimal_log_probs`; Korbak
#   et al. (2022), "RL with KL penalties is better viewed as Bayesian inference", has the divergence from $\pi^*$.
# - Ahmadian et al. (2024), "Back to Basics", for RLOO: `group.rloo_advantages`. Shao et al. (2024), "DeepSeekMath", for
#   GRPO: `group.grpo_loss`. Schulman (2020), "Approximating KL Divergence": `kl.k3`.
# - Gao, Schulman and Hilton (2023), "Scaling Laws for Reward Model Overoptimization": lesson 14 meets it again with a
#   learned reward.
# - All trainers and a small GPT-2 in place of the table: `rlhf-jax audit --library`.
# - [Lesson 10](10_gpt2_as_a_policy.py) puts a real language model where the table was.
