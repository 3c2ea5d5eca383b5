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
# # Solutions of lesson 13

# %%
import numpy as np

# %% [markdown]
# **1.** The implicit reward of an answer is $\beta \log(\pi / \pi_\text{ref})$; with $\beta > 0$ its size does not
# change who is ahead.


# %%
def exercise_1(chosen, rejected, ref_chosen, ref_rejected):
    return np.mean(chosen - ref_chosen > rejected - ref_rejected)


# %% [markdown]
# **2.** $\frac{d}{dz} \log \sigma(z) = \sigma(-z)$, so the slope is
# $-(1 - \varepsilon)\, \beta\, \sigma(-\beta h) + \varepsilon\, \beta\, \sigma(\beta h)
# = \beta\, [\sigma(\beta h) - (1 - \varepsilon)]$. It is 0 where the model gives the chosen answer the probability
# $1 - \varepsilon$: at $\beta h = \ln((1 - \varepsilon) / \varepsilon)$, 1.39 for $\varepsilon = 0.2$. Beyond it,
# smoothing pulls back; without smoothing nothing ever does.


# %%
def exercise_2(h, beta, label_smoothing):
    return beta * (1 / (1 + np.exp(-beta * h)) - (1 - label_smoothing))


# %% [markdown]
# **3.** Both answers of a pair were drawn from the reference, so the mean of $\log \pi_\text{ref} - \log \pi$ over
# chosen *and* rejected answers is the divergence. Over the chosen ones alone it is not: being chosen is not random.


# %%
def exercise_3(chosen, rejected, ref_chosen, ref_rejected):
    return np.mean([ref_chosen - chosen, ref_rejected - rejected])
