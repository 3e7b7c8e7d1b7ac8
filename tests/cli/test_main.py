"""Exit codes, signals and the start of the command."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from launching import EFFV2, ROOT

SLOW_TO_IMPORT = "absl asyncio clu cv2 etils flax grain jax ml_collections numpy orbax psutil rich tensorflow unittest"


def run_python(code: str, **environment: str) -> str:
    """What `python -c CODE` prints."""
    kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    words = [sys.executable, "-c", code]
    return subprocess.run(words, cwd=ROOT, env=kept | environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("arguments", [[], ["train"], ["bench", "input"], ["data", "check"]])
def test_help_imports_nothing_slow(arguments):
    code = f"""
import sys
from effv2_jax.cli.main import main
try:
    main({[*arguments, "--help"]})
except SystemExit as exit_:
    print("exit", exit_.code, sorted(set("{SLOW_TO_IMPORT}".split()) & set(sys.modules)))
"""
    assert run_python(code).splitlines()[-1] == "exit 0 []"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set")
@pytest.mark.parametrize(
    ("arguments", "environment", "starts"),
    [(["models"], {}, 2), (["models"], {"GLIBC_TUNABLES": ""}, 1), (["--help"], {}, 1), (["models", "--help"], {}, 1)],
)
def test_a_command_starts_again_with_huge_pages_but_help_does_not(arguments, environment, starts):
    code = f"""
import sys
sys.argv[1:] = {arguments}
print("a start", flush=True)
from effv2_jax.cli.main import entry
entry()
"""
    assert run_python(code, **environment).count("a start") == starts


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
