"""Programs that a test starts, and all that they start in their turn, in whatever session."""

import os
import signal
import subprocess
import time

import psutil


def start(words: list[str], **options) -> subprocess.Popen:
    """As from a terminal: bash cannot catch a SIGINT that it inherits as ignored, as all in the background do."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **options)
    finally:
        signal.signal(signal.SIGINT, inherited)


def living(name: str, value: str) -> list[psutil.Process]:
    """Those that have the environment variable `name`, which all inherit, with this value."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
        except psutil.Error:  # ended meanwhile, or is somebody else's
            pass
    return found


def end(name: str, value: str) -> list[str]:
    """Kills those that do not end by themselves in a second; the command lines of these."""
    deadline = time.monotonic() + 1
    while living(name, value) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed = {}
    while left := living(name, value):  # what was being started too
        for process in left:
            try:
                killed.setdefault(process.pid, " ".join(process.cmdline()))
                process.kill()
            except psutil.Error:
                pass
        time.sleep(0.05)
    return list(killed.values())
