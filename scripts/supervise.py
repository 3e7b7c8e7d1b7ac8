#!/usr/bin/env python3
"""Runs a training command again and again until it is done.

    scripts/supervise.py effv2 train --config=configs/digits.py --workdir=runs/digits

The command's exit code decides: 0, it is done; 2, a mistake that another try would repeat; 75, it was asked to exit
and has saved, so it starts again at once; anything else is a failure, and it starts again after a pause that doubles
from one failure to the next. After `--attempts` failures in a row without a new checkpoint in the workdir it gives up.
SIGTERM and SIGINT are passed on, SIGHUP as SIGTERM, and the supervisor leaves with the command.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

DONE, MISTAKE, PREEMPTED = 0, 2, 75
LONGEST_PAUSE = 300.0  # seconds


def newest_checkpoint(workdir: str) -> int:
    """The step of the newest finished checkpoint, -1 where none is to be seen; a local path or gs://."""
    from etils import epath

    folder = epath.Path(workdir) / "checkpoints"
    try:
        paths = [path for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
        return max((int(path.name) for path in paths if (path / "commit_success.txt").exists()), default=-1)
    except Exception as error:  # of whatever file system; the run itself will say what is wrong
        say(f"cannot look for checkpoints in {folder}: {error}")
        return -1


def say(line: str) -> None:
    print(f"supervise: {line}", file=sys.stderr, flush=True)


def supervise(command: list[str], workdir: str, attempts: int, pause: float) -> int:
    """The exit code to leave with."""
    asked: list[int] = []  # signals
    woken = threading.Event()
    child: subprocess.Popen | None = None

    def pass_on(signum: int, frame: object) -> None:
        asked.append(signum)
        woken.set()
        if child is not None:
            child.send_signal(signal.SIGTERM if signum == signal.SIGHUP else signum)

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, pass_on)

    failures, reached = 0, newest_checkpoint(workdir)
    while not asked:
        # In a session of its own: a terminal's Ctrl-C reaches it once, through us.
        child = subprocess.Popen(command, start_new_session=True)
        if asked:  # while it was being started
            child.send_signal(signal.SIGTERM)
        code = child.wait()
        child = None
        if code in (DONE, MISTAKE) or asked:
            return code if code >= 0 else 128 - code
        now = newest_checkpoint(workdir)
        progress = now > reached
        reached = now
        if code == PREEMPTED:
            failures = 0
            say(f"the run was asked to exit at step {now}; starting it again")
            continue
        failures = 1 if progress else failures + 1
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        if failures >= attempts:
            say(f"the run {how}, {failures} times in a row without a checkpoint after step {reached}; giving up")
            return code if code >= 0 else 128 - code
        wait = min(pause * 2 ** (failures - 1), LONGEST_PAUSE)
        say(f"the run {how} (newest checkpoint: step {reached}); starting it again in {wait:g} s")
        woken.wait(wait)
    return 128 + asked[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attempts", type=int, default=5, help="failures in a row without progress before it gives up")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before the first new start after a failure")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="effv2 train ... --workdir=DIR ...")
    args = parser.parse_args()
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--workdir")
    workdir = finder.parse_known_args(args.command)[0].workdir
    if not workdir:
        parser.error("the command needs --workdir=DIR: its checkpoints show progress")
    beside = Path(sys.executable).parent / args.command[0]  # as `effv2` is of an environment that is not activated
    if shutil.which(args.command[0]) is None and beside.exists():
        args.command[0] = str(beside)
    if shutil.which(args.command[0]) is None:
        parser.error(f"there is no command '{args.command[0]}'")
    if args.attempts < 1 or args.pause < 0:
        parser.error("--attempts must be at least 1, and --pause not negative")
    return supervise(args.command, os.path.expanduser(workdir), args.attempts, args.pause)


if __name__ == "__main__":
    sys.exit(main())
