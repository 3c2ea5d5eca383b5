import dataclasses
import http.server
import json
import pathlib
import threading

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax

from rlhf_jax.lm import folder as folders
from rlhf_jax.lm import gpt2, weights
from rlhf_jax.lm.folder import ModelError

TINY = gpt2.GPT2Config(vocab_size=13, n_positions=12, n_embd=8, n_layer=2, n_head=2)
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "gpt2"


def random_params(config):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), gpt2.shapes(config))


@pytest.fixture(scope="module")
def params():
    return random_params(TINY)


@pytest.fixture
def saved(tmp_path, params):
    weights.save(tmp_path / "model", TINY, params)
    return tmp_path / "model"


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_tensors(folder, change):
    """Replace the dict of stored tensors by change(dict)."""
    path = folder / weights.WEIGHTS
    safetensors.flax.save_file(change(safetensors.flax.load_file(path)), path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "n_inner": 5, "bos_token_id": None, "eos_token_id": 3},
        {"activation_function": "relu", "scale_attn_weights": False, "attn_pdrop": 0.0, "layer_norm_epsilon": 1e-3},
    ],
    ids=str,
)
def test_what_is_saved_is_loaded(tmp_path, changes):
    config = dataclasses.replace(TINY, **changes)
    params = random_params(config)
    weights.save(tmp_path, config, params)
    loaded_config, loaded = weights.load(str(tmp_path))
    assert loaded_config == config
    assert_same(loaded, params)


def test_a_folder_is_laid_out_as_transformers_does(saved):
    theirs = GOLDEN / "default"
    names = lambda folder: safetensors.flax.load_file(folder / weights.WEIGHTS).keys()
    assert names(saved) == names(theirs)
    config, their_config = (json.loads((folder / "config.json").read_text()) for folder in (saved, theirs))
    assert config.keys() <= their_config.keys()
    assert (config["model_type"], config["architectures"]) == ("gpt2", ["GPT2LMHeadModel"])
    with safetensors.safe_open(saved / weights.WEIGHTS, framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_are_joined():
    assert (GOLDEN / "unscaled" / weights.INDEX).exists()
    config, params = weights.load(GOLDEN / "unscaled")
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, gpt2.shapes(config))


def test_names_without_prefix_and_known_buffers_are_accepted(saved, params):
    def as_openai(stored):
        plain = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
        buffers = {"h.0.attn.bias": jnp.ones((1, 1, 12, 12)), "h.1.attn.masked_bias": jnp.array(-1e4)}
        return plain | buffers | {"lm_head.weight": plain["wte.weight"]}

    rewrite_tensors(saved, as_openai)
    assert_same(weights.load(saved)[1], params)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_loaded_as_float32(saved, params, dtype):
    rewrite_tensors(saved, lambda stored: jax.tree.map(lambda tensor: tensor.astype(dtype), stored))
    loaded = weights.load(saved)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}
    assert_same(loaded, jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params))


def test_integers_in_the_configuration_serve_as_floats_and_unknown_fields_are_ignored(saved):
    rewrite_config(saved, attn_pdrop=0, summary_type="cls_index", n_ctx=12)
    assert weights.load(saved)[0] == dataclasses.replace(TINY, attn_pdrop=0.0)


def refusal(name_or_folder):
    with pytest.raises(ModelError) as caught:
        weights.load(name_or_folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "config.json: model_type is 'llama', only 'gpt2' is supported"),
        ({"n_embd": "8"}, "config.json: n_embd is '8', not of type int"),
        ({"n_inner": 2.5}, "config.json: n_inner is 2.5, not of type int | None"),
        ({"n_head": 3}, "config.json: GPT2Config.n_embd (8) must be a multiple of n_head (3)"),
        ({"activation_function": "x"}, "config.json: GPT2Config.activation_function 'x' is not one of"),
        ({"vocab_size": 14}, "wte.weight has shape (13, 8), its configuration says (14, 8)"),
        ({"n_layer": 3}, "tensor h.2.attn.c_attn.bias and 11 more missing for this configuration"),
        ({"n_layer": 1}, "tensor h.1.attn.c_attn.bias and 11 more unexpected for this configuration"),
        ({"tie_word_embeddings": False}, "tensor lm_head.weight missing for this configuration"),
    ],
    ids=str,
)
def test_a_configuration_that_disagrees_is_named(saved, changes, message):
    rewrite_config(saved, **changes)
    assert message in refusal(saved)


def test_files_that_are_missing_or_damaged_are_named(saved):
    file = saved / weights.WEIGHTS
    whole = file.read_bytes()
    for damaged in (whole[:-100], whole[:20], b""):
        file.write_bytes(damaged)
        assert "model.safetensors cannot be read, truncated or not safetensors: " in refusal(saved)
    file.unlink()
    (saved / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    message = refusal(saved)
    assert "model.safetensors is missing" in message
    assert "save_pretrained" in message
    (saved / weights.INDEX).write_text(json.dumps({"weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}}))
    assert "model-00001-of-00002.safetensors is missing" in refusal(saved)
    (saved / weights.INDEX).write_text("{}")
    assert "model.safetensors.index.json has no weight_map" in refusal(saved)
    (saved / "config.json").write_text('{"model_type": "gpt2",')
    assert "config.json is not valid JSON: " in refusal(saved)
    (saved / "config.json").write_text("[]")
    assert "config.json holds a JSON list, not an object" in refusal(saved)
    (saved / "config.json").unlink()
    assert "config.json is missing" in refusal(saved)
    assert "pytorch_model.bin is a file; give the folder" in refusal(saved / "pytorch_model.bin")


def test_a_tensor_that_is_missing_is_named(saved):
    rewrite_tensors(saved, lambda stored: {name: tensor for name, tensor in stored.items() if "ln_f" not in name})
    assert "tensor ln_f.bias and 1 more missing" in refusal(saved)


def test_tensors_of_integers_are_refused(saved):
    rewrite_tensors(saved, lambda stored: jax.tree.map(lambda tensor: tensor.astype(jnp.int8), stored))
    assert "holds int8, not floating-point numbers" in refusal(saved)


def test_save_refuses_parameters_of_another_configuration(tmp_path, params):
    with pytest.raises(ModelError, match=r"params: wte.weight has shape \(13, 8\)"):
        weights.save(tmp_path / "new", dataclasses.replace(TINY, vocab_size=9), params)
    assert not (tmp_path / "new").exists()


def test_bundled_names_the_packaged_folder():
    assert folders.find("bundled") == folders.BUNDLED


class Hub(http.server.BaseHTTPRequestHandler):
    """The four requests that `snapshot_download` makes, answered from one folder under the name test/tiny."""

    folder: pathlib.Path
    asked: list[str]
    commit = "c" * 40

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path == "/api/models/test/tiny/revision/main":
            return self.answer(json.dumps({"id": "test/tiny", "sha": self.commit}).encode())
        if path == f"/api/models/test/tiny/tree/{self.commit}":
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "a" * 40}
                for file in self.folder.iterdir()
            ]
            return self.answer(json.dumps(files).encode())
        prefix, _, name = path.rpartition("/")
        if prefix == f"/test/tiny/resolve/{self.commit}":
            return self.answer((self.folder / name).read_bytes())
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    do_HEAD = do_GET

    def answer(self, body):
        self.send_response(200)
        headers = {"Content-Length": len(body), "ETag": f'"{hash(body):x}"', "X-Repo-Commit": self.commit}
        for header, value in headers.items():
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    handler = type("TinyHub", (Hub,), {"folder": saved, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    download = huggingface_hub.snapshot_download
    options = {"endpoint": f"http://127.0.0.1:{server.server_port}", "cache_dir": tmp_path / "cache"}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **more: download(name, **more, **options))
    yield server, handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_name_is_downloaded_without_its_pickles_then_served_from_the_cache(hub, saved, params):
    server, handler = hub
    (saved / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    config, loaded = weights.load("test/tiny")
    assert config == TINY
    assert_same(loaded, params)
    assert not any("pytorch_model.bin" in path for path in handler.asked)
    server.shutdown()
    server.server_close()
    assert weights.load("test/tiny")[0] == TINY


def test_a_name_the_hub_does_not_know_is_refused(hub):
    assert "'test/huge' is not a folder here, and the Hugging Face hub has no public model of it" in refusal(
        "test/huge"
    )


def test_an_unreachable_hub_is_said_in_one_line(hub):
    hub[0].shutdown()
    hub[0].server_close()
    message = refusal("gpt2")
    assert "the Hugging Face hub is unreachable (" in message
    assert message.endswith('give a folder that holds the model, or "bundled"')


def test_a_path_that_is_no_folder_is_not_asked_of_the_hub(hub):
    for name in ("/no/such/folder", "./model", "a/b/c"):
        assert "is neither an existing folder nor a name on the Hugging Face hub" in refusal(name)
    assert hub[1].asked == []
