#!/usr/bin/env python3
"""Restarts a training command until it is done.

    scripts/supervise.py effv2 train --config=configs/digits.py --workdir=runs/digits

The command's exit code decides. 0: it is done. 2: invalid input, which would fail again. 75: it was preempted and has
saved, so it restarts at once. Anything else is a failure: it restarts after a pause that doubles with each failure.
After `--attempts` failures in a row without a new checkpoint in the workdir, the supervisor gives up. It forwards
SIGTERM and SIGINT, SIGHUP as SIGTERM, and then exits with the command.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

DONE, INVALID_INPUT, PREEMPTED = 0, 2, 75
MAX_PAUSE = 300.0  # seconds


def newest_checkpoint(workdir: str) -> int:
    """The step of the newest finished checkpoint in a local or gs:// workdir; -1 if there is none."""
    from etils import epath

    folder = epath.Path(workdir) / "checkpoints"
    try:
        paths = [path for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
        return max((int(path.name) for path in paths if (path / "commit_success.txt").exists()), default=-1)
    except Exception as error:  # any file system's; the run itself reports what is wrong
        log(f"cannot read the checkpoints in {folder}: {error}")
        return -1


def log(line: str) -> None:
    print(f"supervise: {line}", file=sys.stderr, flush=True)


def supervise(command: list[str], workdir: str, attempts: int, pause: float) -> int:
    """Runs the command; returns the exit code of the supervisor."""
    received: list[int] = []  # signals
    wake = threading.Event()
    child: subprocess.Popen | None = None

    def forward(signum: int, frame: object) -> None:
        received.append(signum)
        wake.set()
        if child is not None:
            child.send_signal(signal.SIGTERM if signum == signal.SIGHUP else signum)

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, forward)

    failures, last_checkpoint = 0, newest_checkpoint(workdir)
    while not received:
        # In a session of its own, so that it receives a terminal's Ctrl-C once, from us.
        child = subprocess.Popen(command, start_new_session=True)
        if received:  # while it was starting
            child.send_signal(signal.SIGTERM)
        code = child.wait()
        child = None
        if code in (DONE, INVALID_INPUT) or received:
            return code if code >= 0 else 128 - code
        newest = newest_checkpoint(workdir)
        progress = newest > last_checkpoint
        last_checkpoint = newest
        if code == PREEMPTED:
            failures = 0
            log(f"the run was preempted at step {newest}; restarting")
            continue
        failures = 1 if progress else failures + 1
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        if failures >= attempts:
            log(f"the run {end}, {failures} times in a row without a checkpoint after step {newest}; giving up")
            return code if code >= 0 else 128 - code
        wait = min(pause * 2 ** (failures - 1), MAX_PAUSE)
        log(f"the run {end} (newest checkpoint: step {newest}); restarting in {wait:g} s")
        wake.wait(wait)
    return 128 + received[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attempts", type=int, default=5, help="failures in a row without progress before giving up")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before the first restart after a failure")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="effv2 train ... --workdir=DIR ...")
    args = parser.parse_args()
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--workdir")
    workdir = finder.parse_known_args(args.command)[0].workdir
    if not workdir:
        parser.error("the command needs --workdir=DIR, whose checkpoints show progress")
    beside = Path(sys.executable).parent / args.command[0]  # `effv2` of an environment that is not activated
    if shutil.which(args.command[0]) is None and beside.exists():
        args.command[0] = str(beside)
    if shutil.which(args.command[0]) is None:
        parser.error(f"there is no command '{args.command[0]}'")
    if args.attempts < 1 or args.pause < 0:
        parser.error("--attempts must be at least 1, and --pause at least 0")
    return supervise(args.command, os.path.expanduser(workdir), args.attempts, args.pause)


if __name__ == "__main__":
    sys.exit(main())
