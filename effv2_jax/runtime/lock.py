"""One run a workdir: the second is refused with the host and the process id of the first.

On a local file system the kernel holds the lock (`flock`) and drops it with the process, however that ends. An object
store has no locks: there the owner rewrites a file every few seconds, and a file that nobody rewrites is nobody's.
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
    """Holds a workdir, which is made where absent.

    Raises:
      Unavailable: another process holds it.
      UserError: it cannot be written.
    """
    workdir = epath.Path(workdir)
    path = workdir / LOCK_FILE
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_beating(path) if is_remote(path) else _flock(path))
        except OSError as error:
            raise UserError(f"'{workdir}' cannot be written: {error}") from None
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
        fresh = path.with_name(f"{path.name}.{owner['id']}")  # replaced at once: nobody reads half a file
        fresh.write_text(json.dumps(owner | {"beats": beats}))
        fresh.replace(path)

    def is_ours() -> bool:
        now = _read(path)
        return now is not None and now.get("id") == owner["id"]

    beat()
    time.sleep(HEARTBEAT / 10)
    if not is_ours():  # two came at once; the later one has it
        raise _taken(path, _read(path))
    stop = threading.Event()

    def keep_beating() -> None:
        while not stop.wait(HEARTBEAT):
            try:
                if (now := _read(path)) is not None and now.get("id") != owner["id"]:
                    # It took this process for dead, after too long without a sign of life. Two must not write.
                    print(f"effv2: error: lost the lock: {_taken(path, now)}", file=sys.stderr, flush=True)
                    os._exit(EXIT_UNAVAILABLE)
                beat()
            except Exception as error:  # of whatever file system; the next one may get through
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


def _died_here(found: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether the owner was a process of this host that is gone."""
    # Two containers may have one name, and the same number for their first process.
    if found.get("host") != own["host"] or found["pid"] == own["pid"]:
        return False
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
    except (FileNotFoundError, ValueError):  # none, or one of no use
        return None


def _taken(path: epath.Path, owner: dict[str, Any] | None) -> Unavailable:
    who = "another process"
    if owner:
        who = f"process {owner['pid']} on {owner['host']} (since {owner['since']})"
    return Unavailable(f"'{path.parent}' is the workdir of {who}; stop that run, or give this one another --workdir")
