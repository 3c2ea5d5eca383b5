"""A GPT-2 small enough to train in a test, and sequences for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.lm import gpt2
from rlhf_jax.lm.sequences import Sequences, pad_left, pad_right

# Large weights, so that distributions are far from uniform. The end-of-text id is also what padding is filled with.
TINY = gpt2.GPT2Config(
    vocab_size=11,
    n_positions=32,
    n_embd=16,
    n_layer=2,
    n_head=2,
    initializer_range=0.4,
    bos_token_id=0,
    eos_token_id=0,
)


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """Nearly all of the time here is compilation, and XLA takes half of that for programs that run slower."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def config():
    return TINY


@pytest.fixture(scope="session")
def params():
    return gpt2.init(jax.random.key(0), TINY)


@pytest.fixture(scope="session")
def wide_params(params):
    """The same parameters in float64; use under `jax.enable_x64(True)`."""
    with jax.enable_x64(True):
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), params)


@pytest.fixture(scope="session")
def draw_sequences():
    """`(seed, num) -> Sequences` of different lengths; about half of the completions end with the end-of-text id."""

    def draw(seed: int, num: int, prompt_length: int = 5, completion_length: int = 6) -> Sequences:
        rng = np.random.default_rng(seed)
        prompts = [rng.integers(1, 11, rng.integers(1, prompt_length + 1)) for _ in range(num)]
        completions = [rng.integers(1, 11, rng.integers(1, completion_length + 1)) for _ in range(num)]
        for completion in completions:
            if rng.random() < 0.5:
                completion[-1] = 0
        return Sequences(*pad_left(prompts, prompt_length), *pad_right(completions, completion_length))

    return draw


@pytest.fixture(scope="session")
def pad_more():
    """`(sequences, left, right) -> Sequences` with that many more columns of padding, filled with an arbitrary id."""

    def widen(sequences: Sequences, left: int, right: int) -> Sequences:
        add = lambda array, before, after, fill: np.pad(array, ((0, 0), (before, after)), constant_values=fill)
        return Sequences(
            add(sequences.prompts, left, 0, 7),
            add(sequences.prompt_mask, left, 0, False),
            add(sequences.completions, 0, right, 3),
            add(sequences.completion_mask, 0, right, False),
        )

    return widen


@pytest.fixture(scope="session")
def unpadded_rows():
    """`sequences -> [(tokens, number of prompt tokens)]`: each row's real tokens alone."""

    def strip(sequences: Sequences) -> list[tuple[np.ndarray, int]]:
        rows = []
        for prompt, kept_prompt, completion, kept in zip(*map(np.asarray, sequences), strict=True):
            rows.append((np.concatenate([prompt[kept_prompt], completion[kept]]), int(kept_prompt.sum())))
        return rows

    return strip


@pytest.fixture(scope="session")
def unpadded_hidden(config):
    """`(params, rows) -> [hidden states of each row]`, every row on its own: no mask, no padding before it."""

    def states(params, rows):
        longest = max(len(tokens) for tokens, _ in rows)
        whole = np.stack([np.pad(tokens, (0, longest - len(tokens))) for tokens, _ in rows]).astype(np.int32)
        hidden = np.asarray(gpt2.hidden(config, params, jnp.asarray(whole)))
        return [hidden[i, : len(tokens)] for i, (tokens, _) in enumerate(rows)]

    return states


@pytest.fixture(scope="session")
def unpadded_log_probs(unpadded_rows, unpadded_hidden):
    """`(params, sequences) -> [log π(y_t | x, y_<t) of each row's completion]`, by NumPy from each row's own logits."""

    def score(params, sequences):
        rows = unpadded_rows(sequences)
        embedding = np.asarray(gpt2.unembed_matrix(params), np.float64)
        scored = []
        for (tokens, num_prompt), states in zip(rows, unpadded_hidden(params, rows), strict=True):
            logits = states.astype(np.float64) @ embedding.T
            log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            scored.append(np.array([log_probs[t - 1, tokens[t]] for t in range(num_prompt, len(tokens))]))
        return scored

    return score
