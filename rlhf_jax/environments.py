"""Small MDPs to learn and to test on. Each function's docstring numbers its states and actions.

An episode ends in an absorbing state: one that is never left and pays nothing, so every formula for continuing
MDPs holds as it stands.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from rlhf_jax import enumerable
from rlhf_jax._typing import Scalar, check_same_shape
from rlhf_jax.mdp import MDP, make_mdp

_MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
_CELLS = ".S#GH"
_MAX_BYTES = 2**30


def two_state(gamma: Scalar = 0.9, slip: Scalar = 0.1) -> MDP:
    """A poor state 0, where the start is, and a rich state 1; action 0 stays, action 1 moves.

    With probability `slip` the other action's transition happens. Staying pays 0.2 in state 0 and 1 in state 1;
    moving pays nothing, so the best policy moves to state 1 only if it looks far enough ahead.
    """
    stay, move = np.eye(2), np.eye(2)[::-1]
    transition = np.stack([(1 - slip) * stay + slip * move, (1 - slip) * move + slip * stay], axis=1)
    return make_mdp([1.0, 0.0], transition, [[0.2, 0.0], [1.0, 0.0]], gamma)


def chain(length: int = 5, gamma: Scalar = 0.9) -> MDP:
    """A walk on states 0 … length − 1, left to right; action 0 steps left, action 1 right; state `length` absorbs.

    Starts in the middle. Stepping right out of state length − 1 pays 1 and ends; stepping left out of state 0 ends.
    Under the uniform policy and γ = 1, state i is worth (i + 1) / (length + 1).

    Reference: Sutton & Barto (2018), example 6.2.
    """
    end = length
    transition = np.zeros((length + 1, 2, length + 1))
    reward = np.zeros((length + 1, 2))
    for state in range(length):
        transition[state, 0, state - 1 if state > 0 else end] = 1
        transition[state, 1, state + 1] = 1
    transition[end, :, end] = 1
    reward[length - 1, 1] = 1
    return make_mdp(np.eye(length + 1)[length // 2], transition, reward, gamma)


def gridworld(
    layout: Sequence[str] = ("...G", ".#.H", "S..."),
    gamma: Scalar = 0.9,
    *,
    slip: Scalar = 0.2,
    step_reward: Scalar = -0.04,
    hole_reward: Scalar = -1.0,
) -> MDP:
    """A grid drawn in text: `.` floor, `S` start (several share it evenly), `#` wall, `G` goal, `H` hole.

    Cell (row, column) is state row · width + column, walls included. Actions: 0 left, 1 down, 2 right, 3 up, as in
    gymnasium's FrozenLake. A move turns to either side with probability slip / 2, and stays put at a wall or the
    border. Each pays `step_reward`, plus 1 for entering a goal or `hole_reward` for a hole; both absorb. The default
    is the 4 x 3 world of Russell & Norvig, "Artificial Intelligence", chapter 17.

    Raises:
        ValueError: naming the row of the layout that cannot be read, or if no `S` is in it.
    """
    for number, row in enumerate(layout):
        if len(row) != len(layout[0]) or set(row) - set(_CELLS):
            raise ValueError(f"layout[{number}] is {row!r}: rows need one length and the characters {_CELLS!r}")
    cells = np.array([list(row) for row in layout])
    if not (cells == "S").any():
        raise ValueError("layout has no start 'S'")
    kinds, num_states = cells.ravel(), cells.size
    transition = np.zeros((num_states, 4, num_states))
    for state, kind in enumerate(kinds):
        for action in range(4):
            for turn, prob in ((0, 1 - slip), (-1, slip / 2), (1, slip / 2)):
                target = _neighbour(cells, state, (action + turn) % 4) if kind in ".S" else state
                transition[state, action, target] += prob
    entering = (kinds == "G") + hole_reward * (kinds == "H")
    reward = np.where(np.isin(kinds, [".", "S"])[:, None], step_reward + transition @ entering, 0)
    starts = kinds == "S"
    return make_mdp(starts / starts.sum(), transition, reward, gamma)


def _neighbour(cells, state, move):
    row, column = np.add(divmod(state, cells.shape[1]), _MOVES[move])
    inside = 0 <= row < cells.shape[0] and 0 <= column < cells.shape[1]
    return row * cells.shape[1] + column if inside and cells[row, column] != "#" else state


def random_mdp(key: Key[Array, ""], num_states: int, num_actions: int, gamma: Scalar = 0.9) -> MDP:
    """Rows of ρ₀ and P uniform on the simplex, rewards standard normal. Works under jit and vmap over keys."""
    initial_key, transition_key, reward_key = jax.random.split(key, 3)
    initial = jax.random.exponential(initial_key, (num_states,))
    transition = jax.random.exponential(transition_key, (num_states, num_actions, num_states))
    return MDP(
        initial / initial.sum(),
        transition / transition.sum(axis=-1, keepdims=True),
        jax.random.normal(reward_key, (num_states, num_actions)),
        jnp.asarray(gamma, float),
    )


def token_mdp(
    tokens: Int[ArrayLike, "N L"],
    mask: Bool[ArrayLike, "N L"],
    rewards: Float[ArrayLike, "P N"],
    vocab_size: int,
    prompt_probs: Float[ArrayLike, " P"] | None = None,
    *,
    gamma: Scalar = 1.0,
    max_bytes: int = _MAX_BYTES,
) -> MDP:
    """A language seen token by token: a state is a prompt and the prefix written so far, an action the next token.

    State prompt · R + row, with R = `enumerable.num_prefixes(V, L)` and row from `enumerable.prefix_rows`; the last
    state, P · R, absorbs. A string's last token (its EOS, or position L − 1) pays r(x, y) and ends; every other pays
    nothing. From prefixes that no string has (an EOS inside) every token ends and pays nothing.

    At γ = 1 and `num_steps` L the two views agree: J is the expected reward, the value of an empty prefix its
    prompt's, and a policy's log-probabilities sum along a path to the string's.

    Args:
        tokens: the strings, as `enumerable.all_strings` lists them.
        mask: True at the tokens that count.
        rewards: r(x, y), a row for each of the P prompts.
        prompt_probs: how often each prompt is asked; evenly if None.

    Raises:
        ValueError: if the tables need more than `max_bytes`, naming the bytes they need.
    """
    check_same_shape(tokens=tokens, mask=mask)
    tokens, mask, rewards = np.asarray(tokens), np.asarray(mask), np.asarray(rewards, np.float64)
    num_prompts, num_rows = len(rewards), enumerable.num_prefixes(vocab_size, tokens.shape[1])
    end = num_prompts * num_rows
    enumerable.check_bytes("the tables", 8 * vocab_size * (end + 1) ** 2, max_bytes)
    rows = np.asarray(enumerable.prefix_rows(tokens, vocab_size))
    goes_on = np.pad(mask[:, 1:], [(0, 0), (0, 1)])
    last = mask & ~goes_on
    transition = np.zeros((end + 1, vocab_size, end + 1))
    transition[:, :, end] = 1
    reward = np.zeros((end + 1, vocab_size))
    for prompt in range(num_prompts):
        states = prompt * num_rows + rows
        inner = states[goes_on], tokens[goes_on]
        transition[*inner, end] = 0
        transition[*inner, prompt * num_rows + vocab_size * rows[goes_on] + tokens[goes_on] + 1] = 1
        reward[states[last], tokens[last]] = rewards[prompt]
    initial = np.zeros(end + 1)
    initial[:end:num_rows] = 1 / num_prompts if prompt_probs is None else prompt_probs
    return make_mdp(initial, transition, reward, gamma)


def from_gymnasium(env: Any, gamma: Scalar) -> MDP:
    """The tables of a gymnasium toy-text environment (FrozenLake, Taxi, CliffWalking), with its numbering.

    One state is added at the end: it absorbs, and every transition that terminates leads to it. Rewards are means
    over next states. A time limit is not part of the MDP.

    Raises:
        ValueError: if the environment does not carry its tables.
    """
    try:
        table, initial = env.unwrapped.P, env.unwrapped.initial_state_distrib
    except AttributeError as error:
        raise ValueError(f"{env} has no tables P and initial_state_distrib, as toy-text environments do") from error
    num_states, num_actions = len(table), len(table[0])
    transition = np.zeros((num_states + 1, num_actions, num_states + 1))
    reward = np.zeros((num_states + 1, num_actions))
    for state in range(num_states):
        for action in range(num_actions):
            for prob, next_state, pay, terminated in table[state][action]:
                transition[state, action, num_states if terminated else next_state] += prob
                reward[state, action] += prob * pay
    transition[num_states, :, num_states] = 1
    return make_mdp(np.append(initial, 0), transition, reward, gamma)
