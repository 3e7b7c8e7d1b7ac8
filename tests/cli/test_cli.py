"""The command line as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import EFFV2, ROOT, command


def test_models(effv2):
    code, out, _ = effv2("models")
    assert code == 0 and "efficientnetv2-s" in out
    code, out, _ = effv2("models", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["efficientnetv2-xl"]["parameters"] == 208_119_808


def test_stages_need_no_data_where_the_config_knows_their_number(effv2):
    code, out, _ = effv2("stages", "--config=configs/imagenet.py:s")
    assert code == 0 and "107336 steps, 350.0 epochs" in out
    code, out, _ = effv2("stages", "--config=configs/imagenet.py:l,recipe=automl", "--json")
    assert [stage["image_size"] for stage in json.loads(out)["stages"]] == [192, 256, 320, 384]


def test_stages_count_the_data_where_it_is_at_hand(effv2):
    code, out, _ = effv2("stages", "--config=configs/digits.py")
    assert code == 0 and "of 1442 examples" in out


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_stages_draws_a_picture(effv2, tmp_path, ending, start):
    path = tmp_path / f"stages.{ending}"
    code, _, err = effv2("stages", "--config=configs/imagenet.py:m", f"--picture={path}")
    assert code == 0 and err == f"picture: {path}\n" and path.read_bytes().startswith(start)
    code, _, err = effv2("stages", "--config=configs/imagenet.py:m", f"--picture={tmp_path / 'stages.docx'}")
    assert code == 2 and "--picture needs a name that ends in .png or .svg" in err


def test_config_prints_what_an_override_made(effv2):
    code, out, _ = effv2("config", "--config=configs/digits.py", "--config.ema.decay=0.5")
    assert code == 0 and "ema.decay = 0.5\n" in out
    code, out, _ = effv2("config", "--config=configs/digits.py", "--json")
    assert json.loads(out)["data"]["source"] == "digits"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--config=configs/digits.py:x", "--workdir=W"), "config argument 'x' is unknown"),
        (("train", "--config=configs/folder.py", "--workdir=W"), "config.data.name='PHOTOS' is not a folder of images"),
        (("train", "--config=configs/digits.py", "--workdir=W", "--config.ema.decai=1"), "did you mean ema.decay?"),
        (("config", "--config=configs/folder.py:s,size=-3"), "configs/folder.py: size=-3 is too small"),
        (("config", "--config=configs/finetune.py:s,size=8"), "configs/finetune.py: size=8 is too small"),
        (("config", "--config=configs/transfer.py:cars,size=8"), "configs/transfer.py: size=8 is too small"),
        (("config", "--config=configs/digits.py", "--config.optimiser.name=adamw"), "did you mean optimizer.name?"),
        (
            ("train", "--config=configs/digits.py", "--workdir=W", "--config.total_steps=2"),
            "stage 1 has no step: the run has 2 steps",
        ),
        (
            ("train", "--config=configs/digits.py", "--workdir=W", "--config.data.augmentation=no"),
            "did you mean 'none'",
        ),
        (("train", "--config=configs/digits.py", "--workdir=W", "--config.data.interpolation=b"), "known: bilinear"),
        (("evaluate", "--workdir=W"), "holds no training run"),
        (("models", "--config.seed=1"), "'effv2 models' takes no config"),
        (("evaluate", "--workdir=W", "--config.seed=1"), "--config.seed=1 was given without --config"),
        (("train", "--config=configs/digits.py"), "required: --workdir"),
        (("trian",), "invalid choice: 'trian'"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(effv2, tmp_path, arguments, message):
    workdir = tmp_path / "work"
    code, _, err = effv2(*(argument.replace("=W", f"={workdir}") for argument in arguments))
    assert code == 2
    assert message in err and "Traceback" not in err
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--distributed"], "give each process --coordinator=HOST:PORT --num_processes=N --process_id=I"),
        (["--coordinator=localhost:1234"], "--coordinator needs --num_processes=N"),
        (["--coordinator=localhost", "--num_processes=2", "--process_id=0"], "it must be HOST:PORT of process 0"),
        (["--num_processes=2", "--process_id=0"], "--num_processes needs --coordinator=HOST:PORT of process 0"),
        (["--distributed", "--timeout=0"], "--timeout is 0; it must be at least 1 second"),
    ],
)
def test_processes_that_cannot_meet_say_what_to_do(tmp_path, arguments, message):
    command = [
        Path(sys.executable).with_name("effv2"),
        "train",
        "--config=configs/digits.py",
        f"--workdir={tmp_path}/w",
    ]
    run = subprocess.run(command + arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert message in run.stderr and "Traceback" not in run.stderr


def test_another_config_in_a_workdir_lists_what_differs_and_can_be_forced(effv2, tmp_path):
    _, *words = command(tmp_path, "--config.curriculum.num_stages=1", "--config.evaluate_steps=100")
    assert effv2(*words)[0] == 0
    code, _, err = effv2(*words, "--config.seed=5", "--config.optimizer.momentum=0.8", "--config.log_steps=3")
    assert code == 2 and f"does not go on with the run in '{tmp_path}' (step 6)" in err
    assert "config.optimizer.momentum: 0.9 -> 0.8; config.seed: 0 -> 5. " in err and "--force" in err
    code, out, _ = effv2(*words, "--config.seed=5", "--config.total_steps=8", "--force")
    assert code == 0 and "WARNING: --force goes on although the run was another: config.seed: 0 -> 5" in out
    assert "going on from step 6 of 8" in out and "result at step 8" in out
    code, _, err = effv2(*words, "--config.seed=5", "--config.total_steps=7", "--force")
    assert code == 2 and "is at step 8, beyond the 7 of this config" in err


def test_models_through_the_installed_command_and_a_closed_pipe():
    effv2 = Path(sys.executable).with_name("effv2")
    run = subprocess.run(f"{effv2} models | head -1", shell=True, capture_output=True, text=True)
    assert run.stdout.strip() and not run.stderr


def test_a_reader_that_closes_the_pipe_early_gets_no_traceback():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-c", "from effv2_jax.cli.main import entry; entry()", "models"]
    process = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert process.returncode == 1 and "Traceback" not in process.stderr


@pytest.mark.parametrize("within_import", [True, False])
def test_ctrl_c_is_one_sentence_also_where_a_library_swallows_it(tmp_path, within_import):
    swallow = "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
    raise_ = "import signal\ndef get_config(argument=None):\n    signal.raise_signal(signal.SIGINT)\n"
    config = tmp_path / "config.py"
    config.write_text(swallow + "from configs.digits import get_config\n" if within_import else raise_)
    # Where the tests run in the background, SIGINT is ignored, and what they start inherits that.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-c", heed, EFFV2, "config", f"--config={config}"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr.startswith("effv2: interrupted; ") and run.stderr.count("\n") == 1
