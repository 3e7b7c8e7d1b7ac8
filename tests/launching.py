"""Starting `effv2` in processes of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

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
