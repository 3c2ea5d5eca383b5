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
# # 5. How much better than usual was that action?
#
# [Lesson 4](04_policy_gradient.py) ended with a loss whose gradient is right on average, whatever pay it is weighted
# with, as long as the weight says what followed the action. Then it compared the noise: six times fewer trajectories,
# by leaving out what was paid before and subtracting what was to be expected anyway.
#
# This lesson is about that subtraction. What should be subtracted? How much does it save, exactly? And what if "what
# was to be expected" is not known but learned, and wrong? The answer to the last question is a dial between two kinds
# of error, called $\lambda$. It stands in every PPO program, usually at 0.95, and afterwards you know why.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import environments, estimation, estimators, mdp, moments, plots, policy_gradient, returns, values

jax.config.update("jax_enable_x64", True)  # float64, so that "exactly" can mean twelve digits

# %% [markdown]
# The world and the policy are those of lesson 4, over six days. All 8,192 futures can be listed, so means and
# variances are sums, not estimates. `gradient` is REINFORCE on one trajectory,
# $\sum_t w_t\, \nabla \log \pi_\theta(a_t|s_t)$, with weights $w_t$ to be chosen.

# %%
world, num_steps, gamma = environments.two_state(gamma=0.9, slip=0.1), 6, 0.9
logits = jnp.array([[0.3, -0.2], [0.5, 0.1]])
policy = jax.nn.softmax(logits)
truth = policy_gradient.policy_gradient(world, logits, num_steps).ravel()
every = mdp.enumerate_trajectories(world, num_steps)
probs = jax.vmap(mdp.trajectory_prob, (None, None, 0))(world, policy, every)


@jax.jit
@jax.vmap
def gradient(trajectory, weight):
    log_probs = lambda logits: jax.nn.log_softmax(logits)[trajectory.states[:-1], trajectory.actions]
    return -jax.grad(lambda logits: policy_gradient.reinforce_loss(log_probs(logits), weight).sum())(logits).ravel()


exactly = lambda weight: moments.moments(probs, gradient(every, weight), truth)  # bias and variance
size = float(jnp.linalg.norm(truth))
noise = lambda weight: float(jnp.sqrt(exactly(weight).variance)) / size

# %% [markdown]
# `moments.moments` weighs every trajectory's estimate $g(\tau)$ with its probability. The **bias** is
# $\mathbb{E}[g] - \nabla J$, the **variance** $\mathbb{E}\,\|g - \mathbb{E}[g]\|^2$. We quote the variance's root as a
# multiple of $\|\nabla J\|$ and call it the noise: 3 means that one trajectory's error is three times as long as what
# it is to show.
#
# ## Subtract something
#
# A **baseline** is a number $b$ subtracted from the weight. It may depend on the state, $b(s)$, and on the day, but
# not on the action. Then it changes no mean, because at every state
#
# $$\sum_a \pi(a|s)\, b(s)\, \nabla \log \pi(a|s) = b(s)\, \nabla \sum_a \pi(a|s) = b(s)\, \nabla 1 = 0.$$
#
# Take absurd baselines, random numbers for each day and town. The mean does not notice; the noise does.

# %%
day = jnp.arange(num_steps)
to_go = jax.vmap(returns.rewards_to_go, (0, None))(every.rewards, gamma)
absurd = 3 * jax.random.normal(jax.random.key(0), (num_steps, 2))
spoiled = gamma**day * (to_go - absurd[day, every.states[:, :-1]])
assert np.allclose(exactly(spoiled).bias, 0, atol=1e-12)
assert noise(spoiled) > noise(gamma**day * to_go) + 1

# %% [markdown]
# ## The best constant
#
# Start with the plainest weight, the return $R(\tau)$, and one number $b$ for all trajectories. With
# $z(\tau) = \sum_t \nabla \log \pi(a_t|s_t)$ (called the **score**) the estimate is $z\,(R - b)$. Its mean is fixed, so
# its variance is smallest where $\mathbb{E}\,\|z\|^2 (R - b)^2$ is: a parabola in $b$, with its lowest point at
#
# $$b^* = \frac{\mathbb{E}\,\|z\|^2 R}{\mathbb{E}\,\|z\|^2}, \qquad
# \text{variance}(b) = \text{variance}(b^*) + \mathbb{E}\,\|z\|^2\, (b - b^*)^2.$$
#
# Not quite the mean return $J = \mathbb{E}[R]$: trajectories that would move the policy a lot count more. But near it.

# %%
total = jax.vmap(returns.discounted_return, (0, None))(every.rewards, gamma)
scores = gradient(every, jnp.ones_like(to_go))
squared = probs * (scores**2).sum(axis=1)
best = estimators.optimal_baseline(probs, scores, total)
assert np.isclose(best, np.sum(squared * total) / np.sum(squared), atol=1e-12)
assert abs(best - probs @ total) < 0.1

less = lambda b: total[:, None] - b * jnp.ones(num_steps)  # the weight R - b, the same on every day
parabola = lambda b: exactly(less(best)).variance + np.sum(squared) * (b - best) ** 2
for b in (-1.0, 0.0, 4.0):
    assert np.isclose(exactly(less(b)).variance, parabola(b), atol=1e-9)

# %% [markdown]
# ## The best for each state
#
# A constant cannot know that the rich town promises more than the poor one. With the rewards-to-go $G_t$ as weight,
# the natural thing to subtract is what the state promises, $V(s_t)$. What is left is how much better it went than
# usual; its mean over everything that may follow is the **advantage**
#
# $$A^\pi(s, a) = Q^\pi(s, a) - V^\pi(s).$$
#
# Days are numbered here, and a town is worth more when more days are left. So the table of values has a row for each
# day; its last row, when all is over, is 0.

# %%
exact_critic = jnp.stack([values.state_values(world, policy, num_steps - t) for t in range(num_steps + 1)])
along = lambda critic, trajectories: critic[jnp.arange(num_steps + 1), trajectories.states]  # V(s_0), ..., V(s_T)
above = lambda critic: gamma**day * (to_go - along(critic, every)[:, :-1])  # the weight G - V
nothing = jnp.zeros((num_steps + 1, 2))
assert np.allclose(exactly(above(exact_critic)).bias, 0, atol=1e-12)
assert (noise(less(0.0)) / noise(above(exact_critic))) ** 2 > 9, "nine times fewer trajectories than with R"

# %% [markdown]
# ($V$ is not exactly the best function of the state either, for the reason that $J$ was not the best constant; the
# second exercise finds the best. $V$ has the advantage that it can be learned.)
#
# ## V is learned
#
# Nobody is given $V$. One learns it, from the same trajectories: the **critic**, as it is called, beside the policy,
# the **actor**. [Lesson 3](03_estimation.py) showed how: temporal differences. Ours has seen twenty trajectories and
# is still wrong. (Day and town together are the state here, number $2t + s$.)
#
# A wrong critic is still a baseline: it does not know the action. So subtracting it is unbiased, and just saves less.

# %%
twenty = jax.vmap(mdp.rollout, (0, None, None, None))(jax.random.split(jax.random.key(1), 20), world, policy, num_steps)
learned = jnp.zeros(2 * (num_steps + 1))
for states, actions, rewards in zip(*twenty, strict=True):
    numbered = mdp.Trajectory(states + 2 * jnp.arange(num_steps + 1), actions, rewards)
    learned = estimation.td0(learned, numbered, gamma, 0.1)
learned = learned.reshape(num_steps + 1, 2)
assert np.allclose(exactly(above(learned)).bias, 0, atol=1e-12)
assert noise(above(exact_critic)) < noise(less(best)) < noise(above(learned)) < noise(above(nothing))

# %%
with plots.style():
    figure, axes = plots.subplots(width=6.4, height=3.4)
    line = np.linspace(-1, 4, 26)
    axes.plot(line, np.sqrt(parabola(line)) / size, **plots.EXACT)
    for name, weight, color in (("R − b", less, plots.SKY), ("G − b", lambda b: gamma**day * (to_go - b), plots.GREEN)):
        axes.plot(line, [noise(weight(b)) for b in line], ".", color=color)
        plots.label(axes, 4, noise(weight(4.0)), name, color)
    for name, critic, color in (("learned V", learned, plots.ORANGE), ("V", exact_critic, plots.BLUE)):
        axes.axhline(noise(above(critic)), color=color)
        plots.label(axes, 4, noise(above(critic)), f"G − {name}", color, xytext=(5, 7))
    plots.label(axes, best, noise(less(best)), "b*", plots.BLACK, xytext=(-3, 12))
    axes.set(xlabel="constant baseline b (reward units)", ylabel="noise (multiples of ‖∇J‖)", xlim=(-1, 5))
    axes.set(ylim=(0, 6.5), title="Noise of one trajectory's gradient, by its weight")
plots.save(figure, "05_baselines")

# %% [markdown]
# The dots are sums over all trajectories, the dashed line is the parabola's formula (its root). Even the best constant
# leaves more noise than $V$ does; a $V$ learned from twenty trajectories helps less than the best constant.
#
# ## A critic can do more
#
# $G_t$ adds up everything that happened until the end, and most of that had little to do with the action. A critic can
# replace the rest of the story: see one reward, then ask what the next state is worth. That is the **TD error**
#
# $$\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t),$$
#
# and if $V$ is exact its mean, given $s_t$ and $a_t$, is $Q^\pi(s_t, a_t) - V^\pi(s_t)$: an unbiased advantage with the
# noise of a single day. If $V$ is wrong, then $\gamma V(s_{t+1})$ is wrong too, and where one lands depends on the
# action. Now there is a bias.
#
# Between one reward and all of them lie the **n-step advantages**. They are sums of TD errors, because in
# $\delta_t + \gamma \delta_{t+1}$ the term $\gamma V(s_{t+1})$ cancels, and so on:
#
# $$\hat A_t^{(n)} = r_t + \dots + \gamma^{n-1} r_{t+n-1} + \gamma^n V(s_{t+n}) - V(s_t)
# = \sum_{k=0}^{n-1} \gamma^k \delta_{t+k}.$$
#
# Here are four steps. The record stops at a state that the critic finds worth 4, and no sum can be longer than the
# record: there the critic's word stands for the rest.

# %%
rewards, critic = np.array([1.0, 0.0, -2.0, 3.0]), np.array([0.5, 1.0, -1.0, 2.0, 4.0])
errors = rewards + gamma * critic[1:] - critic[:-1]
for n in (1, 2, 3, 4):
    n_step = returns.n_step_returns(rewards, gamma, critic, n) - critic[:-1]
    sums = [sum(gamma**k * errors[t + k] for k in range(min(n, 4 - t))) for t in range(4)]
    assert np.allclose(n_step, sums, atol=1e-12)

# %% [markdown]
# ## All of them at once
#
# Which $n$? Generalised advantage estimation (GAE) takes them all, each with $\lambda$ times the weight of the one
# before; $0 \le \lambda \le 1$, and $1 - \lambda$ makes the weights sum to 1:
#
# $$\hat A_t = (1 - \lambda) \sum_{n=1}^{\infty} \lambda^{n-1} \hat A_t^{(n)}
# = \sum_{k=0}^{\infty} (\gamma \lambda)^k\, \delta_{t+k}.$$
#
# The second form follows from the first: $\gamma^k \delta_{t+k}$ is in all $\hat A^{(n)}$ with $n > k$, whose weights
# sum to $\lambda^k$. Where a trajectory ends, all longer $n$ give the same number. Summed from the back it is one line
# a step, $\hat A_t = \delta_t + \gamma \lambda \hat A_{t+1}$. $\lambda = 0$ gives the TD error, $\lambda = 1$ gives
# $G_t - V(s_t)$, the Monte Carlo advantage. In the words of lesson 3, it is the $\lambda$-return less the value.

# %%
lambda_ = 0.8
n_step = [returns.n_step_returns(rewards, gamma, critic, n) - critic[:-1] for n in (1, 2, 3, 4)]
mixture = np.append((1 - lambda_) * lambda_ ** np.arange(3), lambda_**3) @ np.array(n_step)  # all n > 4 are n = 4
sums = [sum((gamma * lambda_) ** k * errors[t + k] for k in range(4 - t)) for t in range(4)]
assert np.allclose([mixture, returns.gae(rewards, gamma, critic, lambda_)], [sums, sums], atol=1e-12)
assert np.allclose(returns.lambda_returns(rewards, gamma, critic, lambda_) - critic[:-1], sums, atol=1e-12)

assert np.allclose(returns.gae(rewards, gamma, critic, 0.0), errors), "lambda = 0"
assert np.allclose(returns.gae(rewards, gamma, critic, 1.0), n_step[3]), "lambda = 1: all rewards, less V"

# %% [markdown]
# ## The trade-off, without a single sample
#
# Three critics: the exact one, the one that learned from twenty trajectories, and one that says 0 everywhere, as a new
# network does. For each $\lambda$ the sum over all trajectories gives bias and noise. With $N$ trajectories in a batch
# the mean square error is $\|\text{bias}\|^2 + \text{variance} / N$: averaging helps against noise, not against bias.

# %%
lambdas, batch = np.linspace(0, 1, 21), 64
critics = (nothing, learned, exact_critic)
gae = jax.jit(jax.vmap(returns.gae, (0, None, 0, None)))
weight = lambda trajectories, critic, x: gamma**day * gae(trajectories.rewards, gamma, along(critic, trajectories), x)
found = [[exactly(weight(every, critic, x)) for x in lambdas] for critic in critics]
bias = np.array([[jnp.linalg.norm(each.bias) for each in row] for row in found]) / size
spread = np.sqrt([[each.variance for each in row] for row in found]) / size
best_lambda = lambda count: lambdas[np.argmin(bias**2 + spread**2 / count, axis=1)]

assert bias[2].max() < 1e-12, "the exact critic is unbiased with every lambda"
assert bias[:, -1].max() < 1e-12, "lambda = 1 is unbiased with every critic"
assert (np.diff(bias[:2]) < 0).all(), "the longer the sum, the less the critic matters"
assert (np.diff(bias[:, :-1], axis=0) < 0).all(), "the worse the critic, the larger the bias"
assert (spread.argmax(axis=1) == 20).all(), "and the more the dice do: noisiest at lambda = 1"
assert all(best_lambda(4)[i] < best_lambda(batch)[i] < best_lambda(1024)[i] for i in (0, 1))
assert best_lambda(batch)[2] < 0.1 < best_lambda(batch)[1] < best_lambda(batch)[0] < 1

# %% [markdown]
# Does it happen like that? Sample, and see.

# %%
keys = jax.random.split(jax.random.key(2), 2**15)
sampled = jax.vmap(mdp.rollout, (0, None, None, None))(keys, world, policy, num_steps)
off = lambda critic, x: gradient(sampled, weight(sampled, critic, x)).reshape(-1, batch, 4).mean(axis=1) - truth
dots = [[np.sqrt(np.mean(np.sum(off(critic, x) ** 2, axis=1))) / size for x in lambdas[::4]] for critic in critics]
error = np.sqrt(bias**2 + spread**2 / batch)
assert np.allclose(dots, error[:, ::4], rtol=0.1)

# %%
with plots.style():
    figure, axes = plots.subplots(1, 3, width=8.4, height=3.2)
    for i, (name, color) in enumerate([("V = 0", plots.GREY), ("learned V", plots.ORANGE), ("exact V", plots.BLUE)]):
        axes[0].plot(lambdas, bias[i], color=color)
        plots.label(axes[0], (0.38, 0.02, 0.02)[i], (0.4, 0.12, 0.02)[i], name, color)
        axes[1].plot(lambdas, spread[i], color=color)
        axes[2].plot(lambdas, error[i], **plots.EXACT, label="exact" if i == 0 else None)
        axes[2].plot(lambdas[::4], dots[i], "o", color=color, label="from samples" if i == 0 else None)
    axes[2].legend(loc="upper right")
    titles = "Bias of GAE(λ)", "Noise of one trajectory", f"Error of a batch of {batch}"
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="λ", title=title, ylim=(0, None))
    axes[0].set_ylabel("multiples of ‖∇J‖")
plots.save(figure, "05_gae_trade_off")

# %% [markdown]
# Left: the worse the critic, the larger the bias, and $\lambda$ near 1 removes it. Middle: at a price. Right: the sum
# of both has its lowest point in between unless the critic is exact. With larger batches the best $\lambda$ moves to
# the right, since noise averages out and bias does not. With a better critic it moves to the left. The usual 0.95
# says: large batches, and a critic that is not to be trusted.
#
# ## The end, and the cut
#
# A trajectory may stop for two reasons. It **terminated**: the game is over, the text is finished, nothing follows. Or
# it was **truncated**: we stopped watching, and the world went on. After an end the next state is worth 0. After a cut
# it is worth what it is worth, and the critic says how much.
#
# One array says which: a discount for each step, $\gamma_t = \gamma\,(1 - \text{terminated}_t)$, as in lesson 3. Then
# $\hat A_t = \delta_t + \gamma_t \lambda \hat A_{t+1}$ with $\delta_t = r_t + \gamma_t V(s_{t+1}) - V(s_t)$. A 0 in it
# stops everything that comes after from leaking in; so two episodes may stand in one array, one behind the other. The
# first one here ended after its third step, the second was cut after its second step, in a state that is worth 10.

# %%
discounts = gamma * (1 - np.array([0, 0, 1, 0, 0]))
two_episodes, then = np.array([1.0, 0.0, 2.0, 5.0, 1.0]), np.array([0.0, 0.0, 0.0, 0.0, 0.0, 10.0])
by_hand = [1 + 0.81 * 2, 0.9 * 2, 2, 5 + 0.9 * 1 + 0.81 * 10, 1 + 0.9 * 10]
assert np.allclose(returns.gae(two_episodes, discounts, then, 1.0), by_hand)

# %% [markdown]
# What if a cut is mistaken for an end? Let the two towns go on for ever, and watch six days. With $V^\pi$ of the
# endless world and the cut treated as a cut, the mean of $\hat A_0$ is the advantage of the first action, for every
# $\lambda$. Called an end, the future after the cut counts as nothing: $\gamma^6\, \mathbb{E}[V(s_6)]$ is missing
# at $\lambda = 1$, though this world pays for ever.

# %%
endless = values.state_values(world, policy)
as_end = jnp.full(num_steps, gamma).at[-1].set(0)
for action in (0, 1):
    advantage = values.advantages(world, policy)[0, action]
    chance = jnp.where(every.actions[:, 0] == action, probs, 0) / policy[0, action]
    for x in (0.0, 0.5, 0.95, 1.0):
        assert np.isclose(chance @ gae(every.rewards, gamma, endless[every.states], x)[:, 0], advantage, atol=1e-12)
    missing = gamma**num_steps * chance @ endless[every.states[:, -1]]
    mistaken = chance @ gae(every.rewards, as_end, endless[every.states], 1.0)[:, 0]
    assert np.isclose(mistaken, advantage - missing, atol=1e-12)
    assert missing > 2 * abs(advantage), "the mistake is larger than what is to be measured"

# %% [markdown]
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/05_advantage_and_gae.py).
#
# **1.** Write GAE as one loop from the back, $\hat A_t = \delta_t + \gamma_t \lambda \hat A_{t+1}$, in plain NumPy.
# `values` has one entry more than `rewards`; `discounts` has a 0 where a step terminated.


# %%
def exercise_1(rewards, discounts, values, lambda_):
    return ...


inputs = np.array([1.0, 0.0, 2.0, 5.0]), np.array([0.9, 0.0, 0.9, 0.9]), np.array([1.0, -1.0, 3.0, 0.5, 4.0])
answer = exercise_1(*inputs, 0.5)
assert answer is ... or np.allclose(answer, returns.gae(*inputs, 0.5)), "the 0 acts in delta_t and before A_(t+1)"
print("Exercise 1:", "to do" if answer is ... else "right")

# %% [markdown]
# **2.** A state has two actions with probabilities $\pi_0, \pi_1$ and values $Q_0, Q_1$, and a softmax policy. Which
# number $b$ makes the variance of $\nabla \log \pi(a)\,(Q_a - b)$ smallest? Start from the formula of $b^*$;
# $\|\nabla \log \pi(a)\|^2 = 2\,(1 - \pi_a)^2$. The result can be said in one sentence. Is it $V$?


# %%
def exercise_2(probs, action_values):
    return ...


answer = exercise_2(np.array([0.9, 0.1]), np.array([1.0, 5.0]))
if answer is not ...:
    grid = np.linspace(0, 6, 601)
    spreads = [0.9 * (0.1 * (1 - b)) ** 2 + 0.1 * (0.9 * (5 - b)) ** 2 for b in grid]
    assert abs(answer - grid[np.argmin(spreads)]) < 0.011, "the rare action moves the policy more, so it counts more"
print("Exercise 2:", "to do" if answer is ... else "right")

# %% [markdown]
# **3.** Without a critic one may subtract $\bar R$, the mean return of the batch itself. But that mean contains the
# trajectory's own return, so it knows the action, a little. Is the gradient still right? Work out the mean of
# $\frac{1}{N} \sum_i (R_i - \bar R)\, z_i$ for $N$ independent trajectories, and return the weights $w_i$ that repair
# it: unbiased, and unchanged when every return grows by the same number.


# %%
def exercise_3(batch_returns):
    return ...


if exercise_3(np.array([1.0, 2.0, 6.0])) is not ...:  # every batch of three draws from two actions that pay 1 and 4
    drawn, chances = moments.all_groups(np.array([0.7, 0.3]), 3)
    weights = np.array([exercise_3(batch) for batch in np.array([1.0, 4.0])[drawn]])
    mean = chances @ np.mean(weights * np.array([0.3, -0.7])[drawn], axis=1)  # d log pi(a) / d logit 0
    assert np.allclose(mean, 0.7 * 0.3 * (1 - 4), atol=1e-5), "too short, or biased"
    assert np.allclose(exercise_3(np.arange(3.0)), exercise_3(np.arange(3.0) + 5)), "five for everybody changes nothing"
print("Exercise 3:", "to do" if exercise_3(np.arange(3.0)) is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Greensmith, Bartlett and Baxter (2004), "Variance Reduction Techniques for Gradient Estimates in Reinforcement
#   Learning": the best constant is `estimators.optimal_baseline`.
# - Schulman, Moritz, Levine, Jordan and Abbeel (2016), "High-Dimensional Continuous Control Using Generalized Advantage
#   Estimation": equation 16 is `returns.gae`.
# - Pardo, Tavakoli, Levdik and Kormushev (2018), "Time Limits in Reinforcement Learning", on ends and cuts.
# - The same trade-off for a small language is `estimators.gae_gradients`.
# - The gradient is as good as the batch allows. [Lesson 6](06_ppo.py) asks how far one may follow it before new
#   samples are needed: `ppo.clipped_surrogate_loss`.
