"""Every command of the README and of docs/ runs, on small data and for a few steps: one case per command.

The cases are a chain. They share one folder, run in the order of the pages, and later ones read what earlier ones
wrote. A page's Python follows its commands. pytest-xdist must keep them on one worker, as `--dist loadfile` does.
"""

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
from launching import EFFV2, ROOT
from pictures_folder import write_photos

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("make", "effv2", "python", "scripts/tpu_vm.sh", "scripts/local_cluster.sh")
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


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands_of(page: Path) -> list[str]:
    """The lines of a page's `sh` blocks, without comments; a backslash at its end joins a line to the next."""
    text = "".join(blocks_of(page, "sh")).replace("\\\n", " ")
    lines = [line.partition("  #")[0].strip() for line in text.splitlines()]
    return [" ".join(line.split()) for line in lines if line]


COMMANDS = [(page, command) for page in PAGES for command in commands_of(page)]


def cases() -> list:
    """Pytest parameters: a page's commands in their order, but for `make`, and then its Python as a whole."""
    parameters = []
    for page in PAGES:
        texts = [command for command in commands_of(page) if not command.startswith("make ")]
        if python := "\n".join(blocks_of(page, "python")):
            texts.append(f"python\n{python}")
        for number, text in enumerate(texts, start=1):
            words = re.sub(r"[^\w.:=-]+", "_", text)[:60].strip("_")
            parameters.append(pytest.param(text, id=f"{page.stem}-{number}-{words}"))
    return parameters


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all commands run: photos, the shipped configs and scripts, and what `make demo` leaves behind."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "scripts"):
        os.symlink(ROOT / name, folder / name)
    write_photos(folder / "PHOTOS")
    for name in ("a.jpg", "b.png"):
        cv2.imwrite(str(folder / name), np.zeros((50, 40, 3), np.uint8))
    demo = run([EFFV2, "train", "--config=configs/digits.py", "--workdir=runs/demo", *SMALL], folder)
    assert demo.returncode == 0, demo.stderr
    os.symlink("runs/demo", folder / "WEIGHTS")
    return folder


def inputs_of(words: list[str]) -> list[str]:
    """The files and workdirs that an `effv2` command reads and an earlier command makes."""
    verb, *rest = words[words.index("effv2") + 1 :]
    options = dict(word.removeprefix("--").split("=", 1) for word in rest if word.startswith("--") and "=" in word)
    plain = [word for word in rest if not word.startswith("--")]
    given = [options.get("weights"), options.get("config.init_from")]
    if verb == "evaluate":
        given.append(options.get("workdir"))
    elif verb in ("convert", "export"):
        given += plain[:1]
    elif verb in ("report", "predict"):
        given += plain
    return [path for path in given if path and "://" not in path and path != "-"]


def missing_package(command: str, words: list[str]) -> str | None:
    """The package of an extra that a command needs and that is not installed."""
    needed = []
    if any(word.startswith("--wandb") for word in words):
        needed.append("wandb")
    if ".onnx" in command or "import onnxruntime" in command:
        needed.append("jax2onnx")
    if "plan" in words or "program" in words:
        needed.append("libtpu")
    if "parity" in words or "input" in words or ".tflite" in command or "saved_model" in command:
        needed.append("tensorflow")
    return next((package for package in needed if importlib.util.find_spec(package) is None), None)


def shrink(command: str, words: list[str]) -> list[str]:
    """The same command for a few seconds of work, on data that are there."""
    if "parity" in words:
        return [*words, "--variant", "efficientnetv2-b0", "--peer", "keras", "--size=32"]
    if "step" in words:
        peers = "timm" if importlib.util.find_spec("timm") else ""
        return [*words, "--variant=b0", "--image_size=32", f"--peer={peers}", "--batch=4", "--steps=1", "--rounds=1"]
    if "input" in words:
        small = ["--peer=tf.data", "--batch=4", "--batches=1", "--rounds=1", "--workers=0"]
        return [*words, "--image_size=32", *small]
    if "plan" in words or "program" in words:
        sizes = ["--config.data.num_examples=1000", "--config.global_batch_size=64"]
        return [*words, *SMALL, *sizes, "--config.evaluation.batch_size=64"]
    if "prepare" in words and "folder" not in words:  # tests/data/preparation has the others
        return [*words[:3], "folder", "--source=PHOTOS", "--out=TFDS", f"--name=small_{words[3]}"]
    if "train" in words or "bench" in words:
        if "tfds" in command:  # tests/data/sources has TFDS, with generated data
            words = [word for word in words if word != "--distributed" and not word.startswith("--config.data.")]
            words += ["--config.data.source=folder", "--config.data.name=PHOTOS", "--config.data.train_split=train"]
            words += ["--config.data.evaluation_split=validation"]
        return [re.sub(r"gs://BUCKET", "bucket", word) for word in words] + SMALL
    return words


def test_the_two_make_targets_are_the_first_commands():
    assert [command.split()[:2] for _, command in COMMANDS[:2]] == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text()
    assert "\ndemo: install\n" in makefile and "\ntest: lint types\n" in makefile


def test_every_command_is_of_a_known_kind():
    for page, command in COMMANDS:
        assert command.split()[0] in PROGRAMS or command.startswith("XLA_FLAGS="), f"{page.name}: {command}"
    assert sum("effv2" in command.split() for _, command in COMMANDS) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("command", cases())
def test_it_runs(command, folder):
    if command.startswith("python\n"):
        if package := missing_package(command, []):
            pytest.skip(f"needs {package}: make peers")
        result = run([sys.executable, "-c", command.removeprefix("python\n")], folder)
        assert result.returncode == 0, result.stderr
        return
    environment, words = {}, shlex.split(command)
    while "=" in words[0]:
        name, _, environment[name] = words.pop(0).partition("=")
    if words[0] == "scripts/tpu_vm.sh":
        dry = run(words, folder)
        assert dry.returncode == 0 and dry.stdout.startswith("gcloud "), dry.stderr
        return
    if "effv2" not in words:
        assert (ROOT / words[1]).is_file(), command  # a script of ours, which tests/scripts runs
        return
    if package := missing_package(command, words):
        pytest.skip(f"needs {package}: make peers")
    if any(word.startswith("--wandb") for word in words):
        environment["WANDB_MODE"] = "offline"
    missing = [path for path in inputs_of(words) if not (folder / path).exists()]
    assert not missing, (
        f"`{command}` reads {', '.join(missing)}, which no earlier case has made; the cases run in order, all of them, "
        "and with pytest-xdist under `--dist loadfile`"
    )
    words = [{"effv2": EFFV2, "python": sys.executable}.get(word, word) for word in shrink(command, words)]
    result = run(words, folder, **environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout
