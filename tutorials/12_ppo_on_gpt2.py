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
# # 12. How does PPO teach a language model a taste?
#
# Lesson 6 trained tables with PPO, and lesson 10 made GPT-2 a policy. Now they meet. This is the loop behind the first
# assistants that were trained on human preferences: the model writes, somebody scores what it wrote, and PPO makes the
# good writing likelier while a penalty keeps the model near its old self.
#
# Our GPT-2 has 2.2 million parameters and has read only film reviews. The taste is simple too: we want praise. The
# score comes straight from the bundled **gold annotator**, the stand-in for a crowd that lesson 11's reward model
# learned from. So here there is no learned reward to fool, and every number below is about PPO alone.
#
# First we take one iteration apart, number by number. Then we let it run.

# %%
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import experiment_data, kl, numpy_loops, numpy_losses, plots, ppo
from rlhf_jax.lm import tokenizer, weights
from rlhf_jax.training import evaluation, loop, state
from rlhf_jax.training import ppo as trainer

# %% [markdown]
# ## The cast
#
# - The **policy** $\pi_\theta$: GPT-2, the one thing that is trained.
# - The **reference** $\pi_\text{ref}$: a frozen copy of the same GPT-2, to measure how far the policy has gone.
# - The **value head** $V(s_t) = w \cdot h(s_t) + b$: one more linear map on the policy's hidden state $h$ (lesson 5's
#   critic), which guesses the reward still to come. It shares GPT-2's layers, and starts at $w = 0$, $b = 0$: it
#   knows nothing.
# - The **score** of a finished text: the annotator's log-odds, in nats, that it stems from a positive review.
#
# A prompt $x$ is the opening of a review, 8 tokens; an answer $y$ is at most 24 more. We set 256 openings aside, to
# judge on at the end.

# %%
config, base = weights.load("bundled")
encoder = tokenizer.load("bundled")
score = evaluation.gold_score(encoder)
openings = experiment_data.openings(1024, 7, jax.random.key(0))
prompts, prompt_mask = experiment_data.encode_openings(openings, config, encoder, 8)
held_out = prompts[-256:], prompt_mask[-256:]
prompts, prompt_mask = prompts[:-256], prompt_mask[:-256]

lengths = {"max_new_tokens": 24, "eos_id": config.eos_token_id}
sample = functools.partial(evaluation.sample, config, **lengths)
before = sample(base, *held_out, jax.random.key(1))
score_before = np.asarray(score(before))
print(f"the base model scores {score_before.mean():.2f} on average, with a deviation of {score_before.std():.2f}")

# %% [markdown]
# ## A rollout
#
# A **rollout** is a batch of answers that the policy has just written, with three numbers beside every token: what
# the policy gave it, $\log \pi(y_t|x, y_{<t})$; what the reference gives it; and the value $V(s_t)$ of the state
# before it.
#
# At the start the policy *is* the reference, and its values are all 0. That is a good test of any program, and a poor
# example. So for the walk-through we nudge every parameter a little, at random.

# %%
policy = trainer.init(base)
nudge = np.random.default_rng(0).normal
nudged = jax.tree.map(lambda leaf: leaf + 0.02 * nudge(size=leaf.shape), policy)

roll = functools.partial(trainer.rollout, config, **lengths)
first_batch = prompts[:64], prompt_mask[:64]
fresh = roll(policy, base, *first_batch, jax.random.key(2))
assert (fresh.values == 0).all()
assert np.abs((fresh.log_probs - fresh.ref_log_probs)[fresh.sequences.completion_mask]).max() < 1e-4

rolled = roll(nudged, base, *first_batch, jax.random.key(2))
mask = np.asarray(rolled.sequences.completion_mask)
scores = np.asarray(score(rolled.sequences))

# %% [markdown]
# ## A reward for every token
#
# Lesson 9's objective is $\mathbb{E}[r(x, y)] - \beta\, \mathrm{KL}(\pi \,\|\, \pi_\text{ref})$, and the KL is the
# mean of $\log \pi(y|x) - \log \pi_\text{ref}(y|x)$ over the policy's own answers. That is a sum over tokens. So each
# token pays its own share at once, and the score arrives with the last one:
#
# $$r_t = -\beta\, \big[\log \pi(y_t|x, y_{<t}) - \log \pi_\text{ref}(y_t|x, y_{<t})\big]
# + 1[t \text{ is the last}]\; r(x, y).$$
#
# "The last" is the end-of-text token if the policy wrote one, else the 24th. What follows is padding and pays nothing.

# %%
beta = 0.2
rewards = np.zeros(mask.shape)
for i, length in enumerate(mask.sum(axis=1)):
    for t in range(length):
        rewards[i, t] = -beta * (rolled.log_probs[i, t] - rolled.ref_log_probs[i, t])
    rewards[i, length - 1] += scores[i]
assert (mask.sum(axis=1) < 24).any(), "some answers end early, or the test would not test the padding"
by_library = trainer.token_rewards(rolled.log_probs, rolled.ref_log_probs, scores, mask, beta)
assert np.allclose(by_library, rewards, atol=1e-5)

# %% [markdown]
# One sample of $\log \pi - \log \pi_\text{ref}$ may be negative; only its mean is the KL. When you *report* the KL,
# you can do better: after each prefix, compute the KL between the two models' whole distributions of the next token,
# and add up. Same mean, less noise, never negative.

# %%
estimates = np.where(mask, rolled.log_probs - rolled.ref_log_probs, 0).sum(axis=1)
exact = np.asarray(evaluation.sequence_kl(config, nudged, base, rolled.sequences))
print(f"KL by one sample a token {estimates.mean():.2f}, by the whole distribution {exact.mean():.2f}")
assert abs(np.mean(estimates - exact)) < 4 * np.std(estimates - exact) / np.sqrt(64)
assert exact.std() < estimates.std() / 2
assert exact.min() > 0 > estimates.min()

# %% [markdown]
# ## An advantage for every token
#
# The state is the text so far, the action is the next token, and $\gamma = 1$: praise is as good late as early.
# Lesson 5 gives the advantages,
#
# $$\hat A_t = \sum_{k \ge t} \lambda^{k-t} \delta_k, \qquad \delta_t = r_t + V(s_{t+1}) - V(s_t),$$
#
# and one thing to get right: at the last token the discount is 0. Nothing follows, whatever the value head says of
# the finished text or of the padding behind it.
#
# Then the advantages of the whole batch are **whitened**: shifted to mean 0 and scaled to deviation 1 over the real
# tokens. The size of a step no longer depends on the scale of the score.

# %%
lambda_ = 0.95
advantages = np.zeros(mask.shape)
for i, length in enumerate(mask.sum(axis=1)):
    discounts = [1.0] * (length - 1) + [0.0]
    advantages[i, :length] = numpy_loops.gae(rewards[i, :length], discounts, rolled.values[i, : length + 1], lambda_)
whitened = (advantages[mask] - advantages[mask].mean()) / advantages[mask].std(ddof=1)  # the sum over n - 1

batch, _ = trainer.experience(rolled, scores, kl_coef=beta, gamma=1.0, lambda_=lambda_)
assert np.allclose(batch.returns[mask], (advantages + rolled.values[:, :-1])[mask], atol=1e-4)
assert np.allclose(batch.advantages[mask], whitened, atol=1e-4)
assert (batch.advantages[~mask] == 0).all()

# %% [markdown]
# `batch.returns` are the targets of the value head, $\hat A_t + V(s_t)$. With $\lambda = 1$ the values cancel, and
# the target at the first token is the objective itself, sampled once: score less $\beta$ times the log-ratio of the
# answer. We shall train with $\lambda = 1$, since a value head that starts from nothing is a bad adviser (lesson 5:
# $\lambda < 1$ trusts it).

# %%
to_the_end, _ = trainer.experience(rolled, scores, kl_coef=beta, gamma=1.0, lambda_=1.0)
assert np.allclose(to_the_end.returns[:, 0], scores - beta * estimates, atol=1e-4)

# %% [markdown]
# ## The ratio is one, then the clip
#
# With $\rho_t = \pi_\theta(y_t|\dots) / \pi_\text{old}(y_t|\dots)$, where $\pi_\text{old}$ is the policy that wrote the
# answers, the loss is that of lesson 6, plus the value head's, which is lesson 6's too (clipped, with weight $c_V$):
#
# $$\text{loss} = \operatorname{mean}_t \Big[ -\min\big(\rho_t \hat A_t,\; \mathrm{clip}(\rho_t, 1 - \epsilon,
# 1 + \epsilon)\, \hat A_t\big) + c_V\, \mathrm{loss}^V_t \Big].$$
#
# Before the first step the policy still is $\pi_\text{old}$, so **every ratio is 1**. Not about 1: sampling goes token
# by token with a cache, training reads the whole text at once, and they must agree to rounding. A wrong temperature,
# mask or position shows here and hardly anywhere else. The value of the loss says nothing at that point (whitened
# advantages average 0), but its slope does: $-\hat A_t$ for each $\log \pi(y_t|\dots)$, the policy gradient.

# %%
coefficients = {"clip_eps": 0.2, "value_clip_eps": 0.2, "value_weight": 0.1}
loss_of = jax.jit(functools.partial(trainer.ppo_loss, config=config, **coefficients))
metrics = loss_of(nudged, batch)[1]
print(f"largest |ratio - 1| at the first minibatch: {metrics['max_ratio_deviation']:.1e}")
assert max(metrics["max_ratio_deviation"], abs(metrics["policy_loss"])) < 1e-4
assert np.isclose(metrics["value_loss"], np.mean(advantages[mask] ** 2) / 2, rtol=1e-3), "V has not moved either"

surrogate = lambda new: ppo.clipped_surrogate_loss(new, batch.old_log_probs, batch.advantages, clip_eps=0.2).sum()
assert np.allclose(jax.grad(surrogate)(batch.old_log_probs)[mask], -whitened, atol=1e-4)

# %% [markdown]
# Once the parameters move the ratios move, and the clip begins to bind. Here we "move" back to the base model, and
# compare the library with loops over the tokens.

# %%
loss, metrics = loss_of(policy, batch)
new, old = np.asarray(trainer.completion_log_probs(config, base, rolled.sequences))[mask], rolled.log_probs[mask]
actions = zip(new, old, whitened, strict=True)
policy_loss = np.mean([numpy_losses.clipped_surrogate_loss(*action, 0.2) for action in actions])
targets = zip(batch.old_values[mask], batch.returns[mask], strict=True)  # and the base model's own values are 0:
value_loss = np.mean([numpy_losses.clipped_value_loss(0.0, *target, 0.2) for target in targets])
assert np.isclose(metrics["policy_loss"], policy_loss, atol=1e-4)
assert np.isclose(metrics["value_loss"], value_loss, atol=1e-4)
assert np.isclose(loss, policy_loss + 0.1 * value_loss, atol=1e-4)
assert np.isclose(metrics["clip_fraction"], np.mean(np.abs(np.exp(new - old) - 1) > 0.2), atol=1e-6)

# %% [markdown]
# ## The price that adjusts itself
#
# Which $\beta$? You rarely know what a nat should cost in units of the score. You may know how far you are willing to
# go. So let $\beta$ follow the KL that it allowed: a little dearer after an iteration above the target, a little
# cheaper after one below,
#
# $$\beta \leftarrow \beta\, \Big(1 + K\, \mathrm{clip}\big(\tfrac{\mathrm{KL}}{\mathrm{target}} - 1,\,
# -0.2,\, 0.2\big)\Big).$$
#
# The clip makes it patient. With gain $K = 0.1$, $\beta$ changes by at most 2 % an iteration.

# %%
kl_target, kl_gain = 8.0, 0.1
follow = functools.partial(kl.adaptive_kl_coefficient, target=kl_target, gain=kl_gain)
assert np.isclose(follow(0.2, kl=40.0), 0.2 * 1.02), "far above the target: 2 % dearer, no more"
assert np.isclose(follow(0.2, kl=7.2), 0.2 * (1 - 0.1 * 0.1)), "a tenth below it: 1 % cheaper"

# %% [markdown]
# ## Now let it run
#
# An iteration: 64 new answers, and two epochs over them, each of two minibatches. `make_adaptive_ppo_iteration` joins
# the pieces that we took apart. It runs twice: once as above, and once with no penalty at all, $\beta = 0$.

# %%
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(6e-4))
ppo_step = trainer.make_ppo_step(config, optimizer, num_epochs=2, num_minibatches=2, **coefficients)
make = functools.partial(trainer.make_adaptive_ppo_iteration, ref_params=base, score=score, **lengths)
logs, policies, after, rise, price = {}, {}, {}, {}, {}
for name, first_beta, gain in [("with the penalty", 0.3, kl_gain), ("without it", 0.0, 0.0)]:
    iteration = make(config=config, ppo_step=ppo_step, kl_target=kl_target, kl_gain=gain)
    current = trainer.AdaptiveState(*state.create(policy, optimizer), jnp.float32(first_beta))
    log = []
    for i, key in enumerate(jax.random.split(jax.random.key(3), 24)):
        rows = loop.shuffled_rows(len(prompts), 64, i, seed=0)
        current, metrics = iteration(current, (prompts[rows], prompt_mask[rows], key))
        log.append(jax.device_get(metrics))
    policies[name] = current.params
    logs[name] = {key: np.array([metrics[key] for metrics in log]) for key in log[0]}

    assert (logs[name]["first_ratio_deviation"] < 1e-3).all(), "every iteration began at ratio 1"
    assert abs(logs[name]["kl"][0]) < 1e-3, "and the first one at the reference"
    assert 0.01 < logs[name]["clip_fraction"][-5:].mean() < logs[name]["clip_fraction"][0], "the clip is at work"

betas, kls = logs["with the penalty"]["kl_coef"], logs["with the penalty"]["kl"]
assert np.allclose(betas[1:], jax.vmap(lambda beta, kl: follow(beta, kl=kl))(betas[:-1], kls[:-1]), rtol=1e-5)

# %% [markdown]
# ## Did it work?
#
# The score on training openings may be luck, so both policies now continue the 256 openings that were set aside. The
# rise is judged against its own noise: the standard error of the mean difference, opening by opening.

# %%
for name, params in policies.items():
    transformer = {part: params[part] for part in base}  # without the value head
    after[name] = sample(transformer, *held_out, jax.random.key(4))
    rise[name] = np.asarray(score(after[name])) - score_before
    price[name] = float(np.mean(evaluation.sequence_kl(config, transformer, base, after[name])))
    mean, error = rise[name].mean(), rise[name].std() / np.sqrt(256)
    print(f"{name}: the score rises by {mean:.2f} ± {error:.2f}, for {price[name]:.1f} nats. It writes:")
    print(*encoder.decode_batch(np.asarray(after[name].completions[:3]).tolist()), sep="\n")
    assert mean > 4 * error, "far beyond the noise"
assert 4 < price["with the penalty"] < 16, "near the target of 8, no nearer: the controller is patient"
print("The base model wrote:", *encoder.decode_batch(np.asarray(before.completions[:3]).tolist()), sep="\n")

# %% [markdown]
# Without the penalty the score is several times higher. Read what it is paid for. The annotator likes words of praise,
# so the policy writes nothing else: it has left English for the place where the score is largest. In numbers, its
# answers share few different tokens, and the entropy of its next token falls and falls. The penalty is not a detail
# of the method. It is what keeps a language model a language model.

# %%
different = {name: len(np.unique(after[name].completions)) for name in after}
print("different tokens in 256 answers:", different)
assert rise["without it"].mean() > 2 * rise["with the penalty"].mean()
assert price["without it"] > 3 * price["with the penalty"]
assert different["without it"] < 0.6 * different["with the penalty"]
assert logs["without it"]["entropy"][-1] < logs["with the penalty"]["entropy"][-1] - 0.5

# %%
with plots.style():
    figure, axes = plots.subplots(2, 2, width=8.4, height=5.4)
    curves = {"score": "score (nats)", "kl": "KL (nats)", "clip_fraction": "clip fraction", "entropy": "entropy (nats)"}
    for axis, (key, title) in zip(axes.flat, curves.items(), strict=True):
        for name, color in [("with the penalty", plots.PPO), ("without it", plots.ORANGE)]:
            axis.plot(logs[name][key], color=color, label=name)
        axis.set(xlabel="iterations of 64 answers", title=title)
    axes[0, 0].axhline(score_before.mean(), color=plots.REFERENCE)
    plots.label(axes[0, 0], 14, score_before.mean(), "base", plots.REFERENCE, xytext=(0, 8))
    axes[0, 0].legend(loc="upper left")
    axes[0, 1].axhline(kl_target, color=plots.GREY, linestyle=":")
    plots.label(axes[0, 1], 18, kl_target, "target", plots.GREY, xytext=(0, -9))
plots.save(figure, "12_ppo_on_gpt2")

# %% [markdown]
# Score and entropy stand for one answer and one token, the KL for a whole answer, the clip fraction for the share of
# tokens whose ratio left $1 \pm \epsilon$.
#
# What to watch in a run of your own: the **first ratio** (1, or stop), the **KL** (below 0 by more than its noise: a
# bug; a jump: a step too large), the **clip fraction** (large in our first iteration, where Adam takes its boldest
# step, then about a tenth; one that stays large is a rate too large), the **entropy** (a steady fall is a policy that
# narrows), and some answers, every time. The score alone tells you nothing of this: it rose best in the worse run.
#
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/12_ppo_on_gpt2.py).
#
# **1.** The rewards $[T]$ of the tokens of one answer, without padding: the KL's share at each, the score at the last.


# %%
def exercise_1(log_probs, ref_log_probs, score, beta):
    return ...


answer = exercise_1(np.array([-1.0, -3.0, -0.5]), np.array([-2.0, -1.0, -1.5]), 2.0, 0.1)
assert answer is ... or np.allclose(answer, [-0.1, 0.2, 1.9]), "what the policy likes more than the reference costs"
print("Exercise 1:", "to do" if answer is ... else "right")

# %% [markdown]
# **2.** The slope of the clipped loss in $\log \pi(y_t|\dots)$, for arrays of ratios and advantages. When is it 0?


# %%
def exercise_2(ratios, advantages, clip_eps):
    return ...


ratios, signs = np.array([0.5, 0.9, 1.1, 2.0] * 2), np.repeat([1.5, -1.5], 4)
loss = functools.partial(ppo.clipped_surrogate_loss, clip_eps=0.2)
slope = jax.vmap(jax.grad(loss))(np.log(ratios), 0 * signs, signs)
answer = exercise_2(ratios, signs, 0.2)
assert answer is ... or np.allclose(answer, slope, atol=1e-5), "0: good and likely already, or bad and rare already"
print("Exercise 2:", "to do" if answer is ... else "right")

# %% [markdown]
# **3.** A colleague runs GAE over the whole padded row with $\gamma = 1$. The rewards of the padding are 0, "so it adds
# nothing". It does. Find what, and return the right advantages $[T]$ of one padded row, 0 at the padding; `values` has
# $T + 1$ entries, and those behind the last token are whatever the head said of the padding.


# %%
def exercise_3(rewards, values, mask, lambda_):
    return ...


row, said, real = np.array([0.1, -0.2, 1.0, 0, 0]), np.array([0.5, 0.2, 0.4, 9.0, -7.0, 3.0]), np.arange(5) < 3
answer = exercise_3(row, said, real, 0.9)
right = [*numpy_loops.gae(row[:3], [1.0, 1.0, 0.0], said[:4], 0.9), 0, 0]
assert answer is ... or np.allclose(answer, right, atol=1e-6), "delta at the last token is r - V: nothing follows"
print("Exercise 3:", "to do" if answer is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Ziegler et al. (2019), "Fine-Tuning Language Models from Human Preferences": the penalty in the reward is
#   `training.ppo.token_rewards`, the controller `kl.adaptive_kl_coefficient`.
# - Ouyang et al. (2022), "Training language models to follow instructions with human feedback": this loop at scale.
# - Huang et al. (2024), "The N+ Implementation Details of RLHF with PPO": what else can go wrong.
# - The whole loop as a command: `rlhf-jax train ppo`; without a value head: `rlhf-jax train grpo`.
# - [Lesson 13](13_dpo_on_gpt2.py) gets there without rollouts, a value head or a reward.
