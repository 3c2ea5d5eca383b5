"""The library's equations as plain NumPy loops in float64: slow and obvious. Read these first.

No jax here: the tests compare every function of the library with its loop.
"""

import itertools

import numpy as np

# --- Trajectories and returns


def trajectory_prob(initial, transition, policy, states, actions):
    """P(τ|π) = ρ₀(s₀) ∏_t P(s_{t+1}|s_t, a_t) π(a_t|s_t)."""
    prob = float(initial[states[0]])
    for t in range(len(actions)):
        prob *= float(transition[states[t]][actions[t]][states[t + 1]]) * float(policy[states[t]][actions[t]])
    return prob


def enumerate_trajectories(num_states, num_actions, num_steps):
    """Every (states, actions), in lexicographic order of s₀, a₀, s₁, …, s_T."""
    steps = [range(num_states)] + [range(num_actions), range(num_states)] * num_steps
    return [(sequence[::2], sequence[1::2]) for sequence in itertools.product(*steps)]


def discounted_return(rewards, gamma):
    """R(τ) = Σ_t γ^t r_t."""
    total = 0.0
    for t in range(len(rewards)):
        total += float(gamma) ** t * float(rewards[t])
    return total


def rewards_to_go(rewards, discounts):
    """G_t = r_t + d_t r_{t+1} + d_t d_{t+1} r_{t+2} + …"""
    return n_step_returns(rewards, discounts, np.zeros(len(rewards) + 1), len(rewards))


def n_step_returns(rewards, discounts, values, n):
    """G_t = r_t + d_t r_{t+1} + … + d_t ⋯ d_{t+m−1} v_{t+m}, m = min(n, T − t)."""
    length = len(rewards)
    targets = np.zeros(length)
    for t in range(length):
        discount = 1.0
        for k in range(t, min(t + n, length)):
            targets[t] += discount * float(rewards[k])
            discount *= float(discounts[k])
        targets[t] += discount * float(values[min(t + n, length)])
    return targets


def lambda_returns(rewards, discounts, values, lambda_):
    """(1 − λ) Σ_{n=1}^{T−t−1} λ^{n−1} G_t^{(n)} + λ^{T−t−1} G_t^{(T−t)}: the mixture of n-step returns."""
    length = len(rewards)
    targets = np.zeros(length)
    for t in range(length):
        last = length - t
        for n in range(1, last + 1):
            weight = (1 - float(lambda_)) * float(lambda_) ** (n - 1) if n < last else float(lambda_) ** (last - 1)
            targets[t] += weight * n_step_returns(rewards, discounts, values, n)[t]
    return targets


def gae(rewards, discounts, values, lambda_):
    """A_t = Σ_{k≥t} (∏_{t≤j<k} d_j λ) δ_k, δ_k = r_k + d_k v_{k+1} − v_k."""
    length = len(rewards)
    advantages = np.zeros(length)
    for t in range(length):
        weight = 1.0
        for k in range(t, length):
            delta = float(rewards[k]) + float(discounts[k]) * float(values[k + 1]) - float(values[k])
            advantages[t] += weight * delta
            weight *= float(discounts[k]) * float(lambda_)
    return advantages


# --- Exact values and the policy gradient


def state_values(transition, reward, gamma, policy, num_steps):
    """V_k(s) = Σ_a π(a|s) [r(s, a) + γ Σ_{s'} P(s'|s, a) V_{k−1}(s')], V_0 = 0."""
    num_states, num_actions = np.shape(reward)
    values = np.zeros(num_states)
    for _ in range(num_steps):
        previous = values.copy()
        for s in range(num_states):
            values[s] = 0.0
            for a in range(num_actions):
                future = sum(float(transition[s][a][y]) * previous[y] for y in range(num_states))
                values[s] += float(policy[s][a]) * (float(reward[s][a]) + float(gamma) * future)
    return values


def occupancy(initial, transition, gamma, policy, num_steps):
    """d(s) = Σ_{t<T} γ^t P(s_t = s | π)."""
    num_states, num_actions = np.shape(policy)
    state_probs = np.array(initial, np.float64)
    visits = np.zeros(num_states)
    for t in range(num_steps):
        visits += float(gamma) ** t * state_probs
        following = np.zeros(num_states)
        for s, a, y in itertools.product(range(num_states), range(num_actions), range(num_states)):
            following[y] += state_probs[s] * float(policy[s][a]) * float(transition[s][a][y])
        state_probs = following
    return visits


def policy_gradient(initial, transition, reward, gamma, logits, num_steps):
    """∇J = Σ_τ P(τ|π) R(τ) Σ_t ∇ log π(a_t|s_t), where ∂ log π(a|s) / ∂ θ(s, b) = 1[a = b] − π(b|s)."""
    num_states, num_actions = np.shape(logits)
    policy = np.exp(np.array(logits, np.float64))
    policy /= policy.sum(axis=1, keepdims=True)
    gradient = np.zeros((num_states, num_actions))
    for states, actions in enumerate_trajectories(num_states, num_actions, num_steps):
        score = np.zeros((num_states, num_actions))
        for s, a in zip(states, actions, strict=False):
            score[s, a] += 1
            score[s] -= policy[s]
        rewards = [reward[s][a] for s, a in zip(states, actions, strict=False)]
        prob = trajectory_prob(initial, transition, policy, states, actions)
        gradient += prob * discounted_return(rewards, gamma) * score
    return gradient


# --- Values from samples


def monte_carlo(trajectories, gamma, num_states, first_visit):
    """The mean return that followed each visit (or each trajectory's first) to a state; 0 where none did."""
    returns = [[] for _ in range(num_states)]
    for states, rewards in trajectories:
        for t in range(len(rewards)):
            if not first_visit or states[t] not in states[:t]:
                returns[states[t]].append(discounted_return(rewards[t:], gamma))
    return np.array([np.mean(seen) if seen else 0.0 for seen in returns])


def td_lambda(values, states, rewards, discounts, lambda_, step_sizes):
    """V ← V + α_t δ_t e_t, e_t = d_{t−1} λ e_{t−1} + 1[s_t], δ_t = r_t + d_t V(s_{t+1}) − V(s_t)."""
    values = np.array(values, np.float64)
    trace = np.zeros(len(values))
    for t in range(len(rewards)):
        trace[states[t]] += 1
        delta = float(rewards[t]) + float(discounts[t]) * values[states[t + 1]] - values[states[t]]
        values += float(step_sizes[t]) * delta * trace
        trace *= float(discounts[t]) * float(lambda_)
    return values


def sarsa(q_values, states, actions, rewards, discounts, step_sizes):
    """Q(s_t, a_t) moves by α_t to r_t + d_t Q(s_{t+1}, a_{t+1}); the last step only if it terminates."""
    q_values = np.array(q_values, np.float64)
    for t in range(len(rewards)):
        if t + 1 < len(rewards):
            target = float(rewards[t]) + float(discounts[t]) * q_values[states[t + 1], actions[t + 1]]
        elif discounts[t] == 0:
            target = float(rewards[t])
        else:
            continue
        q_values[states[t], actions[t]] += float(step_sizes[t]) * (target - q_values[states[t], actions[t]])
    return q_values


def expected_sarsa(q_values, states, actions, rewards, discounts, policy, step_sizes):
    """Q(s_t, a_t) moves by α_t to r_t + d_t Σ_a π(a|s_{t+1}) Q(s_{t+1}, a)."""
    q_values = np.array(q_values, np.float64)
    for t in range(len(rewards)):
        following = sum(float(prob) * q for prob, q in zip(policy[states[t + 1]], q_values[states[t + 1]], strict=True))
        target = float(rewards[t]) + float(discounts[t]) * following
        q_values[states[t], actions[t]] += float(step_sizes[t]) * (target - q_values[states[t], actions[t]])
    return q_values


def q_learning(q_values, states, actions, rewards, discounts, step_sizes):
    """Q(s_t, a_t) moves by α_t to r_t + d_t max_a Q(s_{t+1}, a)."""
    q_values = np.array(q_values, np.float64)
    for t in range(len(rewards)):
        target = float(rewards[t]) + float(discounts[t]) * max(q_values[states[t + 1]])
        q_values[states[t], actions[t]] += float(step_sizes[t]) * (target - q_values[states[t], actions[t]])
    return q_values
