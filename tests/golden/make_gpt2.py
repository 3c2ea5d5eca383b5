"""Golden files for GPT-2, made by transformers; the tests that read them need neither torch nor transformers.

    python tests/golden/make_gpt2.py          (in an environment with torch and transformers)

For each configuration a folder as `save_pretrained` writes it, with float32 weights drawn at random, and
`expected.npz`: float64 logits of a batch padded on the left and on the right, and greedy continuations of the
batch padded on the left, with an end-of-text token that stops some rows and not others.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers

OUT = pathlib.Path(__file__).parent / "gpt2"
LENGTHS = (9, 6, 3, 1)
NEW_TOKENS = 10
SHAPE = {"vocab_size": 59, "n_positions": 20, "n_embd": 16, "n_layer": 2, "n_head": 2}
CONFIGS = {
    "default": {},
    "untied": {"tie_word_embeddings": False, "n_inner": 24, "n_layer": 1},
    "inverse_layer": {"scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu", "n_head": 4},
    "unscaled": {"scale_attn_weights": False, "activation_function": "relu", "layer_norm_epsilon": 1e-2},
}


def random_model(settings: dict, seed: int) -> transformers.GPT2LMHeadModel:
    config = transformers.GPT2Config(**(SHAPE | settings), attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.4 * torch.randn(parameter.shape, generator=generator)
    return model


def pad(rows: list[np.ndarray], side: str) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, rows))
    tokens, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        where = slice(width - len(row), None) if side == "left" else slice(len(row))
        tokens[index, where], mask[index, where] = row, 1
    return tokens, mask


def logits(model, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    tokens, mask = torch.tensor(tokens), torch.tensor(mask)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(tokens, attention_mask=mask, position_ids=positions).logits.numpy()


def greedy(model, tokens: np.ndarray, mask: np.ndarray, eos: int | None) -> np.ndarray:
    out = model.generate(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=eos,
        pad_token_id=0 if eos is None else eos,
    ).numpy()
    return out[:, tokens.shape[1] :]


def choose_eos(free: np.ndarray) -> int:
    """A token that ends one row early and another never."""
    for token in np.unique(free):
        found = (free == token).any(1)
        if found.any() and not found.all() and (free == token).argmax(1)[found].min() >= 1:
            return int(token)
    raise SystemExit("no token would serve as end of text: choose another seed")


def make(name: str, settings: dict, seed: int) -> None:
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model = random_model(settings, seed)
    model.save_pretrained(folder, max_shard_size="15KB" if name == "unscaled" else "5GB")
    (folder / "generation_config.json").unlink()
    model.double()
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, SHAPE["vocab_size"], length) for length in LENGTHS]
    left, left_mask = pad(rows, "left")
    right, right_mask = pad(rows, "right")
    free = greedy(model, left, left_mask, None)
    eos = choose_eos(free)
    whole = logits(
        model, np.concatenate([left, free], 1), np.pad(left_mask, [(0, 0), (0, NEW_TOKENS)], constant_values=1)
    )
    best = np.sort(whole[:, left.shape[1] - 1 : -1], -1)
    margin = (best[..., -1] - best[..., -2]).min()
    if margin < 1e-3:
        raise SystemExit(f"{name}: greedy decoding is decided by {margin:.1e} only: choose another seed")
    np.savez_compressed(
        folder / "expected.npz",
        versions=f"transformers {transformers.__version__}, torch {torch.__version__}, float64",
        left=left,
        left_mask=left_mask.astype(bool),
        left_logits=logits(model, left, left_mask),
        right=right,
        right_mask=right_mask.astype(bool),
        right_logits=logits(model, right, right_mask),
        eos=eos,
        greedy=greedy(model, left, left_mask, eos),
    )
    print(f"{name}: eos {eos}, smallest greedy margin {margin:.3f}")


if __name__ == "__main__":
    for seed, (name, settings) in enumerate(CONFIGS.items()):
        make(name, settings, seed)
