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
# # Solutions of lesson 15

# %%
import jax
import jax.numpy as jnp

# %% [markdown]
# **1.** A mean of row means weighs the tokens of short rows more, and an empty row is 0/0. Sum over the batch, divide
# by the batch's count, and keep the count above 0. This is `masking.masked_mean`.


# %%
def exercise_1(losses, mask):
    return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1)


# %% [markdown]
# **2.** The reference's gap is to be subtracted: $h$ is the policy's gap less the reference's. And $\sigma(z)$ rounds
# to 0 for very negative $z$, where $\log \sigma(z) \approx z$: compute the two together. This is `dpo.dpo_loss`.


# %%
def exercise_2(chosen, rejected, ref_chosen, ref_rejected):
    return -jax.nn.log_sigmoid(0.1 * ((chosen - rejected) - (ref_chosen - ref_rejected)))


# %% [markdown]
# **3.** The division by each answer's length makes a token of a long wrong answer cheap; the division by the deviation
# makes prompts of nearly equal rewards weigh most. Without both it is Dr. GRPO: `group.centered_advantages` and
# `group.fixed_length_mean`.


# %%
def exercise_3(log_probs, rewards, mask):
    weights = (rewards - rewards.mean())[:, None]
    return -jnp.where(mask, weights * log_probs, 0).sum() / mask.size
