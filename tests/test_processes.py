"""Two processes on this machine train and evaluate as one does."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics

ROOT = Path(__file__).resolve().parents[1]
EFFV2 = str(Path(sys.executable).with_name("effv2"))


def command(workdir: Path | str, *more: str) -> list[str]:
    return [
        EFFV2,
        "train",
        "--config=configs/digits.py",
        f"--workdir={workdir}",
        "--config.total_steps=6",
        "--config.log_steps=1",
        "--config.evaluate_steps=3",
        "--config.checkpoint_steps=3",
        "--config.schedule.warmup_steps=1",
        "--config.curriculum.num_stages=2",
        "--config.curriculum.image_size=(16,24)",
        "--config.model.blocks=('r1_k3_s2_e1_i8_o8_c1','r2_k3_s2_e2_i8_o16_se0.25')",
        "--config.model.width=0.25",
        *more,
    ]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


def start(arguments: list[str], devices: int) -> subprocess.Popen:
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


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
