"""What the commands print and refuse, as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT, command


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


@pytest.mark.parametrize(("arguments", "profile"), [(["--profile=0,3"], (0, 3)), ([], None)])
def test_train_passes_the_steps_to_profile(effv2, tmp_path, monkeypatch, arguments, profile):
    calls = []
    monkeypatch.setattr("effv2_jax.train.train", lambda config, workdir, **options: calls.append(options))
    assert effv2("train", "--config=configs/digits.py", f"--workdir={tmp_path}", *arguments)[0] == 0
    assert calls == [{"force": False, "wandb_project": None, "profile": profile}]


@pytest.mark.parametrize("value", ["3", "3,0", "-1,2", "1,2,3", "1.5,2", ",2", ""])
def test_train_refuses_other_steps_to_profile(effv2, tmp_path, value):
    code, _, err = effv2("train", "--config=configs/digits.py", f"--workdir={tmp_path}", f"--profile={value}")
    assert code == 2
    assert f"argument --profile: '{value}' must be STEP,STEPS, a step of at least 0 and a number of steps" in err


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
    assert code == 2 and f"cannot resume the run in '{tmp_path}' (step 6)" in err
    assert "config.optimizer.momentum: 0.9 -> 0.8; config.seed: 0 -> 5. " in err and "--force" in err
    code, out, _ = effv2(*words, "--config.seed=5", "--config.total_steps=8", "--force")
    assert code == 0 and "WARNING: --force resumes the run despite conflicts: config.seed: 0 -> 5" in out
    assert "resuming from step 6 of 8" in out and "result at step 8" in out
    code, _, err = effv2(*words, "--config.seed=5", "--config.total_steps=7", "--force")
    assert code == 2 and "is at step 8, beyond the 7 of this config" in err
