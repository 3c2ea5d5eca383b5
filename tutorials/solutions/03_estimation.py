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
# # Solutions of lesson 3

# %%
import numpy as np

from rlhf_jax import returns

# %% [markdown]
# **1.** The TD error is $\delta = r + \gamma V(s') - V(s)$. A share $\alpha$ of it is added to the old guess; nothing
# else in the table moves.


# %%
def exercise_1(table, state, reward, next_state, gamma, step_size):
    error = reward + gamma * table[next_state] - table[state]
    return table[state] + step_size * error


# %% [markdown]
# **2.** $G_t = r_t + \gamma\,[(1 - \lambda)\, v(s_{t+1}) + \lambda\, G_{t+1}]$ needs tomorrow's return, so walk
# backwards. On the last day both parts of the bracket are $v(s_T)$, whatever $\lambda$ is. To see that this is the
# mixture of n-step returns, put the equation for $G_{t+1}$ into the bracket again and again: $G_t^{(n)}$ ends up with
# the weight $(1 - \lambda)\, \lambda^{n-1}$, and the longest one with what is left.


# %%
def exercise_2(rewards, gamma, table_values, lambda_):
    result, following = np.zeros(len(rewards)), table_values[-1]
    for t in reversed(range(len(rewards))):
        following = rewards[t] + gamma * ((1 - lambda_) * table_values[t + 1] + lambda_ * following)
        result[t] = following
    return result


# %% [markdown]
# **3.** Nothing follows the end of a game, so on day 1 the discount is 0. The last day is different: the game went on,
# only unseen, and $\gamma v(s_T)$ must stand for the rest. Your colleague took the cut for an end. Every value is then
# too low (here rewards are positive), most near the cut. The same mistake lurks in every trainer that limits how long
# an episode, or a text, may be.


# %%
def exercise_3(rewards, terminated, table_values, gamma):
    return returns.lambda_returns(rewards, gamma * (1.0 - terminated), table_values, 1.0)
