"""One run a workdir: the second is refused with the host and the process id of the first.

On a local file system the kernel holds the lock (`flock`) and drops it with the process, however that ends. An object
store has no locks: there the owner rewrites a file every few seconds, and a file that nobody rewrites is nobody's.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from effv2_jax.errors import UserError

LOCK_FILE = "lock.json"
HEARTBEAT = 20.0  # seconds between two signs of life


@contextlib.contextmanager
def exclusive(workdir: epath.PathLike) -> Iterator[None]:
    """Holds a workdir, which is made where absent.

    Raises:
      UserError: another process holds it, or it cannot be written.
    """
    workdir = epath.Path(workdir)
    path = workdir / LOCK_FILE
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_beating(path) if "://" in str(path) else _flock(path))
        except OSError as error:
            raise UserError(f"the workdir '{workdir}' cannot be written: {error}") from None
        yield


@contextlib.contextmanager
def _flock(path: epath.Path) -> Iterator[None]:
    with open(path, "a+") as file:  # closing it drops the lock; worker processes do not inherit it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(path, _read(path)) from None
        file.truncate(0)
        file.write(json.dumps(_owner()))
        file.flush()
        yield


@contextlib.contextmanager
def _beating(path: epath.Path) -> Iterator[None]:
    owner = _owner()
    if (found := _read(path)) is not None and not _died_here(found, owner):
        time.sleep(2.5 * HEARTBEAT)
        if (now := _read(path)) is not None and now != found:
            raise _taken(path, now)
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        fresh = path.with_name(f"{path.name}.{owner['pid']}")  # replaced at once: nobody reads half a file
        fresh.write_text(json.dumps(owner | {"beats": beats}))
        fresh.replace(path)

    beat()
    time.sleep(HEARTBEAT / 10)
    if (now := _read(path)) != owner | {"beats": beats}:  # two came at once; the later one has it
        raise _taken(path, now)
    stop = threading.Event()

    def keep_beating() -> None:
        while not stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # the next one may get through
                beat()

    thread = threading.Thread(target=keep_beating, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        path.unlink(missing_ok=True)


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def _died_here(found: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether the owner was a process of this host that is gone."""
    if found.get("host") != own["host"]:
        return False
    if found["pid"] == own["pid"]:  # a number given again, as to the first process of a container
        return True
    try:
        os.kill(found["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _read(path: epath.Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # none, or one that is being written
        return None


def _taken(path: epath.Path, owner: dict[str, Any] | None) -> UserError:
    who = "another process"
    if owner:
        who = f"process {owner['pid']} on {owner['host']} (since {owner['since']})"
    return UserError(f"'{path.parent}' is the workdir of {who}; stop that run, or give this one another --workdir")
