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
# # Solutions of lesson 5

# %%
import numpy as np

# %% [markdown]
# **1.** Go from the last step to the first and keep the advantage of the step behind. The discount stands twice: it
# switches off the next state's value, and everything that was learned after the end.


# %%
def exercise_1(rewards, discounts, values, lambda_):
    advantages, following = np.zeros(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        error = rewards[t] + discounts[t] * values[t + 1] - values[t]
        following = error + discounts[t] * lambda_ * following
        advantages[t] = following
    return advantages


# %% [markdown]
# **2.** With two actions $1 - \pi_0 = \pi_1$. In
#
# $$b^* = \frac{2 \pi_0 \pi_1^2\, Q_0 + 2 \pi_1 \pi_0^2\, Q_1}{2 \pi_0 \pi_1^2 + 2 \pi_1 \pi_0^2}$$
#
# everything has the factor $2 \pi_0 \pi_1$; what is left below is $\pi_1 + \pi_0 = 1$, so
# $b^* = \pi_1 Q_0 + \pi_0 Q_1$: each action's value, weighted with the **other** action's probability. It is $V$ only
# if both are equally likely (or equally good). The variance at $b^*$ is 0 here: with two actions that baseline makes
# $(1 - \pi_a)(Q_a - b)$ the same size for both, with the sign that the direction needs.


# %%
def exercise_2(probs, action_values):
    return probs[1] * action_values[0] + probs[0] * action_values[1]


# %% [markdown]
# **3.** Different trajectories are independent and $\mathbb{E}[z_j] = 0$, so in the mean of
# $(R_i - \frac{1}{N} \sum_j R_j)\, z_i$ only $j = i$ matters: it is $(1 - \frac{1}{N})\, \nabla J$. The direction is
# right and the length $\frac{N-1}{N}$ of what it should be. Multiply by $\frac{N}{N-1}$. That is the same as
# subtracting the mean of the **other** returns, which knows nothing about the action: `group.rloo_advantages`.


# %%
def exercise_3(batch_returns):
    size = len(batch_returns)
    return (batch_returns - np.mean(batch_returns)) * size / (size - 1)
