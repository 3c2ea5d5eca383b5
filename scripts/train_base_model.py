"""Train the bundled base model, a small GPT-2, on IMDB reviews with this library's own SFT step.

    python scripts/train_base_model.py train                                      # constant rate; stop it at will
    python scripts/train_base_model.py train --decay-steps 2000 --length 255      # let the rate fall to 0, and end
    python scripts/train_base_model.py export                                     # rlhf_jax/assets/base, loss curve

Each call of `train` resumes from the newest checkpoint of the run. Needs the data folder that scripts/imdb.py names.
"""

import collections
import functools
import json
import re
import time
from pathlib import Path

import imdb
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rlhf_jax import plots
from rlhf_jax.lm import gpt2, weights
from rlhf_jax.lm.generate import generate
from rlhf_jax.lm.sequences import Sequences, completion_log_probs, pad_right
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
        if (number + 1) % checkpoint_every == 0 or (decay_steps and number + 1 == done + decay_steps):
            checkpoint.save(run / "checkpoints", number + 1, current)


@jax.jit
def _window_nll(params: gpt2.Params, tokens, mask, scored):
    sequences = Sequences(tokens[:, :1], mask[:, :1], tokens[:, 1:], mask[:, 1:])
    return -jnp.where(scored, completion_log_probs(CONFIG, params, sequences), 0).sum()


def nats_per_byte(params: gpt2.Params, tokenizer: Tokenizer, texts: list[str], batch_size: int = 64) -> float:
    """−log p of the texts over their UTF-8 bytes; each token sees at least 128 tokens before it, where there are any.

    Windows of `n_positions` start every 128 tokens and score what no window before them has scored.
    """
    stride, width = CONFIG.n_positions // 2, CONFIG.n_positions
    windows, scored = [], []
    for encoding in tokenizer.encode_batch(texts):
        ids = [0, *encoding.ids]
        for start in range(0, max(len(ids) - stride, 1), stride):
            window = ids[start : start + width]
            new_from = stride if start else 1
            windows.append(window)
            scored.append([new_from <= i < len(window) for i in range(1, width)])
    total = 0.0
    for begin in range(0, len(windows), batch_size):
        tokens, mask = pad_right(windows[begin : begin + batch_size] + [[0]] * batch_size, width)
        marks = np.zeros((batch_size, width - 1), bool)
        rows = scored[begin : begin + batch_size]
        marks[: len(rows)] = rows
        total += float(_window_nll(params, tokens[:batch_size], mask[:batch_size], marks))
    return total / sum(len(text.encode()) for text in texts)


def latest(run: Path) -> tuple[gpt2.Params, int]:
    """Parameters of the run's newest checkpoint, and their update number."""
    optimizer = make_optimizer(1.0, None, 1)
    like = jax.eval_shape(lambda: state.create(gpt2.init(jax.random.key(0), CONFIG), optimizer))
    return checkpoint.restore(run / "checkpoints", like).params, checkpoint.latest_step(run / "checkpoints")


def evaluate(run: Path = Path("runs/base"), num_reviews: int = 1000) -> None:
    """Nats per UTF-8 byte of the newest checkpoint on held-out reviews."""
    tokenizer, _ = prepare(run)
    params, step = latest(run)
    reviews = held_out_reviews(num_reviews)
    print(f"update {step}: {nats_per_byte(params, tokenizer, reviews):.4f} nats per byte on {num_reviews} test reviews")


def held_out_reviews(num: int) -> list[str]:
    """Some of the test reviews, the same at every call."""
    _, texts = imdb.language_model_texts()
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:num]]


def loss_curve(run: Path) -> list[dict]:
    """The run's metrics, without what a resumed call overwrote."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return sorted({line["step"]: line for line in lines}.values(), key=lambda line: line["step"])


def draw(run: Path, bytes_per_token: float, final: float) -> None:
    """figures/base_model_training.png: training loss in nats per byte against tokens seen, and the held-out result."""
    curve = loss_curve(run)
    tokens = np.array([line["step"] for line in curve]) * 4096 / 1e6
    loss = np.array([line["loss"] for line in curve]) / bytes_per_token
    with plots.style():
        figure, axes = plots.subplots(width=6.4, height=3.8)
        axes.plot(tokens, loss, color=plots.BLUE, linewidth=1.0)
        axes.axhline(final, **plots.EXACT)
        plots.label(axes, tokens[-1], final, f"held-out reviews: {final:.3f}", plots.BLACK, xytext=(0, -8), ha="right")
        axes.set(
            title="The bundled base model learns IMDB reviews",
            xlabel="training tokens [millions]",
            ylabel="training loss [nats per byte]",
            ylim=(final - 0.08, 1.7),
        )
        plots.save(figure, "base_model_training", Path(__file__).resolve().parents[1] / "figures")


def sample(params: gpt2.Params, tokenizer: Tokenizer, num: int, temperature: float) -> list[str]:
    """Reviews that the model writes from its start token, 120 tokens at most."""
    start = np.zeros((num, 1), np.int32)
    new = generate(
        CONFIG, params, start, start == 0, jax.random.key(0), max_new_tokens=120, temperature=temperature, eos_id=0
    )
    return [tokenizer.decode(row[mask]) for row, mask in zip(*map(np.array, new[:2]), strict=True)]


def known_words() -> set[str]:
    """The words that stand at least three times in the training texts, in lower case."""
    texts, _ = imdb.language_model_texts()
    counts = collections.Counter(word for text in texts for word in words(text))
    return {word for word, count in counts.items() if count >= 3}


def words(text: str) -> list[str]:
    """Runs of letters in lower case."""
    return re.findall(r"[^\W\d_]+", text.lower())


def real_word_share(texts: list[str], known: set[str]) -> float:
    """Share of all words that are known; the last word of a text is left out, since it may be cut off."""
    found = [word for text in texts for word in words(text)[:-1]]
    return sum(word in known for word in found) / len(found)


def export(run: Path = Path("runs/base")) -> None:
    """Write rlhf_jax/assets/base (float16 weights, tokenizer, numbers, ten samples) and the loss curve."""
    folder = Path(__file__).resolve().parents[1] / "rlhf_jax" / "assets" / "base"
    tokenizer, stream = prepare(run)
    params, step = latest(run)
    weights.save(folder, CONFIG, jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params))
    tokenizer.save(str(folder / "tokenizer.json"))
    stored = weights.load(folder)[1]
    held_out = held_out_reviews(2000)
    bits = nats_per_byte(stored, tokenizer, held_out)
    encoded = tokenizer.encode_batch(held_out)
    bytes_per_token = sum(len(text.encode()) for text in held_out) / sum(len(e.ids) for e in encoded)
    samples = sample(stored, tokenizer, 10, temperature=0.7)
    known = known_words()
    blocks = sum(leaf.size for leaf in jax.tree.leaves((params["h"], params["ln_f"])))
    facts = {
        "nats_per_byte": round(bits, 4),
        "held_out_reviews": len(held_out),
        "bytes_per_token": round(bytes_per_token, 3),
        "updates": step,
        "training_tokens": step * 4096,
        "epochs": round(step * 4096 / len(stream), 2),
        "real_word_share_at_temperature_1": round(real_word_share(sample(stored, tokenizer, 256, 1.0), known), 3),
        "real_word_share_at_temperature_0.7": round(real_word_share(sample(stored, tokenizer, 256, 0.7), known), 3),
        "real_word_share_of_held_out_reviews": round(real_word_share(held_out, known), 3),
        "parameters_outside_embeddings": blocks,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }
    (folder / "metrics.json").write_text(json.dumps(facts, indent=2) + "\n")
    (folder / "samples.txt").write_text("\n\n".join(samples) + "\n")
    draw(run, bytes_per_token, bits)
    print(facts)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train, "evaluate": evaluate, "export": export})
