"""Which checkpoints are kept and found, and that half-written ones are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effv2_jax.checkpoint import Checkpoints
from effv2_jax.errors import UserError

ABSTRACT = {"w": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}


def state_of(step: int):
    return {"w": jnp.full((3,), step, jnp.float32)}


def save_all(directory, scores, **kept):
    """Saves one checkpoint a step, with a score or None."""
    checkpoints = Checkpoints(directory, **kept)
    for step, score in scores.items():
        checkpoints.save(step, state_of(step), {"step": step, "note": "ab"}, score)
    checkpoints.close()


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def test_the_last_and_the_best_are_kept_also_by_a_later_process(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.9, 3: None, 4: 0.7}, keep_last=1, keep_best=1)
    assert steps_in(tmp_path) == [2, 4]
    save_all(tmp_path, {5: 0.8, 6: None}, keep_last=1, keep_best=1)
    assert steps_in(tmp_path) == [2, 6]
    save_all(tmp_path, {7: 0.95, 8: None}, keep_last=1, keep_best=1)
    assert steps_in(tmp_path) == [7, 8]


def test_state_and_record_come_back_as_one(tmp_path):
    save_all(tmp_path, {3: 0.1, 7: 0.2}, keep_last=2)
    checkpoints = Checkpoints(tmp_path, read_only=True)
    for which, step in (("latest", 7), ("best", 7), ("3", 3)):
        assert checkpoints.find(which) == step
        state, record = checkpoints.restore(step, ABSTRACT)
        np.testing.assert_array_equal(state["w"], [step] * 3)
        assert record == checkpoints.restore_run(step) == {"step": step, "note": "ab"}
    checkpoints.close()


def test_a_step_that_is_not_kept_is_named(tmp_path):
    save_all(tmp_path, {3: None}, keep_last=1)
    checkpoints = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(UserError, match=r"no checkpoint '4' in .*kept steps: \[3\]"):
        checkpoints.find("4")
    with pytest.raises(UserError, match="no checkpoint 'best'"):  # none has a score
        checkpoints.find("best")


def test_a_half_written_checkpoint_is_ignored_and_cleaned_up(tmp_path):
    save_all(tmp_path, {3: None}, keep_last=2)
    # What a process leaves that dies while it writes.
    unfinished = tmp_path / "5.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    (unfinished / "state" / "part").write_bytes(b"half")
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.latest() == 3
    reader.close()
    assert unfinished.exists()  # a reader changes nothing
    save_all(tmp_path, {6: None}, keep_last=2)
    assert steps_in(tmp_path) == [3, 6] and not unfinished.exists()


def test_a_relative_directory_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_all("runs/x", {1: None}, keep_last=1)
    assert steps_in(tmp_path / "runs" / "x") == [1]


@pytest.mark.parametrize("kept", [{"keep_last": 0}, {"keep_best": -1}])
def test_at_least_one_is_kept(tmp_path, kept):
    with pytest.raises(UserError, match="keep_last must be at least 1"):
        Checkpoints(tmp_path / "x", **kept)
