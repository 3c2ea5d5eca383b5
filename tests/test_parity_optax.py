"""The library's losses against optax's, where it has a counterpart: values and gradients, called side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import dpo, kl, ppo, reward_model
from rlhf_jax import log_probs as lp

TOKENS = np.array([1, 0, 3])
logs = jax.nn.log_softmax

# name: our call, optax's call, both of two arrays [3, 4]
CASES = {
    "sigmoid_binary_cross_entropy": (
        reward_model.bradley_terry_loss,
        lambda x, y: optax.sigmoid_binary_cross_entropy(x - y, 1.0),
    ),
    "sigmoid_binary_cross_entropy, soft labels": (
        lambda x, y: dpo.dpo_loss(x, y, beta=0.7, label_smoothing=0.2),
        lambda x, y: optax.sigmoid_binary_cross_entropy(0.7 * (x - y), 0.8),
    ),
    "hinge_loss": (
        lambda x, y: dpo.hinge_loss(x, y, beta=0.7),
        lambda x, y: optax.hinge_loss(0.7 * (x - y), jnp.ones_like(x)),
    ),
    "squared_error": (
        lambda x, y: dpo.ipo_loss(x, y, beta=0.7),
        lambda x, y: optax.squared_error(x - y, jnp.full_like(x, 1 / 1.4)),
    ),
    "l2_loss": (kl.k2, optax.l2_loss),
    "l2_loss of values": (
        lambda x, y: ppo.clipped_value_loss(x, x, jax.lax.stop_gradient(y), clip_eps=jnp.inf),
        lambda x, y: optax.l2_loss(x, jax.lax.stop_gradient(y)),
    ),
    "softmax_cross_entropy_with_integer_labels": (
        lambda x, y: -lp.categorical_log_probs(x, TOKENS),
        lambda x, y: optax.softmax_cross_entropy_with_integer_labels(x, TOKENS),
    ),
    "softmax_cross_entropy_with_integer_labels, best of K": (
        lambda x, y: jax.vmap(reward_model.best_of_k_loss)(x, TOKENS),
        lambda x, y: optax.softmax_cross_entropy_with_integer_labels(x, TOKENS),
    ),
    "kl_divergence": (
        lambda x, y: kl.categorical_kl(y, x),
        lambda x, y: optax.kl_divergence(logs(x), jax.nn.softmax(y)),
    ),
    "kl_divergence_with_log_targets": (
        lambda x, y: kl.exact_kl(logs(y), logs(x)),
        lambda x, y: optax.losses.kl_divergence_with_log_targets(logs(x), logs(y)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_optax(name):
    def value_and_gradient(loss, x, y):
        gradient, value = jax.grad(lambda x, y: (loss(x, y).sum(), loss(x, y)), (0, 1), has_aux=True)(x, y)
        return value, *gradient

    with jax.enable_x64(True):
        x, y = jnp.asarray(np.random.default_rng(5).normal(0, 1.5, (2, 3, 4)))
        ours, theirs = jax.jit(lambda x, y: [value_and_gradient(loss, x, y) for loss in CASES[name]])(x, y)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-10)
