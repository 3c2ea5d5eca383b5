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
# # Solutions of lesson 12

# %%
import numpy as np

# %% [markdown]
# **1.** Every token pays its sampled share of the KL; the score comes once, with the last token.


# %%
def exercise_1(log_probs, ref_log_probs, score, beta):
    rewards = -beta * (log_probs - ref_log_probs)
    rewards[-1] += score
    return rewards


# %% [markdown]
# **2.** The loss is $-\min(\rho A, \mathrm{clip}(\rho) A)$ and $d\rho / d \log \pi = \rho$. Where the first of the two
# is the smaller the slope is $-\rho A$; where the second is, and the clip binds, it is 0: that is where $A > 0$ and
# $\rho > 1 + \epsilon$ (good, and likely enough), or $A < 0$ and $\rho < 1 - \epsilon$ (bad, and rare enough).


# %%
def exercise_2(ratios, advantages, clip_eps):
    done = np.where(advantages > 0, ratios > 1 + clip_eps, ratios < 1 - clip_eps)
    return np.where(done, 0, -ratios * advantages)


# %% [markdown]
# **3.** At the last token the colleague's $\delta$ holds $V$ of the padding, $r + V(\text{padding}) - V$, and behind it
# come the $\delta$ of the padding itself. Both leak into every advantage before. Set the discount to 0 at the last real
# token: the text ends there, nothing follows.


# %%
def exercise_3(rewards, values, mask, lambda_):
    advantages, ahead = np.zeros(len(rewards)), 0.0
    for t in reversed(range(mask.sum())):
        discount = 0.0 if t == mask.sum() - 1 else 1.0
        delta = rewards[t] + discount * values[t + 1] - values[t]
        advantages[t] = ahead = delta + discount * lambda_ * ahead
    return advantages
