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
# # 1. How much does a policy earn?
#
# Reinforcement learning is learning from consequences: an **agent** looks at the **state** of its world, takes an
# **action**, is paid a **reward**, finds itself in a new state, and so on. Nobody shows it the right action; it has to
# find out which actions pay in the long run.
#
# Where is this used? In games (Go, chess, Atari), in control (robots, data-centre cooling, plasma in a fusion reactor),
# in choosing what to show (recommendations, adverts), and in teaching language models what people prefer. In that last
# case the state is the text so far, an action is the next token (a piece of a word), and the reward is what people
# think of the finished text. Everything in this lesson holds there too; only the tables get too large to write down.
#
# The question of all that follows is: *how much will an agent earn if it behaves like this?* We answer it for one
# future by hand, then for all of them by listing, and last by sampling. (JAX, below `jax` and `jnp`, is NumPy that can
# also be differentiated, compiled, and run for many inputs at once.)

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import environments, mdp, numpy_loops, plots, returns, values

# %% [markdown]
# ## A world of two towns
#
# A Markov decision process (MDP) is three tables and a number. Our agent lives in a poor town (state 0) or a rich one
# (state 1). Each day it stays (action 0) or moves (action 1).
#
# - $\rho_0(s)$: where the first day starts. Here always in the poor town.
# - $P(s'|s, a)$: where the next day starts. One plan in ten fails (`slip`): who stays is moved, who moves is kept.
# - $r(s, a)$: the day's pay. Staying pays 0.2 in the poor town and 1 in the rich one, a day of moving nothing.
# - $\gamma$, the discount: pay that comes $t$ days late counts $\gamma^t$ as much. Here 0.9.
#
# "Markov" means that these tables need to know today's state, and nothing of how it was reached. The bar in
# $P(s'|s, a)$ reads "given"; the dash marks the next one. [Notation](../docs/notation.md) lists all symbols of the
# course with their names in the code.

# %%
world = environments.two_state(gamma=0.9, slip=0.1)
print("initial", world.initial, "\ntransition", world.transition, "\nreward", world.reward, sep="\n")
assert np.allclose(world.transition.sum(axis=-1), 1), "every row of P is a distribution over next states"

# %% [markdown]
# How the agent behaves is its **policy** $\pi(a|s)$, a table with a row for each state. Ours tosses a coin in the poor
# town and likes to stay in the rich one.

# %%
policy = np.array([[0.5, 0.5], [0.8, 0.2]])

# %% [markdown]
# ## By hand
#
# A **trajectory** is what happened in $T$ days: $\tau = (s_0, a_0, s_1, a_1, \dots, s_T)$. Multiply the chances of each
# thing that had to happen:
#
# $$P(\tau|\pi) = \rho_0(s_0) \prod_{t=0}^{T-1} P(s_{t+1}|s_t, a_t)\, \pi(a_t|s_t).$$
#
# Its **return** is the discounted sum of what was paid:
#
# $$R(\tau) = \sum_{t=0}^{T-1} \gamma^t r_t.$$
#
# Take two days: start poor, move, arrive rich, stay, still rich.

# %%
states, actions = [0, 1, 1], [1, 0]
prob_by_hand = 1.0 * (0.5 * 0.9) * (0.8 * 0.9)  # start, (choose to move, succeed), (choose to stay, succeed)
return_by_hand = 0.0 + 0.9 * 1.0  # nothing on the day of moving; then one, a day late

prob = 1.0 * world.initial[states[0]]
for t in range(2):
    prob *= policy[states[t], actions[t]] * world.transition[states[t], actions[t], states[t + 1]]
assert np.isclose(prob_by_hand, 0.324)
assert np.isclose(prob, prob_by_hand)

# %% [markdown]
# The library does the same with arrays. The loops you can read in one glance are kept, in plain NumPy, in
# `rlhf_jax/numpy_loops.py`: look there first when a function is unclear. (`world[:2]` is $\rho_0$ and $P$; a
# `Trajectory` is a record of states, actions and rewards.)

# %%
rewards = world.reward[np.array(states[:-1]), np.array(actions)]
trajectory = mdp.Trajectory(jnp.array(states), jnp.array(actions), rewards)

assert np.isclose(numpy_loops.trajectory_prob(*world[:2], policy, states, actions), prob_by_hand)
assert np.isclose(mdp.trajectory_prob(world, policy, trajectory), prob_by_hand)
assert np.isclose(numpy_loops.discounted_return(rewards, world.gamma), return_by_hand)
assert np.isclose(returns.discounted_return(rewards, world.gamma), return_by_hand)

# %% [markdown]
# ## By listing every future
#
# One trajectory is one possible future. What a policy is worth is the average over all of them:
#
# $$J(\pi) = \mathbb{E}_{\tau \sim \pi}[R(\tau)] = \sum_\tau P(\tau|\pi)\, R(\tau).$$
#
# ($\mathbb{E}_{\tau \sim \pi}$, the **expectation**, is the mean over trajectories that come about under $\pi$.)
# $J(\pi)$ is the **objective**; the best policy is $\pi^* = \arg\max_\pi J(\pi)$. For three days and two towns
# there are $2^4$ sequences of states and $2^3$ of actions: 128 trajectories, few enough to list.
#
# `jax.vmap` turns a function of one trajectory into a function of a whole array of them, without a loop. A tuple says
# which argument is the array: `(None, None, 0)` runs along axis 0 of the third and keeps the first two as they are. You
# will see it everywhere: the library's functions do one trajectory, and you decide how many.

# %%
num_steps = 3
every = mdp.enumerate_trajectories(world, num_steps)
probs = jax.vmap(mdp.trajectory_prob, (None, None, 0))(world, policy, every)
every_return = jax.vmap(returns.discounted_return, (0, None))(every.rewards, world.gamma)

objective = 0.0
for states, actions in numpy_loops.enumerate_trajectories(num_states=2, num_actions=2, num_steps=num_steps):
    pay = [float(world.reward[s, a]) for s, a in zip(states, actions, strict=False)]
    prob = numpy_loops.trajectory_prob(*world[:2], policy, states, actions)
    objective += prob * numpy_loops.discounted_return(pay, world.gamma)

assert len(probs) == 2**4 * 2**3
assert np.isclose(probs.sum(), 1, atol=1e-6), "something happens, and only one thing"
assert np.isclose(jnp.sum(probs * every_return), objective, atol=1e-6)
print(f"J = {objective:.4f}")

# %% [markdown]
# Half of the list **cannot happen**: those trajectories start in the rich town. Their probability is 0 and their
# logarithm $-\infty$, and that is what the functions return, not an error and not NaN. Keep this in mind for language
# models, where we shall work with log-probabilities throughout: a product of hundreds of factors below 1 underflows,
# a sum of their logarithms does not.

# %%
log_probs = jax.vmap(mdp.trajectory_log_prob, (None, None, 0))(world, policy, every)
impossible = every.states[:, 0] == 1
assert impossible.sum() == 64
assert (probs[impossible] == 0).all()
assert (log_probs[impossible] == -np.inf).all()
assert np.allclose(np.exp(log_probs), probs, atol=1e-6)

# %% [markdown]
# Listing is honest and hopeless: $S$ states, $A$ actions and $T$ days make $S^{T+1} A^T$ trajectories.
# `values.expected_return` gets the same number from the tables in $T$ small steps; how is the next lesson. With it we
# can already compare policies: moving to the rich town and staying there beats our coin-tosser, even within three days.

# %%
assert np.isclose(values.expected_return(world, policy, num_steps), objective, atol=1e-6)

move_then_stay = np.array([[0.0, 1.0], [1.0, 0.0]])
always_stay = np.array([[1.0, 0.0], [1.0, 0.0]])
earnings = [float(values.expected_return(world, p, num_steps)) for p in (move_then_stay, policy, always_stay)]
print("move then stay {:.2f}, our policy {:.2f}, always stay {:.2f}".format(*earnings))
assert earnings[0] > max(earnings[1:])

# %% [markdown]
# ## By sampling
#
# In most worlds nobody knows the tables. One can only live in them: act, see, write down. Draw $N$ trajectories, and
# average their returns:
#
# $$\hat J = \frac{1}{N} \sum_{i=1}^N R(\tau_i), \qquad \tau_i \sim P(\cdot|\pi).$$
#
# `mdp.rollout` draws one trajectory. JAX has no hidden random state: a random function takes a `key`, and the same key
# gives the same numbers. `split` makes many keys out of one.

# %%
num_samples = 2**17
keys = jax.random.split(jax.random.key(0), num_samples)
sampled = jax.vmap(mdp.rollout, (0, None, None, None))(keys, world, policy, num_steps)
sampled_return = jax.vmap(returns.discounted_return, (0, None))(sampled.rewards, world.gamma)

# %% [markdown]
# How wrong is $\hat J$? On average it is right (it is **unbiased**), and its typical error is known:
#
# $$\sqrt{\mathbb{E}[(\hat J - J)^2]} = \frac{\sigma}{\sqrt{N}}, \qquad
# \sigma^2 = \sum_\tau P(\tau|\pi)\, (R(\tau) - J)^2.$$
#
# $\sigma$ is the standard deviation of one trajectory's return. Four times the samples halve the error, whatever the
# number of states. That is why sampling works where listing cannot, and why it is slow to become precise: one more
# digit costs a hundred times more samples.
#
# We check it. Cut the samples into groups of $N$; each group's mean is one estimate; compare the errors' root mean
# square with the formula. (Where an assert below compares samples with the truth, it allows four such errors. Luck
# hardly ever takes more.)

# %%
sigma = float(jnp.sqrt(jnp.sum(probs * (every_return - objective) ** 2)))
sizes = 4 ** np.arange(6)
estimates = [np.array(sampled_return).reshape(-1, size).mean(axis=1) for size in sizes]
errors = np.array([np.sqrt(np.mean((estimate - objective) ** 2)) for estimate in estimates])

assert abs(sampled_return.mean() - objective) < 4 * sigma / np.sqrt(num_samples)
assert np.allclose(errors, sigma / np.sqrt(sizes), rtol=0.2)

# %% [markdown]
# Not just the mean is right: each trajectory turns up as often as $P(\tau|\pi)$ says. (A share $p$ of $N$ samples has
# the typical error $\sqrt{p (1 - p) / N}$.) Here are the ten likeliest.

# %%
likeliest = np.argsort(-probs)[:10]
count = lambda i: ((sampled.states == every.states[i]).all(1) & (sampled.actions == every.actions[i]).all(1)).sum()
shares = np.array([count(i) for i in likeliest]) / num_samples
standard_error = np.sqrt(probs[likeliest] * (1 - probs[likeliest]) / num_samples)
assert (np.abs(shares - probs[likeliest]) < 4 * standard_error).all()

names = []
for i in likeliest:
    days = [f"{s} {'stay' if a == 0 else 'move'}" for s, a in zip(every.states[i], every.actions[i], strict=False)]
    names.append(f"{' '.join(days)} {every.states[i, -1]}   R = {every_return[i]:.2f}")

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.5)
    left.barh(names, shares, color=plots.SKY, label=f"share of {num_samples:,} samples")
    left.plot(probs[likeliest], np.arange(10), "|", color=plots.BLACK, ms=12, mew=1.6, label="exact P(τ|π)")
    left.invert_yaxis()
    left.grid(axis="y", visible=False)
    left.set(xlabel="probability", title="The ten likeliest trajectories")
    left.legend(loc="lower right")
    for size, estimate in zip(sizes, estimates, strict=True):
        right.plot(np.full(30, size), abs(estimate[:30] - objective), ".", color=plots.SKY, ms=4)
    right.plot(sizes, sigma / np.sqrt(sizes), **plots.EXACT, label=r"exact: $\sigma / \sqrt{N}$")
    right.plot(sizes, errors, "o", color=plots.BLUE, label="root mean square")
    right.plot([], [], ".", color=plots.SKY, label="single estimates")
    right.set(xscale="log", yscale="log", ylim=(1e-3, 3), title="Error of the sampled J")
    right.set(xlabel="trajectories N in one estimate", ylabel="error (reward units)")
    right.legend(loc="lower left")
plots.save(figure, "01_sampling_error")

# %% [markdown]
# Left: trajectories as $s_0\,a_0\,s_1\,a_1\,s_2\,a_2\,s_3$. Right: the error falls along the exact line; a tenth of the
# error takes a hundred times the trajectories.
#
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/01_mdp_and_trajectories.py).
#
# **1.** The return of a trajectory, given its rewards: $R(\tau) = \sum_t \gamma^t r_t$.


# %%
def exercise_1(rewards, gamma):
    return ...


answer = exercise_1(np.array([2.0, 0.0, 8.0]), 0.5)
assert answer is ... or np.isclose(answer, 4.0), "the first reward counts in full, the third one gamma^2 as much"
print("Exercise 1:", "to do" if answer is ... else "right")

# %% [markdown]
# **2.** Where is the agent after $t$ days? Do not list trajectories: derive how $P(s_{t+1} = s')$ follows from
# $P(s_t = s)$, and return the probabilities of all states on day $t$: an array $[S]$, one number a state.


# %%
def exercise_2(world, policy, day):
    return ...


towns = environments.two_state(gamma=0.9, slip=0.1)._replace(initial=jnp.array([0.3, 0.7]))
choices = np.array([[0.5, 0.5], [0.8, 0.2]])
answer = exercise_2(towns, choices, 3)
if answer is not ...:
    futures = mdp.enumerate_trajectories(towns, 3)
    chances = jax.vmap(mdp.trajectory_prob, (None, None, 0))(towns, choices, futures)
    listed = [chances[futures.states[:, 3] == s].sum() for s in range(2)]
    assert np.allclose(exercise_2(towns, choices, 0), [0.3, 0.7]), "day 0 is the start"
    assert np.allclose(answer, listed, atol=1e-6), "sum over today's state and action: P(s) pi(a|s) P(s'|s, a)"
print("Exercise 2:", "to do" if answer is ... else "right")

# %% [markdown]
# **3.** You want $\hat J$ to within `error` (one standard error, $\sigma / \sqrt{N}$). Nobody gives you $\sigma$, only
# the returns of a first few trajectories. How many trajectories do you need in all? Round up to a whole number.


# %%
def exercise_3(first_returns, error):
    return ...


answer = exercise_3(np.array([1.0, 3.0, 1.0, 3.0]), 0.01)
if answer is not ...:
    assert answer == 13_334, "the spread about a mean that was itself estimated: divide by n - 1, not n"
    few = np.random.default_rng(0).normal(0.0, 2.0, size=100_000)
    assert np.isclose(exercise_3(few, 0.1), (2.0 / 0.1) ** 2, rtol=0.03), "a tenth of the error, a hundredfold N"
print("Exercise 3:", "to do" if answer is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Sutton & Barto (2018), "Reinforcement Learning: An Introduction", chapter 3: MDPs, policies, returns.
# - Read `mdp.trajectory_prob`, `mdp.rollout` and `returns.discounted_return`; then change `slip` or `policy` above and
#   predict J before you run.
# - [Lesson 2](02_value_functions.py) gets $J$ without listing or sampling: `values.state_values`.
#   [Lesson 4](04_policy_gradient.py) asks how to change $\pi$ so that $J$ grows: `policy_gradient.policy_gradient`.
# - `environments.chain`, `environments.gridworld` and `environments.random_mdp` are more worlds to try this on.
