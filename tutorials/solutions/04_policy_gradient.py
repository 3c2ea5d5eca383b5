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
# # Solutions of lesson 4

# %%
import numpy as np

# %% [markdown]
# **1.** $\log \pi(a) = \theta_a - \log \sum_c e^{\theta_c}$. The derivative in $\theta_b$ of the first term is 1 if
# $b = a$, that of the second is $e^{\theta_b} / \sum_c e^{\theta_c} = \pi(b)$. So it is $1[a = b] - \pi(b)$; the
# entries sum to 0.


# %%
def exercise_1(probs, action):
    return np.eye(len(probs))[action] - probs


# %% [markdown]
# **2.** Weigh each action's score with what it earns:
#
# $$\frac{\partial J}{\partial \theta_a} = \sum_b \pi(b)\, r(b)\, (1[a = b] - \pi(a))
# = \pi(a)\, r(a) - \pi(a) \sum_b \pi(b)\, r(b) = \pi(a)\, (r(a) - J).$$
#
# The baseline is the second half of the score: the probabilities sum to 1, so who raises one of
# them lowers the others, and pays what they earn.


# %%
def exercise_2(probs, rewards):
    return probs * (rewards - probs @ rewards)


# %% [markdown]
# **3.** The mean over $\mu$ is $\sum_a \mu(a)\, \nabla \log \pi(a)\, w(a)$, and it is to be
# $\sum_a \pi(a)\, \nabla \log \pi(a)\, r(a)$. So $w(a) = \frac{\pi(a)}{\mu(a)}\, r(a)$: an importance weight, the
# ratio of lesson 6. (Minus any constant times $\frac{\pi(a)}{\mu(a)}$, if one likes: a baseline.)


# %%
def exercise_3(probs, old_probs, rewards):
    return probs / old_probs * rewards
