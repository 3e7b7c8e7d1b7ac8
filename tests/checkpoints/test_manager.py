"""Which checkpoints are kept and found, and that half-written and damaged ones are not."""

import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import compiler_of, tiny_config

from effv2_jax.checkpoints.checksums import CHECKSUMS
from effv2_jax.checkpoints.manager import Checkpoints, damage_of, quarantine_damaged
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


def test_a_state_with_frozen_parameters_comes_back(tmp_path):
    compiler, _ = compiler_of(tiny_config(optimizer__learning_rate_multipliers=(("block_", 0.0), (".*", 0.5))))
    state = compiler.initial_state()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"step": 1}, None)
    checkpoints.wait()
    restored, _ = checkpoints.restore(1, compiler.abstract_state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
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


def flip_a_byte(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def remove(path, rng):
    path.unlink()


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """Checkpoints 3 and 7, with scores."""
    directory = tmp_path_factory.mktemp("sound")
    save_all(directory, {3: 0.1, 7: 0.2}, keep_last=2)
    return directory


def restored(directory):
    checkpoints = Checkpoints(directory, keep_last=2)
    step = checkpoints.latest()
    state, record = checkpoints.restore(step, ABSTRACT)
    checkpoints.close()
    np.testing.assert_array_equal(state["w"], [record["step"]] * 3)
    return step


@pytest.mark.parametrize("harm", [flip_a_byte, truncate, remove])
def test_harm_to_any_file_is_named_and_the_checkpoint_before_is_used(two_checkpoints, tmp_path, harm):
    rng = random.Random(0)
    files = sorted(path.relative_to(two_checkpoints) for path in (two_checkpoints / "7").rglob("*") if path.is_file())
    assert len(files) >= 10
    covered = set((two_checkpoints / "7" / CHECKSUMS).read_text().split()[1::2])
    for number, file in enumerate(files):
        directory = tmp_path / str(number)
        shutil.copytree(two_checkpoints, directory)
        harm(directory / file, rng)
        lines = []
        quarantine_damaged(directory, lines.append)
        name = str(file.relative_to("7"))
        if name in covered or name == CHECKSUMS:
            [line] = lines
            if name != CHECKSUMS:  # a flipped bit in there may look like a damaged file
                assert line.startswith(f"checkpoint 7 is damaged: {name} is ")
            assert line.endswith("it is now 7.damaged") and (directory / "7.damaged").exists()
            assert restored(directory) == 3
        else:  # Orbax's notes, without which the checkpoint is whole
            assert not lines and restored(directory) == 7


def test_a_list_of_checksums_that_was_cut_short_is_found(two_checkpoints, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, directory)
    whole = (directory / "7" / CHECKSUMS).read_text().splitlines(keepends=True)
    for count in range(len(whole)):
        (directory / "7" / CHECKSUMS).write_text("".join(whole[:count]))
        with pytest.raises(UserError, match=r"checkpoint 7 .* is damaged: .*is (cut short|damaged)"):
            Checkpoints(directory, read_only=True).find("7")


def test_what_a_killed_deletion_leaves_goes_without_a_word(two_checkpoints, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, directory)
    shutil.rmtree(directory / "3" / "state" / "d")
    quarantine_damaged(directory, lambda line: pytest.fail(line))
    assert sorted(path.name for path in directory.iterdir()) == ["7"]


def test_a_killed_save_on_an_object_store_is_no_checkpoint(two_checkpoints, tmp_path, monkeypatch):
    # There Orbax writes under the final name, and its mark comes last.
    monkeypatch.setattr("orbax.checkpoint.utils.is_checkpoint_finalized", lambda p: (p / "commit_success.txt").exists())
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, directory)
    (directory / "7" / "commit_success.txt").unlink()
    (directory / "7" / CHECKSUMS).unlink()
    quarantine_damaged(directory, lambda line: pytest.fail(line))
    shutil.rmtree(directory / "3")
    quarantine_damaged(directory, lambda line: pytest.fail(line))  # killed in the first save: a fresh start


def test_an_older_damaged_checkpoint_is_set_aside_too(two_checkpoints, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, directory)
    (directory / "3" / "metrics" / "metrics").write_text('{"sc')
    with pytest.raises(UserError, match="3: metrics/metrics is damaged"):  # a reader changes nothing
        Checkpoints(directory, read_only=True)
    quarantine_damaged(directory, lambda line: None)
    assert restored(directory) == 7 and (directory / "3.damaged").exists()


def test_where_all_are_damaged_nothing_starts_from_scratch(two_checkpoints, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, directory)
    for step in (3, 7):
        (directory / str(step) / "run" / "metadata").write_text("")
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact: checkpoint 3 .* checkpoint 7 is damaged"):
        quarantine_damaged(directory, lambda line: None)
    assert steps_in(directory) == [3, 7]
    for step in (3, 7):
        (directory / str(step)).rename(directory / f"{step}.damaged")
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact: 3\.damaged; 7\.damaged"):
        quarantine_damaged(directory, lambda line: None)


def test_of_equal_scores_the_newest_is_the_best_and_is_kept(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.5, 3: None, 4: None}, keep_last=1, keep_best=1)
    assert steps_in(tmp_path) == [2, 4]
    assert Checkpoints(tmp_path, read_only=True).best() == 2


def test_a_damaged_checkpoint_is_not_evaluated(two_checkpoints, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, directory)
    (directory / "7" / "run" / "metadata").write_text("")
    checkpoints = Checkpoints(directory, read_only=True)
    assert checkpoints.find("3") == 3
    with pytest.raises(UserError, match=r"checkpoint 7 .* run/metadata is damaged; --step=3 selects another"):
        checkpoints.find("latest")


def test_checksums_are_those_of_sha256sum(two_checkpoints):
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    run = subprocess.run(["sha256sum", "--check", "--quiet", CHECKSUMS], cwd=two_checkpoints / "7")
    assert run.returncode == 0 and damage_of(two_checkpoints / "7") == []


def test_other_arrays_than_asked_for_are_a_sentence(two_checkpoints):
    checkpoints = Checkpoints(two_checkpoints, read_only=True)
    other = {"v": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=ABSTRACT["w"].sharding)}
    with pytest.raises(UserError, match=r"checkpoint 7 in .* is of another network or optimizer"):
        checkpoints.restore(7, other)


SAVE_FOR_EVER = """
import itertools, sys
import jax, jax.numpy as jnp
from effv2_jax.checkpoints.manager import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep_last=1)
print("ready", flush=True)
for step in itertools.count((checkpoints.latest() or 0) + 1):
    checkpoints.save(step, {"w": jnp.full((3,), step, jnp.float32)}, {"step": step}, None)
    checkpoints.wait()
    print(step, flush=True)
"""


def test_a_process_killed_while_it_saves_leaves_the_last_complete_checkpoint(tmp_path):
    rng = random.Random(0)
    complete = 0
    for life in range(4):
        command = [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout.readline() == "ready\n"
        for _ in range(2 + life):
            complete = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.1))  # a save takes about as long
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        complete = max([complete, *map(int, rest.split())])
        quarantine_damaged(tmp_path, lambda line: pytest.fail(line))
        assert restored(tmp_path) in (complete, complete + 1)
    save_all(tmp_path, {1000: None}, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["1000"]  # nothing half-written is left


def test_the_half_written_are_gone_when_a_process_that_saves_nothing_closes(two_checkpoints):
    for index in range(200):  # enough that they are not removed before `close`
        (two_checkpoints / f"20.orbax-checkpoint-tmp/state/{index}").mkdir(parents=True)
    checkpoints = Checkpoints(two_checkpoints, keep_last=2)
    checkpoints.close()
    assert sorted(path.name for path in two_checkpoints.iterdir()) == ["3", "7"]
