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
# # Solutions of lesson 9

# %%
import numpy as np

# %% [markdown]
# **1.** $J(\pi) = \beta \log Z - \beta\, \mathrm{KL}(\pi \| \pi^*)$, and no divergence is below 0. The largest $J$ is
# $\beta \log Z$, with $Z = \sum_y \pi_\text{ref}(y)\, e^{r(y)/\beta}$.


# %%
def exercise_1(ref_probs, rewards, beta):
    return beta * np.log(np.sum(ref_probs * np.exp(rewards / beta)))


# %% [markdown]
# **2.** After the first token $a$ what is left is a smaller problem of the same kind, over the second token alone. By
# exercise 1 its largest objective is
#
# $$V(a) = \beta \log \sum_b \pi_\text{ref}(b|a)\, e^{r(ab)/\beta}.$$
#
# For the first token, $V(a)$ is the reward: $\pi^*(a) \propto \pi_\text{ref}(a)\, e^{V(a)/\beta}$. It is the backward
# induction of lesson 2, with a log-sum in the place of the maximum. It also is the sum over $b$ of $\pi^*(ab)$.


# %%
def exercise_2(ref_first, ref_second, rewards, beta):
    values = beta * np.log(np.sum(ref_second * np.exp(rewards / beta), axis=1))
    weights = ref_first * np.exp(values / beta)
    return weights / weights.sum()


# %% [markdown]
# **3.** Choices show rewards in units of the annotators' noise: the scores that explain them are $r/T$. DPO with the
# parameter $b$ therefore arrives at $\pi_\text{ref}\, e^{r/(T b)}$, normalised. That is the optimum for
# $\beta = T b$, so give it $b = \beta / T$.


# %%
def exercise_3(beta, temperature):
    return beta / temperature
