import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.lm import generate as sampling
from rlhf_jax.lm import gpt2, weights
from rlhf_jax.lm.generate import generate

GOLDEN = sorted(path.parent for path in pathlib.Path(__file__).parents[1].glob("golden/gpt2/*/expected.npz"))
TINY = gpt2.GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=1, n_head=2)
PARAMS = jax.tree.map(lambda leaf: 5 * leaf, gpt2.init(jax.random.key(1), TINY))
PROMPTS = np.array([[3, 1, 4, 1], [0, 0, 2, 6], [5, 0, 0, 0]])
PROMPT_MASK = np.array([[True] * 4, [False, False, True, True], [True, False, False, False]])
KEY = jax.random.key(0)

tiny = functools.partial(generate, TINY, PARAMS, PROMPTS, PROMPT_MASK, max_new_tokens=6)


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_greedy_tokens_equal_those_of_transformers_with_padding_on_either_side(folder):
    expected = np.load(folder / "expected.npz")
    config, params = weights.load(folder)
    new_tokens, eos_id = expected["greedy"].shape[1], int(expected["eos"])
    for side in ("left", "right"):
        completion = generate(
            config,
            params,
            expected[side],
            expected[side + "_mask"],
            KEY,
            max_new_tokens=new_tokens,
            temperature=0.0,
            eos_id=eos_id,
        )
        np.testing.assert_array_equal(completion.tokens, expected["greedy"])
        ended = np.cumsum(expected["greedy"] == eos_id, axis=1) - (expected["greedy"] == eos_id) > 0
        np.testing.assert_array_equal(completion.mask, ~ended)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.8, "eos_id": 2}], ids=str)
def test_log_probs_equal_those_of_a_fresh_forward_pass(settings):
    completion = tiny(KEY, **settings)
    tokens = np.concatenate([PROMPTS, completion.tokens], axis=1)
    mask = np.concatenate([PROMPT_MASK, np.ones_like(completion.mask)], axis=1)
    logits = gpt2.apply(TINY, PARAMS, tokens, mask)
    for row in range(3):
        places = np.flatnonzero(mask[row])
        states = places[-7:-1]  # the real token before each new one
        all_log_probs = jax.nn.log_softmax(logits[row, states])
        expected = np.take_along_axis(np.asarray(all_log_probs), np.asarray(completion.tokens[row])[:, None], 1)[:, 0]
        np.testing.assert_allclose(completion.log_probs[row], np.where(completion.mask[row], expected, 0), atol=1e-5)


def test_the_mask_keeps_the_end_of_text_and_drops_what_follows():
    free, ended = tiny(KEY), tiny(KEY, eos_id=7)
    assert free.mask.all()
    found = np.asarray(free.tokens == 7)
    assert found.any()
    assert not found.any(1).all()
    for row in range(3):
        length = found[row].argmax() + 1 if found[row].any() else 6
        assert ended.mask[row].tolist() == [t < length for t in range(6)]
        assert (ended.tokens[row, :length] == free.tokens[row, :length]).all()
        assert (ended.tokens[row, length:] == 7).all()
        assert (ended.log_probs[row, length:] == 0).all()


def test_changing_temperature_top_p_or_the_end_of_text_does_not_recompile():
    tiny(KEY, eos_id=3)
    before = sampling._generate._cache_size()
    for settings in ({"temperature": 0}, {"temperature": np.float64(0.5)}, {"top_p": 0.3}, {"eos_id": 4}):
        tiny(KEY, **({"eos_id": 3} | settings))
    assert sampling._generate._cache_size() == before


def test_equal_keys_give_equal_samples():
    assert (tiny(KEY).tokens == tiny(KEY).tokens).all()
    assert (tiny(KEY).tokens != tiny(jax.random.key(1)).tokens).any()


def test_it_vmaps_over_keys_and_stacked_parameters():
    keys = jax.random.split(KEY, 2)
    together = jax.vmap(lambda params, key: generate(TINY, params, PROMPTS, PROMPT_MASK, key, max_new_tokens=6))(
        jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS), keys
    )
    for index in range(2):
        alone = tiny(keys[index])
        np.testing.assert_array_equal(together.tokens[index], alone.tokens)
        np.testing.assert_allclose(together.log_probs[index], alone.log_probs, atol=1e-5)


def test_lengths_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="17 tokens, but the model has n_positions = 16"):
        generate(TINY, PARAMS, PROMPTS, PROMPT_MASK, KEY, max_new_tokens=13)
    with pytest.raises(ValueError, match="max_new_tokens must be positive, got 0"):
        generate(TINY, PARAMS, PROMPTS, PROMPT_MASK, KEY, max_new_tokens=0)


def test_it_lowers_for_accelerators():
    function = functools.partial(generate, TINY, max_new_tokens=3, top_k=4)
    exported = jax.export.export(jax.jit(function), platforms=["cuda", "tpu"])(PARAMS, PROMPTS, PROMPT_MASK, KEY)
    assert exported.platforms == ("cuda", "tpu")
    assert exported.out_avals[0].shape == (3, 3)


def truncated_softmax(logits, temperature, top_k, top_p):
    """The distribution that `generate` promises, one token at a time."""
    probs = np.exp((logits - logits.max()) / temperature)
    probs /= probs.sum()
    order = sorted(range(len(probs)), key=lambda token: -probs[token])
    if top_k:
        order = order[:top_k]
    total, kept, mass = sum(probs[order]), [], 0.0
    for token in order:
        if not kept or mass < top_p * total:
            kept.append(token)
            mass += probs[token]
    return np.where(np.isin(np.arange(len(probs)), kept), probs, 0) / mass


LOGITS = np.array([1.0, -2.0, 0.5, 3.0, 0.4, -40.0, 2.5, -1.0, 0.0, 2.9], np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (2.0, 0, 1.0), (0.5, 0, 0.9), (1.0, 4, 1.0), (1.5, 0, 0.7), (1.0, 0, 0.05), (3.0, 6, 0.8)],
)
def test_frequencies_follow_the_tempered_truncated_softmax(temperature, top_k, top_p):
    num = 200_000
    # Evenly spread uniforms, so that each frequency is exact to a few counts.
    uniforms = (jnp.arange(num) + 0.5) / num
    draw = jax.jit(lambda t, p: sampling._sample(jnp.tile(LOGITS, (num, 1)), uniforms, t, top_k, p))
    counts = np.bincount(draw(jnp.float32(temperature), jnp.float32(top_p)), minlength=len(LOGITS))
    expected = truncated_softmax(LOGITS.astype(np.float64), temperature, top_k, top_p)
    np.testing.assert_allclose(counts / num, expected, atol=2e-5)
    assert (counts[expected == 0] == 0).all()


def test_first_tokens_of_generate_pass_a_chi_square_test():
    num = 4000
    prompts, mask = np.full((num, 1), 3), np.ones((num, 1), bool)
    settings = {"temperature": 1.3, "top_k": 7, "top_p": 0.95}
    tokens = generate(TINY, PARAMS, prompts, mask, KEY, max_new_tokens=1, **settings).tokens[:, 0]
    logits = np.asarray(gpt2.apply(TINY, PARAMS, prompts[:1]), np.float64)[0, 0]
    expected = num * truncated_softmax(logits, **settings)
    kept = expected > 0
    counts = np.bincount(tokens, minlength=TINY.vocab_size)
    assert (counts[~kept] == 0).all()
    assert kept.sum() >= 4
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < 22.5  # the 99.9 % point for 6 degrees of freedom, as many as 7 tokens can have


def test_temperature_zero_and_top_k_one_take_the_first_of_equal_logits():
    logits = jnp.tile(jnp.array([[0.0, 2.0, 2.0, 1.0], [-3.0, -3.0, -3.0, -3.0]]), (3, 1))
    uniforms = jnp.array([0.0, 0.0, 0.5, 0.5, 1 - 2**-23, 1 - 2**-23])
    for temperature, top_k in ((0.0, 0), (0.0, 3), (1.0, 1)):
        drawn = jax.jit(sampling._sample, static_argnums=3)(logits, uniforms, temperature, top_k, 1.0)
        assert drawn.tolist() == [1, 0] * 3


def test_top_p_keeps_the_smallest_set_also_among_equals():
    nucleus, equal = jax.jit(sampling._nucleus), jnp.ones((1, 8))
    for top_p, kept in ((0.0, 1), (0.125, 1), (0.13, 2), (0.5, 4), (0.51, 5), (0.999, 8)):
        assert nucleus(equal, top_p).tolist() == [[1.0] * kept + [0.0] * (8 - kept)]
    halves = jnp.array([[0.125, 1.0, 0.25, 0.5, 0.125]])  # half, quarter, eighth, two sixteenths
    for top_p, kept in ((0.5, [1]), (0.51, [1, 3]), (0.75, [1, 3]), (0.9, [0, 1, 2, 3]), (0.94, [0, 1, 2, 3, 4])):
        assert np.flatnonzero(nucleus(halves, top_p)[0]).tolist() == kept


def test_a_token_of_probability_zero_is_never_drawn():
    rng = np.random.default_rng(0)
    largest = np.float32(1 - 2**-23)
    table = rng.exponential(size=(500, 300)).astype(np.float32) * (rng.random((500, 300)) < 0.1)
    table[:, -40:] = 0
    table[:, 0] = 0
    table[0], table[0, 7] = 0, 1e-30
    for u in (0.0, 0.5, largest, 1.0):
        drawn = jax.jit(sampling._draw)(jnp.asarray(table), jnp.full(500, u, jnp.float32))
        assert (np.take_along_axis(table, np.asarray(drawn)[:, None], 1) > 0).all()


def test_bfloat16_parameters_sample_with_float32_log_probs():
    completion = generate(TINY, jax.tree.map(jnp.bfloat16, PARAMS), PROMPTS, PROMPT_MASK, KEY, max_new_tokens=3)
    assert completion.log_probs.dtype == jnp.float32
    assert jnp.isfinite(completion.log_probs).all()
