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
# # 4. Which change of the policy makes it earn more?
#
# [Lesson 1](01_mdp_and_trajectories.py) said what a policy earns, $J(\pi) = \mathbb{E}_{\tau \sim \pi}[R(\tau)]$. To
# improve it, give the policy parameters $\theta$ and walk uphill, in steps of size $\eta$:
# $\theta \leftarrow \theta + \eta\, \nabla_\theta J$. The gradient $\nabla_\theta J$ holds one number a parameter: how
# fast $J$ grows if that parameter does.
#
# So we need a gradient, of an average whose *distribution* depends on $\theta$, in a world whose tables we do not
# know. The policy gradient theorem makes that possible. It is the root of REINFORCE, of PPO, and of every method that
# trains a language model by sampling from it. Here we get the same four numbers in four ways, and trust them then.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import environments, mdp, numpy_loops, plots, policy_gradient, returns, values

jax.config.update("jax_enable_x64", True)  # float64: finite differences lose half of the digits

# %% [markdown]
# The world is that of lesson 1: a poor town and a rich one, stay or move, four days. The parameters are one number
# for each state and action, the **logits**; a softmax makes probabilities of them:
#
# $$\pi_\theta(a|s) = \frac{e^{\theta(s,a)}}{\sum_b e^{\theta(s,b)}}.$$

# %%
world, num_steps = environments.two_state(gamma=0.9, slip=0.1), 4
logits = jnp.array([[0.3, -0.2], [0.5, 0.1]])
objective = lambda logits: values.expected_return(world, jax.nn.softmax(logits), num_steps)

# %% [markdown]
# ## Way 1: nudge and look
#
# Change one logit by a little, up and down, and see what $J$ does. No theory, hard to get wrong, and the judge of
# every other way. It costs two evaluations a parameter: four parameters here, 124 million in GPT-2.

# %%
nudge = 1e-5
by_nudging = np.zeros((2, 2))
for s in range(2):
    for a in range(2):
        up, down = logits.at[s, a].add(nudge), logits.at[s, a].add(-nudge)  # two changed copies of the array
        by_nudging[s, a] = (objective(up) - objective(down)) / (2 * nudge)

# %% [markdown]
# ## Way 2: differentiate the program
#
# `jax.grad(f)` is the gradient of `f` in its first argument. $J$ is differentiated as it is computed, table by table.
# Exact, and only possible because we have the tables: the derivative runs *through* the world.

# %%
by_autodiff = jax.grad(objective)(logits)
assert np.allclose(by_autodiff, by_nudging, atol=1e-9)

# %% [markdown]
# ## The idea that removes the world
#
# Write the average out and move the gradient inside. $P(\tau)$ depends on $\theta$, and
# $\nabla P = P\, \nabla \log P$ (the derivative of a logarithm, read backwards):
#
# $$\nabla J = \sum_\tau \nabla P(\tau)\, R(\tau) = \sum_\tau P(\tau)\, \nabla \log P(\tau)\, R(\tau)
# = \mathbb{E}_\tau\big[ R(\tau)\, \nabla \log P(\tau) \big].$$
#
# That is an average again, so it can be sampled. And the logarithm of the product is a sum,
# $\log P(\tau) = \log \rho_0(s_0) + \sum_t \log P(s_{t+1}|s_t,a_t) + \sum_t \log \pi_\theta(a_t|s_t)$, of which only
# the last part knows $\theta$. The world drops out:
#
# $$\nabla J = \mathbb{E}_\tau\Big[ R(\tau) \sum_t \nabla \log \pi_\theta(a_t|s_t) \Big].$$
#
# Make the actions of good trajectories likelier. The NumPy loop adds this up over every trajectory; for a softmax, with
# $1[a = b]$ being 1 if $a = b$ and else 0, $\partial \log \pi(a|s) / \partial \theta(s,b) = 1[a = b] - \pi(b|s)$.

# %%
tables = [np.array(table) for table in world]
by_loop = numpy_loops.policy_gradient(*tables, logits, num_steps)
assert np.allclose(by_loop, by_autodiff, atol=1e-12)

# %% [markdown]
# ## Way 3: the theorem
#
# Two thoughts sharpen it. An action cannot change what was paid before it, so only the pay that follows counts. And
# what counts is not how much follows, but how much **more** than this state promised anyway. With $V^\pi(s)$ the
# average of what follows state $s$, and $Q^\pi(s,a)$ the same if the first action is $a$
# ([lesson 2](02_value_functions.py)), that is the **advantage** $A^\pi(s,a) = Q^\pi(s,a) - V^\pi(s)$. Neither thought
# changes the average (why, is said below; the asserts say that it is so):
#
# $$\nabla J = \mathbb{E}_\tau\Big[ \sum_t \gamma^t\, \nabla \log \pi_\theta(a_t|s_t)\, A^\pi(s_t, a_t) \Big], \qquad
# \frac{\partial J}{\partial \theta(s,a)} = \sum_t \gamma^t\, P(s_t = s)\, \pi(a|s)\, A_{T-t}(s,a).$$
#
# ($A_k$ is the advantage with $k$ days left; $\gamma^t$ stands there because $A$ counts pay from day $t$ on. The second
# form puts in the derivative of the softmax: its $-\pi(b|s)$ meets the mean advantage, which is 0.) Read it: a logit
# rises if its action is better than the state's average, in proportion to how often one is there and does that.
# `policy_gradient.policy_gradient` is this sum; nothing in it is differentiated by a machine.

# %%
by_theorem = policy_gradient.policy_gradient(world, logits, num_steps)
assert np.allclose(by_theorem, by_autodiff, atol=1e-12)
assert np.allclose(by_theorem.sum(axis=1), 0, atol=1e-12), "adding a constant to a state's logits changes nothing"

step = 0.01
gained = objective(logits + step * by_theorem) - objective(logits)
assert np.isclose(gained, step * jnp.sum(by_theorem**2), rtol=0.01), "a small step earns step x |gradient|^2"

# %% [markdown]
# ## Way 4: the mean of REINFORCE
#
# In practice we have trajectories, and a library that differentiates losses. So write a loss whose gradient on one
# trajectory is the summand above, with the sign turned because optimisers go downhill:
#
# $$\text{loss} = -\sum_t \log \pi_\theta(a_t|s_t)\; w_t, \qquad w_t \text{ held fixed.}$$
#
# "Held fixed" means that no gradient flows through $w_t$: `jax.lax.stop_gradient`, which is inside the library's loss.
# The *value* of a loss like this means nothing (it may rise while the policy improves); only its gradient does. The
# weight $w_t$ may be any of these; with each, the mean over all trajectories must be $\nabla J$ to the last digit.
#
# - the return: $w_t = R(\tau)$;
# - what followed: $w_t = \gamma^t G_t$, with the rewards-to-go $G_t = r_t + \gamma r_{t+1} + \dots$;
# - what followed, less a **baseline** that knows only the state: $w_t = \gamma^t (G_t - V_{T-t}(s_t))$.

# %%
policy = jax.nn.softmax(logits)
discounts = world.gamma ** jnp.arange(num_steps)
values_left = jnp.stack([values.state_values(world, policy, num_steps - t) for t in range(num_steps)])  # [T, S]


def weights(trajectory):
    to_go = returns.rewards_to_go(trajectory.rewards, world.gamma)
    baseline = values_left[jnp.arange(num_steps), trajectory.states[:-1]]
    total = jnp.full(num_steps, returns.discounted_return(trajectory.rewards, world.gamma))
    return {
        "the return": total,
        "what followed": discounts * to_go,
        "what followed less V": discounts * (to_go - baseline),
    }


def trajectory_loss(logits, trajectory, weight):
    log_probs = jax.nn.log_softmax(logits)[trajectory.states[:-1], trajectory.actions]
    return policy_gradient.reinforce_loss(log_probs, weight).sum()


@jax.jit
@jax.vmap  # without a tuple: along axis 0 of every argument
def gradient(trajectory, weight):
    return -jax.grad(trajectory_loss)(logits, trajectory, weight)


every = mdp.enumerate_trajectories(world, num_steps)
probs = jax.vmap(mdp.trajectory_prob, (None, None, 0))(world, policy, every)
every_weight = jax.vmap(weights)(every)
mean = lambda weight: jnp.einsum("n,nsa->sa", probs, gradient(every, weight))
for name in every_weight:
    assert np.allclose(mean(every_weight[name]), by_theorem, atol=1e-12), name

# %% [markdown]
# Why may a baseline be subtracted? Because
# $\sum_a \pi(a|s)\, \nabla \log \pi(a|s) = \nabla \sum_a \pi(a|s) = \nabla 1 = 0$: a number that does not depend on the
# action pushes all actions alike. What was paid before the action is such a number too; so it may be left out. One that
# depends on the action is not a baseline: subtract $Q(s,a)$ and the whole gradient is gone.
#
# And $\gamma^t$ belongs there. Most programs drop it and follow another direction. (With $\gamma = 1$, as is usual for
# language models, there is no difference.)

# %%
action_values_left = jnp.stack([values.action_values(world, policy, num_steps - t) for t in range(num_steps)])
chosen_values = action_values_left[jnp.arange(num_steps), every.states[:, :-1], every.actions]
to_go = every_weight["what followed"] / discounts
assert np.allclose(mean(discounts * (to_go - chosen_values)), 0, atol=1e-12), "Q is not a baseline"
assert np.abs(mean(to_go) - by_theorem).max() > 0.02, "without gamma^t it is not the gradient of J"

# %% [markdown]
# ## The same mean, different noise
#
# With all trajectories the three weights agree. With $N$ samples each has an error, and it is known: the root mean
# square of $\|\hat g - \nabla J\|$, for the mean $\hat g$ of $N$ gradients, is $\sigma / \sqrt{N}$, where $\sigma^2$ is
# the variance of one trajectory's gradient, summed over the parameters. Enumeration gives $\sigma$ exactly.

# %%
names = ["the return", "what followed", "what followed less V"]
deviation = {}
for name in names:
    squared = np.sum((gradient(every, every_weight[name]) - by_theorem) ** 2, axis=(1, 2))
    deviation[name] = float(np.sqrt(np.sum(probs * squared)))
saved = (deviation["the return"] / deviation["what followed less V"]) ** 2
print(f"sigma: {deviation}")
print(f"the baseline and the rewards-to-go save a factor of {saved:.1f} in samples")
assert saved > 5
assert deviation["the return"] > deviation["what followed"] > deviation["what followed less V"]

num_samples = 2**16
keys = jax.random.split(jax.random.key(0), num_samples)
sampled = jax.vmap(mdp.rollout, (0, None, None, None))(keys, world, policy, num_steps)
sampled_weight = jax.vmap(weights)(sampled)

sizes = 4 ** np.arange(6)
errors = {}
for name in names:
    sampled_gradient = np.array(gradient(sampled, sampled_weight[name]))
    means = [sampled_gradient.reshape(-1, size, 2, 2).mean(axis=1) for size in sizes]
    errors[name] = [np.sqrt(np.mean(np.sum((mean - by_theorem) ** 2, axis=(1, 2)))) for mean in means]
    assert np.allclose(errors[name], deviation[name] / np.sqrt(sizes), rtol=0.2)

by_sampling = gradient(sampled, sampled_weight[names[-1]]).mean(axis=0)
assert np.abs(by_sampling - by_theorem).max() < 4 * deviation[names[-1]] / np.sqrt(num_samples)

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.5)
    ways = {
        "1 finite differences": (by_nudging, plots.ORANGE),
        "2 autodiff of J": (by_autodiff, plots.SKY),
        "3 the theorem": (by_theorem, plots.BLACK),
        "4 mean of REINFORCE": (mean(every_weight[names[-1]]), plots.BLUE),
        f"   from {num_samples:,} samples": (by_sampling, plots.VERMILLION),
    }
    for place, (name, (way, color)) in enumerate(ways.items()):
        left.bar(np.arange(4) + 0.16 * (place - 2), way.reshape(4), width=0.14, color=color, label=name)
    left.set_xticks(range(4), ["poor:\nstay", "poor:\nmove", "rich:\nstay", "rich:\nmove"])
    left.axhline(0, color=plots.BLACK, linewidth=0.8)
    left.set(ylabel="∂J / ∂logit (reward units)", title="Four ways, one gradient")
    left.legend(loc="lower left")
    for name, color in zip(names, [plots.GREY, plots.GREEN, plots.BLUE], strict=True):
        right.plot(sizes, errors[name], "o", color=color, label=name)
        right.plot(sizes, deviation[name] / np.sqrt(sizes), **plots.EXACT)
    right.plot([], [], **plots.EXACT, label=r"exact: $\sigma / \sqrt{N}$")
    right.set(xscale="log", yscale="log", title="Error of the sampled gradient, by weight")
    right.set(xlabel="trajectories N in one estimate", ylabel="root mean square error")
    right.legend(loc="lower left")
plots.save(figure, "04_policy_gradient")

# %% [markdown]
# Right: at the same error, the lowest line needs six times fewer trajectories than the highest. Same mean, less noise:
# that is all a baseline does, and it decides whether training on samples works.
#
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/04_policy_gradient.py).
#
# **1.** The **score** of one action, $\partial \log \pi(a) / \partial \theta_b$ for every $b$, from the probabilities
# of a softmax policy in one state.


# %%
def exercise_1(probs, action):
    return ...


answer = exercise_1(np.array([0.2, 0.3, 0.5]), 1)
truth = jax.grad(lambda theta: jax.nn.log_softmax(theta)[1])(jnp.log(jnp.array([0.2, 0.3, 0.5])))
assert answer is ... or np.allclose(answer, truth, atol=1e-6), "the action's own logit pushes up, every other one down"
print("Exercise 1:", "to do" if answer is ... else "right")

# %% [markdown]
# **2.** One state, one step, rewards $r(a)$: $J(\theta) = \sum_a \pi_\theta(a)\, r(a)$. Derive
# $\partial J / \partial \theta_a$ from the score. A baseline appears by itself: where does it come from?


# %%
def exercise_2(probs, rewards):
    return ...


theta, rewards = np.array([0.5, -1.0, 0.2]), np.array([1.0, 4.0, -2.0])
answer = exercise_2(np.exp(theta) / np.exp(theta).sum(), rewards)
earned = lambda theta: np.exp(theta) @ rewards / np.exp(theta).sum()
nudged = [(earned(theta + 1e-4 * row) - earned(theta - 1e-4 * row)) / 2e-4 for row in np.eye(3)]
assert answer is ... or np.allclose(answer, nudged, atol=1e-6), "good actions rise: good compared with what?"
print("Exercise 2:", "to do" if answer is ... else "right")

# %% [markdown]
# **3.** Your samples are a week old: the actions came from a policy $\mu(a)$, and the policy is $\pi(a)$ by now. With
# weights $r(a)$ the mean of $\nabla \log \pi(a)\, w(a)$ over these samples is not $\nabla J(\pi)$ any more. Which
# weights $w(a)$ make it so?


# %%
def exercise_3(probs, old_probs, rewards):
    return ...


pi, mu, rewards = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.2, 0.6]), np.array([1.0, 4.0, -2.0])
answer = exercise_3(pi, mu, rewards)
if answer is not ...:
    loss = lambda theta: policy_gradient.reinforce_loss(jax.nn.log_softmax(theta), jnp.asarray(answer))
    mean_loss = lambda theta: jnp.sum(mu * loss(theta))
    truth = jax.grad(lambda theta: jax.nn.softmax(theta) @ rewards)(jnp.log(pi))
    assert np.allclose(-jax.grad(mean_loss)(jnp.log(pi)), truth, atol=1e-6), "rare then and likely now: count it more"
print("Exercise 3:", "to do" if answer is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Williams (1992), "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning":
#   REINFORCE is `policy_gradient.reinforce_loss`.
# - Sutton, McAllester, Singh and Mansour (2000), "Policy Gradient Methods for Reinforcement Learning with Function
#   Approximation": theorem 1 is `policy_gradient.policy_gradient`.
# - Nota and Thomas (2020), "Is the Policy Gradient a Gradient?", on the dropped $\gamma^t$.
# - Nobody is given $V$. [Lesson 5](05_advantage_and_gae.py) learns it, and trades a little bias for much less noise:
#   `returns.gae`.
# - [Lesson 6](06_ppo.py) takes several steps with the same samples: `ppo.clipped_surrogate_loss`.
