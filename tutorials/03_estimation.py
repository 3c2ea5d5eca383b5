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
# # 3. What is a state worth, if nobody shows you the tables?
#
# [Lesson 2](02_value_functions.py) computed values from the tables of the world. Almost nobody has such tables: not for
# a robot, not for a reader of the text that a language model writes. One can only act and write down what happens:
# state, action, reward, next state. This lesson estimates values from such records. The tables stay in our drawer, to
# tell us how wrong each estimate is, and in which of two ways.
#
# An estimate is **biased** if it is wrong on average, however often one repeats the experiment. It has **variance** if
# it scatters from one experiment to the next. It is **consistent** if both vanish as data grow. The art of this lesson
# is to trade one for the other.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import environments, estimation, mdp, numpy_loops, plots, returns, values

jax.config.update("jax_enable_x64", True)  # float64

# %% [markdown]
# ## Average what followed
#
# $V^\pi(s)$ is the mean of what follows $s$. So take the mean: wherever a trajectory visits $s$, add up what it still
# earned, the **rewards-to-go** $G_t = r_t + \gamma r_{t+1} + \gamma^2 r_{t+2} + \dots$, and average. This is the
# **Monte Carlo** estimate. If a trajectory comes by several times, one may count its first visit only, or every visit.
#
# Take a game that pays 1 for each round and goes on with probability 0.8, with $\gamma = 1$. It has two states, playing
# (0) and over (1), and nothing to decide. On average it lasts five rounds: $V(0) = 1 + 0.8\, V(0) = 5$. One game of
# three rounds has $G = 3, 2, 1$: first visit says 3, every visit says 2.

# %%
game = mdp.make_mdp([1.0, 0.0], [[[0.8, 0.2]], [[0.0, 1.0]]], [[1.0], [0.0]], gamma=1.0)  # start, P, r
rounds = mdp.Trajectory(jnp.array([[0, 0, 0, 1]]), jnp.zeros((1, 3), int), jnp.ones((1, 3)))
assert np.array_equal(returns.rewards_to_go(rounds.rewards[0], 1.0), [3, 2, 1])
for estimate, by_hand in [(estimation.first_visit_monte_carlo, 3), (estimation.every_visit_monte_carlo, 2)]:
    assert numpy_loops.monte_carlo([([0, 0, 0, 1], [1, 1, 1])], 1.0, 2, first_visit=by_hand == 3)[0] == by_hand
    assert estimate(rounds, 1.0, 2)[0] == by_hand  # games, gamma, number of states; [0]: playing

# %% [markdown]
# Which is better? The first visits of different games are independent samples of the same number, so their mean is
# unbiased. Every visit after the first looks at what is left of the *same* game: a game of $K$ rounds says
# $(K + 1)/2$, on average 3 instead of 5. Put many games into one mean, and the long ones, which bring more visits,
# weigh more; in the limit that makes up for it exactly. Every-visit is biased but consistent. With a single game it is
# *closer* to the truth all the same, since it scatters less; with many it is not. Biased is not a word for bad.
#
# We cut 32,768 games into groups of $N$, as in lesson 1. (`jax.tree.map` does the same to each field of a record.
# `jax.jit` compiles a function on its first call; what is static, here the number of days, must be known by then.)

# %%
live = jax.jit(jax.vmap(mdp.rollout, (0, None, None, None)), static_argnums=3)  # many trajectories at once
games = live(jax.random.split(jax.random.key(0), 2**15), game, np.ones((2, 1)), 64)  # one in a million lasts longer
sizes, first, every = 4 ** np.arange(5), [], []
for size in sizes:
    groups = jax.tree.map(lambda field, size=size: field.reshape(-1, size, field.shape[-1]), games)
    first.append(jax.vmap(estimation.first_visit_monte_carlo, (0, None, None))(groups, 1.0, 2)[:, 0])
    every.append(jax.vmap(estimation.every_visit_monte_carlo, (0, None, None))(groups, 1.0, 2)[:, 0])

rms = lambda errors: np.sqrt(np.mean(np.square(errors), axis=-1))
assert all(abs(estimates.mean() - 5) < 4 * np.sqrt(20 / 2**15) for estimates in first), "Var K = 0.8 / 0.2^2 = 20"
assert abs(every[0].mean() - 3) < 4 * np.sqrt(5 / 2**15)
assert abs(every[4].mean() - 5) < 0.1
assert rms(every[0] - 5) < 0.75 * rms(first[0] - 5)
assert rms(every[4] - 5) > 1.2 * rms(first[4] - 5)

# %% [markdown]
# ## Learn a guess from a guess
#
# Monte Carlo has to wait for the end. The two towns have none. But the Bellman equation says that $V(s)$ is the mean
# of $r + \gamma V(s')$, and that can be observed after a single day, if one puts the present guess $V(s')$ in the place
# of what will follow. Call the difference the **TD error** (temporal difference), and move the guess a little along it:
#
# $$\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad V(s_t) \leftarrow V(s_t) + \alpha\, \delta_t.$$
#
# $\alpha$ is the step size. This is TD(0): `estimation.td0` takes the guess, a record, $\gamma$ and $\alpha$. (The loop
# wants one $\gamma$ and one $\alpha$ a day. Its 0.0 is the $\lambda$ of the next section.) Learning a guess from a
# guess is called **bootstrapping**. Where it stops, the mean TD error is zero in each state; that *is* the Bellman
# equation, so it can only stop at $V^\pi$.

# %%
world, policy = environments.two_state(gamma=0.9, slip=0.1), np.array([[0.5, 0.5], [0.8, 0.2]])
exact = np.array(values.state_values(world, policy))
life = mdp.rollout(jax.random.key(1), world, policy, 50_000)
deltas = np.array(life.rewards + 0.9 * exact[life.states[1:]] - exact[life.states[:-1]])
for s in range(2):
    here = deltas[life.states[:-1] == s]
    assert abs(here.mean()) < 4 * here.std() / np.sqrt(here.size), "at the exact values, nothing left to learn"

week = jax.tree.map(lambda field: field[:7], life)._replace(states=life.states[:8])
by_loop = numpy_loops.td_lambda(np.zeros(2), week.states, week.rewards, np.full(7, 0.9), 0.0, np.full(7, 0.5))
assert np.allclose(estimation.td0(np.zeros(2), week, 0.9, 0.5), by_loop, atol=1e-12)

# %% [markdown]
# How large a step? With a constant $\alpha$ the guess soon comes near and then trembles for ever, since every new day
# pulls at it; and because it trembles in step with where the agent has just been, it is not even right on average.
# With steps that shrink it settles. They may not shrink too fast, though, or it stops on the way: the
# conditions are $\sum_t \alpha_t = \infty$ and $\sum_t \alpha_t^2 < \infty$, which $1/t$ meets. We watch 64 agents that
# live independently, for up to 8,000 days, and draw them at the end of the lesson.

# %%
lives = live(jax.random.split(jax.random.key(2), 64), world, policy, 8000)
times, ends = np.arange(8000), 125 * 2 ** np.arange(7)  # 125, 250, ..., 8000
shrinking = 1 / (1 + times / 100)


def watch(learn, lives, step_sizes):
    learn = jax.jit(jax.vmap(learn, (0, None)))
    return np.array([learn(lives, step_sizes * (times < end)) for end in ends])  # 0 from `end` on; [end, agent, ...]


td = lambda life, step_sizes: estimation.td0(np.zeros(2), life, 0.9, step_sizes)
curves = {"α = 0.2 for ever": watch(td, lives, np.full(8000, 0.2)), "α shrinks as 1/t": watch(td, lives, shrinking)}
shrinking_rms = [rms((table - exact).ravel()) for table in curves["α shrinks as 1/t"]]
assert (curves["α = 0.2 for ever"][3:].std(axis=1) > 0.2).all(), "a constant step trembles for ever"
assert curves["α = 0.2 for ever"][-1].mean(axis=0)[0] < exact[0] - 0.2
assert shrinking_rms[-1] < 0.6 * shrinking_rms[-3], "four times the days, about half the error"

# %% [markdown]
# ## Between the two
#
# TD(0) looks one day ahead and trusts the guess from there; Monte Carlo trusts no guess. Between them, add up $n$ days
# of rewards and then the guess $v$. Or mix all of these **n-step returns**, each with $\lambda$ times the weight of the
# one before; the weights $(1 - \lambda) \lambda^{n-1}$ sum to 1. Written backwards, that is one line:
#
# $$G_t^{(n)} = r_t + \gamma r_{t+1} + \dots + \gamma^{n-1} r_{t+n-1} + \gamma^n v(s_{t+n}), \qquad
# G_t^\lambda = r_t + \gamma \big[(1 - \lambda)\, v(s_{t+1}) + \lambda\, G_{t+1}^\lambda\big].$$
#
# $\lambda = 0$ is the target of TD(0), $\lambda = 1$ is Monte Carlo. A record ends some day $T$, and there $v(s_T)$
# stands for the days that were not recorded. But if the *game* ended, nothing follows. So the library's functions take
# `discounts`, one a day: $\gamma_t = \gamma$ as a rule, 0 on a day that ended the game.

# %%
guess = np.array([4.5, 5.5])  # somebody's opinion of the two towns
rewards, v, gammas = np.array(week.rewards), guess[week.states], np.full(7, 0.9)
for n in (1, 3, 7):
    assert np.allclose(numpy_loops.n_step_returns(rewards, gammas, v, n), returns.n_step_returns(rewards, 0.9, v, n))
by_loop = numpy_loops.lambda_returns(rewards, gammas, v, lambda_=0.7)  # the mixture, term by term
assert np.allclose(returns.lambda_returns(rewards, 0.9, v, 0.7), by_loop, atol=1e-12)
assert np.allclose(returns.lambda_returns(rewards, 0.9, v, 0.0), rewards + 0.9 * v[1:], atol=1e-12)

for discounts, by_hand in [(np.array([1.0, 1.0, 0.0]), [3, 2, 1]), (np.ones(3), [8, 7, 6])]:  # ended; cut off
    assert np.array_equal(returns.lambda_returns(np.ones(3), discounts, np.full(4, 5.0), 1.0), by_hand)

# %% [markdown]
# ## Bias against variance
#
# Now the trade can be seen. The guess says 4.5 and 5.5; the truth is 5.02 and 5.91. With every day that $\lambda$
# reaches further, the guess's error counts less, and one more day's luck comes in. With the tables of our drawer we
# follow mean and variance of $G_0^\lambda$ exactly, day by day from the end. Once $s'$ is known, tomorrow's luck has
# nothing to do with today's, so variances add: that of today's target, plus the one that follows, on average, times
# $(\gamma \lambda)^2$.


# %%
def bias_and_deviation(lambda_):
    mean, variance = guess, np.zeros(2)
    chance = policy[:, :, None] * np.array(world.transition)  # [s, a, s']
    for _ in range(40):
        target = np.array(world.reward)[:, :, None] + 0.9 * ((1 - lambda_) * guess + lambda_ * mean)
        mean = (chance * target).sum(axis=(1, 2))
        variance = (chance * ((target - mean[:, None, None]) ** 2 + (0.9 * lambda_) ** 2 * variance)).sum(axis=(1, 2))
    return mean[0] - exact[0], np.sqrt(variance[0])  # in the poor town


lambdas = np.linspace(0, 1, 21)
bias, deviation = np.array([bias_and_deviation(lambda_) for lambda_ in lambdas]).T
paths = live(jax.random.split(jax.random.key(3), 2**13), world, policy, 40)
first_target = lambda rewards, v, lambda_: returns.lambda_returns(rewards, 0.9, v, lambda_)[0]
over_lambda = jax.vmap(jax.vmap(first_target, (0, 0, None)), (None, None, 0))
misses = np.array(over_lambda(paths.rewards, guess[paths.states], lambdas)) - exact[0]  # [lambdas, samples]

assert (abs(misses.mean(axis=1) - bias) < 4 * deviation / np.sqrt(2**13)).all()
assert np.allclose(misses.std(axis=1), deviation, rtol=0.05)
assert (np.diff(np.abs(bias)) < 0).all(), "more lambda, less bias"
assert (np.diff(deviation[4:]) > 0).all(), "more lambda, more noise (from 0.2 on)"

# %% [markdown]
# Should one trust the guess, then? It depends on the data. With $N$ samples in the mean the noise shrinks, the bias
# does not: the root mean square error is $\sqrt{\text{bias}^2 + \text{variance} / N}$. One sample: lean on the guess,
# at $\lambda = 0.15$. Sixteen: nearly Monte Carlo. There is no best $\lambda$ as such, and PPO (lesson 6) has the same
# dial.

# %%
numbers = [1, 4, 16, 64]
errors = np.array([np.sqrt(bias**2 + deviation**2 / number) for number in numbers])  # root mean square
sampled = np.array([rms(misses.reshape(21, -1, number).mean(axis=2)) for number in numbers])
assert np.allclose(sampled, errors, rtol=0.1)
assert np.allclose(lambdas[errors.argmin(axis=1)], [0.15, 0.55, 0.95, 1.0])

# %%
with plots.style():
    figure, (left, middle, right) = plots.subplots(1, 3, width=10.0, height=3.3)
    for estimates, color, name in [(first, plots.BLUE, "first visit"), (every, plots.ORANGE, "every visit")]:
        left.plot(sizes, [group.mean() for group in estimates], "o-", color=color, label=f"{name}: mean, middle half")
        left.fill_between(sizes, *np.array([np.quantile(g, [0.25, 0.75]) for g in estimates]).T, color=color, alpha=0.2)
    left.axhline(5, **plots.EXACT, label="exact")
    left.set(xscale="log", xlabel="games N in one estimate", ylabel="value (rounds)", title="Monte Carlo")
    middle.plot(lambdas, np.abs(misses.mean(axis=1)), "o", color=plots.ORANGE, label="bias (size)")
    middle.plot(lambdas, misses.std(axis=1), "o", color=plots.BLUE, label="standard deviation")
    middle.plot(lambdas, np.transpose([abs(bias), deviation]), **plots.EXACT)
    middle.set(xlabel="λ", ylabel="reward units", title="The λ-return: bias or noise", ylim=(0, 1.4))
    for i, color in enumerate([plots.VERMILLION, plots.ORANGE, plots.GREEN, plots.BLUE]):
        right.plot(lambdas, errors[i], **plots.EXACT, label=None if i else "exact")
        right.plot(lambdas[::2], sampled[i, ::2], "o", color=color)
        plots.label(right, 1.0, errors[i, -1], f"N = {numbers[i]}", color)
    right.set(xlabel="λ", ylabel="root mean square error", title="Error of the mean of N of them", xlim=(-0.03, 1.27))
    for axis in (left, middle, right):
        axis.legend(loc="lower right" if axis is left else "upper left")
plots.save(figure, "03_bias_and_variance")

# %% [markdown]
# To learn with $\lambda$ one need not wait for the future either. **TD($\lambda$)** keeps a **trace** of how recently
# each state was visited, $e \leftarrow \gamma \lambda\, e$, plus 1 in the present state, and lets every TD error
# correct all of them: $V \leftarrow V + \alpha\, \delta_t\, e$. It comes to the same, since the $\lambda$-return
# exceeds the guess by the TD errors to come, each day further counting $\gamma \lambda$ as much:
#
# $$G_t^\lambda - v(s_t) = \delta_t + \gamma \lambda\, \delta_{t+1} + (\gamma \lambda)^2\, \delta_{t+2} + \dots$$
#
# So while $\alpha$ is small, the steps of TD($\lambda$) add up to those towards the $\lambda$-returns.

# %%
tiny, pulls = 1e-6, returns.lambda_returns(rewards, 0.9, v, 0.7) - v[:-1]
sums = [pulls[week.states[:-1] == s].sum() for s in range(2)]
assert np.allclose((estimation.td_lambda(guess, week, 0.9, 0.7, tiny) - guess) / tiny, sums, atol=1e-4)

# %% [markdown]
# ## Which action?
#
# To act better one needs $Q$ (lesson 2), and the same idea learns it. What stands for the future decides *whose* $Q$:
#
# - **SARSA** (state, action, reward, state, action): the action taken next, $r_t + \gamma Q(s_{t+1}, a_{t+1})$. Learns
#   $Q$ of the policy that acts. A last day whose next action was not recorded is left out.
# - **Expected SARSA**: the mean under any policy one asks about, $r_t + \gamma \sum_a \pi(a|s_{t+1})\, Q(s_{t+1}, a)$.
# - **Q-learning**: the best action, $r_t + \gamma \max_a Q(s_{t+1}, a)$. Learns $Q^*$, that of the best policy.
#
# The last two are **off-policy**: they learn about one policy while another acts. It has to **explore**, that is, try
# every action again and again, or the table has entries that nobody ever saw. Here an agent that tosses a coin each day
# learns three different truths from the same days; expected SARSA is asked about the policy we had before.
# (`estimation.epsilon_greedy` mostly takes the best known action and sometimes any: the usual explorer.)

# %%
coin, blank = np.full((2, 2), 0.5), np.zeros((2, 2))
lives = live(jax.random.split(jax.random.key(4), 64), world, coin, 8000)
best = values.bellman_backup(world, values.optimal_state_values(world))
truths = [values.action_values(world, coin), values.action_values(world, policy), best]
for name, asked, truth in zip(["sarsa", "expected_sarsa", "q_learning"], [(), (policy,), ()], truths, strict=True):
    learn, loop = getattr(estimation, name), getattr(numpy_loops, name)
    by_loop = loop(blank, *week, gammas, *asked, np.full(7, 0.5))
    assert np.allclose(learn(blank, week, 0.9, *asked, 0.5), by_loop, atol=1e-12)
    curves[name] = watch(lambda life, a, f=learn, x=asked: f(blank, life, 0.9, *x, a), lives, shrinking)
    assert np.abs(curves[name][-1].mean(axis=0) - truth).max() < 0.03, name
assert np.allclose(estimation.epsilon_greedy(np.array([[1.0, 3.0]]), 0.1), [[0.05, 0.95]])

# %%
with plots.style():
    figure, axes = plots.subplots(1, 2, width=8.4, height=3.4)
    colors = [plots.VERMILLION, plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE]
    for i, (name, tables) in enumerate(curves.items()):
        axis, watched = axes[int(i > 1)], tables.reshape(7, 64, -1)[:, :, int(i > 1)]  # V(poor), Q(poor, move)
        axis.plot(ends, np.median(watched, axis=1), "o-", color=colors[i], label=name)
        axis.fill_between(ends, *np.quantile(watched, [0.25, 0.75], axis=1), color=colors[i], alpha=0.2)
    axes[0].axhline(exact[0], **plots.EXACT, label="exact")
    axes[1].hlines([truth[0, 1] for truth in truths], 100, 10_000, **plots.EXACT, label="exact")
    axes[0].set(title="TD(0): 64 agents, middle half", ylabel="V(poor) (reward units)", ylim=(2.5, 5.3))
    axes[1].set(title="Three learners, the same days", ylabel="Q(poor, move) (reward units)", ylim=(-0.5, 8.8))
    for axis in axes:
        axis.set(xscale="log", xlabel="days lived", xlim=(100, 10_000))
        axis.legend(loc="lower right", ncols=2)
plots.save(figure, "03_learning_curves")

# %% [markdown]
# ## What if the state is not the state?
#
# Monte Carlo never used the Markov property; bootstrapping does, at every step: it takes the guess at $s'$ for what
# follows, however $s'$ was reached. Suppose the agent cannot see everything. A day starts in A or B by the toss of a
# coin; both lead to the same-looking door X, behind which 1 is paid to who came from A and nothing to who came from B.
# With $\gamma = 1$, A is worth 1 and B 0. Monte Carlo finds that. TD(0) learns that X is worth a half, and that A and
# B, which lead to X, are worth a half each. In between, $V(A) = (1 + \lambda) / 2$.

# %%
origin = jax.random.bernoulli(jax.random.key(5), shape=4000).astype(int)  # 0: from A; 1: from B
seen = jnp.stack([origin, jnp.full(4000, 2), jnp.full(4000, 3)], axis=1)  # what the agent sees: A or B, X, over
walks = mdp.Trajectory(seen, jnp.zeros((4000, 2), int), jnp.stack([jnp.zeros(4000), 1.0 - origin], axis=1))
assert np.array_equal(estimation.every_visit_monte_carlo(walks, 1.0, 4)[:2], [1, 0])

for lambda_ in (0.0, 0.5, 1.0):
    learn = lambda table, walk, x=lambda_: (estimation.td_lambda(table, walk, 1.0, x, 0.005), None)
    table = jax.lax.scan(learn, np.zeros(4), walks)[0]  # a loop over the walks that hands the table on
    assert np.allclose(table[:2], [(1 + lambda_) / 2, (1 - lambda_) / 2], atol=0.1)

# %% [markdown]
# Remember it when a value function is shown less than the whole text so far.
#
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/03_estimation.py).
#
# **1.** One step of TD(0): return the new value of the state $s$ that was left, given a table of values `[S]`.


# %%
def exercise_1(table, state, reward, next_state, gamma, step_size):
    return ...


answer = exercise_1(np.array([1.0, 4.0, 6.0]), 1, 2.0, 2, 0.5, 0.1)
assert answer is ... or np.isclose(answer, 4.1), "the TD error is 2 + 0.5 x 6 - 4"
print("Exercise 1:", "to do" if answer is ... else "right")

# %% [markdown]
# **2.** The $\lambda$-return of every day of a record, backwards in one loop, from $G_T = v(s_T)$. `table_values` holds
# $v(s_0), \dots, v(s_T)$, one number more than there are rewards.


# %%
def exercise_2(rewards, gamma, table_values, lambda_):
    return ...


record = np.array([1.0, 2.0, 4.0]), 0.5, np.array([9.0, 3.0, 5.0, 8.0]), 0.75
answer, mixture = exercise_2(*record), numpy_loops.lambda_returns(record[0], np.full(3, 0.5), *record[2:])
assert answer is ... or np.allclose(answer, mixture), "what is v(s_(t+1)) weighted with, what the next day's return?"
print("Exercise 2:", "to do" if answer is ... else "right")

# %% [markdown]
# **3.** A log of five days holds two games. The first **ended** on day 1 (`terminated`). The second was still going
# when the recorder was switched off after day 4. Your colleague's code has $G = 2, 1, 3, 2, 1$ with $\gamma = 1$, and
# the values it trains come out too low. Return what should stand there, given the guesses `table_values` of the days 0
# to 5; on day 5 the world went on unseen.


# %%
def exercise_3(rewards, terminated, table_values, gamma):
    return ...


answer = exercise_3(np.ones(5), np.arange(5) == 1, 2.0 * np.arange(6), 0.5)
assert answer is ... or np.allclose(answer, [1.5, 1.0, 3.0, 4.0, 6.0]), "nothing follows an end; a cut is no end"
print("Exercise 3:", "to do" if answer is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Sutton (1988), "Learning to Predict by the Methods of Temporal Differences": `estimation.td0`,
#   `estimation.td_lambda`.
# - Singh and Sutton (1996), "Reinforcement Learning with Replacing Eligibility Traces", on first and every visit:
#   `estimation.first_visit_monte_carlo`, `estimation.every_visit_monte_carlo`.
# - Watkins and Dayan (1992), "Q-learning": `estimation.q_learning`. Rummery and Niranjan (1994), "On-line Q-learning
#   Using Connectionist Systems": `estimation.sarsa`.
# - Sutton & Barto (2018), "Reinforcement Learning: An Introduction", chapters 5 to 7 and 12: `returns.n_step_returns`,
#   `returns.lambda_returns`.
# - [Lesson 4](04_policy_gradient.py) changes the policy itself. [Lesson 5](05_advantage_and_gae.py) brings the
#   $\lambda$ of this lesson along: `returns.gae`.
