#!/usr/bin/env python3
"""Kills a training run at random moments, and compares its result with that of an undisturbed run.

    scripts/chaos.py --workdir=runs/chaos

Both train on the digits through all stages of configs/digits.py. The second is killed `--kills` times, by SIGKILL or
SIGTERM at random moments of its start or its training, and restarted by the same command. Exit code 0 means that all
arrays of the two last checkpoints and the metrics of all steps are bit-identical.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PREEMPTED = 75
CHECKPOINT_STEPS = 20  # few, so that most restarts make progress before the next kill


def command(workdir: Path, overrides: list[str]) -> list[str]:
    effv2 = Path(sys.executable).with_name("effv2")
    checkpoints = f"--config.checkpoint_steps={CHECKPOINT_STEPS}"
    return [str(effv2), "train", f"--config={ROOT}/configs/digits.py", f"--workdir={workdir}", checkpoints, *overrides]


def start(words: list[str], log: Path) -> subprocess.Popen:
    with log.open("ab") as file:
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)


def newest_logged(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


class Reference(NamedTuple):
    """The undisturbed run. `start_seconds` lead to the first step, without compilation."""

    steps: int
    start_seconds: float
    step_seconds: float


def train_undisturbed(words: list[str], workdir: Path, log: Path) -> Reference:
    start_time = time.monotonic()
    if code := start(words, log).wait():
        sys.exit(f"chaos: the undisturbed run failed with exit code {code}; see {log}")
    seconds = time.monotonic() - start_time
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    spent = {name: value for name, value in last.items() if name.startswith("time/")}
    training = sum(spent.get(f"time/{cause}", 0.0) for cause in ("train", "input", "evaluate", "checkpoint"))
    steps = newest_checkpoint(workdir)
    return Reference(steps, seconds - training - spent.get("time/compile", 0.0), training / steps)


def newest_checkpoint(workdir: Path) -> int:
    folder = workdir / "checkpoints"
    paths = folder.iterdir() if folder.exists() else ()
    return max((int(path.name) for path in paths if path.name.isdigit()), default=0)


def newest_step(workdir: Path) -> int:
    """The newest step in the metrics or the checkpoints."""
    return max(newest_checkpoint(workdir), newest_logged(workdir))


def wait_for_start(process: subprocess.Popen, workdir: Path, delay: float) -> None:
    """Returns after `delay` seconds, or as soon as a new step appears or the run ends."""
    first, end = newest_step(workdir), time.monotonic() + delay
    while process.poll() is None and time.monotonic() < end and newest_step(workdir) == first:
        time.sleep(0.02)


def wait_for_step(process: subprocess.Popen, workdir: Path, target: int, delay: float) -> None:
    """Returns `delay` seconds after step `target` appears, or when the run ends."""
    while process.poll() is None and newest_step(workdir) < target:
        time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=delay)


def train_disturbed(words: list[str], workdir: Path, log: Path, *, kills: int, seed: int, reference: Reference) -> None:
    """Runs and kills `kills` times, then lets the run finish.

    Three of four kills come at a random step, or soon after a restart if it is already past; the others during a start.
    There are none in the last quarter of the steps, where the run could finish before the kill.
    """
    rng = random.Random(seed)
    targets = sorted(rng.randrange(reference.steps * 3 // 4) for _ in range(kills - kills // 4))
    starts = set(rng.sample(range(kills), kills // 4))
    for kill in range(kills):
        process, start_time = start(words, log), time.monotonic()
        target = 0 if kill in starts else targets.pop(0)
        delay = rng.uniform(0, reference.start_seconds if kill in starts else CHECKPOINT_STEPS * reference.step_seconds)
        if kill in starts:
            wait_for_start(process, workdir, delay)
        else:
            wait_for_step(process, workdir, target, delay)
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        lifetime = time.monotonic() - start_time
        code = process.wait()
        if code == -signal.SIGTERM and lifetime > 2 * reference.start_seconds:
            sys.exit(f"chaos: the run got SIGTERM after {lifetime:.1f} s and died without saving; see {log}")
        if code not in (PREEMPTED, -signal.SIGKILL, -signal.SIGTERM):
            sys.exit(f"chaos: the run ended by itself with exit code {code}; see {log}")
        how = "saved and exited" if code == PREEMPTED else f"killed by {signal.Signals(-code).name}"
        when = f"{lifetime:4.1f} s after its start" if kill in starts else f"{delay:4.1f} s after step {target}"
        print(f"kill {kill + 1:2}, {when:<21}: {how:<17}, newest checkpoint {newest_checkpoint(workdir)}", flush=True)
    if code := start(words, log).wait():
        sys.exit(f"chaos: the run failed with exit code {code}; see {log}")


def arrays_of(workdir: Path) -> tuple[int, dict]:
    """The step of the last checkpoint, and its arrays by path."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    step = newest_checkpoint(workdir)
    state = ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / "state").resolve())
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def metrics_of(workdir: Path) -> list[dict]:
    """The metrics of every step, without times and speeds."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("time/", "stage/", "host/", "train/images_per_second", "train/input_wait")
    records = [{name: value for name, value in r.items() if not name.startswith(timed)} for r in records]
    return [record for record in records if len(record) > 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="of both runs; emptied first")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the random moments; random and printed by default")
    parser.add_argument("overrides", nargs="*", metavar="--config.FIELD=VALUE", help="for both runs")
    args, overrides = parser.parse_known_args()
    overrides += args.overrides
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    workdir = Path(args.workdir)
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    undisturbed, killed = workdir / "undisturbed", workdir / "killed"
    # Both runs share compiled programs, as a restarted run does with its predecessor.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str((workdir / "compilation_cache").resolve())

    log = workdir / "undisturbed.log"
    reference = train_undisturbed(command(undisturbed, overrides), undisturbed, log)
    print(f"undisturbed: {reference.steps} steps; now {args.kills} kills with seed {seed}", flush=True)
    log = workdir / "killed.log"
    train_disturbed(command(killed, overrides), killed, log, kills=args.kills, seed=seed, reference=reference)

    (step, expected), (other_step, actual) = arrays_of(undisturbed), arrays_of(killed)
    assert expected.keys() == actual.keys() and step == other_step, (step, other_step)
    different = [name for name in expected if expected[name].tobytes() != actual[name].tobytes()]
    values = sum(array.size for array in expected.values())
    metrics_equal = metrics_of(undisturbed) == metrics_of(killed)
    print(f"step {step}: {len(expected) - len(different)} of {len(expected)} arrays ({values:,} values) identical")
    print(f"metrics of {len(metrics_of(undisturbed))} records: {'identical' if metrics_equal else 'different'}")
    if different or not metrics_equal:
        sys.exit(f"chaos: different: {', '.join(different) or 'metrics'}")


if __name__ == "__main__":
    main()
