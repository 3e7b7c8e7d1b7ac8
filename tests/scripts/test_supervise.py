"""The supervisor, on small programs in the place of training."""

import signal
import subprocess
import sys
import time

import pytest
from launching import ROOT

SUPERVISE = ROOT / "scripts" / "supervise.py"
# Counts its starts in a file, saves a checkpoint where told to, and ends as told for this start.
PROGRAM = """
import os, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1].partition("=")[2])
count = workdir / "starts"
start = int(count.read_text()) if count.exists() else 0
count.write_text(str(start + 1))
end, _, saved = sys.argv[2:][min(start, len(sys.argv) - 3)].partition("+")
if saved:
    (workdir / "checkpoints" / str(start + 1)).mkdir(parents=True)
    (workdir / "checkpoints" / str(start + 1) / "commit_success.txt").write_text("")
(workdir / "checkpoints" / "1000").mkdir(parents=True, exist_ok=True)  # half-written, as on an object store
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("waiting", flush=True)
    time.sleep(60)
sys.exit(int(end))
"""


def words(workdir, *ends):
    options = ["--pause=0", "--attempts=3"]
    return [sys.executable, SUPERVISE, *options, sys.executable, "-c", PROGRAM, f"--workdir={workdir}", *ends]


def starts(workdir):
    return int((workdir / "starts").read_text())


@pytest.mark.parametrize(
    ("ends", "code", "count", "says"),
    [
        (["0"], 0, 1, ""),
        (["75", "75", "75", "75", "0"], 0, 5, "asked to exit"),
        (["2"], 2, 1, ""),
        (["1", "kill", "1", "0"], 1, 3, "3 times in a row without a checkpoint after step -1; giving up"),
        (["1", "1+saved", "1", "kill", "0"], 137, 4, "was killed by SIGKILL, 3 times in a row"),
        (["1", "1", "75", "1", "1", "0"], 0, 6, "failed with exit code 1"),
    ],
)
def test_it_starts_again_as_the_exit_code_says(tmp_path, ends, code, count, says):
    run = subprocess.run(words(tmp_path, *ends), capture_output=True, text=True, timeout=120)
    assert (run.returncode, starts(tmp_path)) == (code, count), run.stderr
    assert says in run.stderr


def test_a_signal_is_passed_on_and_nothing_starts_again(tmp_path):
    process = subprocess.Popen(words(tmp_path, "wait"), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75 and starts(tmp_path) == 1


def test_a_signal_ends_the_pause_too(tmp_path):
    command = words(tmp_path, "1")
    command[2] = "--pause=600"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert "starting it again in 300 s" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT and starts(tmp_path) == 1


def test_a_command_without_a_workdir_is_a_mistake():
    run = subprocess.run([sys.executable, SUPERVISE, "true"], capture_output=True, text=True)
    assert run.returncode == 2 and "needs --workdir=DIR" in run.stderr
    run = subprocess.run([sys.executable, SUPERVISE, "efv2", "--workdir", "w"], capture_output=True, text=True)
    assert run.returncode == 2 and "there is no command 'efv2'" in run.stderr


def test_a_command_of_its_own_environment_is_found(tmp_path):
    words = [sys.executable, SUPERVISE, "effv2", "models", "--workdir", str(tmp_path)]  # no option of that verb
    run = subprocess.run(words, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert run.returncode == 2 and "unrecognized arguments: --workdir" in run.stderr
