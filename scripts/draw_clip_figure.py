"""Draw figures/estimators_clip.png: what PPO's clipping does to the path and to its end, with exact gradients.

python scripts/draw_clip_figure.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import enumerable, estimators, kl, plots, ppo

BETA, EPOCHS, RATE, ITERATIONS = 0.5, 16, 0.5, 100


@functools.partial(jax.jit, static_argnames=("penalty", "standardised"))
def exact_ppo(clip_eps, penalty, standardised=False):
    """Paths of KL(π ‖ π_ref), E_π[r] and KL(π ‖ π*) over PPO's iterations, each with `EPOCHS` exact-gradient steps.

    The surrogate is Σ_y π_old(y) Σ_t loss_t. `penalty` "reward": −β log(π_old/π_ref) is paid with the reward and the
    advantages are exact; "loss": k3 of every token is added to the loss.
    """
    start = jnp.zeros((13, 3))
    tokens, mask, ref_tokens, _, ref, rewards = estimators.small_language(start)
    token_log_probs = lambda logits: estimators.small_language(logits).log_probs
    best = enumerable.optimal_log_probs(ref, rewards, BETA)

    def iteration(logits, _):
        old = token_log_probs(logits)
        strings = old.sum(axis=1)
        probs = jnp.exp(strings)
        paid = rewards - BETA * (strings - ref) * (penalty == "reward")
        if standardised:
            centred = paid - probs @ paid
            advantages = jnp.broadcast_to(
                (centred / (jnp.sqrt(probs @ jnp.square(centred)) + 1e-4))[:, None], mask.shape
            )
        else:
            advantages = paid[:, None] - estimators.prefix_values(probs, paid, tokens, mask)

        def loss(logits):
            new = token_log_probs(logits)
            terms = ppo.clipped_surrogate_loss(new, old, advantages, clip_eps=clip_eps)
            terms += BETA * kl.k3(new, ref_tokens) * (penalty == "loss")
            return probs @ jnp.where(mask, terms, 0).sum(axis=1)

        trained = jax.lax.fori_loop(0, EPOCHS, lambda _, logits: logits - RATE * jax.grad(loss)(logits), logits)
        return trained, (kl.exact_kl(strings, ref), probs @ rewards, kl.exact_kl(strings, best))

    return jax.lax.scan(iteration, start, length=ITERATIONS)[1]


def k3_optimum():
    """Logits of the policy where the expected gradient of the unclipped loss with k3 in it is 0.

    For each prefix π(v) = β π_ref(v) / (c − Q(v)) with c such that it sums to 1; from the last token backwards.
    """
    worth, values, logits = np.array([0.0, 1.0, -0.5]), np.zeros(40), np.zeros((13, 3))
    for row in reversed(range(13)):
        children = 3 * row + np.arange(3) + 1
        action_values = worth + np.where(np.arange(3) == 0, 0, values[children])
        low, high = action_values.max(), action_values.max() + BETA
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if np.sum(BETA / 3 / (middle - action_values)) > 1 else (low, middle)
        probs = BETA / 3 / (high - action_values)
        logits[row], values[row] = np.log(probs), probs @ action_values
    return logits


def draw_clip():
    language = estimators.small_language()
    ref, rewards = language.ref_log_probs, language.rewards
    best = enumerable.optimal_log_probs(ref, rewards, BETA)
    place = lambda log_probs: (float(kl.exact_kl(log_probs, ref)), float(jnp.exp(log_probs) @ rewards))
    settings = {"ε = 0.02": (0.02, plots.ORANGE), "ε = 0.1": (0.1, plots.PURPLE), "ε = 0.2": (0.2, plots.VERMILLION)}
    settings["no clipping"] = (1e9, plots.SKY)

    figure, (plane, reward, loss) = plots.subplots(1, 3, width=9.6, height=3.3)
    edge = [np.asarray(line) for line in enumerable.frontier(ref, rewards, np.geomspace(1e3, 0.25, 2000))]
    plane.plot(*edge, **plots.EXACT, label="frontier")
    for axis, penalty in ((reward, "reward"), (loss, "loss")):
        for name, (clip_eps, color) in settings.items():
            divergence, mean_reward, distance = map(np.asarray, exact_ppo(clip_eps, penalty))
            axis.plot(np.arange(1, ITERATIONS + 1), distance, color=color, label=name)
            if penalty == "reward":
                plane.plot(divergence, mean_reward, ".-", color=color, linewidth=0.8, markersize=4)
            else:
                plane.plot(divergence[-1], mean_reward[-1], "D", color=color, markersize=6, zorder=5)
            short = np.interp(divergence, *edge) - mean_reward
            print(
                f"KL in the {penalty}, {name}: KL to π* {distance[[1, 5, 10, 50, -1]].round(5)}, gap {short.max():.3f}"
            )
        distance = np.asarray(exact_ppo(0.2, penalty, standardised=True)[2])
        axis.plot(
            np.arange(1, ITERATIONS + 1),
            distance,
            color=plots.GREY,
            linewidth=0.8,
            label="ε = 0.2, standardised",
            zorder=1,
        )
        print(f"KL in the {penalty}, standardised: from {distance[50:].min():.1e} to {distance[50:].max():.1e}")
        axis.set(xscale="log", yscale="log", xlabel="iteration", ylabel="KL(π‖π*) [nats]")
    plane.plot(*place(best), "*", color=plots.BLACK, markersize=14, label="π*, β = ½", zorder=6)
    plane.plot([], [], "D", color=plots.GREY, label="where k3 in the loss ends")
    plane.set(title="Paths with the KL in the reward", xlabel="KL(π‖π_ref) [nats]", ylabel="E[r] [reward units]")
    plane.legend(loc="lower right")
    end = estimators.small_language(k3_optimum()).log_probs.sum(axis=1)
    fixed = float(kl.exact_kl(end, best))
    print(f"k3's optimum: KL to π* {fixed}, at {place(end)}; π* at {place(best)}")
    loss.axhline(fixed, **plots.EXACT)
    reward.set_title("KL in the reward: π* is kept, whatever ε")
    loss.set_title("k3 in the loss: ε moves the end")
    reward.legend(loc="lower left")
    plots.label(loss, 1, fixed, "exact: no clipping, gradient 0", plots.BLACK, xytext=(0, -8))
    loss.set_yticks((0.1, 0.2, 0.5, 1, 2), ("0.1", "0.2", "0.5", "1", "2"))
    loss.minorticks_off()
    loss.set_ylim(0.1, 3)
    return figure


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    with jax.enable_x64(True), plots.style():
        print(plots.save(draw_clip(), "estimators_clip").path)
