"""Launching on Cloud TPU slices, with `fake_gcloud` instead of gcloud; its hosts are folders."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import children
import psutil
import pytest
from launching import ROOT, command, free_port

from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics

ZONE = "--zone=us-central1-a"
# Trains to step 3, waits for the file `finish`, and ends with the exit code in it; at SIGTERM it ends with 75.
# The first host saves each step.
EFFV2 = f"""#!{sys.executable}
import os, pathlib, signal, sys, time
cloud = pathlib.Path(os.environ["FAKE_CLOUD"])
words = dict(word.partition("=")[::2] for word in sys.argv[2:])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
assert sys.argv[1] == "train" and "--distributed" in words, sys.argv
print(f"note is {{words.get('--config.note')}}", flush=True)
saved = pathlib.Path(words["--workdir"]) / "checkpoints"
saved.mkdir(parents=True, exist_ok=True)
step = max((int(path.name) for path in saved.iterdir()), default=0)
print(f"from step {{step}}", flush=True)
for step in range(step + 1, 4):
    print(f"step {{step}}", flush=True)
    if os.environ["FAKE_WORKER"] == "0":
        (saved / str(step)).mkdir()
        (saved / str(step) / "commit_success.txt").write_text("")
while not (cloud / "finish").exists():
    time.sleep(0.05)
sys.exit(int((cloud / "finish").read_text()))
"""
# The real program; JAX finds no slice here, so its arguments name the other processes.
REAL_EFFV2 = f"""#!{sys.executable}
import os, pathlib, sys
sys.argv.remove("--distributed")
port = (pathlib.Path(os.environ["FAKE_CLOUD"]) / "port").read_text()
sys.argv += [f"--coordinator=localhost:{{port}}", "--num_processes=2", "--process_id=" + os.environ["FAKE_WORKER"]]
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
from effv2_jax.cli.main import entry
entry()
"""
TRAIN = ["--", "effv2", "train", "--config=configs/digits.py", "--workdir=gs://BUCKET/run"]


class Cloud:
    """A folder instead of Google Cloud, and a copy of our scripts in a repository of their own."""

    def __init__(self, folder: Path, effv2: str):
        self.folder = folder / "cloud"
        self.repository = folder / "repository"
        self.environment = os.environ | {"FAKE_CLOUD": str(self.folder), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        subprocess.run(
            [sys.executable, "-c", "import sys, fake_gcloud; fake_gcloud.prepare(sys.argv[1])", effv2],
            env=self.environment,
            check=True,
        )
        self.environment["PATH"] = f"{self.folder / 'bin'}:/usr/bin:/bin"
        shutil.copytree(ROOT / "scripts", self.repository / "scripts")
        shutil.copytree(ROOT / "configs", self.repository / "configs")
        for name in ("constraints.txt", "setup.cfg"):
            shutil.copy(ROOT / name, self.repository)
        git = ["git", "-C", str(self.repository), "-c", "user.name=test", "-c", "user.email=test@localhost"]
        for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=all"]):
            subprocess.run([*git, *words], check=True)

    def put(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)

    def calls(self, *words: str) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if call[2 : 2 + len(words)] == list(words)]

    def words(self, *arguments: str) -> list[str]:
        verb, *rest = arguments
        return ["bash", str(self.repository / "scripts" / "tpu_vm.sh"), verb, "slice", ZONE, "--poll=0.1", *rest]

    def run(self, *arguments: str, answer: str = "") -> subprocess.CompletedProcess:
        return subprocess.run(
            self.words(*arguments),
            env=self.environment,
            input=answer,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, *arguments: str) -> subprocess.Popen:
        return children.start(
            self.words(*arguments), env=self.environment, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )

    def end(self) -> list[str]:
        """Ends all processes on the hosts; returns those that should have ended by themselves."""
        (self.folder / "mute").unlink(missing_ok=True)
        if self.exists:
            self.run("delete", "--yes")
        return children.end("FAKE_CLOUD", str(self.folder))

    @property
    def exists(self) -> bool:
        return (self.folder / "slice.json").exists()


def read_until(process: subprocess.Popen, pattern: str) -> str:
    """The output up to the line with `pattern`."""
    text = ""
    for line in process.stdout:
        text += line
        if re.search(pattern, line):
            return text
    raise AssertionError(f"ended without '{pattern}':\n{text}")


@pytest.fixture
def cloud(request, tmp_path):
    if shutil.which("git") is None or sys.platform != "linux":
        pytest.skip("needs git and Linux")
    cloud = Cloud(tmp_path, getattr(request, "param", EFFV2))
    yield cloud
    assert cloud.end() == []


@pytest.fixture
def ready(cloud):
    made = cloud.run("create", "--accelerator_type=v5litepod-16", "--spot")
    assert made.returncode == 0, made.stderr
    return cloud


@pytest.mark.slow
@pytest.mark.parametrize("cloud", [REAL_EFFV2], indirect=True, ids=["effv2"])
def test_a_real_training_on_a_slice_that_is_preempted(cloud):
    """The example of docs/tpu.md; `pytest -s` prints its log."""
    cloud.put("port", str(free_port()))
    cloud.put("coming", "WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    made = cloud.run("create", "--accelerator_type=v5litepod-8", "--spot")
    assert made.returncode == 0
    words = command("gs://BUCKET/digits", "--config.total_steps=200", "--config.checkpoint_steps=40")
    words += ["--config.log_steps=40", "--config.evaluate_steps=200"]
    process = cloud.start("train", "--yes", "--", "effv2", *words[1:])
    text = read_until(process, "^step 80/200")
    cloud.put("preempt")
    rest, _ = process.communicate(timeout=600)
    text += rest
    print(made.stderr + text)
    assert process.returncode == 0, text
    assert "slice was preempted (SUSPENDED)" in text and not cloud.exists
    before, after = text.split("was preempted")
    assert "4 cpu devices in 2 processes" in before and "4 cpu devices in 2 processes" in after
    assert "step 40/200" in before and "step 40/200" not in after and "step 200/200" in after
    records = [r["step"] for r in read_metrics(cloud.folder / "bucket" / "digits" / METRICS_FILE) if "train/loss" in r]
    assert records == [40, 80, 120, 160, 200]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create"], "create needs --accelerator_type=TYPE"),
        (["create", "--accelerator_type=v5e-16"], "not v2-N, v3-N"),
        (["create", "--accelerator_type=v4-8", "--valid_until=soon"], "--valid_until is 'soon'"),
        (["create", "--accelerator_type=v4-8", "--", "--labels=a b"], "must not contain spaces"),
        (["create", "--accelerator-type=v4-8"], "'--accelerator-type=v4-8' is not an argument of create"),
        (["train", "--spot", *TRAIN], "'--spot' is not an argument of train"),
        (["train"], "train needs a command"),
        (["train", "--", "python", "x.py"], "train needs a command"),
        (["train", *TRAIN[:-1], "--workdir=runs/x"], "needs --workdir=gs://..."),
        (["train", *TRAIN], "there is no slice in us-central1-a; `scripts/tpu_vm.sh create` requests it"),
        (["setup"], "there is no slice in us-central1-a"),
        (["stop", "--", "x"], "stop takes no arguments after --"),
        (["logs", "--worker=all"], "--worker is 'all'"),
        (["status", "--poll=often"], "--poll is 'often'"),
        (["status", "--zone=us"], "--zone is 'us'"),
    ],
)
def test_invalid_arguments_give_one_sentence_and_create_nothing(cloud, arguments, message):
    run = cloud.run(*arguments)
    assert run.returncode == 2 and message in run.stderr and run.stderr.count("\n") == 1
    assert not cloud.calls("queued-resources", "create") and not cloud.calls("tpu-vm")


def test_a_name_that_google_would_refuse_and_no_verb(cloud):
    words = ["bash", str(cloud.repository / "scripts" / "tpu_vm.sh")]
    run = subprocess.run([*words, "create", "Slice_1", ZONE], capture_output=True, text=True)
    assert run.returncode == 2 and "not 'Slice_1'" in run.stderr
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 2 and "tpu_vm.sh train NAME" in run.stderr and "set -e" not in run.stderr
    run = subprocess.run([*words, "rent", "slice"], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "unknown verb 'rent'" in run.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["help"], ["train", "--help"], ["create", "slice", ZONE, "-h"]])
def test_help(cloud, arguments):
    words = ["bash", str(cloud.repository / "scripts" / "tpu_vm.sh"), *arguments]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0 and "tpu_vm.sh train NAME" in run.stdout and not run.stderr


def test_the_config_is_checked_before_the_slice_is_touched(ready):
    (ready.folder / "local").mkdir()
    (ready.folder / "local" / "effv2").symlink_to(Path(sys.executable).with_name("effv2"))
    ready.environment["PATH"] = f"{ready.folder / 'local'}:{ready.environment['PATH']}"
    before = len(ready.calls())
    run = ready.run("train", *TRAIN, "--config.optimizer.momentun=0.5")
    assert run.returncode == 2 and "did you mean optimizer.momentum?" in run.stderr and run.stderr.count("\n") == 1
    assert len(ready.calls()) == before


def test_create_waits_for_capacity(cloud):
    cloud.put("coming", "ACCEPTED WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    options = ["--accelerator_type=v6e-8", "--valid_until=6h", "--project=p", "--", "--network=n"]
    run = cloud.run("create", *options)
    assert run.returncode == 0, run.stderr
    states = re.findall(r"slice is (\w+)", run.stderr)
    assert states == [
        "ACCEPTED",
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ready",
    ]
    (call,) = cloud.calls("queued-resources", "create")
    made = ["--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e", "--valid-until-duration=6h", "--network=n"]
    assert call == (
        ["compute", "tpus", "queued-resources", "create", "slice", "--node-id=slice"]
        + [f"--description=scripts/tpu_vm.sh {' '.join(made)}", *made, ZONE, "--quiet", "--project=p"]
    )
    again = cloud.run("create", *options)
    assert again.returncode == 0 and "slice already exists" in again.stderr
    assert len(cloud.calls("queued-resources", "create")) == 1


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [("v4-8", "tpu-ubuntu2204-base"), ("v5litepod-4", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5")],
)
def test_the_runtime_is_the_accelerators(cloud, accelerator, runtime):
    run = cloud.run("create", f"--accelerator_type={accelerator}", "--dry_run")
    assert f" --runtime-version={runtime} " in run.stdout
    run = cloud.run("create", f"--accelerator_type={accelerator}", "--runtime_version=mine", "--dry_run")
    assert " --runtime-version=mine " in run.stdout


def test_a_missing_quota_is_reported_and_nothing_remains(cloud):
    cloud.put("create_error", "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepod' has been exceeded.")
    run = cloud.run("create", "--accelerator_type=v5litepod-16", "--spot", "--yes")
    assert run.returncode == 69 and not cloud.exists
    assert "Quota limit" in run.stderr and "nothing was created" in run.stderr


def test_a_request_that_fails_is_offered_for_deletion(cloud):
    cloud.put("coming", "WAITING_FOR_RESOURCES FAILED")
    run = cloud.run("create", "--accelerator_type=v5litepod-16")
    assert run.returncode == 69 and "There is no more capacity" in run.stderr
    assert cloud.exists and "slice still exists, and costs money until" in run.stderr
    run = cloud.run("train", *TRAIN)
    assert run.returncode == 69 and "There is no more capacity" in run.stderr
    assert len(cloud.calls("queued-resources", "create")) == 1  # a failed request is not repeated
    cloud.put("coming", "ACTIVE")
    run = cloud.run("create", "--accelerator_type=v5litepod-16", answer="y\n")
    assert run.returncode == 0 and "slice is FAILED. Delete it and request a new one? [y/N]" in run.stderr


def test_a_slice_that_was_never_ready_is_an_error(cloud):
    cloud.put("coming", "PROVISIONING SUSPENDED")
    run = cloud.run("create", "--accelerator_type=v5litepod-16", "--spot")
    assert run.returncode == 69 and "error: slice is SUSPENDED and was never ready" in run.stderr
    assert cloud.exists and "Delete it? [y/N]" in run.stderr


def test_ctrl_c_while_waiting_reports_that_the_slice_still_exists(cloud):
    cloud.put("coming", "WAITING_FOR_RESOURCES")
    process = cloud.start("create", "--accelerator_type=v5litepod-16", "--yes")
    read_until(process, "is WAITING_FOR_RESOURCES")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "slice still exists, and costs money until" in out and cloud.exists


def test_train_from_nothing_to_the_end(ready):
    ready.put("finish", "0")
    note = '--config.note=it\'s (1, 2) $HOME "x" \\ *'
    run = ready.run("train", "--yes", *TRAIN, note)
    assert run.returncode == 0, run.stderr
    log = f"note is {note.partition('=')[2]}\nfrom step 0\nstep 1\nstep 2\nstep 3\n"
    assert run.stdout.endswith(log) and run.stdout.count("step 1") == 1
    assert "training ended with exit code 0" in run.stderr and "slice is deleted" in run.stderr and not ready.exists


def test_a_log_that_was_shown_to_its_end_is_not_shown_again(ready):
    process = ready.start("train", "--yes", "--poll=3", *TRAIN)
    shown = read_until(process, "step 3")
    ready.put("finish", "0")  # the log ends between two checks of the hosts
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and (shown + out).count("step 1") == 1


def test_the_log_of_a_restarted_training_is_shown(ready):
    process = ready.start("train", "--yes", "--poll=3", *TRAIN)
    read_until(process, "^step 3$")
    for pid in ready.folder.glob("hosts/*/effv2_run/pid"):  # as at a preemption that then does not come
        [supervisor] = psutil.Process(int(pid.read_text())).children()
        supervisor.terminate()
    read_until(process, "training started")
    ready.put("finish", "0")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out.count("from step") == 1


def test_without_an_answer_the_slice_still_exists_and_this_is_reported(ready):
    ready.put("finish", "0")
    run = ready.run("train", *TRAIN)
    assert run.returncode == 0 and ready.exists
    assert "costs money as long as it exists. Delete it? [y/N]" in run.stderr
    assert run.stderr.endswith("costs money until `scripts/tpu_vm.sh delete slice --zone=us-central1-a`\n")


def test_the_exit_code_is_the_trainings(ready):
    ready.put("finish", "2")
    run = ready.run("train", *TRAIN, answer="y\n")
    assert run.returncode == 2 and "ended with exit code 2" in run.stderr and not ready.exists


def test_a_second_train_joins_and_another_one_is_refused(ready):
    first = ready.start("train", *TRAIN)
    read_until(first, "^step 3$")
    second = ready.start("train", *TRAIN)
    assert "t1v-n-0-w-1: is already training" in read_until(second, "^step 3$")
    other = ready.run("train", *TRAIN, "--config.seed=1")
    assert other.returncode == 2 and "runs another training" in other.stderr
    assert "--workdir=gs://BUCKET/run" in other.stderr and "seed" not in other.stderr
    setup = ready.run("setup")
    assert setup.returncode == 0 and "installed" not in setup.stdout  # hosts that are training stay unchanged
    ready.put("finish", "0")
    for process in (first, second):
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_a_preempted_slice_is_requested_again_and_training_resumes(ready):
    ready.put("coming", "WAITING_FOR_RESOURCES ACTIVE")
    process = ready.start("train", "--yes", *TRAIN)
    assert "from step 0" in read_until(process, "^step 3$")
    ready.put("preempt")
    text = read_until(process, "^from step 3$")
    ready.put("finish", "0")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text + out
    assert "slice was preempted (SUSPENDED)" in text and "slice is WAITING_FOR_RESOURCES" in text
    first, second = ready.calls("queued-resources", "create")
    assert first == second and "--spot" in second
    assert not ready.exists


def test_a_query_is_not_mistaken_for_a_training(ready):
    assert ready.run("setup").returncode == 0
    with (ready.folder / "hosts/0/effv2_run/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as `state` does
        assert sorted(line.split()[0] for line in ready.run("status").stdout.splitlines()) == ["idle", "idle", "slice:"]
        assert ready.run("setup").stdout.count("installed") == 2
        assert ready.run("stop").stdout.count("stopped") == 2
        process = ready.start("train", *TRAIN)
        read_until(process, "w-1: training started")
    text = read_until(process, "from step 0")
    assert "w-0: training started" in text
    ready.put("finish", "0")
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_host_that_was_rebooted_trains_again(ready):
    process = ready.start("train", *TRAIN)
    read_until(process, "^step 3$")
    (ready.folder / "reboot" / "1").write_text("")
    text = read_until(process, "w-1: training started")
    ready.put("finish", "0")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "w-0: is already training" in text + out


def test_a_host_that_cannot_be_reached_for_a_while(ready):
    (ready.folder / "deaf" / "1").write_text("")
    process = ready.start("train", *TRAIN)
    text = read_until(process, "worker 1 failed with exit status 255")
    (ready.folder / "deaf" / "1").unlink()
    ready.put("finish", "0")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text + out


def test_a_host_that_cannot_be_reached_at_all(ready):
    (ready.folder / "deaf" / "1").write_text("")
    run = ready.run("train", *TRAIN, answer="y\n")
    assert run.returncode == 69 and "not all hosts of slice can be reached" in run.stderr and not ready.exists
    assert len(ready.calls("tpu-vm", "scp")) == 5


def test_gcloud_may_fail_a_few_times_but_not_always(ready):
    process = ready.start("train", *TRAIN)
    read_until(process, "^step 3$")
    ready.put("mute", "3")
    while (ready.folder / "mute").exists():
        time.sleep(0.05)
    ready.put("mute", "1000")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 69 and "gcloud cannot get the state of slice" in out


def test_ctrl_c_ends_only_the_watching(ready):
    process = ready.start("train", "--yes", *TRAIN)
    read_until(process, "^step 3$")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the slice and its training continue" in out and ready.exists
    status = ready.run("status")
    assert status.stdout.splitlines()[0] == "slice: READY"
    lines = sorted(status.stdout.splitlines()[1:])
    assert lines[0] == "training t1v-n-0-w-0 step 3" and lines[1].startswith("training t1v-n-0-w-1 ")


def test_stop_saves_and_asks(ready):
    process = ready.start("train", *TRAIN)
    read_until(process, "^step 3$")
    stop = ready.run("stop", answer="n\n")
    assert stop.returncode == 0 and "Delete it? [y/N]" in stop.stderr and ready.exists
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "the training was stopped" in out
    assert [line.split()[0] for line in ready.run("status").stdout.splitlines()] == ["slice:", "stopped", "stopped"]
    ready.put("finish", "0")
    run = ready.run("train", *TRAIN)  # resumes
    assert run.returncode == 0 and "from step 3" in run.stdout and "from step 0" not in run.stdout
    assert "from step 0" in (ready.folder / "hosts/0/effv2_run/train.log").read_text()


def test_logs_of_any_host(ready):
    ready.put("finish", "0")
    assert ready.run("train", *TRAIN).returncode == 0
    assert "step 3" in ready.run("logs", "--worker=1").stdout


def test_delete_asks_and_may_be_repeated(ready):
    no = ready.run("delete")
    assert no.returncode == 0 and "Delete slice (READY) and everything on it? [y/N]" in no.stderr and ready.exists
    assert ready.run("delete", answer="y\n").returncode == 0 and not ready.exists
    again = ready.run("delete", "--yes")
    assert again.returncode == 0 and "there is no slice" in again.stderr
    assert "no cost" in ready.run("status").stderr


def test_dry_run_runs_nothing(cloud):
    printed = ""
    for arguments in (
        ["create", "--accelerator_type=v5litepod-16"],
        ["setup"],
        ["train", *TRAIN, "--config.curriculum.image_size=(128,300)"],
        ["status"],
        ["logs"],
        ["stop"],
        ["delete"],
    ):
        run = cloud.run(arguments[0], "--dry_run", *arguments[1:])
        assert run.returncode == 0 and run.stderr == "", run.stderr
        printed += run.stdout
    assert not cloud.calls()
    assert all(line.startswith("gcloud compute tpus ") for line in printed.splitlines())
    assert printed.count("queued-resources delete") == 1
    assert r"start effv2 train --config=configs/digits.py" in printed and r"image_size=\(128\,300\)'" in printed


@pytest.mark.slow
def test_gcloud_knows_what_we_ask_of_it(cloud, tmp_path):
    """The gcloud of this machine, without account and network, accepts the arguments and fails at the account."""
    gcloud = shutil.which("gcloud", path=os.environ["PATH"])
    if gcloud is None:
        pytest.skip("needs gcloud")
    lines = [
        line
        for arguments in (
            ["create", "--accelerator_type=v5litepod-16", "--spot", "--valid_until=6h"],
            ["train", *TRAIN],
            ["delete"],
        )
        for line in cloud.run(arguments[0], "--dry_run", "--project=p", *arguments[1:]).stdout.splitlines()
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDSDK")}
    environment |= {
        "CLOUDSDK_CONFIG": str(tmp_path / "config"),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": "http://localhost:1/",
    }
    for line in sorted(set(lines)):
        run = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=120)
        assert run.returncode == 1 and "active account" in run.stderr, (line, run.stderr)
