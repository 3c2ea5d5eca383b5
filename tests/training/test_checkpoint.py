import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.training import checkpoint, state


@pytest.fixture
def current():
    """Parameters as a dict with a list in it, like GPT-2's, and Adam's moments."""
    params = {"h": [{"weight": jnp.arange(6.0).reshape(2, 3) / 7}, {"weight": jnp.ones(3, jnp.bfloat16)}]}
    return state.create(params, optax.adam(1e-3))


def test_round_trip_is_exact(tmp_path, current):
    moved = jax.tree.map(lambda leaf: leaf + 1, current)
    checkpoint.save(tmp_path, 7, moved)
    restored = checkpoint.restore(tmp_path, current)
    assert jax.tree.structure(restored) == jax.tree.structure(moved)
    jax.tree.map(np.testing.assert_array_equal, restored, moved)
    assert [leaf.dtype for leaf in jax.tree.leaves(restored)] == [leaf.dtype for leaf in jax.tree.leaves(moved)]


def test_the_newest_are_kept_and_one_can_be_asked_for(tmp_path, current):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, current._replace(step=jnp.array(step)), keep=2)
    assert checkpoint.latest_step(tmp_path) == 10
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["10", "2"]
    assert checkpoint.restore(tmp_path, current, 2).step == 2
    assert checkpoint.restore(tmp_path, current).step == 10


def test_what_is_not_there(tmp_path, current):
    assert checkpoint.latest_step(tmp_path / "nowhere") is None
    assert not (tmp_path / "nowhere").exists()
    assert checkpoint.latest_step(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        checkpoint.restore(tmp_path, current)
    checkpoint.save(tmp_path, 3, current)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint 4"):
        checkpoint.restore(tmp_path, current, 4)
