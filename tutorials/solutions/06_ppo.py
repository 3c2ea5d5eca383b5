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
# # Solutions of lesson 6

# %%
import numpy as np

# %% [markdown]
# **1.** The ratio, its clipped copy, and the smaller of the two products. With $A < 0$ the smaller product is the more
# negative one.


# %%
def exercise_1(prob, old_prob, advantage, clip_eps):
    ratio = prob / old_prob
    return min(ratio * advantage, np.clip(ratio, 1 - clip_eps, 1 + clip_eps) * advantage)


# %% [markdown]
# **2.** Where the `min` takes $\rho A$ the slope is $A\, \partial \rho / \partial \log \pi = \rho A$. It takes the
# constant $(1 + \epsilon) A$ if $A > 0$ and $\rho > 1 + \epsilon$, and $(1 - \epsilon) A$ if $A < 0$ and
# $\rho < 1 - \epsilon$; there the slope is 0.


# %%
def exercise_2(ratio, advantage, clip_eps):
    flat = ratio > 1 + clip_eps if advantage > 0 else ratio < 1 - clip_eps
    return 0.0 if flat else ratio * advantage


# %% [markdown]
# **3.** A good action that has become rare ($A = 1$, $\rho < 0.8$) and a bad one that has become likely ($A = -1$,
# $\rho > 1.2$). The clip alone is flat on both sides: an action that other samples, or shared parameters, pushed to
# the wrong side stays there. The `min` prefers $\rho A$ there, which pulls it back.


# %%
def exercise_3():
    return 0.5, 1.5
