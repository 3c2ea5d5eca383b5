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


# --- Preferences and language-model losses


def softmax(logits):
    """p_v = exp l_v / Σ_u exp l_u."""
    weights = [np.exp(np.float64(logit) - max(logits)) for logit in logits]
    return np.array([weight / sum(weights) for weight in weights])


def token_log_probs(logits, tokens):
    """log π(token_{t+1} | token_0 … token_t) for one string: position t scores token t + 1."""
    return np.array([np.log(softmax(logits[t])[tokens[t + 1]]) for t in range(len(tokens) - 1)])


def exact_kl(probs, ref_probs):
    """KL(p ‖ q) = Σ_v p_v log(p_v / q_v)."""
    total = 0.0
    for p, q in zip(probs, ref_probs, strict=True):
        if p > 0:
            total += p * np.log(p / q) if q > 0 else np.inf
    return total


def kl_estimates(log_prob, ref_log_prob):
    """(k1, k2, k3) from one sample; with ρ = π_ref/π they are −log ρ, ½ (log ρ)² and ρ − 1 − log ρ."""
    log_rho = np.float64(ref_log_prob) - log_prob
    return -log_rho, log_rho**2 / 2, np.exp(log_rho) - 1 - log_rho


def entropy(logits):
    """H = −Σ_a π(a) log π(a)."""
    return -sum(p * np.log(p) for p in softmax(logits) if p > 0)


def clipped_surrogate_loss(log_prob, old_log_prob, advantage, clip_eps):
    """−min(r A, clip(r, 1 − ε, 1 + ε) A), r = π/π_old."""
    ratio = np.exp(np.float64(log_prob)) / np.exp(np.float64(old_log_prob))
    return -min(ratio * advantage, min(max(ratio, 1 - clip_eps), 1 + clip_eps) * advantage)


def clipped_value_loss(value, old_value, target, clip_eps):
    """½ max((v − R)², (clip(v, v_old − ε, v_old + ε) − R)²)."""
    clipped = min(max(np.float64(value), old_value - clip_eps), old_value + clip_eps)
    return max((value - target) ** 2, (clipped - target) ** 2) / 2


def standardized_advantages(rewards, eps):
    """(r_i − mean) / (std + ε), std² = Σ_i (r_i − mean)² / (G − 1)."""
    mean = sum(rewards) / len(rewards)
    deviation = np.sqrt(sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
    return np.array([(reward - mean) / (deviation + eps) for reward in rewards])


def rloo_advantages(rewards):
    """r_i − mean of the others."""
    others = [[other for j, other in enumerate(rewards) if j != i] for i in range(len(rewards))]
    return np.array([reward - sum(rest) / len(rest) for reward, rest in zip(rewards, others, strict=True)])


def sigmoid(x):
    """σ(x) = 1 / (1 + exp(−x))."""
    return 1 / (1 + np.exp(-np.float64(x)))


def bradley_terry_loss(chosen_reward, rejected_reward, margin):
    """−log σ(r⁺ − r⁻ − m)."""
    return -np.log(sigmoid(chosen_reward - rejected_reward - margin))


def plackett_luce_loss(rewards):
    """−Σ_k log [exp r_k / Σ_{j ≥ k} exp r_j], best first."""
    return -sum(np.log(softmax(rewards[k:])[0]) for k in range(len(rewards)))


def dpo_loss(chosen, rejected, ref_chosen=0.0, ref_rejected=0.0, beta=1.0, label_smoothing=0.0):
    """−(1 − ε) log σ(β h) − ε log σ(−β h), h = log π/π_ref of y⁺ less that of y⁻."""
    lead = beta * ((np.float64(chosen) - ref_chosen) - (rejected - ref_rejected))
    return -(1 - label_smoothing) * np.log(sigmoid(lead)) - label_smoothing * np.log(sigmoid(-lead))


def robust_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing):
    """[(1 − ε) ℓ(y⁺, y⁻) − ε ℓ(y⁻, y⁺)] / (1 − 2ε), ℓ the DPO loss."""
    kept = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
    flipped = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """(h − 1/(2β))²."""
    return ((np.float64(chosen) - ref_chosen) - (rejected - ref_rejected) - 1 / (2 * beta)) ** 2


def hinge_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """max(0, 1 − β h)."""
    return max(0.0, 1 - beta * ((np.float64(chosen) - ref_chosen) - (rejected - ref_rejected)))


def all_strings(vocab_size, length, eos_id):
    """Every string that ends at its first EOS, or has the full length without one; in lexicographic order."""
    strings = []
    for tokens in itertools.product(range(vocab_size), repeat=length):
        string = tokens[: tokens.index(eos_id) + 1] if eos_id in tokens else tokens
        if string not in strings:
            strings.append(string)
    return strings


def optimal_probs(ref_probs, rewards, beta):
    """π*(y) = π_ref(y) exp(r(y)/β) / Z."""
    weights = [p * np.exp(np.float64(r) / beta) for p, r in zip(ref_probs, rewards, strict=True)]
    return np.array([weight / sum(weights) for weight in weights])


def regularized_objective(probs, ref_probs, rewards, beta):
    """Σ_y π(y) r(y) − β KL(π ‖ π_ref)."""
    return sum(p * r for p, r in zip(probs, rewards, strict=True)) - beta * exact_kl(probs, ref_probs)
