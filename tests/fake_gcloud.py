"""A fake `gcloud compute tpus ...` whose cloud is a folder.

    FAKE_CLOUD=DIR python fake_gcloud.py compute tpus ...

DIR holds `calls.jsonl`, one line per call; `slice.json`, the queued resource; `hosts/N`, the home of worker N, where
bash runs the commands of ssh; `bucket`, which stands for gs://BUCKET; and what tests make go wrong:

    coming        the states, separated by spaces, that every new request goes through; ACTIVE alone by default
    create_error  the error of the next request
    mute          the number of calls from now on that fail
    deaf/N        worker N cannot be reached by ssh while the file exists
    preempt       at the next `describe` the machines are lost with everything on them
    reboot/N      at the next `describe` worker N has lost its processes
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil

CLOUD = Path(os.environ["FAKE_CLOUD"])
SLICE, HOSTS = CLOUD / "slice.json", CLOUD / "hosts"
WORKERS = 2
# On the PATH of a host before anything is installed.
PROGRAMS = {
    "hostname": 'echo "t1v-n-0-w-$FAKE_WORKER"',
    "python3": """
case "$*" in
"-m uv --version") [ -e "$HOME/uv" ] ;;
"-m pip install --user --quiet uv") [ -n "$PIP_BREAK_SYSTEM_PACKAGES" ] && touch "$HOME/uv" ;;
"-m uv venv --quiet --python=3.11 $HOME/effv2_env")
    mkdir -p "$HOME/effv2_env/bin"
    ln -s "$FAKE_CLOUD/bin/env_python" "$HOME/effv2_env/bin/python"
    ln -s "$FAKE_CLOUD/bin/env_effv2" "$HOME/effv2_env/bin/effv2" ;;
"-m uv pip install --quiet --python=$HOME/effv2_env/bin/python --constraint=constraints.txt --editable=.[tpu]")
    [ -e constraints.txt ] && [ -e setup.cfg ] && [ -x "$HOME/effv2_env/bin/python" ] && touch "$HOME/installed" ;;
*) echo "unexpected: python3 $*" >&2; exit 9 ;;
esac
""",
    # The bucket is a folder.
    "env_python": 'exec "$FAKE_PYTHON" "${@//gs:\\/\\/BUCKET/$FAKE_CLOUD/bucket}"',
}


def prepare(effv2: str) -> None:
    """Writes the programs of the hosts; `effv2` is the text of the script that is installed under that name."""
    (CLOUD / "bin").mkdir(parents=True)
    for folder in ("bucket", "deaf", "reboot"):
        (CLOUD / folder).mkdir()
    for name, text in PROGRAMS.items():
        (CLOUD / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
    (CLOUD / "bin" / "env_effv2").write_text(effv2)
    (CLOUD / "bin" / "gcloud").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
    for program in (CLOUD / "bin").iterdir():
        program.chmod(0o755)


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    options = dict(re.match(r"--([a-z-]+)(?:=(.*))?$", w, re.DOTALL).groups() for w in sys.argv[1:] if w[:2] == "--")
    with (CLOUD / "calls.jsonl").open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    if left := int(_take("mute") or 0):
        if left > 1:
            (CLOUD / "mute").write_text(str(left - 1))
        sys.exit("ERROR: gcloud crashed (ConnectionError): network is unreachable")
    assert words[:2] == ["compute", "tpus"] and "quiet" in options and options["zone"] == "us-central1-a", sys.argv
    call = {
        "queued-resources create": create,
        "queued-resources describe": describe,
        "queued-resources delete": delete,
        "tpu-vm describe": describe_machine,
        "tpu-vm scp": scp,
        "tpu-vm ssh": ssh,
    }[" ".join(words[2:4])]
    call(options, *words[4:])


def create(options: dict, name: str) -> None:
    assert options["node-id"] == name and options["accelerator-type"] and options["runtime-version"]
    if error := _take("create_error"):
        sys.exit(f"ERROR: (gcloud.compute.tpus.queued-resources.create) {error}")
    if SLICE.exists():
        sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS")
    coming = CLOUD / "coming"
    states = coming.read_text().split() if coming.exists() else ["ACTIVE"]
    SLICE.write_text(json.dumps({"name": name, "states": states, "description": options["description"]}))


def describe(options: dict, name: str) -> None:
    _happen()
    found = _find(name, "queued-resources")
    if options["format"] == "value(state.state)":
        print(found["states"][0])
        if len(found["states"]) > 1:
            SLICE.write_text(json.dumps(found | {"states": found["states"][1:]}))
        if found["states"][0] == "ACTIVE":
            for worker in range(WORKERS):
                (HOSTS / str(worker)).mkdir(parents=True, exist_ok=True)
    else:
        print(
            {
                "value(state.failedData.error.message)": "There is no more capacity in the zone",
                "value(tpu.nodeSpec[0].node.description)": found["description"],
            }[options["format"]]
        )


def describe_machine(options: dict, name: str) -> None:
    _find(name, "nodes")
    assert options["format"] == "value(state)"
    print("READY")


def delete(options: dict, name: str) -> None:
    _find(name, "queued-resources")
    assert "force" in options
    _end_hosts()
    SLICE.unlink()


def scp(options: dict, source: str, destination: str) -> None:
    name, _, path = destination.partition(":")
    _find(name, "nodes")
    for worker in range(WORKERS):
        shutil.copy(source, HOSTS / str(worker) / path)


def ssh(options: dict, name: str) -> None:
    _find(name, "nodes")
    workers = range(WORKERS) if options["worker"] == "all" else [int(options["worker"])]
    running, code = [], 0
    for worker in workers:
        print(f"SSH: Attempting to connect to worker {worker}...", file=sys.stderr)
        if (CLOUD / "deaf" / str(worker)).exists():
            print(f"##### Command execution on worker {worker} failed with exit status 255.", file=sys.stderr)
            code = 255
            continue
        home = HOSTS / str(worker)
        environment = os.environ | {
            "HOME": str(home),
            "PATH": f"{CLOUD / 'bin'}:/usr/bin:/bin",
            "FAKE_WORKER": str(worker),
            "FAKE_PYTHON": sys.executable,
        }
        running.append(subprocess.Popen(["bash", "-c", options["command"]], cwd=home, env=environment))
    for process in running:
        code = code or process.wait()
    sys.exit(code)


def _take(name: str) -> str:
    path = CLOUD / name
    text = path.read_text() if path.exists() else ""
    path.unlink(missing_ok=True)
    return text


def _find(name: str, kind: str) -> dict:
    found = json.loads(SLICE.read_text()) if SLICE.exists() else None
    if not found or found["name"] != name or (kind == "nodes" and not HOSTS.exists()):
        sys.exit(f"ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource 'projects/p/{kind}/{name}' was not found")
    return found


def _happen() -> None:
    if (CLOUD / "preempt").exists() and SLICE.exists():
        (CLOUD / "preempt").unlink()
        _end_hosts()
        SLICE.write_text(json.dumps(json.loads(SLICE.read_text()) | {"states": ["SUSPENDING", "SUSPENDED"]}))
    for path in (CLOUD / "reboot").iterdir():
        path.unlink()
        home = HOSTS / path.name
        _kill(home)
        (home / "effv2_run" / "boot").write_text("the boot before\n")


def _end_hosts() -> None:
    for home in HOSTS.iterdir() if HOSTS.exists() else ():
        _kill(home)
    shutil.rmtree(HOSTS, ignore_errors=True)


def _kill(home: Path) -> None:
    """Kills the processes of a host."""
    path = home / "effv2_run" / "pid"
    if path.exists() and psutil.pid_exists(int(path.read_text())):
        parent = psutil.Process(int(path.read_text()))
        for process in [parent, *parent.children(recursive=True)]:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs([parent], timeout=10)


if __name__ == "__main__":
    main()
