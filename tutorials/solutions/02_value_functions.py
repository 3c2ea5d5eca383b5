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
# # Solutions of lesson 2

# %%
import jax.numpy as jnp

from rlhf_jax import values

# %% [markdown]
# **1.** $V(s) = \sum_a \pi(a|s)\, Q(s,a)$, then $A(s,a) = Q(s,a) - V(s)$. An action that the policy never takes has an
# advantage too: it says what trying it would gain.


# %%
def exercise_1(policy, action_values):
    return action_values - (policy * action_values).sum(axis=1, keepdims=True)


# %% [markdown]
# **2.** The best way to spend $k$ days is to take some action today and to spend the $k - 1$ other days in the best
# way, from wherever one is then. So today's action $a$ is worth
# $r(s,a) + \gamma \sum_{s'} P(s'|s,a)\, V^*_{k-1}(s')$, and the best action is worth the largest of these numbers. In
# the poor town it is to stay on the last day (0.2 against 0) and to move if there are two or more (0.828 against
# 0.452). The best policy depends on the days that are left; only without end is it the same every day.


# %%
def exercise_2(world, num_days):
    best = jnp.zeros(world.reward.shape[0])
    for _ in range(num_days):
        best = values.bellman_backup(world, best).max(axis=1)
    return best


# %% [markdown]
# **3.** Along a trajectory the extra pay is
# $\sum_t \gamma^t [\gamma \Phi(s_{t+1}) - \Phi(s_t)] = (\gamma \Phi(s_1) - \Phi(s_0)) + (\gamma^2 \Phi(s_2) -
# \gamma \Phi(s_1)) + \dots$: everything cancels but $-\Phi(s_0)$. So $V'(s) = V(s) - \Phi(s)$, whatever the policy.
# $Q$ changes in the same way, by the same number for all actions of a state: the ranking, the advantages and the best
# policy stay. (Ng, Harada and Russell, 1999, "Policy Invariance Under Reward Transformations".)


# %%
def exercise_3(state_values, potential):
    return state_values - potential
