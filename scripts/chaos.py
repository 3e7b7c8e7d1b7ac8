#!/usr/bin/env python3
"""Kills a training run at random moments, and compares what it comes to with a run that nobody disturbed.

    scripts/chaos.py --workdir=runs/chaos

Both train the digits through all stages of configs/digits.py. The first is left alone. The second is killed `--kills`
times, by SIGKILL or SIGTERM as chance has it, at random moments of its start or its training, and started again by the
same command. In the end every array of the two last checkpoints must be equal bit for bit, and the metrics of the steps
too. Exit code 0 means they are.
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

ROOT = Path(__file__).resolve().parents[1]
PREEMPTED = 75
OFTEN = 20  # steps between two checkpoints


def command(workdir: Path, overrides: list[str]) -> list[str]:
    effv2 = Path(sys.executable).with_name("effv2")
    often = f"--config.checkpoint_steps={OFTEN}"  # so that a life between two kills is not in vain
    return [str(effv2), "train", f"--config={ROOT}/configs/digits.py", f"--workdir={workdir}", often, *overrides]


def start(words: list[str], log: Path) -> subprocess.Popen:
    with log.open("ab") as file:
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)


def newest_logged(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def train_undisturbed(words: list[str], workdir: Path, log: Path) -> tuple[float, float]:
    """The seconds from its start to its first step, compilation left out, and those of a step."""
    began = time.monotonic()
    if code := start(words, log).wait():
        sys.exit(f"chaos: the undisturbed run failed with exit code {code}; see {log}")
    seconds = time.monotonic() - began
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    spent = {name: value for name, value in last.items() if name.startswith("time/")}
    training = sum(spent.get(f"time/{cause}", 0.0) for cause in ("train", "input", "evaluate", "checkpoint"))
    return seconds - training - spent.get("time/compile", 0.0), training / newest(workdir)


def newest(workdir: Path) -> int:
    folder = workdir / "checkpoints"
    return (
        max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0) if folder.exists() else 0
    )


def newest_told(workdir: Path) -> int:
    """The last step that a file of the run tells of."""
    return max(newest(workdir), newest_logged(workdir))


def wait_for_start(process: subprocess.Popen, workdir: Path, delay: float) -> None:
    """Returns after `delay` seconds, or sooner: when the start is over, as new steps show, or the run has ended."""
    told, ends = newest_told(workdir), time.monotonic() + delay
    while process.poll() is None and time.monotonic() < ends and newest_told(workdir) == told:
        time.sleep(0.02)


def wait_for_step(process: subprocess.Popen, workdir: Path, target: int, delay: float) -> None:
    """Returns `delay` seconds after a file of the run has told of step `target`, or when the run has ended."""
    while process.poll() is None and newest_told(workdir) < target:
        time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=delay)


def train_disturbed(
    words: list[str], workdir: Path, log: Path, kills: int, steps: int, until_first: float, a_step: float, seed: int
) -> None:
    """Runs and kills as often as asked, then lets the run end.

    Three of four kills come at some step, or soon after a restart that has passed it; the others at some moment of a
    start. The last quarter of the steps is left alone: what is killed there may have ended by itself before, on a
    machine that is less busy than it was.
    """
    rng = random.Random(seed)
    targets = sorted(rng.randrange(steps * 3 // 4) for _ in range(kills - kills // 4))
    starts = set(rng.sample(range(kills), kills // 4))
    for kill in range(kills):
        process, born = start(words, log), time.monotonic()
        target = 0 if kill in starts else targets.pop(0)
        delay = rng.uniform(0, until_first if kill in starts else OFTEN * a_step)
        if kill in starts:
            wait_for_start(process, workdir, delay)
        else:
            wait_for_step(process, workdir, target, delay)
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        lived = time.monotonic() - born
        code = process.wait()
        if code == -signal.SIGTERM and lived > 2 * until_first:
            sys.exit(f"chaos: the run was asked to exit after {lived:.1f} s and died without saving; see {log}")
        if code not in (PREEMPTED, -signal.SIGKILL, -signal.SIGTERM):
            sys.exit(f"chaos: the run ended by itself with exit code {code}; see {log}")
        how = "left after saving" if code == PREEMPTED else f"died of {signal.Signals(-code).name}"
        when = f"{lived:4.1f} s after its start" if kill in starts else f"{delay:4.1f} s after step {target}"
        print(f"kill {kill + 1:2}, {when:<21}: {how:<17}, newest checkpoint {newest(workdir)}", flush=True)
    if code := start(words, log).wait():
        sys.exit(f"chaos: the run failed with exit code {code}; see {log}")


def arrays_of(workdir: Path) -> tuple[int, dict]:
    """The step of the last checkpoint, and its arrays by path."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    step = newest(workdir)
    state = ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / "state").resolve())
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def metrics_of(workdir: Path) -> list[dict]:
    """What was learned at every step; not how long it took, nor where a stage's first step was timed."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("time/", "stage/", "host/", "train/images_per_second", "train/input_wait")
    records = [{name: value for name, value in r.items() if not name.startswith(timed)} for r in records]
    return [record for record in records if len(record) > 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="for both runs; emptied first")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn and printed by default")
    parser.add_argument("overrides", nargs="*", metavar="--config.FIELD=VALUE", help="for both runs")
    args, overrides = parser.parse_known_args()
    overrides += args.overrides
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    workdir = Path(args.workdir)
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    calm, wild = workdir / "undisturbed", workdir / "killed"
    # Compiled programs are shared, as by a run with its own earlier lives.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str((workdir / "compilation_cache").resolve())

    until_first, a_step = train_undisturbed(command(calm, overrides), calm, workdir / "undisturbed.log")
    steps = newest(calm)
    print(f"undisturbed: {steps} steps; now killed {args.kills} times, seed {seed}", flush=True)
    words = command(wild, overrides)
    train_disturbed(words, wild, workdir / "killed.log", args.kills, steps, until_first, a_step, seed)

    (step, expected), (other_step, found) = arrays_of(calm), arrays_of(wild)
    assert expected.keys() == found.keys() and step == other_step, (step, other_step)
    different = [name for name in expected if expected[name].tobytes() != found[name].tobytes()]
    values = sum(array.size for array in expected.values())
    metrics_equal = metrics_of(calm) == metrics_of(wild)
    print(f"step {step}: {len(expected) - len(different)} of {len(expected)} arrays ({values:,} values) identical")
    print(f"metrics of {len(metrics_of(calm))} records: {'identical' if metrics_equal else 'different'}")
    if different or not metrics_equal:
        sys.exit(f"chaos: different: {', '.join(different) or 'metrics'}")


if __name__ == "__main__":
    main()
