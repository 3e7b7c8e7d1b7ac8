"""SIGTERM: save, exit with 75, resume; one process and two. And processes that wait for others that do not join."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT, command, free_port, start
from tiny import tiny_config

from effv2_jax.checkpoints.manager import CHECKPOINTS
from effv2_jax.errors import EXIT_PREEMPTED, EXIT_UNAVAILABLE, Preempted
from effv2_jax.runtime.preemption import Preemption
from effv2_jax.train import train

LONG = ["--config.total_steps=100000", "--config.evaluate_steps=100000", "--config.checkpoint_steps=100000"]


def wait_for(process: subprocess.Popen, words: str) -> None:
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.stderr.read())


def newest(workdir: Path) -> int:
    return max(int(path.name) for path in (workdir / CHECKPOINTS).iterdir())


def test_asked_to_leave_it_saves_and_another_run_is_refused_meanwhile(tmp_path):
    process = start(command(tmp_path, *LONG), devices=1)
    wait_for(process, "step 3/")
    second = start(command(tmp_path, *LONG), devices=1)
    _, err = second.communicate(timeout=120)
    assert second.returncode == EXIT_UNAVAILABLE
    assert re.search(rf"is the workdir of process {process.pid} on \S+ .*another --workdir", err), err
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == EXIT_PREEMPTED, err
    step = newest(tmp_path)
    assert step >= 3 and f"saved step {step} of 100000; the same command resumes" in err
    again = start(command(tmp_path, *LONG), devices=1)
    wait_for(again, f"resuming from step {step} of 100000")
    wait_for(again, f"step {step + 1}/")
    again.send_signal(signal.SIGINT)
    _, err = again.communicate(timeout=120)
    assert again.returncode == EXIT_PREEMPTED and "Traceback" not in err
    assert "Ctrl-C again exits at once" in err and f"saved step {newest(tmp_path)} of" in err


@pytest.fixture
def interruptible():
    """Ctrl-C as usual: a shell's background jobs start with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_leaves_at_once(interruptible):
    with Preemption() as preemption:
        signal.raise_signal(signal.SIGINT)
        assert preemption.reached()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(signal.SIGINT)


def two_processes(workdir: Path, *more: str) -> list[subprocess.Popen]:
    peers = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    return [start(command(workdir, *LONG, *peers, f"--process_id={i}", *more), devices=2) for i in range(2)]


@pytest.mark.slow
def test_two_processes_agree_on_the_step_when_one_is_asked(tmp_path):
    two = two_processes(tmp_path)
    wait_for(two[0], "step 3/")
    two[1].send_signal(signal.SIGTERM)
    for process in two:
        _, err = process.communicate(timeout=300)
        assert process.returncode == EXIT_PREEMPTED, err
        assert f"saved step {newest(tmp_path)} of" in err
    saved = newest(tmp_path)

    # Asked before the first step of a resumed run, and after saves that end in the background.
    two = two_processes(tmp_path, "--config.checkpoint_steps=1")
    wait_for(two[1], "process 1 of 2")
    two[1].send_signal(signal.SIGTERM)
    for process in two:
        _, err = process.communicate(timeout=300)
        assert process.returncode == EXIT_PREEMPTED, err
    assert newest(tmp_path) <= saved + 3
    two = two_processes(tmp_path, "--config.checkpoint_steps=1")
    wait_for(two[0], f"step {saved + 9}/")
    two[0].send_signal(signal.SIGTERM)
    for process in two:
        _, err = process.communicate(timeout=300)
        assert process.returncode == EXIT_PREEMPTED, err


def test_a_signal_to_all_processes_of_a_job_finds_the_input_workers_deaf(tmp_path):
    words = command(tmp_path, *LONG, "--config.data.num_workers=1")
    process = subprocess.Popen(
        words, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(process, "step 3/")
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == EXIT_PREEMPTED, err
    assert f"saved step {newest(tmp_path)} of" in err


def test_leaving_before_the_first_step_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Preemption, "reached", lambda self: True)
    with pytest.raises(Preempted, match="no step was made yet"):
        train(tiny_config(), tmp_path)
    assert list((tmp_path / CHECKPOINTS).iterdir()) == []


@pytest.mark.parametrize(("present", "missing"), [(0, "process 1"), (1, "process 0: its coordinator at localhost:")])
def test_a_process_that_does_not_come_is_named_with_advice(tmp_path, present, missing):
    peers = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", "--timeout=4", f"--process_id={present}"]
    process = start(command(tmp_path / "work", *peers), devices=1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == EXIT_UNAVAILABLE
    assert f"effv2: error: waited 4 s for {missing}" in err and "jax issue 35905" in err
    assert not (tmp_path / "work").exists()


MEET = """
import json, sys, time
from effv2_jax.cli.main import shut_down
from effv2_jax.errors import Unavailable, UserError
from effv2_jax.runtime.processes import initialize_processes, on_first_process, wait_for_all

process = int(sys.argv[2])
initialize_processes(sys.argv[1], 2, process)

def told(call, *args):
    try:
        call(*args)
        return ""
    except (Unavailable, UserError, PermissionError) as error:
        return f"{type(error).__name__}: {error}"

def refuse():
    raise UserError("no such thing")

def break_down():
    raise PermissionError("no right")

report = [
    told(wait_for_all, "the beginning", 60),
    told(on_first_process, "work", lambda: None, 60),
    told(on_first_process, "mistake", refuse, 60),
    told(on_first_process, "fault", break_down, 60),
]
if process == 0:
    report.append(told(wait_for_all, "a barrier", 2))
    report.append(told(on_first_process, "nap", lambda: time.sleep(6), 60))
else:
    time.sleep(4)
    report.append(told(wait_for_all, "a barrier", 2))
    report.append(told(on_first_process, "nap", lambda: None, 1))
wait_for_all("the end", 60)
print(json.dumps(report), flush=True)
shut_down(0)
"""


def test_barriers_name_the_process_that_is_missing():
    address = f"localhost:{free_port()}"
    two = [start([sys.executable, "-c", MEET, address, str(process)], devices=1) for process in range(2)]
    reports = []
    for process in two:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        reports.append(json.loads(out.splitlines()[-1]))
    for report in reports:
        assert report[:3] == ["", "", "UserError: no such thing"]
    assert reports[0][3] == "PermissionError: no right"
    assert reports[1][3] == "Unavailable: process 0 failed at 'fault'; its log says why"
    assert reports[0][4].startswith("Unavailable: process 0 waited 2 s at 'a barrier' for process 1: ")
    late = "Unavailable: process 1 waited 1 s for process 0 and 'nap': "
    assert reports[0][5] == "" and reports[1][5].startswith(late)
