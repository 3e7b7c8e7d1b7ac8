"""Time by cause, across restarts; and what is lost with the work after a checkpoint."""

import itertools

import pytest
from tiny import tiny_config

from effv2_jax.errors import Preempted, UserError
from effv2_jax.monitoring import stopwatch as stopwatch_lib
from effv2_jax.monitoring.metrics import METRICS_FILE, Writers, read_metrics
from effv2_jax.runtime.preemption import Preemption
from effv2_jax.train import train


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves: clock(seconds)."""
    now = [0.0]
    monkeypatch.setattr(stopwatch_lib.time, "perf_counter", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_every_second_has_one_cause(clock):
    stopwatch = stopwatch_lib.Stopwatch()
    clock(2)
    stopwatch.charge("start")
    clock(3)
    with stopwatch.measure("evaluate"):
        clock(5)
    before = dict(stopwatch.seconds)
    clock(1)
    with stopwatch.measure("input"):
        clock(0.5)
    assert dict(stopwatch.seconds) == {"start": 2, "train": 4, "evaluate": 5, "input": 0.5}
    assert stopwatch.total == 11.5
    assert stopwatch.since(before) == {"start": 0, "train": 1, "evaluate": 0, "input": 0.5}
    assert stopwatch.summary() == "0:12 in all: evaluate 0:05, train 0:04, start 0:02, input 0:00"
    assert stopwatch.scalars()["time/train"] == 4


def test_a_restart_counts_its_start_and_the_lost_work(clock):
    records = [
        {"step": 10, "time/train": 30.0, "time/start": 5.0},
        {"step": 20, "time/train": 70.0, "time/start": 5.0, "time/input": 1.0},
        {"step": 20, "evaluation/raw_top1": 0.5},
    ]
    saved = {"train": 40.0, "start": 5.0}
    assert stopwatch_lib.lost_seconds(records, 12, saved) == 31.0
    assert stopwatch_lib.lost_seconds(records, 20, saved) == 0.0  # nothing came after
    stopwatch = stopwatch_lib.Stopwatch()
    clock(4)
    stopwatch.restore(saved, lost=31.0)
    stopwatch.charge("restart")
    assert dict(stopwatch.seconds) == {"train": 40.0, "start": 5.0, "restart": 35.0}


def test_a_run_writes_its_time_by_cause_and_goes_on_counting(tmp_path, monkeypatch):
    config = tiny_config(curriculum__num_stages=1, curriculum__image_size=(16, 16))
    with monkeypatch.context() as patch:
        asked = itertools.count()  # at the beginning, and after each step
        patch.setattr(Preemption, "reached", lambda self: next(asked) == 3)
        with pytest.raises(Preempted, match="saved step 3 of 8"):
            train(config, tmp_path)
    lines = []
    monkeypatch.setattr("effv2_jax.monitoring.description.log", lines.append)
    train(config, tmp_path)
    first, *_, last = [record for record in read_metrics(tmp_path / METRICS_FILE) if "time/train" in record]
    assert "time/restart" not in first
    assert last["step"] == 8 and last["time/start"] == first["time/start"]
    causes = {"start", "restart", "train", "input", "compile", "evaluate", "checkpoint"}
    assert {name.removeprefix("time/") for name in last if name.startswith("time/")} == causes
    assert all(last[f"time/{cause}"] > 0 for cause in causes)
    [summary] = [line for line in lines if line.startswith("finished 8 steps in")]
    assert all(f"{cause} 0:" in summary for cause in causes)
    before = len(read_metrics(tmp_path / METRICS_FILE))
    train(config, tmp_path)  # finished already
    assert len(read_metrics(tmp_path / METRICS_FILE)) == before


def test_metrics_that_cannot_be_written_are_a_sentence():
    class Full:
        def write_scalars(self, step, scalars):
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"metrics cannot be written \(Full\): .*No space left"):
        Writers([Full()]).write_scalars(1, {"a": 1.0})
