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
# # 7. How does a reward come out of votes?
#
# Lessons 1 to 6 were given the reward: a table $r(s,a)$, and the question was how to earn it. For a language model
# nobody can write that table. What is the answer "Good fun, if a bit long." worth? One has to ask people.
#
# This lesson is about what one may ask, what one may conclude, and what one may not. From now on $x$ is a prompt,
# $y$ an answer to it, and $r(x,y)$ the reward of the whole answer.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import numpy_losses, plots, population, reward_model
from rlhf_jax.preferences import annotators

jax.config.update("jax_enable_x64", True)  # float64: the two fits below then agree to many digits

# %% [markdown]
# ## Why not ask for marks?
#
# The prompt is "How was the film?", and there are five answers. Ann and Bob have the very same taste, here called
# `rewards`. But Ann marks around 5 and Bob around 8. Let Ann mark the best answer and Bob the worst:

# %%
answers = ["Superb!", "Good fun.", "It was fine.", "Too long.", "Dreadful."]
rewards = np.array([1.2, 0.6, 0.1, -0.5, -1.4])

ann, bob = 5 + rewards, 8 + rewards
assert bob[4] > ann[0], "the worst answer gets the better mark"
assert np.allclose(np.subtract.outer(ann, ann), np.subtract.outer(bob, bob)), "but their leads are the same"

# %% [markdown]
# A mark mixes the answer with the habits of its marker. In a **comparison** ("which of these two is better?") one
# person judges both, and the habit cancels. The price: a vote says who won, and not by how much.
#
# ## A vote is a coin
#
# Ask again tomorrow, and the same person may choose differently. Suppose that each look at an answer gives an
# impression, its reward plus a noise, and that the better impression gets the vote. If the noise has Gumbel's
# distribution (a bell with a long right tail), then
#
# $$P(y_1 \succ y_2) = \sigma(r(y_1) - r(y_2)), \qquad \sigma(z) = \frac{1}{1 + e^{-z}}.$$
#
# This is Bradley and Terry's model; $\succ$ reads "is preferred to", and $\sigma$ is the **logistic function**. Turned
# round: a lead of $z$ means **odds** $\frac{P}{1-P} = e^z$. A lead of 1 wins 73 % of the votes, a lead of 3 wins 95 %.
# Such a reward has a unit, the **nat** again: the logarithm, to the base e, of the odds.

# %%
win_probs = lambda scores: numpy_losses.sigmoid(np.subtract.outer(scores, scores))
log_odds = lambda share: np.log(share / (1 - share))
exact_shares, off_diagonal = win_probs(rewards), ~np.eye(5, dtype=bool)
assert np.allclose(win_probs([0.0, 1.0, 3.0])[1:, 0], [0.73, 0.95], atol=0.01)

rng = np.random.default_rng(0)
impressions = rewards + rng.gumbel(size=(100_000, 5))
shares = np.mean(impressions[:, :, None] > impressions[:, None], axis=0)
errors = (shares - exact_shares) / np.sqrt(exact_shares * (1 - exact_shares) / 100_000)
assert (np.abs(errors[off_diagonal]) < 4).all(), "four standard errors"

# %% [markdown]
# ## From votes to scores
#
# Collect 2,000 votes. All that matters of them is the **win table**: `wins[i, j]` is how often answer $i$ was chosen
# over answer $j$.
#
# Which scores explain it best? Those under which what happened was likeliest: **maximum likelihood**. The
# probability of all the votes is a product; take its logarithm, turn the sign, divide by the number of votes $M$:
#
# $$\text{loss}(r) = -\frac{1}{M} \sum_{\text{votes}} \log \sigma\big(r(y^+) - r(y^-)\big),$$
#
# with $y^+$ the chosen and $y^-$ the rejected answer of a vote. Every reward model is trained with this loss, be it a
# network or our five numbers. First as a loop over the votes, then over the table (`meshgrid` makes all pairs
# $r_i, r_j$). Add 100 to all scores, and it stays the same: votes fix scores **up to a constant** only. We let them sum
# to 0. (A margin would ask the chosen answer to lead by so much; here it is 0.)

# %%
even = jnp.full(5, -jnp.log(5.0))  # log-probabilities: every answer is shown equally often
votes = population.sample_choices(jax.random.key(1), even, rewards, 2000)
wins, by_loop = np.zeros((5, 5)), 0.0
for chosen, rejected in zip(votes.chosen, votes.rejected, strict=True):
    wins[chosen, rejected] += 1
    by_loop += numpy_losses.bradley_terry_loss(rewards[chosen], rewards[rejected], margin=0.0) / 2000
print(wins.astype(int))


def vote_loss(scores, wins):
    each = reward_model.bradley_terry_loss(*jnp.meshgrid(scores, scores, indexing="ij"))
    return jnp.sum(wins * each) / jnp.sum(wins)


assert np.allclose([vote_loss(rewards, wins), vote_loss(rewards + 100, wins)], by_loop), "only differences show"

# %% [markdown]
# We minimise it twice. Gradient descent (in steps of size 5) needs the gradient, and that has a plain meaning: expected
# wins less actual wins. With $n_{ij}$ the number of votes on a pair,
#
# $$\frac{\partial\, \text{loss}}{\partial r_i} = \frac{1}{M} \Big( \sum_j n_{ij}\, \sigma(r_i - r_j)
# - \text{wins of } i \Big).$$
#
# At the minimum, then, the model expects exactly the wins that each answer had. Zermelo solved this in 1929, for chess,
# without any gradient: with strengths $w_i = e^{r_i}$ it reads
# $w_i = \text{wins of } i \,\big/ \sum_j \frac{n_{ij}}{w_i + w_j}$, and one puts the result in again and again.


# %%
@jax.jit
def fit(wins):
    descend = lambda _, scores: scores - len(scores) * jax.grad(vote_loss)(scores, wins)
    return jax.lax.fori_loop(0, 500, descend, jnp.zeros(len(wins)))  # a `for` loop of 500 steps, compiled


scores, met = fit(wins), wins + wins.T
excess = np.sum(met * win_probs(rewards), axis=1) - wins.sum(axis=1)
assert np.allclose(jax.grad(vote_loss)(rewards, wins), excess / 2000)
assert np.allclose(np.sum(met * win_probs(scores), axis=1), wins.sum(axis=1), atol=1e-6)

strengths = np.ones(5)
for _ in range(500):
    strengths = wins.sum(axis=1) / np.sum(met / np.add.outer(strengths, strengths), axis=1)
assert np.allclose(np.log(strengths) - np.log(strengths).mean(), scores, atol=1e-6)

# %% [markdown]
# ## How sure are we?
#
# Other votes would have given other scores. How much other, the curvature of the loss says: where the likelihood bends
# sharply, few scores fit. Its matrix of second derivatives, times $M$, is the **Fisher information**. A pair adds
#
# $$n_{ij}\, p_{ij} (1 - p_{ij}), \qquad p_{ij} = \sigma(r_i - r_j):$$
#
# most when it is even, nearly nothing when everybody knew who would win. The inverse of the matrix is the covariance
# of the scores; the root of its diagonal is their **standard error**. (The votes say nothing of the constant, so the
# matrix has no inverse; the pseudo-inverse, `pinv`, leaves the constant out.)

# %%
covariance = lambda scores, wins: jnp.linalg.pinv(wins.sum() * jax.hessian(vote_loss)(scores, wins))
standard_errors = lambda scores, wins: jnp.sqrt(jnp.diag(covariance(scores, wins)))


by_pairs = met * win_probs(scores) * (1 - win_probs(scores))
assert np.allclose(covariance(scores, wins), np.linalg.pinv(np.diag(by_pairs.sum(axis=1)) - by_pairs), atol=1e-9)

# %% [markdown]
# An error bar is a promise: ±1.96 standard errors shall hold the truth in 95 of 100 experiments. So make a thousand
# experiments and count. (`population.bradley_terry_population` lists every pair with its exact probability; a table of
# $M$ votes is then one draw from a multinomial distribution.) The same experiments show how the error falls with $M$:
# as $1/\sqrt{M}$, from where the information of one vote puts it.

# %%
listed, one_vote = population.bradley_terry_population(even, rewards), np.zeros((5, 5))
one_vote[listed.chosen, listed.rejected] = listed.weight

sizes = np.array([500, 2000, 8000, 32_000])
tables = [rng.multinomial(size, one_vote.reshape(-1), size=1000).reshape(-1, 5, 5) for size in sizes]
fits = [jax.vmap(fit)(table) for table in tables]
measured_errors = [np.sqrt(np.mean((fitted - rewards) ** 2)) for fitted in fits]
exact_errors = np.sqrt(np.mean(standard_errors(rewards, one_vote) ** 2) / sizes)
assert np.allclose(measured_errors, exact_errors, rtol=0.06)

bars = 1.96 * jax.vmap(standard_errors)(fits[1], tables[1])
coverage = np.mean(np.abs(fits[1] - rewards) < bars)
assert abs(coverage - 0.95) < 0.01

# %% [markdown]
# How many votes does one need? With $N$ answers of about equal worth, all compared equally often, the lead of one over
# another has standard error $s$ after $M = 4 (N - 1) / s^2$ votes: 1,600 for five answers and $s = 0.1$.

# %%
equals = covariance(np.zeros(5), 1600 / 20 * off_diagonal)  # everybody beats everybody 80 times
assert np.isclose(equals[0, 0] + equals[1, 1] - 2 * equals[0, 1], 0.1**2)

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.3)
    bar = {"xerr": 1.96 * standard_errors(scores, wins), "capsize": 3}
    left.errorbar(scores, answers, fmt="o", color=plots.REWARD, label="fitted, with 95 % bars", **bar)
    left.plot(rewards, answers, "|", color=plots.BLACK, ms=16, mew=1.5, label="true reward")
    left.set(xlabel="score (nats, their sum is 0)", ylim=(4.5, -0.5), title="Five scores from 2,000 votes")
    left.legend(loc="upper left", markerscale=0.6)
    right.loglog(sizes, exact_errors, **plots.EXACT, label="exact, from one vote's information")
    right.loglog(sizes, measured_errors, "o", color=plots.REWARD, label="measured, 1,000 experiments each")
    right.set(xlabel="votes M", ylabel="root mean square error (nats)", ylim=(0.007, 0.25), title="More votes")
    right.legend(loc="lower left")
plots.save(figure, "07_scores_and_votes")

# %% [markdown]
# A tenth of the error costs a hundred times the votes, as in [lesson 1](01_mdp_and_trajectories.py).
#
# ## Three ways to bend a score
#
# Now let the voters be less ideal. `population.choice_probs` has three dials. Turn one, and see which lead the votes
# *seem* to show (the log-odds of the recorded shares) where the true lead is $d$.
#
# - **Temperature** $T$: hasty voters, more noise, $P = \sigma(d/T)$. All leads shrink by one factor; the order stays.
# - **Flips**: a share $\varepsilon$ of the votes is recorded the wrong way round. No lead can look larger than
#   $\ln \frac{1-\varepsilon}{\varepsilon}$, so large leads shrink more than small ones.
# - **Position bias** $b$: what is shown first gets $b$ nats for it. If one answer always comes first, its lead becomes
#   $d + b$, and no number of votes will show the error. In random order, no lead is turned round, but all look smaller.
#
# If the data say what was shown first, the bias can be removed: average the log-odds of the two orders, not the shares.

# %%
leads = np.linspace(0.05, 5, 100)
first = population.choice_probs(leads, 0 * leads, position_bias=1.0)
second = 1 - population.choice_probs(0 * leads, leads, position_bias=1.0)
seeming = {
    "bias 1, shown first": log_odds(first),
    "bias 1, random order": log_odds((first + second) / 2),
    "temperature 2": log_odds(population.choice_probs(leads, 0 * leads, temperature=2.0)),
    "10 % flipped": log_odds(population.choice_probs(leads, 0 * leads, flip_prob=0.1)),
}
assert np.allclose(seeming["temperature 2"], leads / 2)
assert (seeming["10 % flipped"] < np.log(9)).all()
assert (np.diff(seeming["10 % flipped"] / leads) < 0).all(), "large leads shrink more"
assert np.allclose(seeming["bias 1, shown first"], leads + 1)
assert ((seeming["bias 1, random order"] > 0) & (seeming["bias 1, random order"] < leads)).all()
assert np.allclose((log_odds(first) + log_odds(second)) / 2, leads), "the bias is gone"

# %% [markdown]
# ## When people disagree
#
# Noise is one thing, taste another. Half of a crowd wants to laugh, the other half to cry, and each half is quite sure.
# A third answer has a little of both, and is nobody's favourite. Mix their votes and fit one score for all.

# %%
tastes = np.array([[3.0, -3.0, 0.5], [-3.0, 3.0, 0.5]])  # laugh, cry, a little of both
mixed = fit(np.mean([win_probs(taste) for taste in tastes], axis=0))
assert [int(np.argmax(each)) for each in (*tastes, mixed)] == [0, 1, 2], "the winner is nobody's favourite"
assert np.ptp(mixed) < 0.2, "a voter with hardly any preference"

first_asked = np.array([win_probs(taste)[0, 1] for taste in tastes])
assert np.isclose(first_asked.mean(), 0.5), "laugh against cry: a coin toss?"
assert np.mean(first_asked**2 + (1 - first_asked) ** 2) > 0.99, "asked twice, each says the same twice"

# %% [markdown]
# The fit is a voter who does not exist, and a policy trained on it serves that voter. The win table cannot tell this
# crowd from one that tosses coins. A second vote of the **same** person on the same pair can: a coin agrees with itself
# half of the time, a taste nearly always.
#
# ## When no score exists
#
# Three people, three answers, three orders: A over B over C; B over C over A; C over A over B. Each is consistent. But
# two of three prefer A to B, two of three B to C, and two of three C to A: the crowd goes round in a **cycle**, as
# Condorcet saw in 1785. No score puts A above B above C above A. The fit says that all are equal, and its loss stays at
# $\ln 2$, that of tossing coins, though the votes are far from that.
#
# To measure such a misfit, compare with the freest explanation: for each pair its own share of votes. Double the gap
# in log-likelihood,
#
# $$\text{misfit} = 2 \sum_{i,j} \text{wins}_{ij}
# \Big( \log \frac{\text{wins}_{ij}}{n_{ij}} - \log \sigma(r_i - r_j) \Big).$$
#
# If Bradley and Terry are right, it is on average the number of pairs less that of free scores,
# $\frac{(N-1)(N-2)}{2}$, however many the votes. If not, it grows with them. (`xlogy(x, y)` is $x \log y$, and 0 at
# $x = 0$.)


# %%
def misfit(wins):
    freest = jax.scipy.special.xlogy(wins, wins / jnp.maximum(wins + wins.T, 1e-9)).sum()
    return 2 * (freest + wins.sum() * vote_loss(fit(wins), wins))


orders = [[4.0, 0.0, -4.0], [-4.0, 4.0, 0.0], [0.0, -4.0, 4.0]]
cycle = np.mean([win_probs(order) for order in orders], axis=0) * ~np.eye(3, dtype=bool)
assert min(cycle[0, 1], cycle[1, 2], cycle[2, 0]) > 0.65
assert np.allclose(fit(cycle), 0, atol=1e-6)
assert np.isclose(vote_loss(fit(cycle), cycle), np.log(2))

honest = jax.vmap(misfit)(tables[1])
assert abs(honest.mean() - 6) < 4 * honest.std() / np.sqrt(1000), "five answers: 4 x 3 / 2"
assert misfit(200 * cycle) > 50, "600 votes in a cycle; honest ones would give 1"

# %% [markdown]
# ## Ties and rankings
#
# "I cannot decide" is an answer too. Davidson gives it a place between the two wins, with $\nu$ the odds of a tie
# against a win between equals:
#
# $$P(y_1 \text{ wins}) : P(\text{tie}) : P(y_2 \text{ wins}) = e^{r_1} : \nu\, e^{(r_1 + r_2)/2} : e^{r_2}.$$
#
# Leave the ties out, and Bradley and Terry's model remains: the leads are right. Count each tie as half a win for
# either, as many do, and every lead looks too small. (`davidson_loss` takes both rewards and whether it was a tie.)

# %%
outcomes = [(1.2, 0.1, False), (1.2, 0.1, True), (0.1, 1.2, False)]
win, tie, lose = (np.exp(-reward_model.davidson_loss(*outcome, tie_weight=0.8)) for outcome in outcomes)
assert np.isclose(tie, np.exp(-numpy_losses.davidson_loss(*outcomes[1], tie_weight=0.8)))
assert np.isclose(log_odds(win / (win + lose)), 1.1)
assert log_odds(win + tie / 2) < 0.8 * 1.1

# %% [markdown]
# And a **ranking** says more than one vote. Sort the noisy impressions from above: the best is a choice among all, the
# second a choice among the rest, and so on. This is Plackett and Luce's model,
#
# $$P(y_1 \succ y_2 \succ \dots \succ y_K) = \prod_{k=1}^{K} \frac{e^{r(y_k)}}{\sum_{j \ge k} e^{r(y_j)}}.$$

# %%
in_order = np.mean((impressions[:, 0] > impressions[:, 1]) & (impressions[:, 1] > impressions[:, 2]))
prob = np.exp(-reward_model.plackett_luce_loss(rewards[:3]))
assert np.isclose(prob, np.exp(-numpy_losses.plackett_luce_loss(rewards[:3])))
assert abs(in_order - prob) < 4 * np.sqrt(prob * (1 - prob) / 100_000)

# %% [markdown]
# ## How good can a reward model be?
#
# Votes are coins, so nobody foretells all of them. Let $p = P(y_1 \succ y_2)$. Who knows the true reward, and names the
# better answer, is right with probability $\max(p, 1-p)$ on each pair: no model can be expected to do better on fresh
# votes. Two people of the same taste agree less often still, with $p^2 + (1-p)^2$. So 70 % may be a poor reward model
# or a perfect one: ask how often the annotators agree before you judge. (Exercise 3 makes a bound of it.)

# %%
ceiling = annotators.best_accuracy(rewards[listed.chosen], rewards[listed.rejected], temperature=1.0)
accuracy = np.mean(rewards[votes.chosen] > rewards[votes.rejected])
assert abs(accuracy - ceiling) < 4 * np.sqrt(ceiling * (1 - ceiling) / 2000)
assert np.mean((exact_shares**2 + (1 - exact_shares) ** 2)[off_diagonal]) < ceiling - 0.05, "agreement"

# %%
with plots.style():
    figure, (left, right) = plots.subplots(1, 2, width=8.4, height=3.5)
    left.plot(leads, leads, **plots.EXACT, label="the true lead")
    for name, lead in seeming.items():
        left.plot(leads, lead, label=name)
    left.set(xlabel="true lead (nats)", ylabel="lead that the votes show (nats)", title="Ways to bend a score")
    left.legend(loc="upper left")
    right.plot((tastes - tastes.mean(axis=1, keepdims=True)).T, "s", label=["half of the crowd", "the other half"])
    right.plot(mixed, "o", color=plots.REWARD, label="one score for all")
    right.set_xticks(range(3), ["laugh", "cry", "a little\nof both"])
    right.set(xlim=(-0.5, 2.5), ylabel="score (nats)", title="A middle that nobody has")
    right.legend(loc="lower right")
plots.save(figure, "07_distortions")

# %% [markdown]
# ## Exercises
#
# Replace `...` and run the cell: it checks your answer. [Solutions](solutions/07_human_preferences.py).
#
# **1.** A beats B three times for every loss (odds 3), B beats C with odds 2. With which probability does A beat C, if
# Bradley and Terry are right?


# %%
def exercise_1(odds_a_b, odds_b_c):
    return ...


answer = exercise_1(3.0, 2.0)
assert answer is ... or np.isclose(answer, 6 / 7), "leads add, so what do odds do?"
print("Exercise 1:", "to do" if answer is ... else "right")

# %% [markdown]
# **2.** A share $\varepsilon$ of all votes is recorded the wrong way round, and $\varepsilon$ is known. Of the recorded
# votes, a share $s$ is for $y_1$. Which lead $r(y_1) - r(y_2)$ does the crowd really give it?


# %%
def exercise_2(share, flip_prob):
    return ...


answer = exercise_2(0.75, 0.1)
assert answer is ... or np.isclose(population.choice_probs(answer, 0.0, flip_prob=0.1), 0.75), "undo the flips first"
print("Exercise 2:", "to do" if answer is ... else "right")

# %% [markdown]
# **3.** Somebody reports a reward model with an accuracy of 85 % on fresh votes. You measure that two annotators of one
# taste agree on 68 % of the pairs. Is 85 % possible? Find the highest accuracy that any model can be expected to reach,
# given the agreement and nothing else. (Let $p$ be the better answer's share, and write $p = \frac{1+u}{2}$ on each
# pair; the mean of $u$ is at most the root of the mean of $u^2$.)


# %%
def exercise_3(agreement):
    return ...


answer = exercise_3(0.68)
if answer is not ...:
    assert np.allclose([answer, exercise_3(0.82)], [0.8, 0.9]), "if p = 0.8, or 0.9, on every pair"
    p = np.array([0.5, 0.7, 0.95])
    assert np.mean(p) <= exercise_3(np.mean(p**2 + (1 - p) ** 2)), "on these pairs a perfect model beats your bound"
print("Exercise 3:", "to do" if answer is ... else "right")

# %% [markdown]
# ## Where to go next
#
# - Bradley and Terry (1952), "Rank Analysis of Incomplete Block Designs": `reward_model.bradley_terry_loss`. Zermelo
#   (1929) was first; Hunter (2004), "MM algorithms for generalized Bradley-Terry models", says why the iteration works.
# - Davidson (1970) for ties: `reward_model.davidson_loss`. Plackett (1975) for rankings:
#   `reward_model.plackett_luce_loss`; `reward_model.best_of_k_loss` if only the best is named.
# - Christiano et al. (2017), "Deep Reinforcement Learning from Human Preferences", train policies on scores fitted to
#   votes; Stiennon et al. (2020), "Learning to summarize from human feedback", do so for language.
# - Chowdhury et al. (2024), "Provably Robust DPO", on flipped votes: `population.choice_probs`.
# - The road from here: fit a reward, then improve the policy against it, as lesson 6 does. [Lesson 8](08_dpo.py) needs
#   no reward model at all.
