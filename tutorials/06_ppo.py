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
# # 6. How far may one follow a batch of samples?
#
# The policy gradient is right at one point, the policy that drew the samples. Take one step, and the samples are those
# of another policy; in principle they have to be thrown away. With a language model that is a pity: writing a batch of
# answers costs far more than a gradient step.
#
# So take several steps on each batch. This lesson shows what that needs (a ratio), what goes wrong (the objective keeps
# rising while the policy collapses), and how proximal policy optimisation, PPO, prevents it with a `min` and a `clip`.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import enumerable, environments, masking, mdp, numpy_losses, plots, policy_gradient, ppo, returns, values

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## A walk in the dark
#
# A corridor of three rooms; the exit is to the right of the last one. Action 0 steps left, action 1 right, but in the
# middle room somebody has swapped the signs. Every step costs 1. And it is dark: the rooms look alike, so the policy
# cannot tell them apart. It has **one** parameter $\theta$, the logit of stepping right, for all rooms.
#
# That is the situation of every large policy. GPT-2 has fewer parameters than there are texts: what it learns in one
# state changes what it does in others.

# %%
transition = np.eye(4)[[[0, 1], [2, 0], [1, 3], [3, 3]]]  # where left and right lead from rooms 0, 1, 2; 3 is outside
corridor = mdp.make_mdp(np.eye(4)[0], transition, [[-1, -1], [-1, -1], [-1, -1], [0, 0]], gamma=0.9)
table = lambda theta: jnp.tile(jnp.stack([jax.nn.sigmoid(-theta), jax.nn.sigmoid(theta)]), (4, 1))
objective = lambda theta: values.expected_return(corridor, table(theta))

rights = np.linspace(0.005, 0.995, 199)  # the probability of stepping right
thetas = jnp.log(rights / (1 - rights))
true_curve = jax.vmap(objective)(thetas)
best = true_curve.max()
assert max(true_curve[0], true_curve[-1]) < -9.5, "never out: -1 for ever is -1 / (1 - 0.9)"
assert 0.55 < rights[true_curve.argmax()] < 0.65

# %% [markdown]
# ## Old samples for a new policy
#
# Actions were drawn from $\pi_\text{old}$, and we want an average under $\pi$. Weigh each sample by how much likelier
# it is now, the **importance ratio** $\rho = \pi(a|s) / \pi_\text{old}(a|s)$:
#
# $$\sum_a \pi_\text{old}(a|s)\, \rho(a)\, A(s, a) = \sum_a \pi(a|s)\, A(s, a).$$
#
# Do that at every state that the old policy visits, with the old policy's advantages. The result is the **surrogate
# objective**, with $d_\text{old}(s) = \sum_t \gamma^t P(s_t = s)$ the old policy's discounted visits:
#
# $$L(\theta) = \mathbb{E}_\text{old}\Big[ \sum_t \gamma^t \rho_t\, A^{\pi_\text{old}}(s_t, a_t) \Big]
# = \sum_s d_\text{old}(s) \sum_a \pi_\text{old}(a|s)\, \rho\, A^{\pi_\text{old}}(s, a).$$
#
# At $\theta_\text{old}$ all ratios are 1, $\nabla \rho = \nabla \log \pi$, and so $\nabla L = \nabla J$, the policy
# gradient. Only there. (`ppo.clipped_surrogate_loss` takes both log-probabilities and $A$; `clip_eps=np.inf` turns off
# the clip, to which we come. A loss is the negative, so there is a minus before the sum.)

# %%
old = jnp.log(0.1 / 0.9)  # the policy steps right once in ten times
visits, advantages = values.occupancy(corridor, table(old)), values.advantages(corridor, table(old))


def surrogate(theta, old, clip_eps):
    visits, advantages = values.occupancy(corridor, table(old)), values.advantages(corridor, table(old))
    losses = ppo.clipped_surrogate_loss(jnp.log(table(theta)), jnp.log(table(old)), advantages, clip_eps=clip_eps)
    return -jnp.sum(visits[:, None] * table(old) * losses)


ratios = table(-1.0) / table(old)  # of a policy with theta = -1
by_loop = sum(visits[s] * table(old)[s, a] * ratios[s, a] * advantages[s, a] for s, a in np.ndindex(4, 2))
assert np.isclose(surrogate(-1.0, old, np.inf), by_loop, atol=1e-12)

theorem = policy_gradient.policy_gradient(corridor, jnp.log(table(old)))[:, 1].sum()  # one logit for all rooms
assert np.allclose([jax.grad(objective)(old), jax.grad(surrogate)(old, old, np.inf)], theorem, atol=1e-12)

# %% [markdown]
# ## What the surrogate leaves out
#
# How much better is $\pi$ really? [Lesson 2](02_value_functions.py) found it: add up the old advantages of what the new
# policy does, *where the new policy goes*. (It is called the **performance difference lemma**.)
#
# $$J(\pi) - J(\pi_\text{old}) = \sum_s d^\pi(s) \sum_a \pi(a|s)\, A^{\pi_\text{old}}(s, a).$$
#
# The surrogate has the same advantages with the visits of the old policy. It corrects the actions and not the states.
# Our old policy dawdles in the first room, where stepping right is good. So right looks good, and the more the better:
# the surrogate is a straight line in $\pi(\text{right})$. But whoever mostly steps right is in the middle room more
# than twice as often, where it is bad. The true $J$ turns round at 0.6, and the old policy's visits do not show it.
#
# How far can it be trusted? At least this far: with $C = 4 \gamma \max |A^{\pi_\text{old}}| / (1 - \gamma)^2$,
#
# $$J(\pi) \ge J(\pi_\text{old}) + L(\pi) - C\, \max_s \mathrm{KL}(\pi_\text{old} \,\|\, \pi).$$
#
# ($\mathrm{KL}(p \,\|\, q) = \sum_a p_a \log (p_a / q_a)$ is 0 if both are equal and grows as they part; its unit,
# that of natural logarithms, is the **nat**.) So there is a **trust region**: close enough to the old policy,
# improving $L$ improves $J$. The constant is far too careful to be used: here it charges 2,000 for a nat, where less
# than 3 can be won.

# %%
assert values.occupancy(corridor, table(2.2))[1] > 2 * visits[1], "theta = 2.2 steps right nine times in ten"
price = 4 * 0.9 * np.abs(advantages).max() / (1 - 0.9) ** 2
assert price > 2000 > 3 > best - objective(old)
distance = lambda start, end: numpy_losses.exact_kl(table(start)[0], table(end)[0])  # all rooms have the same
for theta in thetas[::40]:
    gained = values.occupancy(corridor, table(theta)) @ (table(theta) * advantages).sum(axis=1)
    assert np.isclose(objective(theta) - objective(old), gained, atol=1e-9)
    assert gained >= surrogate(theta, old, np.inf) - price * distance(old, theta)

# %% [markdown]
# ## The clip, case by case
#
# PPO replaces the bound by something crude that works. For each action it takes
#
# $$L^\text{PPO} = \min\big( \rho A,\ \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon)\, A \big),
# \qquad \epsilon = 0.2, \text{ say.}$$
#
# - $A > 0$, a good action: the objective rises with $\rho$ until $1 + \epsilon$, then it is flat. Enough for this
#   batch.
# - $A < 0$, a bad action: it rises as $\rho$ falls, until $1 - \epsilon$, then it is flat.
# - The other two sides are not flat. A good action that has become rare ($\rho < 1 - \epsilon$), or a bad one that
#   has become likely, is still pulled back with full force: there the `min` takes $\rho A$.
#
# So the clip never forbids repair. It only takes away the reward for going further in the direction that the samples
# recommend (grey in the figure). And $L^\text{PPO} \le \rho A$ always: it is a pessimist.

# %%
ratios = np.linspace(0.405, 1.595, 120)  # none of them exactly at a corner
clipped = lambda log_prob, advantage: ppo.clipped_surrogate_loss(log_prob, 0.0, advantage, clip_eps=0.2)
for advantage, flat in ((1.0, ratios > 1.2), (-1.0, ratios < 0.8)):
    loss, slopes = jax.vmap(jax.value_and_grad(clipped), (0, None))(np.log(ratios), advantage)
    assert np.allclose(loss, [numpy_losses.clipped_surrogate_loss(np.log(x), 0.0, advantage, 0.2) for x in ratios])
    assert np.allclose(-slopes, np.where(flat, 0, ratios * advantage), atol=1e-12)

# %%
with plots.style():
    figure, axes = plots.subplots(1, 2, width=8.4, height=3.2, sharey=True)
    for axis, advantage, zone in zip(axes, (1.0, -1.0), ((1.2, 1.6), (0.4, 0.8)), strict=True):
        axis.axvspan(*zone, color=plots.PALE, alpha=0.6, linewidth=0, label="no gradient")
        axis.plot(ratios, -clipped(np.log(ratios), advantage), color=plots.PPO, linewidth=2.6, label="PPO, ε = 0.2")
        axis.plot(ratios, ratios * advantage, **plots.EXACT, label="ρ A, unclipped")
        axis.set(xlabel="ratio ρ = π / π_old", ylabel="objective (reward units)", title=f"A = {advantage:+.0f}")
    axes[1].legend(loc="upper right")
plots.save(figure, "06_clip")

# %% [markdown]
# ## Overshooting, exactly
#
# Now follow it: twenty batches, forty gradient steps on each, no sampling noise at all ($L$, its gradient and $J$ are
# exact). Without the clip the first batch sends the policy past the optimum to where it almost always steps right and
# $J$ is worse than at the start. The next surrogate sees that, and sends it to the other end. With the clip the policy
# walks to the optimum, in steps of KL that are a hundred times smaller.
#
# The clip is no wall. Where the gradient is zero nothing pushes outward, but nothing pulls back either, and a step that
# starts inside may end outside, as in the first batch here. It works because steps are small.

# %%
uphill = jax.jit(jax.grad(surrogate))
paths = {"unclipped": [old], "clipped": [old]}
for name, clip_eps in (("unclipped", np.inf), ("clipped", 0.2)):
    for _ in range(20):
        theta = paths[name][-1]
        for _ in range(40):
            theta = theta + 0.2 * uphill(theta, paths[name][-1], clip_eps)
        paths[name].append(theta)
earned = {name: jax.vmap(objective)(jnp.stack(path)) for name, path in paths.items()}
assert earned["unclipped"][2] < earned["unclipped"][1] < earned["unclipped"][0] < earned["clipped"][1]
assert (earned["clipped"][8:] > best - 0.05).all()
assert distance(*paths["unclipped"][:2]) > 100 * max(distance(*paths["clipped"][i : i + 2]) for i in range(20))

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.4, sharey=True)
    left.plot(rights, true_curve, **plots.EXACT, label="true J")
    for name, clip_eps, color in (("unclipped", np.inf, plots.ORANGE), ("clipped", 0.2, plots.PPO)):
        promised = jax.vmap(surrogate, (0, None, None))(thetas, old, clip_eps) + objective(old)
        left.plot(rights, promised, color=color, label=f"{name} surrogate")
        right.plot(earned[name], color=color, label=name)
    left.plot(0.1, objective(old), "o", color=plots.REFERENCE, label="old policy")
    right.axhline(best, **plots.EXACT, label="exact optimum")
    left.set(xlabel="probability of stepping right", ylabel="J (reward units)", title="What the old policy promises")
    right.set(xlabel="batches, 40 gradient steps on each", title="What comes of following it", ylim=(-10.2, -3.2))
    left.legend(loc="upper right")
    right.legend(loc="upper right")
plots.save(figure, "06_trust_region")

# %% [markdown]
# Left: both surrogates agree with the true $J$ near the old policy. The clipped one has its top a little to the right
# of it, and no interest in going further. Right: what each promised, and what came of it.
#
# ## PPO, whole
#
# Now with samples, and everything at once. One iteration: draw a batch with the current policy; estimate the
# advantages by GAE with the current critic ([lesson 5](05_advantage_and_gae.py)); take several gradient steps on the
# batch, called **epochs**, down the
#
# $$\text{loss} = -L^\text{PPO} + \text{value loss} - c\, H(\pi(\cdot|s)).$$
#
# The **value loss** $\frac{1}{2} (V - G^\lambda)^2$ fits the critic to lesson 3's $\lambda$-returns,
# $G_t^\lambda = \hat A_t + V_\text{old}(s_t)$, with $V_\text{old}$ the critic before the batch. It is clipped too: once
# $V$ is further than $\epsilon$ from $V_\text{old}$ on the side of $G^\lambda$, its gradient is 0. The **entropy**
# $H = -\sum_a \pi(a|s) \log \pi(a|s)$ is for later; $c = 0$ for now. Advantages are **whitened** over the batch, mean 0
# and variance 1, so that one step size fits rewards of every size. And $\gamma^t$ is dropped, as in most programs.
#
# An episode ends in a state that is never left; steps after that are masked out (`alive`). We stop watching after
# `num_steps`. That is a cut and no end, so the critic says what would have followed.

# %%
loss = lambda value: ppo.clipped_value_loss(value, 0.5, 2.0, clip_eps=0.2)  # V_old = 0.5, target 2
slopes = jax.vmap(jax.grad(loss))(jnp.array([0.6, 0.8, 0.2]))  # inside; beyond, towards 2; beyond, away from it
assert np.allclose(slopes, [0.6 - 2, 0, 0.2 - 2], atol=1e-12)


def ppo_loss(params, batch, clip_eps, entropy_weight):
    (logits, critic), (states, actions, old_log_probs, advantages, old_values, alive) = params, batch
    log_probs, whitened = jax.nn.log_softmax(logits)[states, actions], masking.masked_whiten(advantages, alive)
    losses = ppo.clipped_surrogate_loss(log_probs, old_log_probs, whitened, clip_eps=clip_eps)
    losses += ppo.clipped_value_loss(critic[states], old_values, old_values + advantages, clip_eps=0.2)
    diagnostics = [f(log_probs, old_log_probs, alive) for f in (ppo.max_ratio_deviation, ppo.approximate_kl)]
    diagnostics.append(ppo.clip_fraction(log_probs, old_log_probs, alive, clip_eps=0.2))
    return masking.masked_mean(losses - entropy_weight * ppo.entropy(logits[states]), alive), jnp.stack(diagnostics)


def learn(world, step_sizes, clip_eps, entropy_weight, num_iterations, num_steps):
    def iterate(params, key):
        policy, critic = jax.nn.softmax(params[0]), params[1]
        seen = jax.vmap(mdp.rollout, (0, None, None, None))(jax.random.split(key, 64), world, policy, num_steps)
        ended = jnp.diagonal(world.transition.min(axis=1))[seen.states] == 1  # in a state that is never left
        discounts, alive, found = world.gamma * (1 - ended[:, 1:]), ~ended[:, :-1], critic[seen.states]
        advantages = jax.vmap(returns.gae, (0, 0, 0, None))(seen.rewards, discounts, found, 0.95)
        states, old_log_probs = seen.states[:, :-1], jnp.log(policy)[seen.states[:, :-1], seen.actions]
        batch = states, seen.actions, old_log_probs, advantages, found[:, :-1], alive

        def epoch(params, step_size):
            slopes, diagnostics = jax.grad(ppo_loss, has_aux=True)(params, batch, clip_eps, entropy_weight)
            return jax.tree.map(lambda x, slope: x - step_size * slope, params, slopes), diagnostics

        params, diagnostics = jax.lax.scan(epoch, params, step_sizes)
        return params, (values.expected_return(world, jax.nn.softmax(params[0])), diagnostics)

    seeds = jax.random.split(jax.random.key(0), (8, num_iterations))
    return jax.vmap(lambda keys: jax.lax.scan(iterate, (0 * world.reward, 0 * world.initial), keys)[1])(seeds)


learn = jax.jit(learn, static_argnames=("num_iterations", "num_steps"))

# %% [markdown]
# (`jax.lax.scan` is a `for` loop, compiled: it carries `params` along, takes one step size after the other, and stacks
# what each round reports. `has_aux` lets a loss report more than its value. `jax.tree.map` steps logits and critic.)
#
# `learn` trains eight seeds side by side and returns the exact $J$ after each batch. The world is the grid of lesson 2:
# a goal (+1), a hole (−1), moves that slip one time in five and cost 0.04; in goal and hole an episode ends. Three ways
# to use a batch of 64 trajectories: one step, thirty steps without the clip, thirty with it.

# %%
grid, optimum = environments.gridworld(gamma=0.95), lambda world: world.initial @ values.optimal_state_values(world)
# step size 5 for so many epochs, then 0, which is no step
walk = lambda epochs, eps: learn(grid, 5.0 * (np.arange(30) < epochs), eps, 0.0, num_iterations=30, num_steps=25)
(slow, _), (unclipped, far), (clipped, near) = walk(1, 0.2), walk(30, np.inf), walk(30, 0.2)
assert (clipped[:, -1] > optimum(grid) - 0.03).all(), "every seed close to the optimum"
assert (slow[:, -1] < optimum(grid) - 0.05).all(), "one step a batch: on its way, with the same samples"
assert (unclipped[:, -1] < optimum(grid) - 0.2).sum() >= 3, "ruined, and it depends on the seed"

# %% [markdown]
# ## What to watch
#
# Three numbers tell whether a PPO program is healthy. At the **first** step on a batch the policy is still the one that
# drew it: all ratios are 1, nothing is clipped, the KL is 0. If not, the program that samples and the program that
# trains disagree (in the logits, or in what is masked), and no result is to be believed. At the **last** step the
# **clip fraction**, the share of actions outside $1 \pm \epsilon$, and the **approximate KL**, estimated from the
# ratios of the sampled actions, say how far the batch was followed. A tenth clipped and a hundredth of a nat is a usual
# day. Without the clip the same thirty steps go more than ten times as far.

# %%
ratio_off, divergence, share = near.mean((0, 1)).T  # each [epochs], the mean over seeds and batches
assert np.allclose([ratio_off[0], divergence[0], share[0]], 0, atol=1e-12)
assert 0.05 < share[-1] < 0.2
assert 10 * divergence[-1] < 0.1 < far[:, :, -1, 1].mean()

# %% [markdown]
# ## Explore or exploit
#
# A policy learns only from what it tries. Here is a world where that hurts: write at most four words of a language of
# two, or say nothing (word 0 ends the sentence). Saying nothing pays ½. One sentence of four words, and no other, pays
# 1. (`all_strings` lists the sentences; `mask` says which places are used, the end included. `environments.token_mdp`
# makes states of their beginnings. You will meet it again: it is how a language model is an agent.)
#
# At first most attempts to write end in nothing, so saying nothing looks better than trying: the policy **exploits**
# what it knows, stops trying, and will never find out. An entropy bonus $c\, H$ pays for staying undecided, so it goes
# on to **explore**. It costs a little: the optimum with the bonus is not quite that of $J$. (With language models the
# price on KL, lesson 8, plays this part, and $c$ is often 0.)

# %%
tokens, mask = enumerable.all_strings(3, 4, eos_id=0)
rewards = 0.5 * (mask.sum(axis=1) == 1) + 1.0 * (tokens == np.array([1, 2, 1, 2])).all(axis=1)
sentences = environments.token_mdp(tokens, mask, rewards[None], 3, gamma=0.99)
incurious, curious = (learn(sentences, np.ones(10), 0.2, c, num_iterations=100, num_steps=4)[0] for c in (0.0, 0.4))
assert np.isclose(incurious[:, -1], 0.5, atol=0.01).any(), "some seeds never find it"
assert (curious[:, -1] > optimum(sentences) - 0.05).all(), "every seed finds it"

# %%
with plots.style():
    figure, axes = plots.subplots(1, 2, width=8.4, height=3.4)
    grid_runs = {"1 step a batch": slow, "30 steps, clipped": clipped, "30 steps, unclipped": unclipped}
    sentence_runs = {"no entropy bonus": incurious, "c = 0.4": curious}
    for axis, world, runs in ((axes[0], grid, grid_runs), (axes[1], sentences, sentence_runs)):
        for (name, run), color in zip(runs.items(), (plots.GREY, plots.PPO, plots.ORANGE), strict=False):
            plots.band(axis, np.arange(1, run.shape[1] + 1), run, color, label=name)
        axis.axhline(optimum(world), **plots.EXACT, label="exact optimum")
        axis.set(xlabel="batches", ylabel="J (reward units)", title="Gridworld" if world is grid else "Sentences")
        axis.legend(loc="lower right")
plots.save(figure, "06_training")

# %% [markdown]
# Lines are medians of eight seeds, bands go from the worst to the best. Left: with one step a batch most of what was
# sampled is wasted; with thirty and no clip the policy is soon ruined; with thirty and the clip it learns fast and
# stays. Right: without the bonus some seeds say nothing for ever.
#
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/06_ppo.py).
#
# **1.** Compute $L^\text{PPO}$ of one action from its probability now, its probability when it was drawn, and its
# advantage.


# %%
def exercise_1(prob, old_prob, advantage, clip_eps):
    return ...


answers = [exercise_1(*case, 0.2) for case in ((0.6, 0.4, 1.0), (0.2, 0.4, 1.0), (0.5, 0.4, -2.0), (0.2, 0.4, -2.0))]
assert answers[0] is ... or np.allclose(answers, [1.2, 0.5, -2.5, -1.6]), "take the smaller one, also when A < 0"
print("Exercise 1:", "to do" if answers[0] is ... else "right")

# %% [markdown]
# **2.** Derive $\partial L^\text{PPO} / \partial \log \pi(a|s)$ as a function of $\rho$, $A$ and $\epsilon$. (Away
# from the corners. $\partial \rho / \partial \log \pi = \rho$.)


# %%
def exercise_2(ratio, advantage, clip_eps):
    return ...


ratios, signs = np.array([0.5, 1.1, 1.5, 0.5, 1.1, 1.5]), np.array([2.0, 2.0, 2.0, -3.0, -3.0, -3.0])
answers = [exercise_2(*case, 0.2) for case in zip(ratios, signs, strict=True)]
truths = -jax.grad(lambda x: ppo.clipped_surrogate_loss(x, 0 * x, signs, clip_eps=0.2).sum())(jnp.log(ratios))
assert answers[0] is ... or np.allclose(answers, truths, atol=1e-5), "flat on one side only, and which depends on A"
print("Exercise 2:", "to do" if answers[0] is ... else "right")

# %% [markdown]
# **3.** A colleague finds the `min` superfluous and maximises $\mathrm{clip}(\rho, 0.8, 1.2)\, A$. Training runs, and
# some mistakes are never repaired. Find two: a ratio for an action with $A = 1$, and one for an action with $A = -1$,
# where the colleague's gradient is zero and PPO's is not. Return both.


# %%
def exercise_3():
    return ...


if exercise_3() is not ...:
    log_ratios, signs = jnp.log(jnp.array([*exercise_3()])), jnp.array([1.0, -1.0])
    without_min = jax.grad(lambda x: (jnp.clip(jnp.exp(x), 0.8, 1.2) * signs).sum())(log_ratios)
    with_min = jax.grad(lambda x: ppo.clipped_surrogate_loss(x, 0 * x, signs, clip_eps=0.2).sum())(log_ratios)
    assert (without_min == 0).all() & (with_min != 0).all(), "one is still learning, or PPO has stopped too"
print("Exercise 3:", "to do" if exercise_3() is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Kakade and Langford (2002), "Approximately Optimal Approximate Reinforcement Learning": the performance difference
#   lemma, from `values.occupancy` and `values.advantages`.
# - Schulman, Levine, Moritz, Jordan and Abbeel (2015), "Trust Region Policy Optimization": theorem 1 is the bound with
#   `kl.exact_kl`.
# - Schulman, Wolski, Dhariwal, Radford and Klimov (2017), "Proximal Policy Optimization Algorithms": equation 7 is
#   `ppo.clipped_surrogate_loss`.
# - Huang et al. (2022), "The 37 Implementation Details of Proximal Policy Optimization": `ppo.clipped_value_loss`,
#   `masking.masked_whiten`. Schulman (2020), "Approximating KL Divergence": `kl.k3`, in `ppo.approximate_kl`.
# - Rewards were given so far. [Lesson 7](07_human_preferences.py) asks where they come from when only people know
#   what is good.
