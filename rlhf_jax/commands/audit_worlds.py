"""Gradients of the functions that take an MDP or a language, checked for `rlhf-jax audit --library`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import audit, enumerable, environments, mdp, policy_gradient, population, values
from rlhf_jax.audit import GradientReport

STEPS, BETA = 3, 0.5


def gradients() -> dict[str, GradientReport]:
    """The gradient check of each function, by name; of objectives against the theorem that states their gradient."""
    return _on_an_mdp() | _on_a_language()


def _on_an_mdp():
    rng = np.random.default_rng(0)
    world = environments.random_mdp(jax.random.key(0), 3, 2)
    logits = rng.normal(size=(3, 2)).astype(np.float32)
    policy = np.array(jax.nn.softmax(logits))
    path = mdp.rollout(jax.random.key(1), world, policy, STEPS)
    reports = {
        f"values.{function.__name__}": audit.check_gradient(function, world, policy)
        for function in (values.state_values, values.action_values, values.advantages, values.occupancy)
    }
    objective = lambda logits: values.expected_return(world, jax.nn.softmax(logits), STEPS)
    theorem = lambda logits: policy_gradient.policy_gradient(world, logits, STEPS)
    return reports | {
        "values.expected_return": audit.check_gradient(objective, logits, closed_form=theorem),
        "policy_gradient.policy_gradient": audit.check_gradient(
            functools.partial(policy_gradient.policy_gradient, num_steps=STEPS), world, logits
        ),
        "mdp.trajectory_prob": audit.check_gradient(lambda w, p: mdp.trajectory_prob(w, p, path), world, policy),
        "mdp.trajectory_log_prob": audit.check_gradient(
            lambda w, p: mdp.trajectory_log_prob(w, p, path), world, policy
        ),
    }


def _on_a_language():
    rng = np.random.default_rng(1)
    tokens, mask = enumerable.all_strings(3, 2, eos_id=0)
    rows = enumerable.prefix_rows(tokens, 3)
    logits_fn = lambda table, tokens: table[rows]
    policy = lambda table: enumerable.string_log_probs(functools.partial(logits_fn, table), tokens, mask)
    table, direction = rng.normal(size=(2, enumerable.num_prefixes(3, 2), 3)).astype(np.float32)
    ref_log_probs, rewards = np.array(policy(jnp.zeros_like(table))), rng.normal(size=len(tokens)).astype(np.float32)
    problem = tokens, mask, ref_log_probs, rewards, BETA
    objective = lambda table: enumerable.regularized_objective(policy(table), ref_log_probs, rewards, BETA)
    gradient = lambda table: enumerable.objective_gradient(logits_fn, table, *problem)
    product = lambda table: enumerable.objective_hvp(logits_fn, table, jnp.asarray(direction, table.dtype), *problem)
    weights = lambda *arrays: population.bradley_terry_population(*arrays).weight
    return {
        "enumerable.string_log_probs": audit.check_gradient(policy, table),
        "enumerable.objective_gradient": audit.check_gradient(objective, table, closed_form=gradient),
        "enumerable.objective_hvp": audit.check_gradient(
            lambda table: jnp.vdot(gradient(table), direction), table, closed_form=product
        ),
        "enumerable.best_of_n_log_probs": audit.check_gradient(
            lambda ref_log_probs: enumerable.best_of_n_log_probs(ref_log_probs, rewards, 3), ref_log_probs
        ),
        "population.bradley_terry_population": audit.check_gradient(weights, ref_log_probs, rewards),
    }
