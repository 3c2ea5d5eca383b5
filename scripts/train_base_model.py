"""Train the bundled base model, a small GPT-2, on IMDB reviews with this library's own SFT step.

    python scripts/train_base_model.py train --run runs/base                       # constant rate; Ctrl-C when it pays no more
    python scripts/train_base_model.py train --run runs/base --decay-steps 3000    # resume, let the rate fall to 0, stop
    python scripts/train_base_model.py export --run runs/base                      # rlhf_jax/assets/base and its loss curve

Each call of `train` resumes from the newest checkpoint of the run. Needs the data folder described in scripts/imdb.py.
"""

import functools
import json
import time
from pathlib import Path

import imdb
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rlhf_jax.lm import gpt2
from rlhf_jax.lm.sequences import Sequences
from rlhf_jax.training import checkpoint, sft, state

EOS = "<|endoftext|>"
CONFIG = gpt2.GPT2Config(
    vocab_size=4096,
    n_positions=256,
    n_embd=192,
    n_layer=3,
    n_head=4,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    bos_token_id=0,
    eos_token_id=0,
)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE like GPT-2's, with `CONFIG.vocab_size` tokens; the end-of-text token has id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=CONFIG.vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return tokenizer


def encode_stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one stream of ids, each opened by the end-of-text token."""
    encoded = tokenizer.encode_batch(texts)
    return np.concatenate([np.array([0, *encoding.ids], np.uint16) for encoding in encoded])


def prepare(run: Path) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer and the training stream, made once and kept in the run's folder."""
    stream_file, tokenizer_file = run / "train.npy", run / "tokenizer.json"
    if not stream_file.exists():
        run.mkdir(parents=True, exist_ok=True)
        texts, _ = imdb.language_model_texts()
        train_tokenizer(texts).save(str(tokenizer_file))
        order = np.random.default_rng(0).permutation(len(texts))
        np.save(stream_file, encode_stream(Tokenizer.from_file(str(tokenizer_file)), [texts[i] for i in order]))
    return Tokenizer.from_file(str(tokenizer_file)), np.load(stream_file)


def batch_at(stream: np.ndarray, step: int, batch_size: int, length: int) -> Sequences:
    """Windows of `length` tokens plus the one before each; every epoch cuts the stream at other places."""
    num_windows = len(stream) // length - 2
    epoch, index = divmod(step * batch_size, num_windows)
    rng = np.random.default_rng([17, epoch])
    offset, order = rng.integers(length), rng.permutation(num_windows)
    rows = order[np.arange(index, index + batch_size) % num_windows] * length + offset
    tokens = stream[rows[:, None] + np.arange(length + 1)].astype(np.int32)
    ones = np.ones(tokens.shape, bool)
    return Sequences(tokens[:, :1], ones[:, :1], tokens[:, 1:], ones[:, 1:])


def make_optimizer(peak: float, decay_from: int | None, decay_steps: int) -> optax.GradientTransformation:
    """Muon for the blocks' matrices, Adam for the rest: warm-up, constant, then linear decay to 0."""

    def schedule(rate: float, step):
        warm = rate * jnp.minimum(1.0, (step + 1) / 200)
        return warm if decay_from is None else warm * jnp.clip(1 - (step - decay_from) / decay_steps, 0.0, 1.0)

    def muon_leaves(params: gpt2.Params):
        matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=1)
        blocks = jax.tree.map(lambda leaf: matrix if leaf.ndim == 2 else None, params["h"])
        return {name: jax.tree.map(lambda _: None, leaf) for name, leaf in params.items()} | {"h": blocks}

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            functools.partial(schedule, peak),
            adam_learning_rate=functools.partial(schedule, peak / 5),
            adam_b2=0.99,
            muon_weight_dimension_numbers=muon_leaves,
        ),
    )


def train(
    run: Path = Path("runs/base"),
    steps: int = 100_000,
    decay_steps: int = 0,
    batch_tokens: int = 4096,
    length: int = 128,
    peak: float = 0.02,
    checkpoint_every: int = 500,
) -> None:
    """Train on windows of `length` tokens until `steps`, or for `decay_steps` more with the rate falling to 0."""
    tokenizer, stream = prepare(run)
    done = checkpoint.latest_step(run / "checkpoints") or 0
    optimizer = make_optimizer(peak, done if decay_steps else None, max(decay_steps, 1))
    current = state.create(gpt2.init(jax.random.key(0), CONFIG), optimizer)
    if done:
        current = checkpoint.restore(run / "checkpoints", current)
    step = sft.make_sft_step(CONFIG, optimizer)
    started, losses = time.time(), []
    print(f"{tokenizer.get_vocab_size()} tokens, {len(stream)} in the stream, from update {done}", flush=True)
    for number in range(done, done + decay_steps if decay_steps else steps):
        current, metrics = step(current, batch_at(stream, number, batch_tokens // length, length))
        losses.append(metrics["loss"])
        if (number + 1) % 50 == 0:
            loss, losses = float(np.mean(jax.device_get(losses))), []
            if not np.isfinite(loss):
                raise SystemExit(f"loss is {loss} at update {number + 1}; the last checkpoint is kept")
            rate = 50 * batch_tokens / (time.time() - started)
            line = {"step": number + 1, "loss": loss, "length": length, "timing": {"tokens_per_second": round(rate)}}
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
            started = time.time()
        if (number + 1) % checkpoint_every == 0 or decay_steps and number + 1 == done + decay_steps:
            checkpoint.save(run / "checkpoints", number + 1, current)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train})
