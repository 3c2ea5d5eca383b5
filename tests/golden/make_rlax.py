"""Golden numbers of rlax: returns and advantages of a trajectory, and policy losses; float64.

    JAX_ENABLE_X64=1 python tests/golden/make_rlax.py          (in an environment with rlax)

A function of a trajectory is recorded with the gradient of its weighted sum Σ_t weights_t x_t with respect to
rewards, discounts and values; a loss, which rlax reduces to a mean, with its gradient into ratios or logits.
"""

import importlib.metadata

import jax
import numpy as np
import rlax
from write import write

MULTISTEP = {
    "discounted_returns": {},
    "discounted_returns zero": {},
    "n_step_bootstrapped_returns": {"n": 3},
    "lambda_returns": {"lambda_": 0.8},
    "truncated_generalized_advantage_estimation": {"lambda_": 0.9},
}


def trajectory(name: str, settings: dict, inputs: dict) -> dict:
    """Their discounted_returns bootstraps a value: with zeros, it is the plain sum to go."""
    weights, function = inputs["weights"], getattr(rlax, name.split()[0])

    def sequence(rewards, discounts, values):
        if name == "truncated_generalized_advantage_estimation":
            return function(rewards, discounts, settings["lambda_"], values)
        bootstrap = 0 * values if "zero" in name else values
        return function(rewards, discounts, bootstrap[1:], **settings)

    arguments = [inputs[key] for key in ("rewards", "discounts", "values")]
    gradient = jax.grad(lambda *args: (weights * sequence(*args)).sum(), argnums=(0, 1, 2))(*arguments)
    named = dict(zip(("rewards", "discounts", "values"), gradient, strict=True))
    return {"inputs": "trajectory", "settings": settings, "value": sequence(*arguments), "gradient": named}


def loss(function, key: str, inputs: dict, settings: dict) -> dict:
    value, gradient = jax.value_and_grad(function)(inputs[key])
    return {"inputs": "steps", "settings": settings, "value": value, "gradient": {key: gradient}}


def main() -> None:
    rng = np.random.default_rng(3)
    steps, actions = 7, 5
    inputs = {
        "trajectory": {
            "rewards": rng.normal(size=steps),
            "discounts": np.where(np.arange(steps) == 3, 0.0, rng.uniform(0.8, 1, steps)),
            "values": rng.normal(size=steps + 1),
            "weights": rng.normal(size=steps),
        },
        "steps": {
            "ratios": np.exp(rng.normal(0, 0.4, steps)),
            "advantages": rng.normal(size=steps),
            "logits": rng.normal(0, 1.5, (steps, actions)),
            "other_logits": rng.normal(0, 1.5, (steps, actions)),
            "actions": rng.integers(0, actions, steps),
        },
    }
    data = inputs["steps"]
    logits, ones = data["logits"], np.ones(steps)
    epsilon = 0.2
    cases = {name: trajectory(name, settings, inputs["trajectory"]) for name, settings in MULTISTEP.items()}
    cases["clipped_surrogate_pg_loss"] = loss(
        lambda ratios: rlax.clipped_surrogate_pg_loss(ratios, data["advantages"], epsilon),
        "ratios", data, {"epsilon": epsilon},
    )  # fmt: skip
    for name, function in {
        "policy_gradient_loss": lambda x: rlax.policy_gradient_loss(x, data["actions"], data["advantages"], ones),
        "entropy_loss": lambda x: rlax.entropy_loss(x, ones),
        "categorical_kl_divergence": lambda x: rlax.categorical_kl_divergence(x, data["other_logits"]).mean(),
    }.items():
        cases[name] = loss(function, "logits", data, {})
    assert logits.dtype == cases["entropy_loss"]["value"].dtype
    write("rlax", {package: importlib.metadata.version(package) for package in ("rlax", "jax")}, inputs, cases)


if __name__ == "__main__":
    main()
