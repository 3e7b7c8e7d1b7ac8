"""scripts/slurm.sh with two tasks on this machine; small programs replace Slurm."""

import os
import re
import subprocess
import sys

import children
import pytest
from launching import ROOT

PROGRAMS = {
    # Like Slurm's, ends with the highest exit code of its tasks.
    "srun": """
echo "$@" >>"$FAKE/srun"
while [[ $1 == --* ]]; do shift; done
trap "" TERM
for number in 0 1; do SLURM_PROCID=$number "$@" & echo $! >>"$FAKE/tasks"; tasks="$tasks $!"; done
code=0
for task in $tasks; do wait $task; last=$?; [ $last -gt $code ] && code=$last; done
exit $code
""",
    "scancel": 'echo "$@" >>"$FAKE/scancel"; kill -TERM $(cat "$FAKE/tasks")',
    "squeue": 'echo "$@" >>"$FAKE/squeue"; cat "$FAKE/job_state"',
    "scontrol": 'echo "$@" >>"$FAKE/scontrol"',
    # Ends with code END, or waits for SIGTERM. The time is up once both tasks have started.
    "effv2": """
echo "task $SLURM_PROCID: $*"
[ "$END" = wait ] || exit "$END"
trap "exit 75" TERM
touch "$FAKE/began$SLURM_PROCID"
while [ ! -e "$FAKE/began0" ] || [ ! -e "$FAKE/began1" ]; do sleep 0.1; done
[ "$SLURM_PROCID" = 1 ] || kill -TERM "$(cat "$FAKE/batch")"
for wait in $(seq 600); do sleep 0.1; done
exit 1
""",
}


@pytest.fixture
def slurm(tmp_path):
    """Runs the job; returns its exit code, its log, and the calls of Slurm's commands."""
    fake, programs, root = tmp_path / "fake", tmp_path / "programs", tmp_path / "root"
    for folder in (fake, programs, root / ".venv" / "bin"):
        folder.mkdir(parents=True)
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    python = root / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (root / "scripts").symlink_to(ROOT / "scripts")

    def run(end: str, job_state: str = "RUNNING") -> tuple[int, str, dict[str, str]]:
        (fake / "job_state").write_text(job_state)
        environment = os.environ | {
            "PATH": f"{programs}:/usr/bin:/bin",
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "12",
            "FAKE": str(fake),
            "END": end,
        }
        # `exec`, because Slurm sends the signal to the script itself.
        words = ["bash", "-c", 'echo $$ >"$FAKE/batch"; exec bash scripts/slurm.sh "$@"', "sbatch"]
        words += ["effv2", "train", "--workdir=work", "--config.note=a b"]
        done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
        asked = {name: fake / name for name in ("srun", "scancel", "squeue", "scontrol")}
        asked = {name: path.read_text().strip() for name, path in asked.items() if path.exists()}
        return done.returncode, done.stdout + done.stderr, asked

    yield run
    assert children.end("FAKE", str(fake)) == []


def test_each_task_trains_under_its_supervisor(slurm):
    code, log, asked = slurm("0")
    assert code == 0 and asked.keys() == {"srun"}
    # srun does not inherit the cores from sbatch.
    assert asked["srun"].startswith("--kill-on-bad-exit=0 --cpus-per-task=12 .venv/bin/python scripts/supervise.py ")
    for task in (0, 1):
        assert f"task {task}: train --workdir=work --config.note=a b --distributed\n" in log


def test_when_the_time_is_up_it_saves_and_is_requeued(slurm):
    code, log, asked = slurm("wait")
    assert code == 75 and "job 7 is requeued" in log
    assert asked["scancel"] == "--signal=TERM 7" and asked["scontrol"] == "requeue 7"


def test_a_cancelled_job_stays_cancelled(slurm):
    code, _, asked = slurm("wait", job_state="COMPLETING")
    assert code == 75 and "squeue" in asked and "scontrol" not in asked


def test_invalid_input_is_not_retried(slurm):
    code, log, asked = slurm("2")
    assert code == 2 and asked.keys() == {"srun"} and log.count("task 0") == 1


def test_without_a_command_or_slurm():
    script = str(ROOT / "scripts" / "slurm.sh")
    for words, message in (([], "the command is missing"), (["effv2", "train"], "submit this script with sbatch")):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        run = subprocess.run(["bash", script, *words], env=environment, capture_output=True, text=True)
        assert run.returncode == 2 and message in run.stderr and run.stderr.count("\n") == 1


def test_slurm_signals_the_script_and_requeues():
    lines = (ROOT / "scripts" / "slurm.sh").read_text().splitlines()
    options = dict(re.match(r"#SBATCH --([a-z-]+)=?(.*)", line).groups() for line in lines if line[:7] == "#SBATCH")
    assert options["signal"].startswith("B:TERM@") and "requeue" in options and options["open-mode"] == "append"
    assert options["gpus-per-node"] == options["ntasks-per-node"]  # a process for each GPU, by JAX's reading of Slurm
