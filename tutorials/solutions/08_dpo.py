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
# # Solutions of lesson 8

# %%
import numpy as np

# %% [markdown]
# **1.** The implicit reward of an answer is $\beta \log(\pi/\pi_\text{ref})$, up to a constant that cancels. The
# log-ratios are $-3 + 5 = 2$ and $-2 + 3 = 1$, so $h = 1$, and the probability is $\sigma(0.5 \cdot 1) = 0.62$. The
# policy finds $y^-$ likelier, and yet prefers $y^+$: it has moved further towards it.


# %%
def exercise_1(chosen, rejected, ref_chosen, ref_rejected, beta):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return 1 / (1 + np.exp(-beta * h))


# %% [markdown]
# **2.** $\frac{d}{dz} \log \sigma(z) = \sigma(-z)$, and $\frac{dh}{d \log \pi(y^+)} = 1$. So the derivative is
# $-\beta\, \sigma(-\beta h)$. The factor $\sigma(-\beta h)$ is the probability that the policy, read as a reward model,
# gives to the *other* choice: pairs that it has wrong count most, pairs that it has surely right hardly at all.


# %%
def exercise_2(h, beta):
    return -beta / (1 + np.exp(beta * h))


# %% [markdown]
# **3.** The smoothed loss is level where $\beta h = \ln \frac{1 - \varepsilon}{\varepsilon}$. With $h = \ln k$ this
# reads $k^\beta = \frac{1 - \varepsilon}{\varepsilon}$, so $\varepsilon = \frac{1}{1 + k^\beta}$. For $\beta = 0.1$ and
# $k = 20$ that is 0.43: a small $\beta$ lets $h$ run far before the loss takes notice.


# %%
def exercise_3(factor, beta):
    return 1 / (1 + factor**beta)
