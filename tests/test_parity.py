"""The library's losses against the numbers of TRL, of DPO's authors and of rlax: values and gradients.

Golden files (`tests/golden/losses`) hold what each peer's own function returned; `tests/golden/make_*.py` made them.
A case here is the call of ours that gives the peer's number; docs/parity.md is the table for readers.
"""

import importlib
import json
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import dpo, dpo_variants, group, kl, masking, policy_gradient, ppo, returns, reward_model
from rlhf_jax import log_probs as lp

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs/parity.md"
FOLDER = pathlib.Path(__file__).parent / "golden/losses"
GOLDEN = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
TOLERANCE = {"float64": 1e-7, "float32": 1e-5}  # of the peer; TRL has EXO's two constants in float32 (2e-8)


def token_sums(rows, mask):
    return jnp.where(mask, rows, 0).sum(1)


def halves(rows):
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def four(x, mean=False):
    """Chosen and rejected log-probabilities, then the reference's: sums over tokens, or means."""
    lengths = x.mask.sum(1) if mean else 1
    return *halves(token_sums(x.log_probs, x.mask) / lengths), *halves(x.ref_log_probs / lengths)


def pair(loss, mean=False, **fixed):
    """TRL's DPO trainer: the mean over pairs of a loss of four log-probabilities."""
    return lambda x, s: loss(
        *four(x, mean), beta=s.beta, **{ours: getattr(s, key) for ours, key in fixed.items()}
    ).mean()


def f_divergence(f_prime):
    return lambda x, s: dpo.f_dpo_loss(*four(x), beta=s.beta, f_prime=lambda u: f_prime(u, s)).mean()


def trl_kto(x, s):
    baseline = jnp.maximum(0, jnp.mean(jnp.asarray(s.kl_log_ratios)))
    desirable = jnp.arange(len(x.mask)) < len(x.mask) // 2
    losses = dpo.kto_loss(token_sums(x.log_probs, x.mask), x.ref_log_probs, desirable, baseline, beta=s.beta)
    return (jnp.where(desirable, s.desirable_weight, s.undesirable_weight) * losses).mean()


def scored(x, mask):
    """Per-token log-probabilities of tokens 1 … T − 1, and which of them the mask keeps."""
    return lp.token_log_probs(x.logits, x.tokens), jnp.asarray(mask)[:, 1:]


def string_sums(x, mask):
    return token_sums(*scored(x, mask))


def string_means(x, mask):
    return string_sums(x, mask) / jnp.asarray(mask)[:, 1:].sum(1)


def trl_cpo(x, s):
    """TRL's likelihood term is a mean over the batch's tokens, ours a sum over a string's: their weight is B/Σ|y⁺|."""
    tokens_a_string = halves(x.completion_mask)[0].sum() / (len(x.tokens) // 2)
    strings = halves(string_sums(x, x.completion_mask))
    return dpo_variants.cpo_loss(*strings, beta=s.beta, nll_weight=s.cpo_alpha / tokens_a_string).mean()


def trl_orpo(x, s):
    """TRL's likelihood term is a mean over the tokens of prompts and chosen strings."""
    chosen, rejected = halves(string_means(x, x.completion_mask))
    log_probs, attended = scored(x, x.attention_mask)
    likelihood = masking.masked_mean(halves(log_probs)[0], halves(attended)[0])
    return (dpo.orpo_loss(chosen, rejected, weight=s.beta) + chosen).mean() - likelihood


def reference_free(loss, strings):
    return lambda x, s: loss(*halves(strings(x, x.completion_mask)), beta=s.beta).mean()


def original(loss, reference=True, **fixed):
    def call(x, s):
        strings = (*halves(string_sums(x, x.mask)), *(halves(x.ref_log_probs) if reference else ()))
        return loss(*strings, beta=s.beta, **{ours: getattr(s, key) for ours, key in fixed.items()})

    return call


def clipped(loss, reduce, **names):
    """TRL's GRPO trainer: a loss a token, with each completion's advantage at every one, then a mean."""

    def call(x, s):
        advantages = jnp.broadcast_to(x.advantages[:, None], x.mask.shape)
        losses = loss(
            x.log_probs, x.old_log_probs, advantages, **{ours: getattr(s, key) for ours, key in names.items()}
        )
        return reduce(losses, x.mask)

    return call


DECOUPLED = {"clip_eps_low": "epsilon_low", "clip_eps_high": "epsilon_high"}


def gspo(x, s):
    bounds = {"clip_eps_low": s.epsilon_low, "clip_eps_high": s.epsilon_high}
    loss = lambda *row: group.gspo_loss(*row, **bounds)
    return jax.vmap(loss)(x.log_probs, x.old_log_probs, x.advantages, x.mask).mean()


def cispo(x, s):
    loss = clipped(
        lambda *row: group.cispo_loss(*row, clip_eps_low=1.0, clip_eps_high=s.epsilon_high - 1), group.token_mean
    )
    return loss(x, s)


def grpo_with_kl(x, s):
    advantages = jnp.broadcast_to(x.advantages[:, None], x.mask.shape)
    settings = {"clip_eps": s.epsilon_low, "beta": s.beta}
    return group.token_mean(
        group.grpo_loss(x.log_probs, x.old_log_probs, x.ref_log_probs, advantages, **settings), x.mask
    )


def grpo_with_weighted_kl(x, s):
    surrogate = clipped(ppo.clipped_surrogate_loss, group.token_mean, clip_eps="epsilon_low")(x, s)
    k3 = kl.importance_weighted(kl.k3(x.log_probs, x.ref_log_probs), x.log_probs, x.old_log_probs)
    return surrogate + s.beta * group.token_mean(k3, x.mask)


def trl_rloo(x, s):
    strings, old = token_sums(x.log_probs, x.mask), token_sums(x.old_log_probs, x.mask)
    return ppo.clipped_surrogate_loss(strings, old, x.advantages, clip_eps=s.epsilon_low).mean()


def trl_rloo_on_policy(x, s):
    """The ratio's value is 1 and its gradient that of the log-probability: `rloo_loss` up to a constant."""
    strings = token_sums(x.log_probs, x.mask)
    losses = policy_gradient.reinforce_loss(strings, x.advantages)
    return (losses - jax.lax.stop_gradient(losses) - x.advantages).mean()


def sigmoid_norm(x, s):
    return dpo_variants.length_normalized_dpo_loss(*four(x), *halves(x.mask.sum(1)), beta=s.beta).mean()


def sequence(function):
    """rlax's functions of a trajectory: their values v_t are those of the following states, our `values[1:]`."""
    return lambda x, s: function(x.rewards, x.discounts, x.values, s)


CASES = {
    "dpo_original dpo": original(dpo.dpo_loss),
    "dpo_original cdpo": original(dpo.dpo_loss, label_smoothing="label_smoothing"),
    "dpo_original ipo": original(dpo.ipo_loss),
    "dpo_original reference_free": original(dpo.dpo_loss, reference=False),
    "trl_preferences dpo sigmoid": pair(dpo.dpo_loss),
    "trl_preferences dpo sigmoid label_smoothing": pair(dpo.dpo_loss),
    "trl_preferences dpo hinge": pair(dpo.hinge_loss),
    "trl_preferences dpo ipo": pair(dpo.ipo_loss, mean=True),
    "trl_preferences dpo exo_pair": pair(dpo_variants.exo_pair_loss, label_smoothing="label_smoothing"),
    "trl_preferences dpo nca_pair": pair(dpo_variants.nca_pair_loss),
    "trl_preferences dpo robust": pair(dpo.robust_dpo_loss, label_smoothing="label_smoothing"),
    "trl_preferences dpo sppo_hard": pair(dpo_variants.sppo_loss),
    "trl_preferences dpo apo_zero": pair(dpo_variants.apo_zero_loss),
    "trl_preferences dpo apo_down": pair(dpo_variants.apo_down_loss),
    "trl_preferences dpo sigmoid_norm": sigmoid_norm,
    "trl_preferences dpo sft": lambda x, s: -masking.masked_mean(halves(x.log_probs)[0], halves(x.mask)[0]),
    "trl_preferences dpo sigmoid forward_kl": f_divergence(lambda u, s: dpo.forward_kl_f_prime(u)),
    "trl_preferences dpo sigmoid js_divergence": f_divergence(lambda u, s: dpo.jensen_shannon_f_prime(u)),
    "trl_preferences dpo sigmoid alpha_divergence": f_divergence(
        lambda u, s: dpo.alpha_f_prime(u, 1 - s.f_alpha_divergence_coef)
    ),
    "trl_preferences kto": trl_kto,
    "trl_preferences kto negative_kl": trl_kto,
    "trl_preferences cpo sigmoid": trl_cpo,
    "trl_preferences cpo simpo": lambda x, s: dpo.simpo_loss(
        *halves(string_means(x, x.completion_mask)), beta=s.beta, margin=s.simpo_gamma
    ).mean(),
    "trl_preferences cpo hinge": reference_free(dpo.hinge_loss, string_sums),
    "trl_preferences cpo ipo": reference_free(dpo.ipo_loss, string_means),
    "trl_preferences orpo": trl_orpo,
    "trl_preferences reward plain": lambda x, s: reward_model.bradley_terry_loss(*halves(x.rewards)).mean(),
    "trl_preferences reward margin": lambda x, s: reward_model.bradley_terry_loss(
        *halves(x.rewards), margin=x.margins
    ).mean(),
    "trl_preferences reward centering": lambda x, s: (
        reward_model.bradley_terry_loss(*halves(x.rewards))
        + s.center_rewards_coefficient * reward_model.centering_loss(*halves(x.rewards))
    ).mean(),
    "trl_preferences selective_log_softmax": lambda x, s: lp.categorical_log_probs(x.logits, x.tokens),
    "trl_preferences entropy_from_logits": lambda x, s: ppo.entropy(x.logits),
    "trl_policy grpo": clipped(group.dapo_loss, group.sequence_mean, **DECOUPLED),
    "trl_policy bnpo": clipped(group.dapo_loss, group.token_mean, **DECOUPLED),
    "trl_policy dapo": clipped(group.dapo_loss, group.token_mean, **DECOUPLED),
    "trl_policy dr_grpo": lambda x, s: clipped(
        ppo.clipped_surrogate_loss,
        lambda losses, mask: group.fixed_length_mean(losses, mask, s.max_completion_length),
        clip_eps="epsilon_low",
    )(x, s),
    "trl_policy cispo": cispo,
    "trl_policy grpo sequence": gspo,
    "trl_policy bnpo kl": grpo_with_kl,
    "trl_policy bnpo kl_correction": grpo_with_weighted_kl,
    "trl_policy bnpo two_sided": clipped(
        ppo.dual_clip_loss, group.token_mean, clip_eps="epsilon_low", dual_clip="delta"
    ),
    "trl_policy rloo": trl_rloo,
    "trl_policy rloo on_policy": trl_rloo_on_policy,
    "trl_policy advantages grpo": lambda x, s: jax.vmap(group.standardized_advantages)(x.rewards),
    "trl_policy advantages dr_grpo": lambda x, s: jax.vmap(group.centered_advantages)(x.rewards),
    "trl_policy advantages rloo": lambda x, s: jax.vmap(group.rloo_advantages)(x.rewards),
    "rlax discounted_returns": sequence(lambda r, d, v, s: returns.lambda_returns(r, d, v, 1.0)),
    "rlax discounted_returns zero": sequence(lambda r, d, v, s: returns.rewards_to_go(r, d)),
    "rlax n_step_bootstrapped_returns": sequence(lambda r, d, v, s: returns.n_step_returns(r, d, v, s.n)),
    "rlax lambda_returns": sequence(lambda r, d, v, s: returns.lambda_returns(r, d, v, s.lambda_)),
    "rlax truncated_generalized_advantage_estimation": sequence(lambda r, d, v, s: returns.gae(r, d, v, s.lambda_)),
    "rlax clipped_surrogate_pg_loss": lambda x, s: ppo.clipped_surrogate_loss(
        jnp.log(x.ratios), 0.0, x.advantages, clip_eps=s.epsilon
    ).mean(),
    "rlax policy_gradient_loss": lambda x, s: policy_gradient.reinforce_loss(
        lp.categorical_log_probs(x.logits, x.actions), x.advantages
    ).mean(),
    "rlax entropy_loss": lambda x, s: -ppo.entropy(x.logits).mean(),
    "rlax categorical_kl_divergence": lambda x, s: kl.categorical_kl(x.logits, x.other_logits).mean(),
}


def load(case):
    """Inputs, rounded to the dtype that the peer computed in, then as float64."""

    def read(values):
        array = np.asarray(values)
        return jnp.asarray(array.astype(case["dtype"]), float) if array.dtype == float else jnp.asarray(array)

    return {key: read(values) for key, values in GOLDEN[case["peer"]]["inputs"][case["inputs"]].items()}


def assert_close(ours, theirs, tolerance):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


def test_every_golden_number_is_compared():
    assert set(CASES) == {f"{peer} {name}" for peer, file in GOLDEN.items() for name in file["cases"]}


def test_the_table_of_the_docs_has_every_case_and_functions_that_exist():
    tables = DOCUMENT.read_text().split("\n## ")[1:3]
    golden, beside_optax = (
        [line.split("|") for line in table.splitlines() if line.startswith("| `")] for table in tables
    )
    assert {case for row in golden for case in re.findall("`([^`]+)`", row[3])} == {
        name.split(" ", 1)[1] for name in CASES
    }
    for row in golden + beside_optax:
        for module, function in re.findall(r"`(\w+)\.(\w+)`", row[1]):
            assert callable(getattr(importlib.import_module(f"rlhf_jax.{module}"), function))


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_peers(name):
    peer, case_name = name.split(" ", 1)
    case = GOLDEN[peer]["cases"][case_name] | {"peer": peer}
    settings = types.SimpleNamespace(**case["settings"])
    with jax.enable_x64(True):
        inputs = load(case)

        def total(leaves):
            value = CASES[name](types.SimpleNamespace(**inputs | leaves), settings)
            return (value * inputs.get("weights", 1)).sum(), value

        leaves = {key: inputs[key] for key in case.get("gradient", {})}
        gradients, value = jax.jit(jax.grad(total, has_aux=True))(leaves)
    assert_close(value, case["value"], TOLERANCE[case["dtype"]])
    for key, gradient in gradients.items():
        assert_close(gradient, case["gradient"][key], TOLERANCE[case["dtype"]])
