#!/usr/bin/env python3
"""Runs a training command again and again until it is done.

    scripts/supervise.py effv2 train --config=configs/digits.py --workdir=runs/digits

The command's exit code decides: 0, it is done; 2, a mistake that another try would repeat; 75, it was asked to leave
and has saved, so it starts again at once; anything else is a crash, and it starts again after a pause that doubles
from one crash to the next. After `--attempts` crashes in a row without a new checkpoint in the workdir it gives up.
SIGTERM and SIGINT are passed on, and the supervisor leaves with the command.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

DONE, MISTAKE, PREEMPTED = 0, 2, 75
LONGEST_PAUSE = 300.0  # seconds


def newest_checkpoint(workdir: str) -> int:
    """The step of the newest finished checkpoint, -1 where there is none; a local path or gs://."""
    from etils import epath

    folder = epath.Path(workdir) / "checkpoints"
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
    return max(steps, default=-1)


def say(line: str) -> None:
    print(f"supervise: {line}", file=sys.stderr, flush=True)


def supervise(command: list[str], workdir: str, attempts: int, pause: float) -> int:
    """The exit code to leave with."""
    child: subprocess.Popen | None = None
    asked = False

    def pass_on(signum: int, frame: object) -> None:
        nonlocal asked
        asked = True
        if child is not None:
            child.send_signal(signum)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, pass_on)

    failures, reached = 0, newest_checkpoint(workdir)
    while True:
        child = subprocess.Popen(command)
        code = child.wait()
        if code in (DONE, MISTAKE) or asked:
            return code if code >= 0 else 128 - code
        now = newest_checkpoint(workdir)
        progress = now > reached
        reached = now
        if code == PREEMPTED:
            failures = 0
            say(f"the run was asked to leave at step {now}; starting it again")
            continue
        failures = 1 if progress else failures + 1
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        if failures >= attempts:
            say(f"the run {how}, {failures} times in a row without a checkpoint after step {reached}; giving up")
            return code if code >= 0 else 128 - code
        wait = min(pause * 2 ** (failures - 1), LONGEST_PAUSE)
        say(f"the run {how} (newest checkpoint: step {reached}); starting it again in {wait:g} s")
        time.sleep(wait)
        if asked:
            return 128 + signal.SIGTERM


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attempts", type=int, default=5, help="crashes in a row without progress before it gives up")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before the first new start after a crash")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="effv2 train ... --workdir=DIR ...")
    args = parser.parse_args()
    workdirs = [word.partition("=")[2] for word in args.command if word.startswith("--workdir=")]
    if not workdirs:
        parser.error("the command needs --workdir=DIR: its checkpoints show progress")
    if args.attempts < 1 or args.pause < 0:
        parser.error("--attempts must be at least 1, and --pause not negative")
    return supervise(args.command, os.path.expanduser(workdirs[-1]), args.attempts, args.pause)


if __name__ == "__main__":
    sys.exit(main())
