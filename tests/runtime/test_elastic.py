"""A run goes on with other devices and other processes: the same values, and no example repeated or skipped."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from elastic_driver import examples
from launching import ROOT, command, free_port

from effv2_jax.cli.load_config import load_config
from effv2_jax.curriculum import make_curriculum
from effv2_jax.data.pipeline import train_batches
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import EXIT_PREEMPTED

STEPS = 6


def live(workdir: Path, records: Path, stop: int, processes: int, devices: int) -> list[list[dict]]:
    """One life of the run, to the step `stop`, with `devices` in each process; the records of each process."""
    records.mkdir()
    _, *arguments = command(workdir)
    port = free_port()
    running = []
    for process in range(processes):
        peers = [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={process}"]
        words = [
            sys.executable,
            str(ROOT / "tests" / "elastic_driver.py"),
            str(stop),
            str(records),
            *arguments,
        ]
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        words += peers if processes > 1 else []
        running.append(
            subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        )
    expected = EXIT_PREEMPTED if stop < STEPS else 0
    for process in running:
        _, err = process.communicate(timeout=600)
        assert process.returncode == expected, err
    return [[json.loads(line) for line in (records / f"{p}.jsonl").read_text().splitlines()] for p in range(processes)]


@pytest.fixture(scope="module")
def stream():
    """The digests of the examples of every step, in order, as one process draws them."""
    _, _, config, _, *overrides = command(Path("unused"))
    config = load_config(str(ROOT / config.partition("=")[2]), overrides)
    sources = make_sources(config)
    curriculum = make_curriculum(config, len(sources.train))
    return [examples(batch) for batch in train_batches(sources.train, config, curriculum, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("lives", [[(1, 8), (1, 4), (1, 1)], [(1, 4), (2, 2), (1, 4)]], ids=["devices", "processes"])
def test_another_number_of_devices_or_processes_goes_on(tmp_path, stream, lives):
    drawn, last = [], None
    for number, (processes, devices) in enumerate(lives):
        parts = live(tmp_path / "work", tmp_path / str(number), (2, 4, STEPS)[number], processes, devices)
        batches = [[record["examples"] for record in part if record["kind"] == "batch"] for part in parts]
        drawn += [list(itertools.chain(*shares)) for shares in zip(*batches, strict=True)]
        restored = [record for part in parts for record in part if record["kind"] == "restore"]
        assert [(r["step"], r["state"]) for r in restored] == ([last] * processes if last else [])
        assert {record["devices"] for part in parts for record in part if record["kind"] != "batch"} == {
            processes * devices
        }
        saved = [record for record in parts[0] if record["kind"] == "save"][-1]
        last = saved["step"], saved["state"]
    assert last[0] == STEPS
    assert drawn == stream
