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
# # Solutions of lesson 14

# %%
import numpy as np

# %% [markdown]
# **1.** The best of $n$ uniform numbers lies below $u$ with probability $u^n$, so its density is $n u^{n-1}$. With
# $\int_0^1 n u^{n-1} \ln u\, du = -\frac{1}{n}$,
#
# $$\int_0^1 n u^{n-1} \big(\ln n + (n-1) \ln u\big)\, du = \ln n - \frac{n-1}{n}.$$


# %%
def exercise_1(n):
    return np.log(n) - (n - 1) / n


# %% [markdown]
# **2.** All $n$ draws are among the $k$ worst with probability $(k/N)^n$. The best draw is the $k$-th if that holds for
# $k$ and not for $k - 1$.


# %%
def exercise_2(gold_scores, n):
    up_to = (np.arange(len(gold_scores) + 1) / len(gold_scores)) ** n
    return np.diff(up_to) @ gold_scores


# %% [markdown]
# **3.** Cut both runs at the smaller of the two last KLs. Beyond it one of them has no measurement, and to compare the
# ends would compare budgets.


# %%
def exercise_3(first_path, second_path):
    shared = min(first_path[-1, 0], second_path[-1, 0])
    return np.interp(shared, *first_path.T) - np.interp(shared, *second_path.T)
