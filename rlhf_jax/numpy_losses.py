"""The losses and the exact optimum of RLHF as plain NumPy loops in float64, beside those of `numpy_loops`."""

import itertools

import numpy as np

# --- Language-model losses and preferences


def softmax(logits):
    """p_v = exp l_v / Σ_u exp l_u."""
    largest = max(logits)
    weights = [np.exp(np.float64(logit) - largest) for logit in logits]
    total = sum(weights)
    return np.array([weight / total for weight in weights])


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


def dual_clip_loss(log_prob, old_log_prob, advantage, clip_eps, dual_clip):
    """−max(L^PPO, c A) where A < 0, else −L^PPO."""
    objective = -clipped_surrogate_loss(log_prob, old_log_prob, advantage, clip_eps)
    return -max(objective, dual_clip * advantage) if advantage < 0 else -objective


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


def dapo_loss(log_prob, old_log_prob, advantage, clip_eps_low, clip_eps_high):
    """−min(r A, clip(r, 1 − ε_low, 1 + ε_high) A)."""
    ratio = np.exp(np.float64(log_prob)) / np.exp(np.float64(old_log_prob))
    return -min(ratio * advantage, min(max(ratio, 1 - clip_eps_low), 1 + clip_eps_high) * advantage)


def grpo_loss(log_prob, old_log_prob, ref_log_prob, advantage, clip_eps, beta):
    """−min(r A, clip(r, 1 − ε, 1 + ε) A) + β (π_ref/π − log π_ref/π − 1)."""
    surrogate = clipped_surrogate_loss(log_prob, old_log_prob, advantage, clip_eps)
    return surrogate + beta * kl_estimates(log_prob, ref_log_prob)[2]


def gspo_loss(log_probs, old_log_probs, advantage, mask, clip_eps_low, clip_eps_high):
    """DAPO's loss of a string whose ratio is (π(y)/π_old(y))^{1/|y|}; 0 without tokens."""
    kept = [(new, old) for new, old, keep in zip(log_probs, old_log_probs, mask, strict=True) if keep]
    if not kept:
        return 0.0
    log_ratio = sum(np.float64(new) - old for new, old in kept) / len(kept)
    return dapo_loss(log_ratio, 0.0, advantage, clip_eps_low, clip_eps_high)


def cispo_loss(log_prob, old_log_prob, advantage, clip_eps_low, clip_eps_high):
    """−clip(r, 1 − ε_low, 1 + ε_high) A log π."""
    ratio = np.exp(np.float64(log_prob)) / np.exp(np.float64(old_log_prob))
    return -min(max(ratio, 1 - clip_eps_low), 1 + clip_eps_high) * advantage * log_prob


def _kept(losses, mask):
    return [[loss for loss, keep in zip(*row, strict=True) if keep] for row in zip(losses, mask, strict=True)]


def token_mean(losses, mask):
    """Σ over all tokens / their number."""
    strings = _kept(losses, mask)
    return sum(map(sum, strings)) / sum(map(len, strings))


def sequence_mean(losses, mask):
    """Mean over strings of the mean over each one's tokens."""
    strings = _kept(losses, mask)
    return sum(sum(string) / len(string) for string in strings if string) / len(strings)


def fixed_length_mean(losses, mask, length):
    """Σ over all tokens / (strings · L)."""
    strings = _kept(losses, mask)
    return sum(map(sum, strings)) / (len(strings) * length)


def sigmoid(x):
    """σ(x) = 1 / (1 + exp(−x))."""
    return 1 / (1 + np.exp(-np.float64(x)))


def bradley_terry_loss(chosen_reward, rejected_reward, margin):
    """−log σ(r⁺ − r⁻ − m)."""
    return -np.log(sigmoid(chosen_reward - rejected_reward - margin))


def plackett_luce_loss(rewards):
    """−Σ_k log [exp r_k / Σ_{j ≥ k} exp r_j], best first."""
    return -sum(np.log(softmax(rewards[k:])[0]) for k in range(len(rewards)))


def best_of_k_loss(rewards, best):
    """−log [exp r_best / Σ_k exp r_k]."""
    return -np.log(softmax(rewards)[best])


def davidson_loss(chosen_reward, rejected_reward, tied, tie_weight):
    """−log of the share of e^{r⁺}, or of ν √(e^{r⁺} e^{r⁻}) for a tie, in the sum of the three outcomes."""
    chosen, rejected = np.exp(np.float64(chosen_reward)), np.exp(np.float64(rejected_reward))
    tie = tie_weight * np.sqrt(chosen * rejected)
    return -np.log((tie if tied else chosen) / (chosen + tie + rejected))


def centering_loss(chosen_reward, rejected_reward):
    """(r⁺ + r⁻)²."""
    return (chosen_reward + rejected_reward) ** 2


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


def f_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, f_prime):
    """−log σ(β [f′(ρ⁺) − f′(ρ⁻)]), ρ = π/π_ref."""
    chosen_ratio, rejected_ratio = np.exp(np.float64(chosen) - ref_chosen), np.exp(np.float64(rejected) - ref_rejected)
    return -np.log(sigmoid(beta * (f_prime(chosen_ratio) - f_prime(rejected_ratio))))


def kto_loss(log_prob, ref_log_prob, desirable, kl_baseline, beta):
    """1 − σ(β (u − z)) if desirable, 1 − σ(β (z − u)) if not, u = log π/π_ref."""
    log_ratio = np.float64(log_prob) - ref_log_prob
    return 1 - sigmoid(beta * (log_ratio - kl_baseline if desirable else kl_baseline - log_ratio))


def simpo_loss(chosen_mean, rejected_mean, beta, margin):
    """−log σ(β m⁺ − β m⁻ − γ), m the mean log-probability of a token."""
    return -np.log(sigmoid(beta * chosen_mean - beta * rejected_mean - margin))


def orpo_loss(chosen_mean, rejected_mean, weight):
    """−m⁺ − λ log σ(log(odds⁺ / odds⁻)), odds = p / (1 − p), p = e^m."""
    chosen, rejected = np.exp(np.float64(chosen_mean)), np.exp(np.float64(rejected_mean))
    odds_ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    return -chosen_mean - weight * np.log(sigmoid(np.log(odds_ratio)))


def log_ratios(chosen, rejected, ref_chosen, ref_rejected):
    """(u⁺, u⁻) = (log π/π_ref of y⁺, the same of y⁻)."""
    return np.float64(chosen) - ref_chosen, np.float64(rejected) - ref_rejected


def cpo_loss(chosen, rejected, beta, nll_weight):
    """−log σ(β log π(y⁺) − β log π(y⁻)) − w log π(y⁺)."""
    return -np.log(sigmoid(beta * chosen - beta * rejected)) - nll_weight * chosen


def dpop_loss(chosen, rejected, ref_chosen, ref_rejected, beta, penalty_weight):
    """−log σ(β (u⁺ − u⁻ − λ max(0, log π_ref(y⁺)/π(y⁺))))."""
    liked, disliked = log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return -np.log(sigmoid(beta * (liked - disliked - penalty_weight * max(0.0, -liked))))


def apo_zero_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """1 − σ(β u⁺) + σ(β u⁻)."""
    liked, disliked = log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return 1 - sigmoid(beta * liked) + sigmoid(beta * disliked)


def apo_down_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """σ(β u⁺) + 1 − σ(β (u⁺ − u⁻))."""
    liked, disliked = log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return sigmoid(beta * liked) + 1 - sigmoid(beta * (liked - disliked))


def exo_pair_loss(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing):
    """KL(p ‖ q), p = (σ(β h), σ(−β h)), q = (1 − ε, ε)."""
    liked, disliked = log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    kept = sigmoid(beta * (liked - disliked))
    return exact_kl([kept, 1 - kept], [1 - label_smoothing, label_smoothing])


def nca_pair_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """−log σ(β u⁺) − ½ Σ over both strings of log σ(−β u)."""
    liked, disliked = log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    noise = sum(np.log(sigmoid(-beta * log_ratio)) for log_ratio in (liked, disliked))
    return -np.log(sigmoid(beta * liked)) - noise / 2


def sppo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, chosen_win_probs=1.0, rejected_win_probs=0.0):
    """Σ over both strings of (u − (P − ½)/β)²."""
    liked, disliked = log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return (liked - (chosen_win_probs - 0.5) / beta) ** 2 + (disliked - (rejected_win_probs - 0.5) / beta) ** 2


def length_normalized_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, chosen_length, rejected_length, beta):
    """−log σ(β (u⁺/|y⁺| − u⁻/|y⁻|))."""
    liked, disliked = log_ratios(chosen, rejected, ref_chosen, ref_rejected)
    return -np.log(sigmoid(beta * (liked / chosen_length - disliked / rejected_length)))


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


def best_of_n_probs(ref_probs, rewards, n):
    """P(y is the first best of n draws from π_ref): every one of the N^n draws in turn."""
    probs = np.zeros(len(ref_probs))
    for draws in itertools.product(range(len(ref_probs)), repeat=n):
        best = max(draws, key=lambda y: rewards[y])
        probs[best] += np.prod([ref_probs[y] for y in draws])
    return probs


def choice_prob(first_reward, second_reward, temperature, position_bias, flip_prob):
    """P(the string shown first is recorded as chosen) = (1 − ε) p + ε (1 − p), p = σ((r₁ − r₂)/T + b)."""
    first_wins = sigmoid((np.float64(first_reward) - second_reward) / temperature + position_bias)
    return (1 - flip_prob) * first_wins + flip_prob * (1 - first_wins)


def choice_weights(probs, rewards, temperature, position_bias, flip_prob):
    """[N, N]: how often i is chosen over j when two different strings, drawn from π, are shown in the order drawn."""
    weights = np.zeros((len(probs), len(probs)))
    for first, second in itertools.permutations(range(len(probs)), 2):
        shown = probs[first] * probs[second]
        first_chosen = choice_prob(rewards[first], rewards[second], temperature, position_bias, flip_prob)
        weights[first, second] += shown * first_chosen
        weights[second, first] += shown * (1 - first_chosen)
    return weights / weights.sum()
