"""One run a workdir, on file systems with locks and without."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from effv2_jax.errors import EXIT_UNAVAILABLE, Unavailable, UserError
from effv2_jax.runtime import lock

HOLD = """
import sys, time
from effv2_jax.runtime.lock import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_is_refused_with_host_and_process_of_the_first(tmp_path, holder):
    message = rf"is the workdir of process {holder.pid} on {socket.gethostname()} .*another --workdir"
    with pytest.raises(Unavailable, match=message), lock.exclusive(tmp_path):
        pass


def test_a_killed_owner_leaves_nothing_to_clean_up(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.exclusive(tmp_path):
        assert json.loads((tmp_path / lock.LOCK_FILE).read_text())["pid"] == os.getpid()
    with lock.exclusive(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), lock.exclusive(tmp_path / "file" / "work"):
        pass


@pytest.fixture
def beating(tmp_path, monkeypatch):
    """The lock for object stores, on a quick local file."""
    monkeypatch.setattr(lock, "HEARTBEAT", 1.0)
    path = lock.epath.Path(tmp_path / lock.LOCK_FILE)
    return path, lambda: lock._heartbeat_lock(path)


def test_without_locks_a_living_owner_is_respected_and_a_dead_one_not(beating, monkeypatch):
    path, hold = beating
    with hold():
        monkeypatch.setattr(lock.socket, "gethostname", lambda: "elsewhere")  # its process ids say nothing here
        with pytest.raises(Unavailable, match=rf"is the workdir of process {os.getpid()} on "), hold():
            pass
        owner = json.loads(path.read_text())
    assert not path.exists()
    path.write_text(json.dumps(owner))  # what a killed owner leaves
    with hold():
        assert json.loads(path.read_text())["host"] == "elsewhere"


def test_without_locks_a_dead_owner_of_this_host_is_known_at_once(beating, monkeypatch):
    path, hold = beating
    with subprocess.Popen(["true"]) as process:
        pass
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": process.pid, "since": "then"}))
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: seconds <= lock.HEARTBEAT or pytest.fail("waited"))
    with hold():
        pass


HOLD_WITHOUT_LOCKS = """
import sys, time
from effv2_jax.runtime import lock
lock.HEARTBEAT = 0.2
with lock._heartbeat_lock(lock.epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_without_locks_an_owner_that_lost_it_ends_before_two_write(tmp_path):
    path = tmp_path / lock.LOCK_FILE
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD_WITHOUT_LOCKS, str(path)], **pipes)
    assert process.stdout.readline() == "held\n"
    other = {"host": "other", "pid": 1, "since": "now", "id": "theirs", "beats": 1}
    while process.poll() is None:  # a beat may be on its way
        path.write_text(json.dumps(other))
        time.sleep(0.05)
    _, err = process.communicate()
    assert process.returncode == EXIT_UNAVAILABLE
    assert "effv2: error: lost the lock: " in err and "process 1 on other" in err
    assert json.loads(path.read_text()) == other


def test_without_locks_a_file_system_that_fails_for_a_while_costs_nothing(beating, monkeypatch):
    path, hold = beating
    fail = threading.Event()
    read = lock._read
    failures = []

    def failing_read(path):
        if fail.is_set():
            failures.append(path)
            raise RuntimeError("503")
        return read(path)

    monkeypatch.setattr(lock, "_read", failing_read)
    with hold():
        fail.set()
        while len(failures) < 2:
            time.sleep(0.05)
        fail.clear()
        before = json.loads(path.read_text())["beats"]
        deadline = time.monotonic() + 10
        while json.loads(path.read_text())["beats"] == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not path.exists()


def test_without_locks_the_later_of_two_at_once_has_it(beating, monkeypatch):
    path, hold = beating
    other = {"host": "other", "pid": 1, "since": "now", "id": "theirs", "beats": 1}
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: path.write_text(json.dumps(other)))
    with pytest.raises(Unavailable, match="process 1 on other"), hold():
        pass
