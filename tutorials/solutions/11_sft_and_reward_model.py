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
# # Solutions of lesson 11

# %%
import numpy as np

# %% [markdown]
# **1.** Select the real tokens, then take one mean over all of them. Selecting, not multiplying: what stands at padding
# may be anything, NaN included.


# %%
def exercise_1(per_token, mask):
    return -per_token[mask].mean()


# %% [markdown]
# **2.** With $d = r^+ - r^-$, $\frac{d}{dd} [-\log \sigma(d)] = -(1 - \sigma(d))$, and $d$ rises with $r^+$ and falls
# with $r^-$. Its size is the probability that the model gives to the *other* choice: near 0 for a pair that it ranks
# rightly and with confidence, near 1 for one that it ranks wrongly and with confidence.


# %%
def exercise_2(chosen, rejected):
    wrong = 1 / (1 + np.exp(chosen - rejected))
    return -wrong, wrong


# %% [markdown]
# **3.** The loss of the held-out choices, $\frac{1}{M} \sum_i \log(1 + e^{-d_i / u})$, at many temperatures, 0.2 %
# apart; the lowest wins. (In $1/u$ it is convex, so there is one minimum.)


# %%
def exercise_3(leads):
    temperatures = np.geomspace(0.1, 10, 2001)
    losses = [np.logaddexp(0, -leads / u).mean() for u in temperatures]
    return temperatures[np.argmin(losses)]
