import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.lm import gpt2, transformer, weights

GOLDEN = sorted(path.parent for path in pathlib.Path(__file__).parents[1].glob("golden/gpt2/*/expected.npz"))
TINY = gpt2.GPT2Config(vocab_size=13, n_positions=12, n_embd=8, n_layer=2, n_head=2)
TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def random_params(config, seed=0, scale=0.3):
    """Every parameter off its initial value, so that each one matters."""
    leaves, treedef = jax.tree.flatten(gpt2.shapes(config))
    rng = np.random.default_rng(seed)
    return treedef.unflatten([jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


def numpy_gpt2(config, params, tokens):
    """Logits [T, V] of one row without padding: float64, a query and a head at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, layer):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + config.layer_norm_epsilon)
        return centred / deviation * layer["weight"] + layer["bias"]

    def affine(x, layer):
        return x @ layer["weight"] + layer["bias"]

    def activation(x):
        if config.activation_function == "gelu":
            return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        return {
            "gelu_new": lambda: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            "relu": lambda: np.maximum(x, 0),
            "silu": lambda: x / (1 + np.exp(-x)),
            "tanh": lambda: np.tanh(x),
        }[config.activation_function]()

    x = p["wte"]["weight"][tokens] + p["wpe"]["weight"][np.arange(len(tokens))]
    size = config.n_embd // config.n_head
    for layer, block in enumerate(p["h"]):
        query, key, value = np.split(affine(norm(x, block["ln_1"]), block["attn"]["c_attn"]), 3, axis=-1)
        mixed = np.zeros_like(x)
        for head in range(config.n_head):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(tokens)):
                scores = key[: t + 1, part] @ query[t, part]
                if config.scale_attn_weights:
                    scores = scores / math.sqrt(size)
                if config.scale_attn_by_inverse_layer_idx:
                    scores = scores / (layer + 1)
                odds = np.exp(scores - scores.max())
                mixed[t, part] = odds / odds.sum() @ value[: t + 1, part]
        x = x + affine(mixed, block["attn"]["c_proj"])
        x = x + affine(activation(affine(norm(x, block["ln_2"]), block["mlp"]["c_fc"])), block["mlp"]["c_proj"])
    head = p["wte"] if config.tie_word_embeddings else p["lm_head"]
    return norm(x, p["ln_f"]) @ head["weight"].T


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_function": "gelu", "scale_attn_by_inverse_layer_idx": True},
        {"activation_function": "relu", "scale_attn_weights": False, "layer_norm_epsilon": 0.1},
        {"activation_function": "silu", "tie_word_embeddings": False, "n_inner": 5},
        {"activation_function": "tanh", "n_head": 8, "n_layer": 1},
    ],
    ids=str,
)
def test_logits_equal_the_numpy_loop(changes):
    config = dataclasses.replace(TINY, **changes)
    params = random_params(config)
    with jax.enable_x64(True):
        logits = gpt2.apply(config, jax.tree.map(jnp.float64, params), TOKENS)
    expected = np.stack([numpy_gpt2(config, params, row) for row in TOKENS])
    np.testing.assert_allclose(logits, expected, atol=1e-12)


def test_all_four_golden_configurations_are_here():
    assert [folder.name for folder in GOLDEN] == ["default", "inverse_layer", "unscaled", "untied"]


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_logits_equal_those_of_transformers(folder):
    expected = np.load(folder / "expected.npz")
    config, params = weights.load(folder)
    for side in ("left", "right"):
        tokens, mask, logits = (expected[side + part] for part in ("", "_mask", "_logits"))
        actual = np.asarray(gpt2.apply(config, params, tokens, mask))
        np.testing.assert_allclose(actual[mask], logits[mask], atol=2e-5)


def padded(row, left, right, filler):
    tokens = np.concatenate([np.full(left, filler), row, np.full(right, filler)])
    return tokens[None], (np.arange(len(tokens)) >= left)[None] & (np.arange(len(tokens)) < left + len(row))[None]


@pytest.mark.parametrize(("left", "right"), [(4, 0), (0, 4), (2, 2)])
def test_padding_on_either_side_changes_no_real_token(left, right):
    params = random_params(TINY)
    alone = np.asarray(gpt2.apply(TINY, params, TOKENS[:1]))[0]
    for filler in (0, 7):
        tokens, mask = padded(TOKENS[0], left, right, filler)
        np.testing.assert_allclose(np.asarray(gpt2.apply(TINY, params, tokens, mask))[mask], alone, atol=2e-6)


def test_position_ids_by_hand():
    mask = np.array([[False, False, True, True], [True, True, False, False], [True, False, True, True]])
    assert gpt2.position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 2]]


def test_gradients_agree_with_finite_differences_and_none_reaches_padding():
    config = gpt2.GPT2Config(vocab_size=7, n_positions=6, n_embd=4, n_layer=1, n_head=2, tie_word_embeddings=False)
    tokens, mask = padded(np.array([3, 1, 5]), 1, 1, filler=0)
    with jax.enable_x64(True):
        params, direction = (jax.tree.map(jnp.float64, random_params(config, seed)) for seed in (0, 1))
        loss = jax.jit(lambda p: jnp.where(mask[..., None], jnp.sin(gpt2.apply(config, p, tokens, mask)), 0).sum())
        shifted = lambda step: loss(jax.tree.map(lambda p, d: p + step * d, params, direction))
        gradient = jax.jit(jax.grad(loss))(params)
        slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
        np.testing.assert_allclose(slope, (shifted(1e-5) - shifted(-1e-5)) / 2e-5, rtol=1e-7)
    assert gradient["wte"]["weight"].any(1).tolist() == [False, True, False, True, False, True, False]


def test_dropout_acts_only_with_a_key():
    off = dataclasses.replace(TINY, n_layer=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    params = random_params(off)
    plain = gpt2.hidden(off, params, TOKENS)
    assert (gpt2.hidden(off, params, TOKENS, dropout_key=jax.random.key(0)) == plain).all()
    for rate in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        config = dataclasses.replace(off, **{rate: 0.5})
        one, same, other = (gpt2.hidden(config, params, TOKENS, dropout_key=jax.random.key(key)) for key in (0, 0, 1))
        assert (one == same).all()
        assert not np.allclose(one, plain), rate
        assert not np.allclose(one, other), rate


def test_dropout_keeps_the_mean():
    kept = transformer.dropout(jnp.ones(40_000), 0.2, jax.random.key(0))
    assert set(np.unique(kept).tolist()) == {0.0, 1.25}
    assert abs(kept.mean() - 1) < 0.01


def test_bfloat16_parameters_give_bfloat16_logits_near_the_float32_ones():
    params = random_params(TINY)
    narrow = gpt2.apply(TINY, jax.tree.map(jnp.bfloat16, params), TOKENS)
    assert narrow.dtype == jnp.bfloat16
    wide = gpt2.apply(TINY, params, TOKENS)
    assert np.abs(narrow.astype(jnp.float32) - wide).max() < 0.03 * np.abs(wide).max()


def test_vmap_over_stacked_parameters():
    each = [random_params(TINY, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    together = jax.vmap(lambda params: gpt2.apply(TINY, params, TOKENS))(stacked)
    for params, logits in zip(each, together, strict=True):
        np.testing.assert_allclose(logits, gpt2.apply(TINY, params, TOKENS), atol=1e-5)


def test_prefill_and_decode_steps_equal_one_forward_pass():
    params = random_params(TINY)
    row = np.concatenate([TOKENS[0], [8, 2, 10]])
    whole = gpt2.hidden(TINY, params, row[None])[0]
    for left, right in ((2, 0), (0, 2)):
        prompt, mask = padded(row[:5], left, right, filler=0)
        states, cache = gpt2.prefill(TINY, params, prompt, mask, 10)
        np.testing.assert_allclose(states[mask], whole[:5], atol=2e-6)
        for step, token in enumerate(row[5:]):
            state, cache = gpt2.decode_step(TINY, params, jnp.array([token]), cache, jnp.int32(7 + step))
            np.testing.assert_allclose(state[0], whole[5 + step], atol=2e-6)


def test_init_draws_what_hugging_face_draws():
    config = gpt2.GPT2Config(vocab_size=200, n_positions=64, n_embd=64, n_layer=2, n_head=2)
    params = gpt2.init(jax.random.key(0), config)
    deviations = {
        "wte": params["wte"]["weight"],
        "wpe": params["wpe"]["weight"],
        "c_attn": params["h"][0]["attn"]["c_attn"]["weight"],
        "c_fc": params["h"][1]["mlp"]["c_fc"]["weight"],
    }
    for name, weight in deviations.items():
        assert abs(weight.std() / 0.02 - 1) < 0.05, name
    for residual in (params["h"][0]["attn"]["c_proj"], params["h"][1]["mlp"]["c_proj"]):
        assert abs(residual["weight"].std() / (0.02 / 2) - 1) < 0.05
        assert (residual["bias"] == 0).all()
    assert (params["ln_f"]["weight"] == 1).all()
    first, second = (block["attn"]["c_attn"]["weight"] for block in params["h"])
    assert (first != second).all()
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, gpt2.shapes(config))


def test_the_published_gpt2_has_124_million_parameters():
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(gpt2.shapes(gpt2.GPT2Config()))) == 124_439_808


def test_tied_embeddings_share_one_matrix():
    tied, untied = (dataclasses.replace(TINY, tie_word_embeddings=tie) for tie in (True, False))
    assert "lm_head" not in gpt2.shapes(tied)
    params = random_params(untied)
    assert gpt2.unembed_matrix(params) is params["lm_head"]["weight"]
    tied_params = {name: part for name, part in params.items() if name != "lm_head"}
    assert gpt2.unembed_matrix(tied_params) is params["wte"]["weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 0}, "n_layer must be positive, got 0"),
        ({"n_embd": 10, "n_head": 4}, r"n_embd \(10\) must be a multiple of n_head \(4\)"),
        ({"activation_function": "swiglu"}, "activation_function 'swiglu' is not one of"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


def test_more_tokens_than_positions_are_refused():
    params = random_params(TINY)
    with pytest.raises(ValueError, match="13 tokens, but the model has n_positions = 12"):
        gpt2.hidden(TINY, params, np.zeros((1, 13), np.int32))
    with pytest.raises(ValueError, match="13 tokens, but the model has n_positions = 12"):
        gpt2.prefill(TINY, params, TOKENS, TOKENS > 0, 13)
