"""The estimator table, the scripts that draw figures/estimators_*.png, and what docs/estimators.md says of PPO."""

import functools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import enumerable, estimators, kl, plots

ROOT = Path(__file__).parents[1]


@functools.cache
def script(figure):
    """The names that the script of a figure defines; read once, so that the tests share its compilations."""
    return runpy.run_path(
        str(ROOT / "scripts" / f"draw_{'clip_figure' if figure == 'clip' else 'estimator_figures'}.py")
    )


def test_the_table_is_the_same_every_time_and_says_what_is_known():
    rows = {(row.name, row.quantity): row for row in estimators.estimator_table()}
    assert len(rows) == 21
    for name in ("REINFORCE", "REINFORCE, exact V", "GAE 0.95, exact V", "leave-one-out (RLOO)", "DPO", "k2"):
        assert rows[name, "gradient"].relative_bias < 1e-12, name
        assert rows[name, "gradient"].degrees < 1e-3, name
    np.testing.assert_allclose(rows["centred (Dr. GRPO)", "gradient"].relative_bias, 0.25, rtol=1e-12)
    np.testing.assert_allclose(rows["k1", "gradient"].relative_bias, 1, rtol=1e-12)
    assert np.isnan(rows["k1", "gradient"].degrees)
    np.testing.assert_allclose(rows["standardised", "gradient"][2:], (0.2943, 1.614, 0.8457, 15.66), rtol=5e-4)
    deviations = {
        "REINFORCE": 1.907,
        "REINFORCE, best baseline": 1.586,
        "GAE 0.95, V = 0": 1.790,
        "GAE 0.95, exact V": 1.4148,
        "GAE 0.95, V + ½": 1.4096,
        "leave-one-out (RLOO)": 1.863,
        "DPO": 3.513,
        "robust DPO, 10% flipped": 4.326,
    }
    for name, expected in deviations.items():
        np.testing.assert_allclose(rows[name, "gradient"].relative_std, expected, rtol=5e-4)
    np.testing.assert_allclose(rows["DPO, 10% flipped", "gradient"].relative_bias, 0.1413, rtol=5e-4)
    assert rows["robust DPO, 10% flipped", "gradient"].relative_bias < 1e-12
    with jax.enable_x64(True):
        language = estimators.small_language()
        log_probs = np.asarray(language.log_probs.sum(axis=1))
        log_ratio, probs = log_probs - np.asarray(language.ref_log_probs), np.exp(log_probs)
    divergence = probs @ log_ratio
    np.testing.assert_allclose(rows["k2", "value"].relative_bias, abs(probs @ log_ratio**2 / 2 / divergence - 1))
    np.testing.assert_allclose(rows["k1", "value"].relative_std, np.sqrt(probs @ log_ratio**2 / divergence**2 - 1))


@pytest.mark.parametrize("name", ["gradient", "gae", "kl", "clip"])
def test_the_figures_are_drawn(name, tmp_path):
    with jax.enable_x64(True), plots.style():
        saved = plots.save(script(name)[f"draw_{name}"](), f"estimators_{name}", tmp_path)
    content = saved.path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 150_000
    assert (ROOT / "figures" / saved.path.name).exists()


def test_clipping_moves_the_end_point_only_if_the_kl_is_in_the_loss():
    clip = script("clip")
    with jax.enable_x64(True):
        for clip_eps in (0.02, 0.2, 1e9):
            _, _, distance = clip["exact_ppo"](clip_eps, "reward")
            assert distance[-1] < 1e-3
        language = estimators.small_language()
        best = enumerable.optimal_log_probs(language.ref_log_probs, language.rewards, clip["BETA"])
        unclipped = estimators.small_language(clip["k3_optimum"]()).log_probs.sum(axis=1)
        unclipped = float(kl.exact_kl(unclipped, best))
        ends = [float(clip["exact_ppo"](clip_eps, "loss")[2][-1]) for clip_eps in (0.02, 0.1, 0.2, 1e9)]
        np.testing.assert_allclose(ends[2:], unclipped, rtol=1e-3)
        assert ends[0] > 3 * unclipped
        assert ends[1] > 1.2 * unclipped


def test_the_optimum_of_k3_is_where_its_exact_gradient_is_zero():
    """∇ of Σ_y π_old(y) [−A(y) log π(y) + β Σ_t k3_t] at π = π_old, by automatic differentiation of every string."""
    clip = script("clip")
    with jax.enable_x64(True):
        _, mask, log_probs, scores, _, rewards = estimators.small_language(clip["k3_optimum"]())
        probs = jnp.exp(log_probs.sum(axis=1))
        ref_tokens = estimators.small_language(jnp.zeros((13, 3))).log_probs
        weights = jnp.where(mask, (rewards - probs @ rewards)[:, None], 0)
        weights -= clip["BETA"] * jnp.where(mask, 1 - jnp.exp(ref_tokens - log_probs), 0)
        np.testing.assert_allclose(jnp.einsum("n,nl,nld->d", probs, weights, scores), 0, atol=1e-12)
