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
# # 14. PPO or DPO, and how much of either?
#
# Lesson 12 trained GPT-2 by PPO on a reward that was given, lesson 13 by DPO on choices. Which is better? Asked like
# that, it has no answer: each of them earns more the further it may move from the reference. So we compare by two
# numbers at once, the reward and the KL it cost.
#
# Then the question behind it. The reward that we can optimise is *learned*, from few and noisy choices. What happens
# to the reward that we *meant* when the learned one is pushed hard?

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import dpo, enumerable, experiment, experiment_data, kl, plots, population, reward_model
from rlhf_jax.lm import gpt2, sequences, tokenizer, weights
from rlhf_jax.training import evaluation, exact, language, reward

# %% [markdown]
# ## The frontier
#
# First where everything is known: the language of lesson 9, 40 strings of at most three tokens after each of two
# prompts. The **gold** reward, the one that is meant, has two parts here. Each string has a worth drawn from a normal
# distribution, as there; and half of $\log \pi_\text{ref}(y)$ is added: people do not like gibberish.
#
# For each price $\beta$ of a nat the optimum is $\pi^*_\beta(y) \propto \pi_\text{ref}(y)\, e^{r(y)/\beta}$. Let
# $\beta$ run from large to small, and the points (KL to the reference, mean reward) draw a line, the **frontier**. No
# policy lies above it. So whatever $\beta$ a method was run at, we can ask: how far below the line does it end?
#
# PPO sees the reward of the strings that it samples, DPO sees who won in every pair of strings. `exact.make_run` trains
# a table of logits with the train steps that lessons 12 and 13 used on GPT-2.

# %%
table = language.policies()["table"]
problem = language.make_problem(table)
problem = problem._replace(rewards=problem.rewards + 0.5 * problem.ref_log_probs)
betas = jnp.geomspace(300, 0.02, 160)
frontiers = jax.vmap(enumerable.frontier, (0, 0, None))(problem.ref_log_probs, problem.rewards, betas)
line_kl, line_reward = np.mean(frontiers, axis=1)  # the mean over both prompts

points = {"PPO": [], "DPO": []}
for name, train, updates in [("PPO", exact.ppo_with_values, 4), ("DPO", exact.population_dpo, 1)]:
    setting = exact.Setting(name, train, steps=400, learning_rate=0.05, at_most=0.01, updates=updates)
    for beta in (1.0, 0.25):
        path = exact.make_run(problem._replace(beta=beta), "table", table, setting, np.array([400])).path
        cost, earned, distance = (float(numbers[-1]) for numbers in path)
        points[name].append((cost, earned))
        assert distance < 0.01, "each ends at the optimum of its beta"
        assert np.isclose(earned, np.interp(cost, line_kl, line_reward), atol=0.01), "so all lie on one line"

# %% [markdown]
# Same reward, same frontier: at equal KL neither method is better. They differ in what they need. The third in the
# table, best of n, writes $n$ answers and keeps the one with the highest reward; more of it below.
#
# | | best of n | PPO | DPO |
# | --- | --- | --- | --- |
# | learns from | nothing | rewards of its own samples | pairs, whoever wrote them |
# | samples | n for every answer, for ever | a batch a step (here 400 × 128 strings) | none |
# | passes over a string | write, reward | write, reference, reward; each epoch | reference; each epoch |
# | models in memory | policy, reward model | policy, value head, reference, reward model | policy |
#
# An epoch's pass is forward and back, as dear as three forward ones. DPO computes the reference's log-probabilities
# once and can then forget that model.
#
# So where does a difference in quality come from? From the reward, which so far both knew without error.
#
# ## A learned reward
#
# Now only choices are known: $m$ pairs of strings drawn from the reference after the first prompt, each judged once by
# Bradley and Terry's coin. The **proxy** $\hat r$ is the reward model fitted to them. Give each string a vector of
# **features** and let the reward be linear in it, $\hat r(y) = w \cdot \phi(y)$; here the features just name the
# string (40 numbers, a one among zeros), on GPT-2 below they are its last hidden state. The fit minimises
#
# $$-\sum_i \log \sigma\big(w \cdot (\phi(y_i^+) - \phi(y_i^-))\big) + \tfrac{\lambda_w}{2} \|w\|^2.$$
#
# The last term, weight decay, keeps a string that never lost from being worth infinitely much. The function is convex,
# and fifteen of Newton's steps (lesson 9) find its minimum. In the code `leads` holds the differences
# $\phi(y_i^+) - \phi(y_i^-)$, a row a choice.

# %%
ref, gold = problem.ref_log_probs[0], problem.rewards[0]


def fit(leads, decay):
    loss = lambda w: reward_model.bradley_terry_loss(leads @ w, 0.0).sum() + decay / 2 * jnp.sum(w**2)
    newton = lambda w, _: (w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w)), None)
    return jax.lax.scan(newton, jnp.zeros(leads.shape[1]), length=15)[0]


def judged(key, policy, size):
    choices = population.sample_choices(key, policy, gold, size)
    return jnp.eye(40)[choices.chosen] - jnp.eye(40)[choices.rejected]


# %% [markdown]
# PPO would now climb $\hat r$, to $\hat\pi_\beta(y) \propto \pi_\text{ref}(y)\, e^{\hat r(y)/\beta}$. And DPO? It has
# no reward model. But lesson 8 turned that formula round: with $\hat\pi_\beta$ as the policy, $\beta h$ **is**
# $\hat r(y^+) - \hat r(y^-)$. So DPO's loss at $\hat\pi_\beta$ is the reward model's loss at $\hat r$, pair by pair.
# Whatever minimises one minimises the other (the weight decay aside): with a policy that can be anything, PPO on the
# reward model and DPO on the same choices end at the same place, errors and all.

# %%
leads = judged(jax.random.key(0), ref, 200)
proxy = fit(leads, 0.05)
policy = enumerable.optimal_log_probs(ref, proxy, 0.5)
chosen, rejected = leads.argmax(axis=1), leads.argmin(axis=1)
of_pairs = dpo.dpo_loss(policy[chosen], policy[rejected], ref[chosen], ref[rejected], beta=0.5)
assert np.allclose(leads.T @ jax.nn.sigmoid(-leads @ proxy), 0.05 * proxy, atol=1e-4), "the gradient of the fit is 0"
assert np.allclose(of_pairs, reward_model.bradley_terry_loss(proxy[chosen], proxy[rejected]), atol=1e-4)

# %% [markdown]
# So one curve speaks for both. For 48 crowds of each size, fit a proxy, walk along the proxy's own frontier, and
# measure there what the proxy promises and what the gold reward gives. (In the figure: means, and as a band the middle
# half of the crowds.)
#
# A third kind of crowd gives 200 choices too, but only half of them between strings of the reference. The other
# half compares strings of the policy that the first half made, at $\beta = 0.5$. Such data are **on-policy**: about
# what the policy writes now. Data written by another policy are off-policy.

# %%
allowed = np.linspace(0, 5, 51)


def second_round(key):
    first = judged(key, ref, 100)
    policy = enumerable.optimal_log_probs(ref, fit(first, 0.05), 0.5)
    return jnp.concatenate([first, judged(jax.random.fold_in(key, 1), policy, 100)])


@jax.jit
@jax.vmap
def along(leads):
    proxy = fit(leads, 0.05)
    policies = jax.vmap(enumerable.optimal_log_probs, (None, None, 0))(ref, proxy, betas)
    cost = kl.exact_kl(policies, jnp.tile(ref, (len(betas), 1)))
    return [jnp.interp(allowed, cost, jnp.exp(policies) @ r - jnp.exp(ref) @ r) for r in (proxy, gold)]


keys = jax.random.split(jax.random.key(1), 48)
crowds = {f"{size:,} choices": partial(judged, policy=ref, size=size) for size in (200, 2000)}
crowds["200, half on-policy"] = second_round
curves = {name: np.array(along(jax.jit(jax.vmap(crowd))(keys))) for name, crowd in crowds.items()}
best = np.interp(allowed, *enumerable.frontier(ref, gold, betas)) - jnp.exp(ref) @ gold
promised, few = curves["200 choices"]  # of the proxy and of gold, a row a crowd, a column a KL
peak = few.mean(axis=0).argmax()
surely = lambda gains: gains.mean() > 4 * gains.std() / np.sqrt(len(gains))

assert (np.diff(promised) > -1e-5).all(), "for every crowd the proxy rises all the way"
assert surely(few[:, peak] - few[:, -1]), "the gold reward rises, and then turns"
assert all((gold_gains <= best + 0.01).all() for _, gold_gains in curves.values()), "nothing is above the gold frontier"
assert surely(curves["2,000 choices"][1, :, -1] - few[:, -1]), "more choices help"
assert surely(curves["200, half on-policy"][1, :, -1] - few[:, -1]), "and so do choices about what the policy writes"

# %% [markdown]
# Picking the highest of many noisy estimates finds the noise: the **winner's curse**. Strings that the reference rarely
# writes were judged once or never, so their estimates err most, and a small $\beta$ lets the policy go just there. The
# measure becomes the target and stops measuring (Goodhart's law); here it is called **over-optimisation**. The KL
# penalty is the cure that costs nothing: stay where the judges have been. The other cure is data, and best on-policy:
# choices about what the policy now writes.
#
# How general is the turn? We chose the gold reward so that it shows: the half of $\log \pi_\text{ref}$ makes truly bad
# what the proxy knows least. Here the mean gain goes from 0.5 down to −0.25. After the second prompt it was milder,
# from 1.2 down to 1.0. With the normal rewards alone it is weaker still, or depends on the seed and the prompt: in four
# such tries the mean fell by 0.05 or less, which is within the noise.

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.7, width_ratios=[1, 1.25])
    left.plot(line_kl[line_kl < 2], line_reward[line_kl < 2], **plots.EXACT, label="exact frontier")
    for (name, reached), color, marker in zip(points.items(), [plots.PPO, plots.DPO], "ox", strict=True):
        left.plot(*np.transpose(reached), marker, color=color, ms=8, mew=2, label=f"{name}, β = 1, ¼")
    left.set(xlabel="KL to the reference (nats)", ylabel="mean gold reward", title="Reward known: one line")
    left.legend(loc="lower right")
    right.plot(allowed, best, **plots.EXACT, label="exact frontier")
    right.plot(allowed, promised.mean(axis=0), ":", color=plots.VERMILLION, label="promised by 200 choices")
    for (name, (_, gains)), color in zip(curves.items(), [plots.VERMILLION, plots.ORANGE, plots.GREEN], strict=True):
        right.plot(allowed, gains.mean(axis=0), color=color, label=f"given by {name}")
        right.fill_between(allowed, *np.quantile(gains, [0.25, 0.75], axis=0), color=color, alpha=0.2, lw=0)
    right.set(xlabel="KL allowed (nats)", ylabel="gain (reward units)", title="Reward learned: proxy up, gold down")
    right.legend(loc="lower left", fontsize=8)
plots.save(figure, "14_over_optimisation")

# %% [markdown]
# ## On GPT-2: best of n
#
# The simplest way to spend a reward model: let the reference write $n$ answers and keep the one that the proxy likes
# best. No training, so a policy that needs only sampling and scoring can be followed far. Its divergence is known. Say
# that a share $u$ of the answers has a lower reward than $y$. If no two rewards are equal, all $n$ are at most as good
# with probability $u^n$; so the best of $n$ has, at this $u$, the density $n u^{n-1}$, and
#
# $$\mathrm{KL}(\pi_n \,\|\, \pi_\text{ref}) = \int_0^1 n u^{n-1} \ln(n u^{n-1})\, du = \log n - \frac{n-1}{n}.$$
#
# This is exact while every string is rare. A language of few strings has ties (the same string twice), and the formula
# is only an upper bound: the KL can never pass $-\log \pi_\text{ref}$ of the best string, the formula grows for ever.

# %%
bound = lambda n: np.log(n) - (n - 1) / n
even = jnp.full(4096, -jnp.log(4096.0))
of_many = kl.exact_kl(enumerable.best_of_n_log_probs(even, jnp.arange(4096.0), 16), even)
of_few = kl.exact_kl(enumerable.best_of_n_log_probs(ref, gold, 256), ref)
assert np.isclose(of_many, bound(16), atol=0.01), "4,096 rare strings: the formula holds"
assert np.isclose(of_few, -ref[gold.argmax()], atol=1e-3), "40 strings: all mass is on the best one,"
assert of_few < bound(256) - 2, "far below the formula"

# %% [markdown]
# Now the bundled GPT-2, film reviews, and the gold annotator of lesson 11, who judges 512 pairs, noisily. The proxy is
# linear in GPT-2's last hidden state, fitted by the same `fit`; 12 crowds each of 32, of 128 and of 512 choices, drawn
# from the 512 with repetition. For 16 new openings the reference writes 128 continuations each. We treat those as a
# language of 128 strings, equally likely, in which `enumerable.best_of_n_log_probs` gives the mean of the best of $n$
# without drawing anything. Scores are in standard deviations of the reference's samples, from their mean.

# %%
sizes = {"num_pairs": 512, "num_validation_pairs": 0, "num_held_out": 16, "completion_length": 24, "dpo_batch": 32}
options = experiment.Settings(**sizes, ppo_iterations=8, ppo_batch=64, num_path_points=2, num_path_prompts=128)
base = experiment.Base(*weights.load("bundled"))
data = experiment_data.simulated(*base, tokenizer.load("bundled"), options, jax.random.key(0))


def last_state(texts):
    tokens, mask = sequences.join(texts)
    return gpt2.hidden(*base, tokens, mask)[jnp.arange(len(tokens)), reward.last_token(mask)]


features = partial(evaluation.in_score_batches, last_state)
lead = features(data.pairs.chosen) - features(data.pairs.rejected)
openings = [np.repeat(array, 128, axis=0) for array in data.held_out]
written = evaluation.sample(*base, *openings, jax.random.key(3), max_new_tokens=24, eos_id=base.config.eos_token_id)
standard = lambda scores: ((scores - scores.mean()) / scores.std()).reshape(16, 128)
states, gold_scores = features(written), evaluation.in_score_batches(data.gold, written)
judge, counts = standard(gold_scores), 2 ** np.arange(8)


def best_of_n(proxy_scores):  # for each n, the mean proxy and the mean gold score of what the proxy picks
    pick = jax.vmap(enumerable.best_of_n_log_probs, (None, 0, None))
    picked = [np.exp(pick(jnp.full(128, -jnp.log(128.0)), proxy_scores, int(n))) / 16 for n in counts]
    return np.array([[np.sum(probs * scores) for scores in (proxy_scores, judge)] for probs in picked])


rng, by_size = np.random.default_rng(0), {}
for size in (32, 128, 512):
    read_outs = jax.jit(jax.vmap(fit, (0, None)))(lead[rng.integers(0, 512, (12, size))], 10.0)
    by_size[size] = gains = np.array([best_of_n(standard(states @ w)) for w in np.array(read_outs)])
    assert (np.diff(gains[:, :, 0]) > 0).all(), "for every crowd the proxy rises with n"
    assert gains[:, -1, 1].mean() < 0.5 * gains[:, -1, 0].mean(), "more promised than given"

# %% [markdown]
# ## PPO and DPO at equal KL, on the same choices
#
# Somebody reports "PPO 0.37, DPO 0.77" and does not say that one run went much further than the other. So: the same 512
# choices, the same model, the same judge. PPO climbs the linear proxy of all 512 choices, DPO reads the choices. Both
# are measured on the way, KL and gold score, on new answers to 128 openings of the training part.

# %%
at = experiment.path_measure(base, data, data.gold, options, jax.random.key(5))
measure = lambda params: at({part: params[part] for part in base.params})  # the policy without PPO's value head
reward_params = base.params | {"score": {"weight": fit(jnp.asarray(lead), 10.0)[None]}}
score = experiment.standardized(base, reward_params, data.pairs)
ppo_run = experiment.train_ppo(base, data, score, measure, options, jax.random.key(2))
paths = {"PPO": np.array(ppo_run.path), "DPO": np.array(experiment.train_dpo(base, data, measure, options).path)}
error = gold_scores.std() / np.sqrt(128)
both_reached = min(path[-1, 0] for path in paths.values())
ppo_gold, dpo_gold = (np.interp(both_reached, *path.T) for path in paths.values())
print(f"at KL {both_reached:.1f}: gold {ppo_gold:.2f} (PPO), {dpo_gold:.2f} (DPO); one standard error {error:.2f}")
assert all(path[0, 0] < 1e-3 < 1 < path[-1, 0] for path in paths.values()), "both leave the reference, by a nat or more"

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.7, width_ratios=[1.25, 1])
    left.plot(bound(counts), best_of_n(judge)[:, 1], **plots.EXACT, label="picked by gold itself")
    for (size, gains), color in zip(by_size.items(), [plots.SKY, plots.ORANGE, plots.GREEN], strict=True):
        left.plot(bound(counts), gains[:, :, 0].mean(axis=0), ":", color=color)
        left.plot(bound(counts), gains[:, :, 1].mean(axis=0), color=color, label=f"by a proxy of {size} choices")
        left.fill_between(bound(counts), gains[..., 1].min(0), gains[..., 1].max(0), color=color, alpha=0.2, lw=0)
    left.set(xlabel="KL of the best of n (nats)", ylabel="gain (std. dev.)", title="Best of n: promised (dots), given")
    left.legend(loc=(0.42, 0.25))
    for (name, path), color in zip(paths.items(), [plots.PPO, plots.DPO], strict=True):
        right.errorbar(*path.T, yerr=error, fmt="o-", color=color, capsize=3, label=name)
    right.set(xlabel="KL to the reference (nats)", ylabel="gold score (nats)", title="512 choices: compare at equal KL")
    right.legend(loc="upper left")
plots.save(figure, "14_gpt2")

# %% [markdown]
# Left: the dashed line is what a perfect judge would get from $n = 1, 2, 4, \dots, 128$. The proxies promise even more,
# and gave less than a tenth of it. Whether gold truly turns down here cannot be said: the bands (all 12 crowds) go both
# ways. The exact language showed a fall; what GPT-2 shows, as far as best of 128 reaches, is promises without pay.
#
# Right (bars of one standard error): in our run DPO ended higher than PPO, and further away. Without the horizontal
# axis we would have reported the step size as a discovery: at KL 3.0, which both have reached, PPO stood at 0.37 and
# DPO at 0.45 (on the line between its points), one standard error being 0.09. That is within the noise, and it is one
# seed. Nor would more seeds settle it, for who is ahead depends on the settings. Runs with a higher rate for PPO and a
# lower price of KL had DPO clearly ahead, about 0.77 against 0.25 to 0.36 near KL 5. So quote no ranking from here.
#
# On the exact language we saw when the two must agree: if policy and reward model can be anything, and both are
# trained to the end. On GPT-2 neither holds. PPO's proxy is what its reward model can express, DPO's is the policy
# itself. Before you compare algorithms, compare their rewards, on choices held out.
#
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/14_ppo_versus_dpo.py).
#
# **1.** A best-of-$n$ sampler picks by a reward without ties. How many nats does it spend?


# %%
def exercise_1(n):
    return ...


answer = exercise_1(8)
assert answer is ... or np.isclose(answer, 1.204, atol=1e-3), "integrate n u^(n-1) ln(n u^(n-1)) from 0 to 1"
print("Exercise 1:", "to do" if answer is ... else "right")

# %% [markdown]
# **2.** You have $N$ samples, `gold_scores` sorted by the proxy, the worst first. Draw $n$ of them with replacement and
# keep the one that the proxy likes best: what gold score do you expect? (How likely is it that all $n$ draws are among
# the $k$ worst? And the best of them is the $k$-th exactly?)


# %%
def exercise_2(gold_scores, n):
    return ...


answer = exercise_2(np.array([0.5, -1.0, 3.0, 1.0]), 3)
assert answer is ... or np.isclose(answer, 87.5 / 64), "P(best is the k-th) = (k/N)^n - ((k-1)/N)^n"
print("Exercise 2:", "to do" if answer is ... else "right")

# %% [markdown]
# **3.** Two runs, each an array of points (KL, gold score) from the reference on, KL rising. The first ends higher. By
# how much is it ahead of the second at the largest KL that **both** have reached? (Straight lines between points.)


# %%
def exercise_3(first_path, second_path):
    return ...


first, second = np.array([[0.0, 1.0], [4.0, 2.0], [12.0, 4.0]]), np.array([[0.0, 1.0], [2.0, 2.2], [6.0, 3.0]])
answer = exercise_3(first, second)
assert answer is ... or np.isclose(answer, -0.5), "at KL 6 the first stands at 2.5, the second at 3"
assert answer is ... or np.isclose(exercise_3(second, first), 0.5), "either of the two may have gone further"
print("Exercise 3:", "to do" if answer is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Gao, Schulman and Hilton (2023), "Scaling Laws for Reward Model Overoptimization": a gold model, proxies of many
#   sizes, best of n and PPO; the measure against KL is theirs. `enumerable.best_of_n_log_probs`.
# - Beirami et al. (2024), "Theoretical guarantees on the best-of-n alignment policy": log n − (n − 1)/n is a bound.
# - Rafailov et al. (2024), "Scaling Laws for Reward Model Overoptimization in Direct Alignment Algorithms": that DPO
#   over-optimises too; `dpo.dpo_loss`.
# - Tajwar et al. (2024), "Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data":
#   `population.sample_choices` draws pairs from any policy.
# - Xu et al. (2024), "Is DPO Superior to PPO for LLM Alignment? A Comprehensive Study": `training.ppo`, `training.dpo`.
# - `kl.adaptive_kl_coefficient` (Ziegler et al. 2019) steers PPO to a KL chosen beforehand.
# - [Lesson 15](15_pitfalls.py): all this assumed that the code was right. How does one know?
