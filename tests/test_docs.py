"""Every command of the README and of docs/ runs, on small data and for a few steps."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from launching import ROOT
from needs import tensorflow
from pictures_folder import write_photos

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Few steps of a thin network, whatever the command trains.
SMALL = [
    "--config.total_steps=2",
    "--config.global_batch_size=16",
    "--config.curriculum.num_stages=2",
    "--config.curriculum.image_size=(32,32)",
    "--config.evaluation.image_size=32",
    "--config.evaluation.batch_size=32",
    "--config.batch_norm.group_size=0",
    "--config.schedule.warmup_steps=1",
    "--config.data.num_examples=0",
    "--config.model.blocks=('r1_k3_s2_e1_i8_o8_c1','r1_k3_s2_e2_i8_o16_se0.25')",
    "--config.model.width=0.25",
]


def commands() -> list[str]:
    """The lines of all `sh` blocks."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            found += [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]
    return found


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=600)


def test_the_two_make_targets_are_the_first_commands():
    assert [line.split()[:2] for line in commands()[:2]] == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text()
    assert "\ndemo: install\n" in makefile and "\ntest: lint types\n" in makefile


def test_every_command_is_of_a_known_kind():
    for command in commands():
        known = ("make", "effv2", "python", "scripts/tpu_vm.sh", "scripts/local_cluster.sh")
        assert command.split()[0] in known or command.startswith("XLA_FLAGS="), command


@pytest.mark.slow
def test_the_effv2_commands_run(tmp_path):
    """In the order of the pages: later commands use what earlier ones made."""
    for folder in ("configs", "scripts"):
        os.symlink(ROOT / folder, tmp_path / folder)
    write_photos(tmp_path / "PHOTOS")
    effv2 = str(Path(sys.executable).with_name("effv2"))
    # What `make demo` leaves behind.
    made = run([effv2, "train", "--config=configs/digits.py", "--workdir=runs/demo", *SMALL], tmp_path)
    assert made.returncode == 0, made.stderr
    os.symlink("runs/demo", tmp_path / "WEIGHTS")
    ran = 0
    for command in commands():
        environment, words = {}, shlex.split(command)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if words[0] == "scripts/tpu_vm.sh":
            dry = run(words, tmp_path)
            assert dry.returncode == 0 and dry.stdout.startswith("gcloud "), (command, dry.stderr)
            continue
        if "effv2" not in words:
            continue
        if any(word.startswith("--wandb") for word in words):
            if importlib.util.find_spec("wandb") is None:
                continue
            environment["WANDB_MODE"] = "offline"
        if any(word.endswith(".onnx") for word in words):
            pytest.importorskip("jax2onnx", reason="needs ONNX: make peers")
        if words[-1].endswith(".tflite") or {"saved_model", "parity", "input"} & set(words):
            tensorflow()
        words = [{"effv2": effv2, "python": sys.executable}.get(word, word) for word in words]
        if "parity" in words:
            words += ["--variant", "efficientnetv2-b0", "--peer", "keras", "--size=32"]
        elif "step" in words:
            peers = "timm" if importlib.util.find_spec("timm") else ""
            words += ["--variant=b0", "--image_size=32", f"--peer={peers}", "--batch=4", "--steps=1", "--rounds=1"]
        elif "input" in words:
            words += ["--image_size=32", "--peer=tf.data", "--batch=4", "--batches=1", "--rounds=1", "--workers=0"]
        elif "plan" in words or "program" in words:
            if importlib.util.find_spec("libtpu") is None:
                continue
            words += [*SMALL, "--config.data.num_examples=1000", "--config.global_batch_size=64"]
            words += ["--config.evaluation.batch_size=64"]
        elif "prepare" in words and "folder" not in words:  # covered by tests/data/test_prepare.py
            words = [*words[:3], "folder", "--source=PHOTOS", "--out=TFDS", f"--name=small_{words[3]}"]
        elif "train" in words or "bench" in words:
            if "tfds" in command:  # covered with generated data by tests/data/test_sources.py
                words = [w for w in words if w != "--distributed" and not w.startswith("--config.data.")]
                words += ["--config.data.source=folder", "--config.data.name=PHOTOS", "--config.data.train_split=train"]
                words += ["--config.data.evaluation_split=validation"]
            words = [re.sub(r"gs://BUCKET", "bucket", word) for word in words] + SMALL
        result = run(words, tmp_path, **environment)
        assert result.returncode == 0, (command, result.stderr)
        assert result.stdout
        ran += 1
    assert ran >= 10
    # What the pages show in Python uses what the commands made.
    for name in ("a.jpg", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((50, 40, 3), np.uint8))
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        result = run([sys.executable, "-c", "\n".join(blocks)], tmp_path)
        assert result.returncode == 0, (page, result.stderr)
