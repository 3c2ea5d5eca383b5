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
# # 2. What is a state worth?
#
# [Lesson 1](01_mdp_and_trajectories.py) found what a policy earns, $J(\pi)$, by listing every possible future. The list
# grows fourfold with each day: for a month, $10^{18}$ entries. This lesson gets the same number from small sums.
#
# The trick is to ask more. Not only "what does the agent earn from the start?", but "what will it earn *from here*?",
# for every state. The answers lean on each other, so all of them together are easier than one alone. And they tell
# which action is best, which is what we wanted to know in the first place.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import environments, mdp, numpy_loops, plots, returns, values

jax.config.update("jax_enable_x64", True)  # float64: we follow errors down to their last digits

# %% [markdown]
# ## Two questions
#
# The **value** of a state is what the policy earns on average from there on; the **action value** is the same if the
# first action is given and the policy chooses from the second on:
#
# $$V^\pi(s) = \mathbb{E}_{\tau \sim \pi}[R(\tau) \mid s_0 = s], \qquad
# Q^\pi(s, a) = \mathbb{E}_{\tau \sim \pi}[R(\tau) \mid s_0 = s, a_0 = a].$$
#
# (The bar reads "given that".) Both depend on the number of days that are left. Here are the two towns of lesson 1,
# their policy, and three days. First by listing: keep the trajectories that begin as asked, and average their returns.

# %%
world, num_steps = environments.two_state(gamma=0.9, slip=0.1), 3
policy = np.array([[0.5, 0.5], [0.8, 0.2]])

anywhere = world._replace(initial=jnp.array([0.5, 0.5]))  # so that both towns occur as s_0
every = mdp.enumerate_trajectories(anywhere, num_steps)
probs = jax.vmap(mdp.trajectory_prob, (None, None, 0))(anywhere, policy, every)
every_return = jax.vmap(returns.discounted_return, (0, None))(every.rewards, world.gamma)
mean = lambda kept: jnp.sum(probs * every_return * kept) / jnp.sum(probs * kept)

first_state, first_action = every.states[:, 0], every.actions[:, 0]
v_by_listing = np.array([mean(first_state == s) for s in range(2)])
q_by_listing = np.array([[mean((first_state == s) & (first_action == a)) for a in range(2)] for s in range(2)])

# %% [markdown]
# The policy chooses the first action with probability $\pi(a|s)$, so the one question is an average of the other:
#
# $$V^\pi(s) = \sum_a \pi(a|s)\, Q^\pi(s, a).$$
#
# And $J$ is the value of where one starts: $J(\pi) = \sum_s \rho_0(s)\, V^\pi(s)$.

# %%
assert np.allclose(v_by_listing, (policy * q_by_listing).sum(axis=1), atol=1e-12)
assert np.allclose(values.state_values_from_action_values(policy, q_by_listing), v_by_listing, atol=1e-12)
assert np.isclose(values.expected_return(world, policy, num_steps), np.dot(world.initial, v_by_listing), atol=1e-12)

# %% [markdown]
# ## One day at a time
#
# Split a return into today and the rest: $R(\tau) = r_0 + \gamma R(\tau')$, where $\tau'$ is the trajectory from
# tomorrow on. It starts in $s'$ and has one day less. Because the world is Markov, what $\tau'$ earns on average
# depends on $s'$ alone, not on how one got there: it is the value of $s'$. So, with $k$ days left,
#
# $$Q_k(s, a) = r(s, a) + \gamma \sum_{s'} P(s'|s, a)\, V_{k-1}(s'), \qquad
# V_k(s) = \sum_a \pi(a|s)\, Q_k(s, a), \qquad V_0 = 0.$$
#
# This is the **Bellman equation**. Begin at the end, where nothing is left to earn, and walk backwards, a day at a
# time (**backward induction**). By hand, for the poor town: one day is worth $V_1 = 0.5 \cdot 0.2 = 0.1$, and in the
# rich town $0.8 \cdot 1$. From the poor town one is poor or rich tomorrow with equal chance, so
# $V_2 = 0.1 + 0.9 \cdot (0.5 \cdot 0.1 + 0.5 \cdot 0.8) = 0.505$.
#
# Each day costs $S \times A \times S$ multiplications ($S$ states, $A$ actions): three days take 24 instead of a list
# of 128 futures, a month 240 instead of $10^{18}$. `values.bellman_backup` is the left half, one step from $V_{k-1}$
# to $Q_k$. (`tables[1:]` is $P$, $r$ and $\gamma$.)

# %%
tables = [np.array(table) for table in world]
by_loop = [numpy_loops.state_values(*tables[1:], policy, num_steps=k) for k in range(4)]
assert np.allclose(by_loop[1], [0.1, 0.8], atol=1e-12)
assert np.isclose(by_loop[2][0], 0.505, atol=1e-12)
assert np.allclose(by_loop[3], v_by_listing, atol=1e-12), "three days: the list again"

assert np.allclose(values.state_values(world, policy, num_steps), v_by_listing, atol=1e-12)
assert np.allclose(values.action_values(world, policy, num_steps), q_by_listing, atol=1e-12)
assert np.allclose(values.bellman_backup(world, by_loop[2]), q_by_listing, atol=1e-12), "Q_3 looks ahead to V_2"

# %% [markdown]
# ## Days without end
#
# Give the agent more and more days. Late pay counts so little ($\gamma^t$) that the values settle, and then a day more
# or less makes no difference: $V_k$ and $V_{k-1}$ are the same $V$. Write $r_\pi(s) = \sum_a \pi(a|s)\, r(s,a)$ for
# the policy's pay and $P_\pi(s'|s) = \sum_a \pi(a|s)\, P(s'|s,a)$ for its moves. The Bellman equation becomes
#
# $$V = r_\pi + \gamma P_\pi V, \qquad \text{that is} \qquad (I - \gamma P_\pi)\, V = r_\pi :$$
#
# as many linear equations as states. Solve them, and infinitely many days are summed exactly. In the library a missing
# `num_steps` means that the days do not end.

# %%
transition = np.einsum("sa,sax->sx", policy, tables[1])
pay = (policy * tables[2]).sum(axis=1)
by_solving = np.linalg.solve(np.eye(2) - 0.9 * transition, pay)
assert np.allclose(by_solving, pay + 0.9 * transition @ by_solving, atol=1e-12)

exact = values.state_values(world, policy)
assert np.allclose(exact, by_solving, atol=1e-12)
assert np.allclose(exact, numpy_loops.state_values(*tables[1:], policy, num_steps=400), atol=1e-12)
print("V =", exact)

# %% [markdown]
# How fast do they settle? Subtract the equation of $V$ from that of $V_k$: $V_k - V = \gamma P_\pi (V_{k-1} - V)$. The
# error in a state is $\gamma$ times an *average* of yesterday's errors, and an average is never larger than the
# largest. So every **sweep**, that is, using the equation once in all states, shrinks the largest error at least by the
# factor $\gamma$, whatever guess one starts from:
#
# $$\max_s |V_k(s) - V(s)| \le \gamma^k \max_s |V_0(s) - V(s)|.$$
#
# Averaging also evens the errors out; once all states share the same one, the factor is exactly $\gamma$.

# %%
gammas, sweeps, iterates, errors = [0.5, 0.9, 0.99], np.arange(101), {}, {}
for gamma in gammas:
    discounted = environments.two_state(gamma=gamma, slip=0.1)
    guess, iterates[gamma] = np.zeros(2), []
    for _ in sweeps:
        iterates[gamma].append(guess)
        guess = values.state_values_from_action_values(policy, values.bellman_backup(discounted, guess))
    errors[gamma] = np.abs(np.array(iterates[gamma]) - values.state_values(discounted, policy)).max(axis=1)
    assert (errors[gamma] <= gamma**sweeps * errors[gamma][0] + 1e-12).all()
    assert np.isclose(errors[gamma][21], gamma * errors[gamma][20], rtol=1e-6), "in the end, exactly gamma"
assert np.isclose(errors[0.9][44], errors[0.9][22] / 10, rtol=0.03)
assert np.allclose(np.log(10) / np.log(1 / np.array([0.9, 0.99])), [22, 229], atol=0.2), "sweeps to a tenth"

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.4)
    left.plot(np.array(iterates[0.9])[:51, 1], color=plots.BLUE)
    left.plot(np.array(iterates[0.9])[:51, 0], color=plots.VERMILLION)
    plots.label(left, 8, 4.1, "rich town", plots.BLUE, ha="right")
    plots.label(left, 12, 3.3, "poor town", plots.VERMILLION)
    left.hlines(exact, 0, 50, **plots.EXACT, label="days without end, exact")
    left.set(xlabel="days left k", ylabel="value $V_k$ (reward units)", title="Values settle, γ = 0.9")
    left.legend(loc="lower right")
    for gamma, color, at in zip(gammas, [plots.GREEN, plots.BLUE, plots.ORANGE], [8, 58, 58], strict=True):
        right.plot(sweeps[::4], errors[gamma][::4], ".", color=color)
        right.plot(sweeps, gamma**sweeps * errors[gamma][0], **plots.EXACT)
        plots.label(right, at, gamma**at * errors[gamma][0], f"γ = {gamma}", color, xytext=(8, 10))
    right.plot([], [], **plots.EXACT, label=r"exact bound: $\gamma^k \times$ first error")
    right.set(yscale="log", ylim=(1e-5, 1e4), title="Each sweep shrinks the error by γ")
    right.set(xlabel="sweeps k", ylabel="largest error (reward units)")
    right.legend(loc="upper right")
plots.save(figure, "02_bellman_sweeps")

# %% [markdown]
# The nearer $\gamma$ is to 1, the further the agent looks ahead and the more sweeps it takes: a tenth of the error
# costs 22 sweeps at $\gamma = 0.9$ and 229 at 0.99, that is $\ln 10 / \ln \frac{1}{\gamma}$.
#
# ## Better than what?
#
# A large $Q^\pi(s,a)$ may just mean a good place. How good an *action* is shows against the place, in the
# **advantage**
#
# $$A^\pi(s, a) = Q^\pi(s, a) - V^\pi(s).$$
#
# Its mean over the policy's own actions is 0. If one action of a state is above the mean, the policy can do better.
# Ours can: in the poor town it should move more often, in the rich one stay more often.

# %%
advantages = values.advantages(world, policy)
assert np.allclose(advantages, values.bellman_backup(world, exact) - exact[:, None], atol=1e-12)
assert np.allclose((policy * advantages).sum(axis=1), 0, atol=1e-12)
assert advantages[0, 1] > 0 > advantages[0, 0]
assert advantages[1, 0] > 0 > advantages[1, 1]

# %% [markdown]
# ## Where the time is spent
#
# There is a second way to count. Instead of following the agent, sit in a state and note how often it comes by, a
# visit on day $t$ counting $\gamma^t$. The average is the **occupancy**
#
# $$d^\pi(s) = \sum_t \gamma^t P(s_t = s), \qquad J(\pi) = \sum_s d^\pi(s) \sum_a \pi(a|s)\, r(s, a).$$
#
# All visits together make $1 + \gamma + \gamma^2 + \dots = 1 / (1 - \gamma)$, here ten. With $T$ days the sum over $t$
# ends at $T - 1$, and the second formula still holds.

# %%
visits = values.occupancy(world, policy)
assert np.allclose(visits, numpy_loops.occupancy(*tables[:2], 0.9, policy, num_steps=400), atol=1e-12)
assert np.isclose(visits.sum(), 10, atol=1e-12)
assert np.isclose(visits @ pay, values.expected_return(world, policy), atol=1e-12)
assert np.isclose(values.occupancy(world, policy, num_steps) @ pay, values.expected_return(world, policy, num_steps))

# %% [markdown]
# The second way compares two policies (days without end again). Live by $\pi'$, and score each action by the advantage
# that the *old* policy $\pi$ gives it: on average over $s_{t+1}$, that is $r_t + \gamma V^\pi(s_{t+1}) - V^\pi(s_t)$.
# Add it up along a trajectory, day $t$ weighted by $\gamma^t$. What one day adds for $s_{t+1}$ the next takes away; far
# out, $\gamma^t$ leaves nothing of it. There remains
#
# $$\sum_t \gamma^t \big[r_t + \gamma V^\pi(s_{t+1}) - V^\pi(s_t)\big] = R(\tau) - V^\pi(s_0).$$
#
# On average, $R(\tau)$ is $J(\pi')$ and $V^\pi(s_0)$ is $J(\pi)$. The left side, counted visit by visit, is an
# occupancy times a mean score. Hence
#
# $$J(\pi') - J(\pi) = \sum_s d^{\pi'}(s) \sum_a \pi'(a|s)\, A^\pi(s, a).$$
#
# What a new policy gains is the old advantage of what it does, added up over the places where it goes.

# %%
new_policy = np.array([[0.1, 0.9], [0.6, 0.4]])  # better in the poor town, worse in the rich one
gained = values.expected_return(world, new_policy) - values.expected_return(world, policy)
by_advantages = values.occupancy(world, new_policy) @ (new_policy * advantages).sum(axis=1)
assert np.isclose(gained, by_advantages, atol=1e-12)
assert abs(gained) > 0.1

# %% [markdown]
# ## Acting greedily
#
# Now the best policy, $\pi^* = \arg\max_\pi J(\pi)$, falls into our hands. Let $\pi'$ be **greedy**: in each state the
# action with the largest $Q^\pi(s,a)$. Then every term of the sum is at least 0, since the largest of some numbers is
# no less than their mean, and an occupancy is never negative. So $\pi'$ earns at least as much as $\pi$, *from every
# start*, since $\rho_0$ may be anything. That is the policy improvement theorem.
#
# Repeat: evaluate, act greedily, evaluate. Greedy policies are finitely many and each is better than the last, so this
# ends. It ends where no action has a positive advantage; but then, by the same sum, **no** policy whatever can gain
# anything. We are at $\pi^*$. This is **policy iteration**.
#
# We try it on a slippery grid. `S` is the start; to arrive at the goal `G` pays 1, in the hole `H` it costs 1; `#` is a
# wall, and who walks into it or off the grid stays put. Every move costs 0.04, and one in five turns off to the side.
# Goal and hole end the game: they are states that are never left and pay nothing, so no formula changes.

# %%
layout = ["...G", ".#.H", "S..."]
grid = environments.gridworld(layout, gamma=0.9, slip=0.2)
policies, rounds = [np.full((12, 4), 0.25)], []  # 12 cells; left, down, right, up, all equally likely
while len(policies) < 2 or not np.array_equal(policies[-1], policies[-2]):
    rounds.append(values.state_values(grid, policies[-1]))
    policies.append(values.greedy_policy(values.action_values(grid, policies[-1])))

assert (np.diff(rounds, axis=0) > -1e-12).all(), "no round makes any state worse"
assert (rounds[1] - rounds[0]).max() > 0.5
assert values.advantages(grid, policies[-1]).max() < 1e-12, "and in the end nothing is left to gain"
print(f"{len(rounds)} rounds: J =", [round(float(v @ grid.initial), 3) for v in rounds])

# %% [markdown]
# At the optimum the policy takes the best action, so its value is the largest $Q$ instead of the mean one:
#
# $$V^*(s) = \max_a \Big[ r(s, a) + \gamma \sum_{s'} P(s'|s, a)\, V^*(s') \Big].$$
#
# This too can be swept, from any guess, and shrinks the error by $\gamma$ a sweep: **value iteration**. It needs
# neither a policy nor a linear solve.

# %%
by_sweeps = np.zeros(12)
for _ in range(300):
    by_sweeps = np.max(np.array(grid.reward) + 0.9 * np.array(grid.transition) @ by_sweeps, axis=1)

assert np.allclose(rounds[-1], by_sweeps, atol=1e-12)
assert np.allclose(values.policy_iteration(grid), by_sweeps, atol=1e-12)
assert np.allclose(values.optimal_state_values(grid), by_sweeps, atol=1e-12)
assert np.allclose(values.value_iteration(grid, 1e-9), by_sweeps, atol=1e-9)  # 1e-9: the error allowed
assert np.array_equal(values.optimal_policy(grid), policies[-1])
assert policies[-1][11, 0] == 1, "left, in the lower right corner"

# %% [markdown]
# Proofs are good, looking is better. Nine cells leave a choice among four moves: $4^9 = 262{,}144$ policies that
# always do the same in the same place. We evaluate every one of them. (`jax.lax.map` is `vmap` in portions, to save
# memory.) None beats $V^*$ in any cell; a single one attains it in all of them. Policies that toss coins do not either.

# %%
free = [cell for cell, kind in enumerate("".join(layout)) if kind in ".S"]
choices = np.zeros((4**9, 12), int)
choices[:, free] = np.indices((4,) * 9).reshape(9, -1).T  # a row for each policy: its move in every cell
value_of = lambda actions: values.state_values(grid, jax.nn.one_hot(actions, 4))  # one_hot: chance 1 for the move
all_values = np.array(jax.lax.map(value_of, choices, batch_size=4096))
coin_tossers = np.random.default_rng(0).dirichlet(np.full(4, 0.3), size=(1000, 12))
tossed_values = jax.vmap(values.state_values, (None, 0))(grid, coin_tossers)
all_returns = all_values @ np.array(grid.initial)

assert (all_values < by_sweeps + 1e-12).all()
assert (all_values > by_sweeps - 1e-9).all(axis=1).sum() == 1
assert (tossed_values < by_sweeps + 1e-12).all()
assert (np.abs(all_returns + 0.4) < 0.01).mean() > 0.4, "the commonest return: 0.04 a day for ever"

# %%
with plots.style():
    figure, axes = plots.subplots(1, 3, width=9.4, height=2.9, width_ratios=[1, 1, 1.1])
    signs = {"#": "wall", "G": "goal\n+1", "H": "hole\n−1"}
    for axis, table, title in [(axes[0], rounds[0], "Moving at random"), (axes[1], by_sweeps, "The best policy π*")]:
        axis.imshow(table.reshape(3, 4), cmap="PuOr", vmin=-1.6, vmax=1.6)
        for cell, kind in enumerate("".join(layout)):
            arrow = "\n" + "←↓→↑"[policies[-1][cell].argmax()] if axis is axes[1] else ""
            text = signs.get(kind, f"{table[cell]:.2f}{arrow}")
            axis.text(cell % 4, cell // 4, text, ha="center", va="center", fontsize=9)
        axis.set(title=title, xticks=[], yticks=[], xlabel="value of each cell (start: lower left)")
    axes[2].hist(all_returns, bins=60, color=plots.SKY)
    axes[2].axvline(by_sweeps @ grid.initial, **plots.EXACT, label="exact J(π*)")
    axes[2].set(yscale="log", xlabel="J(π) (reward units)", ylabel="number of policies", title="All 262,144 policies")
    axes[2].legend(loc="upper center", bbox_to_anchor=(0.62, 1.0))
plots.save(figure, "02_gridworld")

# %% [markdown]
# Look at the lower right corner: $\pi^*$ turns back there, since the short way leads into the hole. On the right, the
# tall bar is policies that hardly ever reach an end: they pay 0.04 a day for ever, $0.04 / (1 - \gamma) = 0.4$ in all.
#
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/02_value_functions.py).
#
# **1.** From a policy and its action values alone, both tables $[S, A]$, compute the advantages $A^\pi(s, a)$.


# %%
def exercise_1(policy, action_values):
    return ...


answer = exercise_1(np.array([[0.25, 0.75], [1.0, 0.0]]), np.array([[1.0, 3.0], [5.0, 9.0]]))
assert answer is ... or np.allclose(answer, [[-1.5, 0.5], [0, 4]]), "V is the mean of Q under the policy"
print("Exercise 1:", "to do" if answer is ... else "right")

# %% [markdown]
# **2.** With few days left, the best policy depends on how many. Derive the Bellman equation of the best values with
# $k$ days left, $V^*_k(s)$, from $V^*_0 = 0$, and return $V^*_k$ as an array $[S]$.


# %%
def exercise_2(world, num_days):
    return ...


towns = environments.two_state(gamma=0.9, slip=0.1)
answer = exercise_2(towns, 2)
if answer is not ...:  # by hand: the poor town moves, 0.9 (0.9 x 1 + 0.1 x 0.2); the rich one stays
    assert np.allclose(exercise_2(towns, 1), [0.2, 1.0], atol=1e-6), "on the last day, take the best pay"
    assert np.allclose(answer, [0.828, 1.828], atol=1e-6), "max over actions of Q_k, which looks ahead to V*_(k-1)"
    assert np.allclose(exercise_2(towns, 300), values.optimal_state_values(towns), atol=1e-4)
print("Exercise 2:", "to do" if answer is ... else "right")

# %% [markdown]
# **3.** Rewards at the end are hard to learn from, so a colleague pays on the way: each state gets a number
# $\Phi(s)$ (closeness to the goal, say), and an action is paid
# $r'(s,a) = r(s,a) + \gamma \sum_{s'} P(s'|s,a)\, \Phi(s') - \Phi(s)$. You fear that the agent now chases $\Phi$
# instead of the goal. Find how $V^\pi$ changes (days without end): return the new values, given the old ones and
# $\Phi$. Does the ranking of the actions in a state change?


# %%
def exercise_3(state_values, potential):
    return ...


old_world, potential = environments.random_mdp(jax.random.key(0), 5, 3, 0.9), np.arange(5.0) ** 2
new_world = old_world._replace(reward=values.bellman_backup(old_world, potential) - potential[:, None])
uneven = np.random.default_rng(0).dirichlet(np.ones(3), size=5)
before, after = values.state_values(old_world, uneven), values.state_values(new_world, uneven)
answer = exercise_3(before, potential)
assert answer is ... or np.allclose(answer, after, atol=1e-3), "add the extra pay up along a trajectory: what cancels?"
print("Exercise 3:", "to do" if answer is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Bellman (1957), "Dynamic Programming": `values.bellman_backup`, `values.value_iteration`. Howard (1960), "Dynamic
#   Programming and Markov Processes": `values.policy_iteration`.
# - Sutton & Barto (2018), "Reinforcement Learning: An Introduction", chapters 3 and 4: `values.state_values`,
#   `values.action_values`, `values.greedy_policy`.
# - Kakade and Langford (2002), "Approximately Optimal Approximate Reinforcement Learning": lemma 6.1 is the sum that
#   compares two policies; `values.occupancy`. PPO (lesson 6) is built on it.
# - All of this read the tables. [Lesson 3](03_estimation.py) gets the same values from experience alone.
