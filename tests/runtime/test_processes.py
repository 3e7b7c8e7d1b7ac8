"""Two processes on this machine train and evaluate as one does."""

import re
import subprocess

import pytest
from launching import ROOT, command, start

from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    one = start(command(tmp_path / "one"), devices=4)
    out_one, err_one = one.communicate(timeout=600)
    assert one.returncode == 0, err_one

    script = [str(ROOT / "scripts" / "local_cluster.sh"), "2", "--devices_per_process=2"]
    two = subprocess.run([*script, *command(tmp_path / "two")], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert two.returncode == 0, two.stdout + two.stderr
    assert "4 cpu devices in 2 processes" in two.stdout
    assert "0: step 1/6" in two.stdout and "1: step 1/6" not in two.stdout  # one process speaks

    records_one, records_two = (read_metrics(tmp_path / name / METRICS_FILE) for name in ("one", "two"))
    assert [r["step"] for r in records_one] == [r["step"] for r in records_two]
    for a, b in zip(records_one, records_two, strict=True):
        for name in ("train/loss", "train/gradient_norm", "evaluation/raw_loss"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=1e-4), (a["step"], name)
        for name in ("evaluation/raw_top1", "evaluation/raw_count"):
            if name in a:
                assert b[name] == a[name]
    assert re.search(r"result at step 6 \| raw top-1", out_one)
