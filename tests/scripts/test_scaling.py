"""The collectives of a step on more and more devices."""

import subprocess
import sys

from launching import ROOT

SCALING = ROOT / "scripts" / "scaling.py"


def test_groups_inside_devices_leave_one_collective():
    command = [sys.executable, str(SCALING), "--config=configs/digits.py", "--per_device=4", "--devices=1,2"]
    small = "('r1_k3_s2_e1_i8_o8_c1','r1_k3_s2_e2_i8_o16_se0.25')"
    command += [f"--config.model.blocks={small}", "--config.data.num_examples=1442"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=SCALING.parents[1])
    assert run.returncode == 0, run.stderr
    rows = [line.split() for line in run.stdout.splitlines() if " each " in line or line.startswith("all")]
    collectives = [(row[0], row[-4], row[-3]) for row in rows]
    assert collectives[:3] == [("4", "1", "0"), ("4", "2", "1"), ("all", "1", "0")]
    assert int(collectives[3][2]) > 5  # one per batch norm, forward and backward
    wrong = subprocess.run([*command[:2], "--config=no.py"], capture_output=True, text=True, timeout=600)
    assert wrong.returncode == 2 and "does not exist" in wrong.stderr
