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
# # Solutions of lesson 10

# %%
import numpy as np

# %% [markdown]
# **1.** A log-softmax at each place; the one at place $t$ is read at token $t + 1$, so the last row of logits and the
# first token are left out. The sum of logarithms is the logarithm of lesson 1's product.


# %%
def exercise_1(logits, tokens):
    normalised = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return sum(normalised[t, tokens[t + 1]] for t in range(len(tokens) - 1))


# %% [markdown]
# **2.** Dividing the logits by $u$ raises each probability to the power $1/u$ before it is normalised. Then all but the
# $k$ largest are dropped, and the rest is normalised again.


# %%
def exercise_2(logits, temperature, top_k):
    powers = np.exp((logits - logits.max()) / temperature)
    powers[np.argsort(-powers)[top_k:]] = 0
    return powers / powers.sum()


# %% [markdown]
# **3.** A token counts if no EOS stands *before* it: the first EOS itself counts, its copies behind do not. That is
# sound for completions, because the sampler stops at the first one. A prompt may hold an EOS for a good reason (GPT-2
# opens every text with one), and padding with the same id cannot be told from it.


# %%
def exercise_3(tokens, eos_id):
    stops = tokens == eos_id
    return np.cumsum(stops) - stops == 0
