"""scripts/local_cluster.sh with a small program instead of effv2; test_processes has real training."""

import signal
import subprocess
import sys
import time

import children
import pytest
from launching import ROOT

SCRIPT = ROOT / "scripts" / "local_cluster.sh"
# `--ends` has one end for each process: an exit code, `wait` (for SIGTERM) or `deaf` (to SIGTERM).
PROGRAM = f"""#!{sys.executable}
import os, signal, sys, time
words = dict(word.partition("=")[::2] for word in sys.argv[2:])
end = words["--ends"].split(",")[int(words["--process_id"])]
signal.signal(signal.SIGTERM, signal.SIG_IGN if end == "deaf" else lambda *_: sys.exit(75))
print(words["--coordinator"], words["--num_processes"], os.environ["XLA_FLAGS"].split()[-1], flush=True)
print("to stderr", file=sys.stderr, flush=True)
if end in ("wait", "deaf"):
    time.sleep(120)
sys.exit(int(end))
"""


@pytest.fixture
def effv2(tmp_path, monkeypatch):
    path = tmp_path / "effv2"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))  # marks all that the test starts
    yield str(path)
    assert children.end("TEST_FOLDER", str(tmp_path)) == []


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True, timeout=120)


def start_waiting(effv2: str, ends: str, *shell: str) -> subprocess.Popen:
    """Two processes that both handle SIGTERM already."""
    words = [*shell, "bash", str(SCRIPT), "2", effv2, "train", f"--ends={ends}"]
    process = children.start(words)
    for _ in range(2):
        while not (line := process.stdout.readline()).endswith("to stderr\n"):
            assert line
    return process


def test_each_process_knows_the_others_and_its_lines_are_numbered(effv2):
    result = run("3", "--devices_per_process=4", effv2, "train", "--ends=0,0,0")
    assert result.returncode == 0, result.stderr
    lines = sorted(result.stdout.splitlines())
    assert [line[:3] for line in lines] == ["0: ", "0: ", "1: ", "1: ", "2: ", "2: "]
    printed = {line[3:] for line in lines} - {"to stderr"}
    assert len(printed) == 1 and printed.pop().endswith(" 3 --xla_force_host_platform_device_count=4")
    two = run("2", effv2, "train", "--ends=0,0")
    assert two.stdout.count("device_count=2\n") == 2


@pytest.mark.parametrize(("ends", "code"), [("wait,7,wait", 7), ("0,9,0", 9), ("75,75,75", 75), ("2", 2)])
def test_the_first_failure_ends_all(effv2, ends, code):
    result = run(str(ends.count(",") + 1), effv2, "train", f"--ends={ends}")
    assert result.returncode == code
    assert ("process 1 failed with exit code 7; ending the others" in result.stderr) == (code == 7)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_makes_all_exit_and_a_second_one_kills(effv2, name):
    for ends, code in (("wait,wait", 75), ("deaf,deaf", 137)):
        process = start_waiting(effv2, ends)
        process.send_signal(getattr(signal, name))
        if code == 137:
            time.sleep(1)
            assert process.poll() is None
            process.send_signal(getattr(signal, name))
        process.communicate(timeout=60)
        assert process.returncode == code


def test_in_the_background_where_ctrl_c_is_ignored_sigterm_works(effv2):
    process = start_waiting(effv2, "wait,wait", "sh", "-c", 'trap "" INT; exec "$@"', "sh")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_nothing_outlives_a_test_that_failed(monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    process = children.start(["sh", "-c", "setsid sleep 120 & echo; exec sleep 121"])
    process.stdout.readline()
    assert sorted(children.end("TEST_FOLDER", str(tmp_path))) == ["sleep 120", "sleep 121"]
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and children.living("TEST_FOLDER", str(tmp_path)) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the number of processes, not ''"),
        (["many"], "the number of processes, not 'many'"),
        (["2", "--devices_per_process=0", "effv2", "train"], "--devices_per_process must be a number"),
        (["2", "python", "x.py"], "the command is missing"),
        (["2", "/nowhere/effv2", "train"], "there is no command '/nowhere/effv2'"),
    ],
)
def test_invalid_arguments(words, message):
    result = run(*words)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
