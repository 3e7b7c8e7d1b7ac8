"""One run per workdir: the second run is refused with the host and the process id of the first.

On a local file system the kernel holds the lock (`flock`) and releases it when the process ends, however it ends. An
object store has no locks. There the owner rewrites a file every HEARTBEAT seconds; a file that is not rewritten has no
owner.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from effv2_jax.errors import EXIT_UNAVAILABLE, Unavailable, UserError
from effv2_jax.files import is_remote

LOCK_FILE = "lock.json"
HEARTBEAT = 20.0  # seconds between two signs of life


@contextlib.contextmanager
def exclusive(workdir: epath.PathLike) -> Iterator[None]:
    """Holds the lock of a workdir, and creates the workdir if needed.

    Raises:
      Unavailable: another process holds it.
      UserError: it cannot be written.
    """
    workdir = epath.Path(workdir)
    path = workdir / LOCK_FILE
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_heartbeat_lock(path) if is_remote(path) else _kernel_lock(path))
        except OSError as error:
            raise UserError(f"'{workdir}' cannot be written: {error}") from None
        yield


@contextlib.contextmanager
def _kernel_lock(path: epath.Path) -> Iterator[None]:
    with open(path, "a+") as file:  # closing it releases the lock; worker processes do not inherit it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(path, _read(path)) from None
        file.truncate(0)
        file.write(json.dumps(_owner()))
        file.flush()
        yield


@contextlib.contextmanager
def _heartbeat_lock(path: epath.Path) -> Iterator[None]:
    owner = _owner()
    if (previous := _read(path)) is not None and not _died_here(previous, owner):
        time.sleep(2.5 * HEARTBEAT)
        if (current := _read(path)) is not None and current != previous:
            raise _in_use(path, current)
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        part = path.with_name(f"{path.name}.{owner['id']}")  # replaces the lock file as a whole
        part.write_text(json.dumps(owner | {"beats": beats}))
        part.replace(path)

    def is_ours() -> bool:
        current = _read(path)
        return current is not None and current.get("id") == owner["id"]

    beat()
    time.sleep(HEARTBEAT / 10)
    if not is_ours():  # two processes started at once; the later one gets the lock
        raise _in_use(path, _read(path))
    stop = threading.Event()

    def keep_beating() -> None:
        while not stop.wait(HEARTBEAT):
            try:
                if (current := _read(path)) is not None and current.get("id") != owner["id"]:
                    # This process was silent for too long, and another one took it for dead. Two must not write.
                    print(f"effv2: error: lost the lock: {_in_use(path, current)}", file=sys.stderr, flush=True)
                    os._exit(EXIT_UNAVAILABLE)
                beat()
            except Exception as error:  # its class depends on the file system; the next beat may succeed
                logging.warning("the lock %s cannot be renewed: %s", path, error)

    thread = threading.Thread(target=keep_beating, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if is_ours():
            path.unlink(missing_ok=True)


def _owner() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "id": uuid.uuid4().hex}


def _died_here(owner: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether the owner was a process of this host and has ended."""
    # Two containers may share a host name, and the process id of their first process.
    if owner.get("host") != own["host"] or owner["pid"] == own["pid"]:
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _read(path: epath.Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # no file, or an unreadable one
        return None


def _in_use(path: epath.Path, owner: dict[str, Any] | None) -> Unavailable:
    who = "another process"
    if owner:
        who = f"process {owner['pid']} on {owner['host']} (since {owner['since']})"
    return Unavailable(f"'{path.parent}' is the workdir of {who}; stop that run, or pass another --workdir")
