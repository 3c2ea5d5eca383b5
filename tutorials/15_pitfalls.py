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
# # 15. The code runs and the curves look plausible: is it right?
#
# A bug in a web page shows. A bug in reinforcement learning trains. The loss goes down, the reward goes up a bit less
# than hoped, and one blames the learning rate. A wrong factor is a smaller step, a wrong mask a little noise, a wrong
# sign in a small term a slightly other goal.
#
# What helps is an **invariant**: a sentence that must be true of the code whatever the data, and a number that decides
# it. Lesson 8 had one: DPO's first loss is $\ln 2$. Here we meet seven bugs, one at a time, as you would: first the
# symptom, then your guess (stop and make one), then the invariant that names the bug in one line. All seven were
# found in code that people used.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import audit, dpo, enumerable, invariants, kl, masking, plots, population, ppo, returns
from rlhf_jax.pitfalls import GALLERY

# %% [markdown]
# ## 1. The penalty that does nothing
#
# *Symptom.* A policy over five words stands far from its reference. We minimise nothing but the KL, estimated from 64
# samples a step. The logged estimate is right, every gradient is finite, and after 300 steps the KL is about where it
# was.

# %%
ref, start = jax.nn.log_softmax(jnp.array([0.0, 0.5, 1.0, -0.5, 0.2])), jnp.array([2.0, 0.0, -1.0, 0.5, 0.0])


def minimise(estimator):
    def step(logits, key):
        words = jax.random.categorical(key, logits, shape=(64,))
        loss = lambda logits: estimator(jax.nn.log_softmax(logits)[words], ref[words]).mean()
        return logits - 0.1 * jax.grad(loss)(logits), kl.exact_kl(jax.nn.log_softmax(logits), ref)

    return jax.lax.scan(step, start, jax.random.split(jax.random.key(0), 300))[1]


right, buggy = kls = minimise(kl.k2), minimise(kl.k1)
assert buggy[-1] > 0.7 * buggy[0]
assert right[-1] < 0.01 * right[0]

# %% [markdown]
# *Your guess?* The loss was $k_1 = \log \pi(y) - \log \pi_\text{ref}(y)$. Its mean is the KL, so it is a fine number
# to log. But its gradient is $\nabla \log \pi(y)$, and lesson 4 showed that this averages to nothing:
# $\sum_y \pi \nabla \log \pi = \nabla 1 = 0$. An unbiased value does not make an unbiased gradient. $k_2$, half the
# square, has the right one.

# %%
print(invariants.kl_loss_descends_the_kl(kl.k1, start, ref))
assert not invariants.kl_loss_descends_the_kl(kl.k1, start, ref)
assert invariants.kl_loss_descends_the_kl(kl.k2, start, ref)

# %% [markdown]
# ## 2. The run that settles in the wrong place
#
# *Symptom.* DPO on a language of 15 strings, of one to three words, every pair compared without end. The loss falls
# smoothly and settles. Only we can see what is wrong, because we know $\pi^*$: the distance to it settles too, at a
# sixth of a nat.

# %%
tokens, mask = enumerable.all_strings(vocab_size=3, length=3, eos_id=0)
rng = np.random.default_rng(0)
base, rewards = jax.nn.log_softmax(jnp.array(rng.normal(size=15))), jnp.array(rng.normal(size=15))
optimum = enumerable.optimal_log_probs(base, rewards, 0.5)
pairs = population.bradley_terry_population(base, rewards)


def train(scale):
    def loss(logits):
        new, old = jax.nn.log_softmax(logits) * scale, base * scale
        losses = dpo.dpo_loss(new[pairs.chosen], new[pairs.rejected], old[pairs.chosen], old[pairs.rejected], beta=0.5)
        return jnp.sum(pairs.weight * losses)

    step = lambda logits, _: (logits - 20 * jax.grad(loss)(logits), kl.exact_kl(jax.nn.log_softmax(logits), optimum))
    return jax.lax.scan(step, base, length=1000)[1]


right, buggy = distances = train(1.0), train(1 / mask.sum(axis=1))
assert right[-1] < 1e-3
assert buggy[-1] > 0.1

# %% [markdown]
# *Your guess?* Each string's log-probability was divided by its number of tokens. The price $\beta$ is then per token,
# so that a long string may drift further than a short one. The invariant: a string's log-probability is a sum, so twice
# the tokens make twice the number.

# %%
token_log_probs = -jnp.array(rng.uniform(0.1, 3, mask.shape))
assert not invariants.is_summed(jax.vmap(masking.masked_mean), token_log_probs, mask)
assert invariants.is_summed(jax.vmap(masking.masked_sum), token_log_probs, mask)

# %% [markdown]
# ## 3. The model that never stops
#
# *Symptom.* Texts end after about five words. A model of the words' frequencies, fitted to 256 such texts, gets
# wordier with every step, although its loss falls.

# %%
lengths = np.minimum(rng.geometric(0.2, 256), 30)
texts = np.where(np.arange(30) < lengths[:, None] - 1, rng.integers(1, 5, (256, 30)), 0)  # 0 ends a text, and pads it


def mean_length(keep):
    loss = lambda logits: -jnp.where(keep, jax.nn.log_softmax(logits)[texts], 0).sum() / keep.sum()
    step = lambda logits, _: (logits - jax.grad(loss)(logits), 1 / jax.nn.softmax(logits)[0])
    return jax.lax.scan(step, jnp.zeros(5), length=100)[1]


hidden_eos = GALLERY[2]  # the library's collection: .wrong, .right, and the .invariant that tells them apart
right, buggy = wordiness = mean_length(hidden_eos.right(texts)), mean_length(hidden_eos.wrong(texts))
assert np.isclose(right[-1], lengths.mean(), rtol=0.01)
assert buggy[-1] > 50

# %% [markdown]
# *Your guess?* GPT-2 has no token for padding, so programs pad with the end-of-text token (EOS), and then mask what is
# padding: `tokens != eos_id`. That drops the real EOS too. Nobody ever shows the model how a text ends. A mask must
# come from the lengths, never from an id: it keeps the first EOS and drops what follows.

# %%
print(hidden_eos.invariant(hidden_eos.wrong))

# %% [markdown]
# ## 4. The future that is worth too little
#
# *Symptom.* A reward of 1 at every step, for ever; $\gamma = 0.9$, so a state is worth $1 + 0.9 + 0.81 + \dots = 10$.
# Episodes are cut off after 8 steps, to save time. The value function converges nicely, to less than half
# of that.

# %%
rewards, cut = jnp.ones(8), jnp.arange(8) == 7


def learn(discounts):
    advantages = lambda value: returns.gae(rewards, discounts, jnp.full(9, value), 0.95)
    return jax.lax.scan(lambda value, _: (value + 0.2 * advantages(value).mean(), value), 0.0, length=150)[1]


right, buggy = worths = learn(jnp.full(8, 0.9)), learn(0.9 * (1 - cut))
assert np.isclose(right[-1], 10, atol=0.01)
assert buggy[-1] < 6

# %% [markdown]
# *Your guess?* Being cut off (**truncation**) was taken for an end (**termination**). At an end nothing follows, and
# the discount of the last step is 0. At a cut the rewards go on unseen, and the last value must stand in for them. (A
# completion at its length limit is an end, by decision: we score what was written.)

# %%
print(GALLERY[19].invariant(GALLERY[19].wrong))

# %%
with plots.style():
    figure, axes = plots.subplots(2, 2, width=8.4, height=5.2)
    panels = [("1. k1 as a loss", "KL (nats)", 0.0, kls)]
    panels += [("2. mean for sum in DPO", "KL to the optimum (nats)", 0.0, distances)]
    panels += [("3. padding = EOS", "mean length (words)", lengths.mean(), wordiness)]
    panels += [("4. a cut taken for an end", "value of a state (reward)", 10.0, worths)]
    for ax, (title, name, exact, (right, buggy)) in zip(axes.flat, panels, strict=True):
        ax.plot(right, color=plots.BLUE, label="right")
        ax.plot(buggy, color=plots.VERMILLION, label="with the bug")
        ax.axhline(exact, **plots.EXACT, label="exact answer")
        ax.set(xlabel="step", ylabel=name, title=title)
    axes[0, 0].legend(loc="center right")
plots.save(figure, "15_symptoms")

# %% [markdown]
# Every red curve is smooth, and without the dashed line hardly one of them looks like a bug. That is the use of
# problems with a known answer. The next three show in a single number.
#
# ## 5. The loss that depends on its neighbours
#
# *Symptom.* The same four completions, in a batch with one long text, have half the loss.

# %%
losses, keep = jnp.array(rng.normal(1.0, 0.2, (4, 8))), jnp.arange(8) < jnp.array([[8], [5], [3], [6]])
careless = lambda losses, keep: jnp.where(keep, losses, 0).mean()
longer = [jnp.pad(array, ((0, 0), (0, 8))) for array in (losses, keep)]
print(f"padded to 8 tokens {careless(losses, keep):.3f}, to 16 tokens {careless(*longer):.3f}")

# %% [markdown]
# *Your guess?* The mask zeroes what is padded, and still `.mean()` divides by all. Note which invariant sees it: what
# stands at the padding makes no difference, so that one passes. *How much* padding there is makes one.

# %%
assert np.isclose(careless(*longer), careless(losses, keep) / 2)
assert invariants.padding_is_ignored(careless, losses, keep)
assert not invariants.padding_length_is_irrelevant(careless, losses, keep)
assert invariants.padding_length_is_irrelevant(masking.masked_mean, losses, keep)

# %% [markdown]
# ## 6. The clip that acts before anything was learned
#
# *Symptom.* PPO's very first update, with weights that nobody has touched: nine ratios in ten are clipped.

# %%
logits, words = jnp.array(rng.normal(size=(4, 8, 50))), jnp.array(rng.integers(0, 50, (4, 8, 1)))
log_probs_at = lambda temperature: jnp.take_along_axis(jax.nn.log_softmax(logits / temperature), words, 2)[..., 0]
clipped = ppo.clip_fraction(log_probs_at(1.0), log_probs_at(0.7), keep, clip_eps=0.2)
print(f"clipped at the first update: {clipped:.0%}")
assert clipped > 0.5

# %% [markdown]
# *Your guess?* The sampler reported the log-probabilities of temperature 0.7, the trainer computes those of 1. Dropout,
# another dtype, padding on the other side or a shift by one token do the same. At the first update
# $\rho = \pi/\pi_\text{old}$ is 1 for every token, or the two do not talk about the same policy.

# %%
assert not invariants.ratio_is_one(log_probs_at(1.0), log_probs_at(0.7), keep)
assert invariants.ratio_is_one(log_probs_at(1.0), log_probs_at(1.0), keep)

# %% [markdown]
# ## 7. The NaN that appears out of nothing
#
# *Symptom.* An entropy of masked logits (−∞ forbids a word). Its value is right. One step later all weights are NaN.

# %%
forbidden, nan = jnp.array([1.0, 0.0, -jnp.inf]), GALLERY[18]
print("entropy", nan.wrong(forbidden), "gradient", jax.grad(nan.wrong)(forbidden))

# %% [markdown]
# *Your guess?* `where(p > 0, p * log(p), 0)` picks the right value, but the gradient of the branch **not** taken is
# computed as well, and multiplied by zero: $0 \cdot \infty$ is NaN. Put the `where` inside, so that the logarithm never
# sees a 0.

# %%
assert np.isclose(nan.wrong(forbidden), nan.right(forbidden), atol=1e-6)
assert not invariants.gradient_is_finite(nan.wrong, forbidden)
assert invariants.gradient_is_finite(nan.right, forbidden)

# %% [markdown]
# ## All twenty
#
# `pitfalls.GALLERY` has twenty such bugs, each as a few wrong lines beside right ones, the invariant that tells them
# apart, and the discussions in which people met it.

# %%
checks = [bug.invariant(bug.wrong) for bug in GALLERY]
for bug, check in zip(GALLERY, checks, strict=True):
    print(f"{bug.number:2}. {bug.name}: {bug.symptom}.\n    {check.name}  ({', '.join(bug.threads)})")
    assert not check

# %% [markdown]
# Would one good invariant do? Try each on each bug. It can say something only about related code: where each of the two
# *right* functions satisfies the other's invariant too. There, either it catches the bug or it holds all the same.


# %%
def holds(invariant, function):
    try:
        return bool(invariant(function))
    except Exception:
        return False  # made for a function of other arguments


right_one_holds = np.array([[holds(other.invariant, bug.right) for other in GALLERY] for bug in GALLERY])
wrong_one_holds = np.array([[holds(other.invariant, bug.wrong) for other in GALLERY] for bug in GALLERY])
related = right_one_holds & right_one_holds.T
caught, silent = related & ~wrong_one_holds, related & wrong_one_holds
assert caught.diagonal().all()
assert caught.sum() == 20 + 2, "beside the diagonal only the two about the KL, which catch each other's bug"

# %%
with plots.style():
    figure, ax = plots.subplots(width=7.2, height=5.2)
    for cells, marker, color in [(caught, "s", plots.VERMILLION), (silent, "o", plots.GREY)]:
        rows, columns = np.nonzero(cells)
        ax.plot(columns, rows, marker, color=color, ms=7, label="catches it" if cells is caught else "holds")
    ax.set_yticks(range(20), [f"{bug.number}. {bug.name}" for bug in GALLERY], fontsize=6.5)
    ax.set_xticks(range(20), [check.name for check in checks], fontsize=6.5, rotation=90)
    ax.set(title="Which invariant catches which bug", ylim=(19.6, -0.6))
    ax.legend(loc="upper right")
plots.save(figure, "15_matrix")

# %% [markdown]
# Nearly only the diagonal is red. Each invariant sees one kind of bug and is blind to its neighbours (grey): a code
# base needs the whole list. They are cheap; write them as tests, one line each, before the first long run.
#
# ## Your own loss
#
# Two bugs that no invariant knows by name: a formula derived wrongly, and a `stop_gradient` at the wrong place.
# `audit.check_gradient` compares automatic differentiation with float64 finite differences, entry by entry. (Whether
# the gradient was stopped on purpose, as PPO does for advantages, it cannot know: it says so.)

# %%
frozen = lambda chosen, rejected: dpo.dpo_loss(jax.lax.stop_gradient(chosen), rejected)
pair = jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.0])
print(audit.check_gradient(frozen, *pair))
assert not audit.check_gradient(frozen, *pair)
assert audit.check_gradient(dpo.dpo_loss, *pair)

# %% [markdown]
# From a shell, with the loss in `mine.py`, all of it at once. The names of the arguments (`log_probs`, `old_log_probs`,
# `advantages`, `mask`, `chosen_log_probs` …) say which invariants apply:
#
#     rlhf-jax audit mine:my_ppo_loss
#
# ## Exercises
#
# Each cell holds broken code. Find the bug by its symptom, write the repaired function, run the cell: invariants check
# it. [Solutions](solutions/15_pitfalls.py).
#
# **1.** The loss of a batch. It shrinks when long rows join, and is NaN when truncation leaves a row empty. Return the
# mean over all real tokens, and 0 if there are none.


# %%
def broken_mean(losses, mask):
    return (jnp.where(mask, losses, 0).sum(axis=1) / mask.sum(axis=1)).mean()


def exercise_1(losses, mask):
    return ...


batch = jnp.array([[1.0, 2.0, 3.0], [8.0, 9.0, 9.0]]), jnp.array([[True, True, True], [True, False, False]])
if exercise_1(*batch) is not ...:
    assert np.isclose(exercise_1(*batch), 14 / 4), "every real token counts the same: (1 + 2 + 3 + 8) / 4"
    assert invariants.padding_length_is_irrelevant(exercise_1, *batch)
    assert invariants.empty_mask_is_finite(exercise_1, *batch), "what is 0/0, and what is its gradient?"
print("Exercise 1:", "to do" if exercise_1(*batch) is ... else "right")

# %% [markdown]
# **2.** A DPO loss with two bugs. The first logged loss is not $\ln 2$; after long training some pairs give −∞ or NaN.


# %%
def broken_dpo(chosen, rejected, ref_chosen, ref_rejected):
    return -jnp.log(jax.nn.sigmoid(0.1 * ((chosen - rejected) + (ref_chosen - ref_rejected))))


def exercise_2(chosen, rejected, ref_chosen, ref_rejected):
    return ...


pairs = [jnp.array([-20.0, -30.0]), jnp.array([-21.0, -3000.0])]
if exercise_2(*pairs, *pairs) is not ...:
    assert invariants.ln2_at_the_reference(exercise_2, *pairs), "at h = 0 the loss is ln 2"
    assert invariants.gradient_is_finite(exercise_2, *pairs[::-1], *pairs), "sigmoid(-594) rounds to 0"
    assert np.isclose(exercise_2(-20.0, -21.0, -25.0, -21.0), np.log(1 + np.exp(-0.5))), "h = 5, beta = 0.1"
    assert np.isclose(exercise_2(-3000.0, -20.0, -30.0, -20.0), 297), "a pair that is very wrong has a large loss"
print("Exercise 2:", "to do" if exercise_2(*pairs, *pairs) is ... else "right")

# %% [markdown]
# **3.** A group loss: $G$ answers to one prompt, their rewards, token log-probabilities [G, T]. *Symptom*: wrong
# answers get longer and longer, right ones shorter, and prompts whose answers have nearly equal rewards dominate. Two
# divisions are to blame. Repair both so that each token of answer $i$ weighs $r_i - \bar r$; divide the sum over
# tokens by $G T$.


# %%
def broken_group_loss(log_probs, rewards, mask):
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    return -(jnp.where(mask, advantages[:, None] * log_probs, 0).sum(axis=1) / mask.sum(axis=1)).mean()


def exercise_3(log_probs, rewards, mask):
    return ...


group = -jnp.ones((2, 4)), jnp.array([1.0, 0.0]), jnp.array([[True] * 2 + [False] * 2, [True] * 4])
if exercise_3(*group) is not ...:
    assert invariants.group_weights_are_fair(exercise_3, *group), "no division by a length or a deviation"
    assert np.isclose(exercise_3(*group), (2 * 0.5 - 4 * 0.5) / 8), "minus Σ weight x log-probability, over G T"
print("Exercise 3:", "to do" if exercise_3(*group) is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Huang et al. (2022), "The 37 Implementation Details of PPO", and Huang et al. (2024), "The N+ Implementation Details
#   of RLHF with PPO": most of what can go wrong, and what it costs.
# - Schulman (2020), "Approximating KL Divergence": `kl.k1`, `kl.k2`, `kl.k3`; the table of their gradients heads `kl`.
# - Liu et al. (2025), "Understanding R1-Zero-Like Training": the two divisions of exercise 3, and
#   `group.centered_advantages`.
# - Pardo et al. (2018), "Time Limits in Reinforcement Learning": truncation; `returns.gae`.
# - Engstrom et al. (2020), "Implementation Matters in Deep Policy Gradients".
#
# This was the last lesson. You can derive PPO and DPO, you have implemented both, and you know how to tell whether
# somebody's implementation is right, your own included. `rlhf-jax experiment` runs the whole road at once;
# `rlhf-jax audit --library` holds this library to everything that this course has claimed.
