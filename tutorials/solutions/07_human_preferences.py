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
# # Solutions of lesson 7

# %%
import numpy as np

# %% [markdown]
# **1.** Leads add: $r_A - r_C = (r_A - r_B) + (r_B - r_C)$. A lead is the logarithm of the odds, so odds multiply:
# $3 \times 2 = 6$, and odds $o$ are the probability $\frac{o}{1 + o} = \frac{6}{7}$.


# %%
def exercise_1(odds_a_b, odds_b_c):
    odds = odds_a_b * odds_b_c
    return odds / (1 + odds)


# %% [markdown]
# **2.** A vote recorded for $y_1$ was given for $y_1$ and kept, or for $y_2$ and flipped:
# $s = (1 - \varepsilon) p + \varepsilon (1 - p)$, so $p = \frac{s - \varepsilon}{1 - 2 \varepsilon}$. The lead is the
# logarithm of its odds, $\log \frac{p}{1 - p} = \log \frac{s - \varepsilon}{1 - \varepsilon - s}$.


# %%
def exercise_2(share, flip_prob):
    return np.log((share - flip_prob) / (1 - flip_prob - share))


# %% [markdown]
# **3.** With $u = 2 \max(p, 1 - p) - 1$, between 0 and 1, two annotators agree on a pair with probability
# $p^2 + (1 - p)^2 = \frac{1 + u^2}{2}$ and a perfect model is right with probability $\frac{1 + u}{2}$. The mean over
# pairs of $u$ is at most $\sqrt{\text{mean of } u^2} = \sqrt{2a - 1}$, $a$ being the agreement. So no model can be
# expected to be right more often than $\frac{1 + \sqrt{2a - 1}}{2}$; it is reached if all pairs are equally hard.
# For 68 % it is 80 %. Somebody who reports 85 % on fresh votes has tested on training data, or on easier pairs.


# %%
def exercise_3(agreement):
    return (1 + np.sqrt(2 * agreement - 1)) / 2
