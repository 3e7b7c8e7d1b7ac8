"""Disks that take no more: a sentence, exit code 2, and what was saved before is intact."""

import subprocess
import sys

import pytest
from launching import command, start

from effv2_jax.checkpoints.manager import damage_of

SAVE_TWICE = """
import os, sys
import jax, jax.numpy as jnp, numpy as np
from effv2_jax.checkpoints.manager import Checkpoints
from effv2_jax.errors import UserError
checkpoints = Checkpoints(sys.argv[1], keep_last=2)
values = np.random.default_rng(0).random(int(sys.argv[2]))
try:
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": jnp.asarray(values * step)}, {"step": step}, None)
        checkpoints.wait()
        print("saved", step, flush=True)
        if step == 2 and len(sys.argv) > 3:
            import subprocess
            subprocess.run(["mount", "-o", "remount,ro", sys.argv[3]], check=True)
except UserError as error:
    print(error, flush=True)
    os._exit(2)  # as the command line does: Orbax' threads may wait for minutes
"""


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system in memory, of 4 MiB or of the size given as a parameter."""
    size = getattr(request, "param", "4m")
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", tmp_path]
    mounted = subprocess.run(words, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a file system: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_takes_no_more_is_a_sentence_and_costs_nothing_older(small_disk, trouble):
    # Incompressible: two fit on the disk, a third does not.
    size, *remount = ["400000"] if trouble == "full" else ["1000", str(small_disk)]
    command = [sys.executable, "-c", SAVE_TWICE, str(small_disk / "checkpoints"), size, *remount]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = run.stdout.splitlines()
    assert lines[:2] == ["saved 1", "saved 2"], run.stderr
    assert lines[2].startswith(f"a checkpoint cannot be written to {small_disk}/checkpoints: ")
    assert {"full": "No space left on device", "read-only": "Read-only file system"}[trouble] in lines[2]
    assert "intact checkpoints: 1, 2." in lines[2]
    for step in (1, 2):
        assert damage_of(small_disk / "checkpoints" / str(step)) == []


# Too small for the first files, for the first checkpoint, for a later one.
@pytest.mark.parametrize(
    ("small_disk", "least", "most"), [("12k", 0, 0), ("200k", 0, 0), ("2m", 1, 15)], indirect=["small_disk"]
)
def test_a_run_on_a_full_disk_ends_with_a_sentence(small_disk, least, most):
    words = command(small_disk / "work", "--config.checkpoint_steps=1", "--config.checkpoint.keep_last=20")
    process = start([*words, "--config.total_steps=20"], devices=1)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.count("effv2: error: ") == 1 and "No space left on device" in err and "Traceback" not in err
    saved = [path for path in (small_disk / "work" / "checkpoints").glob("*") if path.name.isdigit()]
    assert least <= len(saved) <= most
    for path in saved:
        assert damage_of(path) == []
