"""One language, two views: a list of strings, and an MDP that writes them token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import enumerable, environments, mdp, policy_gradient, returns, values

VOCAB, LENGTH, EOS, PROMPTS = 3, 3, 2, 2
TOKENS, MASK = map(np.asarray, enumerable.all_strings(VOCAB, LENGTH, EOS))
ROWS = enumerable.num_prefixes(VOCAB, LENGTH)
END = PROMPTS * ROWS
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(PROMPTS, len(TOKENS)))
PROMPT_PROBS = np.array([0.3, 0.7])
TABLES, REF_TABLES = RNG.normal(size=(2, PROMPTS, ROWS, VOCAB))


def language():
    return environments.token_mdp(TOKENS, MASK, REWARDS, VOCAB, PROMPT_PROBS)


def string_log_probs(tables):
    """[P, N]: the string view."""
    score = lambda table: enumerable.string_log_probs(
        lambda tokens: table[enumerable.prefix_rows(tokens, VOCAB)], TOKENS, MASK
    )
    return jax.vmap(score)(tables)


def logits(tables):
    """[S, V]: the MDP's view of the same tables; what is done in the absorbing state does not matter."""
    return jnp.concatenate([tables.reshape(END, VOCAB), jnp.zeros((1, VOCAB))])


def test_two_strings_by_hand():
    """Letter 0 and EOS 1, at most two tokens: 0 0, 0 1 and 1. States: the prefixes '', '0', '1', and the end."""
    tokens, mask = enumerable.all_strings(2, 2, 1)
    world = environments.token_mdp(tokens, mask, np.array([[5.0, 6.0, 7.0]]), 2)
    assert world.transition.argmax(-1).tolist() == [[1, 3], [3, 3], [3, 3], [3, 3]]
    assert world.reward.tolist() == [[0, 7], [5, 6], [0, 0], [0, 0]]
    assert world.initial.tolist() == [1, 0, 0, 0]


def test_without_eos_strings_end_at_their_full_length():
    tokens, mask = enumerable.all_strings(2, 2)
    world = environments.token_mdp(tokens, mask, np.array([[5.0, 6.0, 7.0, 8.0]]), 2)
    assert world.transition.argmax(-1).tolist() == [[1, 2], [3, 3], [3, 3], [3, 3]]
    assert world.reward.tolist() == [[0, 0], [5, 6], [7, 8], [0, 0]]


def test_prompts_are_even_unless_told():
    world = environments.token_mdp(TOKENS, MASK, REWARDS, VOCAB)
    assert (world.initial[0], world.initial[ROWS], world.initial.sum()) == (0.5, 0.5, 1)
    np.testing.assert_allclose(language().initial[np.array([0, ROWS])], PROMPT_PROBS)


def test_tables_that_do_not_fit_are_refused_with_the_bytes_they_need():
    """27 states, 3 actions, float64: 27 * 3 * 27 * 8."""
    with pytest.raises(ValueError, match="need 17,496 bytes, more than max_bytes = 17,495"):
        environments.token_mdp(TOKENS, MASK, REWARDS, VOCAB, max_bytes=17_495)
    assert environments.token_mdp(TOKENS, MASK, REWARDS, VOCAB, max_bytes=17_496).transition.shape == (27, 3, 27)


def paths(prompt):
    """A trajectory of the MDP for every string; what follows an EOS is filled with it, in the absorbing state."""
    rows = prompt * ROWS + np.asarray(enumerable.prefix_rows(TOKENS, VOCAB))
    states = np.concatenate([np.where(MASK, rows, END), np.full((len(TOKENS), 1), END)], axis=1)
    return mdp.Trajectory(states, TOKENS, np.asarray(language().reward)[states[:, :-1], TOKENS])


def test_a_trajectorys_probability_is_its_strings_and_its_return_the_strings_reward():
    """After the end every action is free, so that of a string that ended at once, k tokens are left to chance."""
    world = language()
    policy = jax.nn.softmax(logits(TABLES))
    for prompt in range(PROMPTS):
        trajectories = paths(prompt)
        probs = jax.vmap(functools.partial(mdp.trajectory_prob, world, policy))(trajectories)
        freedom = np.float64(VOCAB) ** (~MASK).sum(1)
        expected = PROMPT_PROBS[prompt] * np.exp(string_log_probs(TABLES)[prompt])
        np.testing.assert_allclose(probs * freedom, expected, rtol=1e-5)
        returned = jax.vmap(returns.discounted_return, (0, None))(trajectories.rewards, 1.0)
        np.testing.assert_allclose(returned, REWARDS[prompt], rtol=1e-6)


def test_values_gradient_and_theorem_are_those_of_the_strings():
    with jax.enable_x64(True):
        world, tables = language(), jnp.asarray(TABLES)

        def string_objective(tables):
            by_prompt = jax.vmap(enumerable.expected_reward)(string_log_probs(tables), REWARDS)
            return PROMPT_PROBS @ by_prompt, by_prompt

        @jax.jit
        def measure(tables):
            policy = jax.nn.softmax(logits(tables))
            of_mdp = values.state_values(world, policy, LENGTH), values.expected_return(world, policy, LENGTH)
            theorem = policy_gradient.policy_gradient(world, logits(tables), LENGTH)
            closed = lambda table, rewards: enumerable.objective_gradient(
                lambda table, tokens: table[enumerable.prefix_rows(tokens, VOCAB)],
                table, TOKENS, MASK, jnp.zeros(len(TOKENS)), rewards, 0.0,
            )  # fmt: skip
            gradients = jnp.asarray(PROMPT_PROBS)[:, None, None] * jax.vmap(closed)(tables, jnp.asarray(REWARDS))
            return *of_mdp, theorem, gradients, jax.value_and_grad(string_objective, has_aux=True)(tables)

        state_values, mean, theorem, gradients, ((expected, by_prompt), autodiff) = measure(tables)
        np.testing.assert_allclose(state_values[:END:ROWS], by_prompt, rtol=1e-12)
        np.testing.assert_allclose(mean, expected, rtol=1e-12)
        np.testing.assert_allclose(theorem[:END].reshape(TABLES.shape), gradients, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(gradients, autodiff, rtol=1e-10, atol=1e-15)
        assert (theorem[END] == 0).all()


def test_the_string_divergence_is_the_sum_of_a_per_token_penalty():
    """r(s, a) - beta log(pi/pi_ref): its J is E[r] - beta KL of the strings, averaged over prompts."""
    with jax.enable_x64(True):
        world, beta = language(), 0.4
        policy, ref = (jax.nn.softmax(logits(jnp.asarray(tables))) for tables in (TABLES, REF_TABLES))
        penalised = world._replace(reward=world.reward - beta * (jnp.log(policy) - jnp.log(ref)))
        scores = string_log_probs(jnp.asarray(TABLES)), string_log_probs(jnp.asarray(REF_TABLES))
        objectives = jax.vmap(enumerable.regularized_objective, (0, 0, 0, None))(*scores, REWARDS, beta)
        np.testing.assert_allclose(
            values.expected_return(penalised, policy, LENGTH), PROMPT_PROBS @ np.array(objectives), rtol=1e-12
        )


def test_gae_on_exact_values_has_the_advantages_as_its_mean():
    """At lambda = 1 it is the return to come less the value: over all strings, the first token's advantage."""
    world = language()
    policy = jax.nn.softmax(logits(TABLES))
    state_values = np.array(values.state_values(world, policy, LENGTH))
    trajectories = paths(0)
    for lambda_ in (0.0, 0.7, 1.0):
        estimates = jax.vmap(returns.gae, (0, None, 0, None))(
            trajectories.rewards, 1.0, state_values[trajectories.states], lambda_
        )
        probs = np.exp(np.float64(string_log_probs(TABLES)[0]))
        for token in range(VOCAB):
            begins = TOKENS[:, 0] == token
            mean = probs[begins] @ np.float64(estimates)[begins, 0] / probs[begins].sum()
            exact = values.advantages(world, policy, LENGTH)[0, token]
            np.testing.assert_allclose(mean, exact, atol=1e-5)
