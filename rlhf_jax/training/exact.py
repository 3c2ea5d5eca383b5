"""The project's own train steps on a language whose optimum π* is known: how near to it does each of them end?

Every run starts at the reference and is one compiled program, in float32; where it stands is summed over all strings.
Sampled methods see the reward of sampled strings only. The learning rate is constant for half of the updates and then
falls linearly to 0 (`falling_adam`), as standardised advantages keep a policy moving however near to π* it is.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from rlhf_jax import group
from rlhf_jax.lm import gpt2
from rlhf_jax.training import dpo, grpo, language, ppo, state
from rlhf_jax.training.language import EOS, LENGTH, PROMPTS, Point, Policy, Problem

BATCH_SIZE, GROUP_SIZE, NUM_CHOICES = 128, 16, 50_000
EPOCHS = {"num_epochs": 2, "num_minibatches": 2}


class Setup(NamedTuple):
    """What a run repeats: `step(state, batch_at(number))`."""

    step: state.Step
    start: state.TrainState
    batch_at: Callable[[Int[Array, ""]], Any]


class Run(NamedTuple):
    """A method, what it was given (`samples`: strings or choices), and its path: at step 0 and at each of `marks`."""

    method: str
    policy: str
    steps: int
    learning_rate: float
    samples: int
    at_most: float
    marks: Int[np.ndarray, " K"]
    path: Point


class Row(NamedTuple):
    """The end of a run: KL(π ‖ π*) [nats a string], and what it is to stay below, inf where π* is no fixed point."""

    method: str
    policy: str
    steps: int
    learning_rate: float
    samples: int
    kl: float
    at_most: float


def follow(setup: Setup, measure: Callable[[gpt2.Params], Point], marks: Int[np.ndarray, " K"]) -> Point:
    """Points before the first step and after marks[0] < marks[1] < … steps, in one compiled program."""

    def part(current, bounds):
        advance = lambda number, carry: setup.step(carry, setup.batch_at(number))[0]
        current = jax.lax.fori_loop(*bounds, advance, current)
        return current, measure(current.params)

    @jax.jit
    def run(start):
        ends = np.concatenate([[0], marks])  # the first part has no step: `measure` is compiled once
        return jax.lax.scan(part, start, (np.concatenate([[0], ends[:-1]]), ends))[1]

    return run(setup.start)


def spread_marks(num_steps: int) -> Int[np.ndarray, " K"]:
    """Step numbers at equal ratios, as most of the way is made by the first steps."""
    return np.unique(np.geomspace(1, num_steps, 48).round().astype(np.int32))


def falling_adam(learning_rate: float, num_updates: int) -> optax.GradientTransformation:
    """Adam at a rate that falls to 0 in the second half of the updates."""
    half = num_updates // 2
    return optax.adam(optax.linear_schedule(learning_rate, 0.0, half, transition_begin=num_updates - half))


def policy_gradient(problem: Problem, policy: Policy, optimizer: optax.GradientTransformation) -> Setup:
    """Ascent of the regularised objective by its exact gradient."""
    loss = functools.partial(language.exact_loss, config=policy.config)
    return Setup(state.make_step(loss, optimizer), state.create(policy.params, optimizer), lambda number: problem)


def population_dpo(problem: Problem, policy: Policy, optimizer: optax.GradientTransformation) -> Setup:
    """DPO on every pair, weighted by its probability."""
    return _dpo(problem, policy, optimizer, language.choices(problem))


def sampled_dpo(problem: Problem, policy: Policy, optimizer: optax.GradientTransformation) -> Setup:
    """DPO on `NUM_CHOICES` choices."""
    return _dpo(problem, policy, optimizer, language.count_choices(problem, 0, NUM_CHOICES))


def _dpo(problem, policy, optimizer, pairs):
    batch = language.dpo_batch(problem, pairs)
    step = dpo.make_dpo_step(policy.config, optimizer, beta=problem.beta)
    return Setup(step, state.create(policy.params, optimizer), lambda number: batch)


def _prompts_at(repeats: int):
    """Each prompt `repeats` times, and a key for each step."""
    prompts = jnp.tile(jnp.array(PROMPTS, jnp.int32)[:, None], (repeats, 1))
    return lambda number: (prompts, jnp.ones_like(prompts, bool), jax.random.fold_in(jax.random.key(0), number))


def _sampling(problem: Problem, policy: Policy) -> dict[str, Any]:
    score = functools.partial(language.score, problem)
    return {
        "config": policy.config,
        "ref_params": policy.params,
        "score": score,
        "max_new_tokens": LENGTH,
        "eos_id": EOS,
    }


def ppo_with_values(problem: Problem, policy: Policy, optimizer: optax.GradientTransformation) -> Setup:
    """PPO with a value head, the KL penalty in each token's reward, λ = 0.95 and whitened advantages."""
    step = ppo.make_ppo_step(policy.config, optimizer, **EPOCHS)
    settings = {"kl_coef": problem.beta, "lambda_": 0.95} | _sampling(problem, policy)
    iteration = ppo.make_ppo_iteration(ppo_step=step, **settings)
    start = state.create(ppo.init(policy.params), optimizer)
    return Setup(iteration, start, _prompts_at(BATCH_SIZE // len(PROMPTS)))


def _grouped(problem, policy, optimizer, advantages, objective, kl_coef, **epochs):
    step = grpo.make_grpo_step(policy.config, optimizer, objective=objective, **epochs)
    settings = {"advantages": advantages, "kl_coef": kl_coef, "group_size": GROUP_SIZE} | _sampling(problem, policy)
    iteration = grpo.make_grpo_iteration(grpo_step=step, **settings)
    start = state.create(policy.params, optimizer)
    return Setup(iteration, start, _prompts_at(BATCH_SIZE // (GROUP_SIZE * len(PROMPTS))))


def reinforce(problem: Problem, policy: Policy, optimizer: optax.GradientTransformation) -> Setup:
    """REINFORCE without a baseline, the KL penalty in the reward."""
    return _grouped(problem, policy, optimizer, jnp.asarray, grpo.reinforce, problem.beta)


def rloo(problem: Problem, policy: Policy, optimizer: optax.GradientTransformation) -> Setup:
    """REINFORCE with the leave-one-out baseline, the KL penalty in the reward."""
    return _grouped(problem, policy, optimizer, group.rloo_advantages, grpo.reinforce, problem.beta)


def grpo_kl_in_reward(problem: Problem, policy: Policy, optimizer: optax.GradientTransformation) -> Setup:
    """GRPO as `rlhf-jax train grpo` runs it: standardised advantages, clipping, the KL penalty in the reward."""
    objective = functools.partial(grpo.grpo, clip_eps=0.2, beta=0.0)
    return _grouped(problem, policy, optimizer, group.standardized_advantages, objective, problem.beta, **EPOCHS)


def grpo_kl_in_loss(problem: Problem, policy: Policy, optimizer: optax.GradientTransformation) -> Setup:
    """GRPO as published, with β k3 in the loss."""
    objective = functools.partial(grpo.grpo, clip_eps=0.2, beta=problem.beta)
    return _grouped(problem, policy, optimizer, group.standardized_advantages, objective, 0.0, **EPOCHS)


class Setting(NamedTuple):
    """A line of the experiment; `samples` are strings a step."""

    method: str
    setup: Callable[[Problem, Policy, optax.GradientTransformation], Setup]
    steps: int
    learning_rate: float
    at_most: float
    samples: int = 0
    updates: int = 1
    optimizer: Callable[[float, int], optax.GradientTransformation] = falling_adam


def constant_sgd(learning_rate: float, num_updates: int) -> optax.GradientTransformation:
    """Plain gradient descent at one rate."""
    return optax.sgd(learning_rate)


SETTINGS = {
    "table": (
        Setting("exact policy gradient", policy_gradient, 3000, 0.1, 1e-4),
        Setting("DPO, every pair", population_dpo, 300, 0.1, 1e-4),
        Setting(f"DPO, {NUM_CHOICES:,} choices", sampled_dpo, 300, 0.1, 0.03),
        Setting("PPO", ppo_with_values, 1500, 0.03, 1e-3, BATCH_SIZE, 4),
        Setting("GRPO", grpo_kl_in_reward, 1500, 0.03, 1e-3, BATCH_SIZE, 4),
        Setting("RLOO", rloo, 1500, 0.1, 1e-3, BATCH_SIZE),
        Setting("REINFORCE, no baseline", reinforce, 3000, 4.0, 0.02, BATCH_SIZE, optimizer=constant_sgd),
        Setting("GRPO, k3 in the loss", grpo_kl_in_loss, 1500, 0.03, float("inf"), BATCH_SIZE, 4),
    ),
    "GPT-2": (
        Setting("exact policy gradient", policy_gradient, 2000, 0.003, 1e-3),
        Setting("DPO, every pair", population_dpo, 300, 0.005, 1e-2),
        Setting(f"DPO, {NUM_CHOICES:,} choices", sampled_dpo, 300, 0.005, 0.03),
        Setting("PPO", ppo_with_values, 600, 0.002, 0.05, BATCH_SIZE, 4),
        Setting("GRPO", grpo_kl_in_reward, 600, 0.002, 0.05, BATCH_SIZE, 4),
        Setting("RLOO", rloo, 600, 0.003, 0.05, BATCH_SIZE),
        Setting("REINFORCE, no baseline", reinforce, 1500, 0.001, 0.05, BATCH_SIZE),
    ),
}


def make_run(
    problem: Problem, name: str, policy: Policy, setting: Setting, marks: Int[np.ndarray, " K"] | None = None
) -> Run:
    """One line of the experiment, from the reference to its end."""
    optimizer = setting.optimizer(setting.learning_rate, setting.steps * setting.updates)
    measure = functools.partial(language.measure, problem, policy.config)
    marks = spread_marks(setting.steps) if marks is None else marks
    path = follow(setting.setup(problem, policy, optimizer), measure, marks)
    samples = NUM_CHOICES if setting.setup is sampled_dpo else setting.steps * setting.samples
    return Run(setting.method, name, setting.steps, setting.learning_rate, samples, setting.at_most, marks, path)


def runs() -> list[Run]:
    """Every method with a table, and with a GPT-2 of a few thousand parameters, from one reference to one π*."""
    policies = language.policies()
    problem = language.make_problem(policies["table"])
    return [make_run(problem, name, policies[name], line) for name, lines in SETTINGS.items() for line in lines]


def distances() -> list[Row]:
    """How far from π* each run ends."""
    return [Row(*run[:5], float(run.path.distance[-1]), run.at_most) for run in runs()]
