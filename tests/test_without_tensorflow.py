"""What a user does most needs neither TensorFlow nor Keras, and imports neither where they are installed."""

import json
import os
import subprocess
import sys

import pytest
from launching import ROOT, command
from pictures_folder import write_photos

# Python runs it at the start of every process below: as if the packages were not installed.
SITECUSTOMIZE = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ("tensorflow", "keras") else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
# Runs the commands in one process, so that JAX is imported once; says at the end what was imported.
RUN = """
import json, sys

if __name__ == "__main__":
    from effv2_jax.cli.main import main

    for words in json.loads(sys.argv[1]):
        try:
            main(words)
        except SystemExit as end:
            sys.exit(f"{words}: exit code {end.code}")
    print(json.dumps(sorted({"tensorflow", "keras"} & sys.modules.keys())))
"""


@pytest.fixture
def run(tmp_path):
    """Runs commands in a process, with TensorFlow absent or as it is: (exit code, the last line printed, stderr)."""

    def call(commands, absent):
        (tmp_path / "run.py").write_text(RUN)
        (tmp_path / "absent").mkdir(exist_ok=True)
        (tmp_path / "absent" / "sitecustomize.py").write_text(SITECUSTOMIZE)
        path = os.pathsep.join([*([str(tmp_path / "absent")] if absent else []), str(ROOT)])
        commands = json.dumps([list(map(str, words)) for words in commands])
        process = subprocess.run(
            [sys.executable, str(tmp_path / "run.py"), commands],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        return process.returncode, (process.stdout.splitlines() or [""])[-1], process.stderr

    return call


def train(workdir, *overrides):
    return command(workdir, "--config.evaluation.batch_size=32", *overrides)[1:]


@pytest.mark.slow
@pytest.mark.parametrize("absent", [True, False], ids=["absent", "installed"])
def test_training_evaluation_prediction_conversion_and_report(run, shared_data, tmp_path, absent):
    photos, tfds, digits, trained = (tmp_path / name for name in ("photos", "tfds", "digits", "trained"))
    keras, timm = shared_data / "weights" / "efficientnetv2-b0.weights.h5", tmp_path / "timm.safetensors"
    write_photos(photos)
    commands = [
        train(digits),
        ["evaluate", f"--workdir={digits}"],
        ["data", "prepare", "folder", f"--source={photos}", f"--out={tfds}", "--name=photos"],
        train(
            trained,
            "--config.data.source=tfds",
            "--config.data.name=photos",
            f"--config.data.data_dir={tfds}",
            "--config.data.train_split=train",
            "--config.data.evaluation_split=validation",
            "--config.global_batch_size=8",
        ),
        ["evaluate", f"--workdir={trained}"],
        ["predict", f"--weights={trained}", photos / "validation"],
        ["convert", keras, timm, "--format=timm"],
        ["convert", timm, tmp_path / "again.weights.h5"],
        ["export", timm, tmp_path / "net.stablehlo"],
        ["report", digits, trained, f"--out={tmp_path / 'report.html'}"],
    ]
    code, imported, err = run(commands, absent)
    assert code == 0, err
    assert imported == "[]"
    for folder in (digits, trained):
        assert list(folder.glob("events.out.tfevents.*"))
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_what_needs_it_says_so(effv2, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "model.ckpt.index").touch()
    for words, purpose in {
        (
            "convert",
            tmp_path / "model.ckpt",
            tmp_path / "w.safetensors",
        ): "is a checkpoint of TensorFlow, and reading it",
        ("data", "prepare", "mnist", f"--out={tmp_path}"): "preparing 'mnist' by TFDS",
    }.items():
        code, _, err = effv2(*words)
        assert code == 2 and f"{purpose} needs TensorFlow: pip install 'effv2_jax[tensorflow]'" in err


def test_a_bucket_needs_tensorflow_or_gcsfs(effv2, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = effv2("evaluate", "--workdir=gs://mine/work")
    assert code == 2 and "a path that begins with gs:// needs gcsfs: pip install 'effv2_jax[gcs]'" in err
