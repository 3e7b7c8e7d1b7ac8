"""Two thousand steps do not leak."""

import json
import subprocess
import sys

import pytest
from launching import ROOT

SOAK = ROOT / "scripts" / "soak.py"


@pytest.mark.slow
def test_memory_threads_and_processes_do_not_grow(tmp_path):
    command = [sys.executable, str(SOAK), f"--workdir={tmp_path / 'work'}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert len(report["memory_mib"]) == 6
    # Not of the resident memory: how a heap gets fragmented depends on the threads' timing (tens of MiB either way).
    # One batch a step (16 images of 18 to 28 px) kept from stage 3 to 5 would be 25 MiB.
    allocated = report["allocated_mib"]
    assert max(allocated[2:]) - allocated[1] < 16, report
    # Once per process: Grain's pool that frees shared memory, and multiprocessing's resource tracker. Each of the 20
    # evaluations had threads and a process of its own.
    assert len(report["threads"]) <= 4, report
    assert len(report["processes"]) <= 1, report
