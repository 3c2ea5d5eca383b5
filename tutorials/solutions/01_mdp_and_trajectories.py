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
# # Solutions of lesson 1

# %%
import math

import numpy as np

# %% [markdown]
# **1.** Multiply reward by reward with $\gamma^0, \gamma^1, \gamma^2, \dots$ and add:
# $2 + 0.5 \cdot 0 + 0.25 \cdot 8 = 4$.


# %%
def exercise_1(rewards, gamma):
    return np.sum(rewards * gamma ** np.arange(len(rewards)))


# %% [markdown]
# **2.** To be in $s'$ tomorrow one must be in some $s$ today, choose some $a$ there, and be taken to $s'$:
#
# $$P(s_{t+1} = s') = \sum_s P(s_t = s) \sum_a \pi(a|s)\, P(s'|s, a), \qquad P(s_0 = s) = \rho_0(s).$$
#
# This is the sum over all trajectories, with the days already summed over put in brackets. It costs
# $S \times A \times S$ multiplications a day instead of a list that grows with every day.


# %%
def exercise_2(world, policy, day):
    probs = np.array(world.initial)
    for _ in range(day):
        probs = np.einsum("s,sa,sax->x", probs, policy, world.transition)
    return probs


# %% [markdown]
# **3.** From $\sigma / \sqrt{N} = \text{error}$ follows $N = (\sigma / \text{error})^2$. The spread about the samples'
# *own* mean is too small, since that mean lies in their middle; dividing by $n - 1$ instead of $n$ makes the variance
# unbiased (`ddof=1`). With four returns that is a third more trajectories, with a thousand it no longer matters. And
# four returns are few: the number they give is itself rough, so ask again as more come in.


# %%
def exercise_3(first_returns, error):
    return math.ceil(np.var(first_returns, ddof=1) / error**2)
