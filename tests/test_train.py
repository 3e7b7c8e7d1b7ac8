"""Whole runs on the digits: stages, compilations, checkpoints, divergence, resume, and what is left on disk."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from compilations import CompileCounter
from tiny import tiny_config, to_host

from effv2_jax import train as train_lib
from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints
from effv2_jax.config import to_dict
from effv2_jax.curriculum import make_curriculum
from effv2_jax.errors import UserError
from effv2_jax.evaluate import evaluate_run
from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics
from effv2_jax.monitoring.plots import PICTURE_FILE
from effv2_jax.monitoring.progress import Progress
from effv2_jax.runtime.compilation_cache import CACHE
from effv2_jax.runtime.compiler import Compiler
from effv2_jax.runtime.mesh import make_mesh
from effv2_jax.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: its workdir, results, compilations and output lines."""
    workdir = tmp_path_factory.mktemp("run") / "work"
    lines = []
    patch = pytest.MonkeyPatch()
    patch.setattr("effv2_jax.train.log", lines.append)
    patch.setattr("effv2_jax.monitoring.progress.log", lines.append)
    patch.setattr("effv2_jax.monitoring.description.log", lines.append)
    with CompileCounter() as compilations:
        results = train(tiny_config(), workdir)
    patch.undo()
    return workdir, results, compilations, lines


def restore(workdir: Path, config, step=None):
    curriculum = make_curriculum(config, 1442)
    compiler = Compiler(config, curriculum, 10, 1442, make_mesh())
    checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    state, record = checkpoints.restore(step or checkpoints.latest(), compiler.abstract_state)
    checkpoints.close()
    return to_host(state), record


def test_each_stage_compiles_once(run):
    _, _, compilations, _ = run
    names = compilations.names
    # Sizes 16, 16, 32, 32 with four regularisations; two evaluations share one step.
    assert names.count("jit(train_step)") == 4
    assert names.count("jit(evaluation_step)") == 1
    assert sorted(set(names)) == ["jit(_initial_state)", "jit(evaluation_step)", "jit(train_step)"]
    assert len(names) == 6


def test_nothing_compiles_on_the_main_thread_after_the_first_stage(run):
    _, _, compilations, _ = run
    by_thread = [(name, thread == "MainThread") for name, thread in compilations.requests]
    assert by_thread == [
        ("jit(_initial_state)", True),
        ("jit(train_step)", True),
        ("jit(evaluation_step)", False),
        ("jit(train_step)", False),
        ("jit(train_step)", False),
        ("jit(train_step)", False),
    ]


def test_without_the_background_everything_compiles_when_its_turn_comes(tmp_path):
    with CompileCounter() as compilations:
        train(tiny_config(compilation__background=False, total_steps=4), tmp_path)
    assert len(compilations.requests) == 6
    assert {thread for _, thread in compilations.requests} == {"MainThread"}


@pytest.mark.slow
def test_a_restart_compiles_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    with CompileCounter() as first:
        train(tiny_config(total_steps=4), tmp_path / "work")
    assert first.misses == 6
    shutil.rmtree(tmp_path / "work" / CHECKPOINTS)
    with CompileCounter() as second:
        train(tiny_config(total_steps=4), tmp_path / "work")
    assert (second.hits, second.misses) == (6, 0)

    # What a process leaves that is killed while it writes there is written again.
    torn, empty, *_ = sorted((tmp_path / "work" / CACHE).glob("*-cache"))
    torn.write_bytes(torn.read_bytes()[:-100])
    empty.write_bytes(b"")
    for misses in (2, 0):
        shutil.rmtree(tmp_path / "work" / CHECKPOINTS)
        with CompileCounter() as again:
            train(tiny_config(total_steps=4, compilation__cache=str(tmp_path / "work" / CACHE)), tmp_path / "work")
        assert (again.hits, again.misses) == (6 - misses, misses)


def test_the_cache_can_be_off(tmp_path):
    with CompileCounter() as compilations:
        train(tiny_config(total_steps=4, compilation__cache="off", curriculum__num_stages=1), tmp_path)
    assert (compilations.hits, compilations.misses) == (0, 0) and len(compilations.requests) == 3


def test_stages_that_compile_alike_share_a_step(tmp_path):
    config = tiny_config(curriculum__mixup_alpha=(0.0, 0.0), curriculum__cutmix_alpha=(0.0, 0.0))
    config.curriculum.dropout_rate = (0.2, 0.2)
    with CompileCounter() as compilations:
        train(config, tmp_path / "work")
        train(config, tmp_path / "work")  # finished already: compiles nothing but the shapes to restore into
    assert compilations.names.count("jit(train_step)") == 2  # 16 and 32 px
    assert compilations.names.count("jit(evaluation_step)") == 1


def test_a_run_leaves_checkpoints_metrics_and_a_picture(run):
    workdir, results, _, lines = run
    assert set(results) == {"raw", "ema"}
    assert results["raw"]["count"] == 1797 - 1442
    assert (workdir / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    assert list(workdir.glob("events.out.tfevents.*"))
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(to_dict(tiny_config())))
    parameters = (workdir / "parameters.txt").read_text()
    assert "classifier/kernel" in parameters and "weight decay x 0 by '(bias|scale)$'" in parameters
    assert "learning rate x 1 by '.*'" in parameters
    records = read_metrics(workdir / METRICS_FILE)
    training = {record["step"]: record for record in records if "train/loss" in record}
    assert list(training) == list(range(1, 9))
    assert [training[step]["train/image_size"] for step in training] == [16, 16, 16, 16, 32, 32, 32, 32]
    assert [record["step"] for record in records if "evaluation/ema_top1" in record] == [4, 8]
    text = "\n".join(lines)
    for words in (
        "step 8/8 stage 4/4 32 px | loss",
        "img/s/device, input wait",
        "ETA",
        "compiled training step of stage 1, 16 px in",
        "compiled evaluation, 32 px in",
        "result at step 8 | raw top-1",
        str(workdir / PICTURE_FILE),
    ):
        assert words in text


def test_evaluate_run_gives_what_training_gave(run):
    workdir, results, _, _ = run
    step, again = evaluate_run(workdir)
    assert step == 8
    for name in results:
        assert again[name]["top1"] == results[name]["top1"]
        assert again[name]["loss"] == pytest.approx(results[name]["loss"], rel=1e-5)
    best, _ = evaluate_run(workdir, "best")
    assert best in (4, 8)
    with pytest.raises(UserError, match=r"no checkpoint '5' in .*kept steps: \["):
        evaluate_run(workdir, "5")
    with pytest.raises(UserError, match="holds no training run"):
        evaluate_run(workdir / "nothing")


def test_checkpoints_kept_are_the_last_and_the_best(run):
    workdir, _, _, _ = run
    kept = {int(path.name) for path in (workdir / CHECKPOINTS).iterdir() if path.name.isdigit()}
    assert {6, 8} <= kept <= {4, 6, 8}  # 4 where it scored best


def test_a_checkpoint_that_appears_before_the_lock_is_resumed(run, tmp_path, monkeypatch):
    workdir, results, _, _ = run
    shutil.copytree(workdir, tmp_path / "work")
    monkeypatch.setattr(train_lib, "has_checkpoints", lambda directory: False)  # an earlier run saves a moment later
    lines = []
    monkeypatch.setattr(train_lib, "log", lines.append)
    assert train(tiny_config(), tmp_path / "work") == results
    assert f"resuming from step 8 of 8 in {tmp_path / 'work'}" in lines


def test_a_loss_that_is_not_finite_stops_without_touching_the_last_checkpoint(tmp_path):
    config = tiny_config(optimizer__learning_rate_per_256=0.016)
    train(tiny_config(total_steps=4), tmp_path / "short")
    shutil.copytree(tmp_path / "short", tmp_path / "work")
    config.optimizer.learning_rate_per_256 = 1e38
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "work", force=True)
    message = str(error.value)
    assert "stage 4, 32 px" in message and "is not finite: loss" in message
    assert "the last good checkpoint, step 4, is kept" in message
    kept = [int(path.name) for path in (tmp_path / "work" / CHECKPOINTS).iterdir() if path.name.isdigit()]
    assert max(kept) == 4
    before, _ = restore(tmp_path / "short", tiny_config())
    after, _ = restore(tmp_path / "work", tiny_config())
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_metrics_are_read_after_the_next_step_is_dispatched(tmp_path, monkeypatch):
    events = []
    train_step, observe = Compiler.train_step, Progress.observe

    def recorded_train_step(self, stage):
        executable = train_step(self, stage)
        return lambda *args: events.append("dispatch") or executable(*args)

    def recorded_observe(self, step, *args):
        events.append(step)
        observe(self, step, *args)

    monkeypatch.setattr(Compiler, "train_step", recorded_train_step)
    monkeypatch.setattr(Progress, "observe", recorded_observe)
    train(tiny_config(log_steps=4, evaluate_steps=8, checkpoint_steps=8), tmp_path)
    four = ["dispatch", "dispatch", 1, "dispatch", 2, "dispatch", 3, 4]  # the fourth is read at once, to be logged
    assert events == four + [event if event == "dispatch" else event + 4 for event in four]


def test_a_mistake_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="global_batch_size=18 does not fit"):
        train(tiny_config(global_batch_size=18), tmp_path / "work")
    with pytest.raises(UserError, match=r"config\.log_steps is -1"):
        train(tiny_config(log_steps=-1), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_the_loop_makes_no_implicit_transfer(tmp_path, monkeypatch):
    put_batch = train_lib.put_batch
    monkeypatch.setattr(train_lib, "put_batch", lambda batch, mesh: batch)  # numpy arrays, moved by the call
    with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device transfer"):
        train(tiny_config(), tmp_path / "work")
    assert put_batch is not train_lib.put_batch
