#!/usr/bin/env python3
"""Trains 2,000 tiny steps in six stages, and reports leaks: memory, threads, processes.

    scripts/soak.py --workdir=runs/soak

Input comes from worker processes; there is an evaluation every 100 steps and a checkpoint every 50. The last line is
JSON: the process's resident and allocated memory (see `effv2_jax/runtime/memory.py`) in MiB at the end of each stage,
and the threads and child processes that training has left behind.
"""

import argparse
import json
import shutil
import threading
from pathlib import Path

import psutil

STEPS, STAGES = 2000, 6
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="emptied first")
    parser.add_argument("overrides", nargs="*", metavar="--config.FIELD=VALUE")
    args, overrides = parser.parse_known_args()
    shutil.rmtree(args.workdir, ignore_errors=True)

    from effv2_jax.cli.load_config import load_config
    from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics
    from effv2_jax.train import train

    tiny = [
        f"--config.total_steps={STEPS}",
        "--config.global_batch_size=16",
        "--config.log_steps=20",
        "--config.evaluate_steps=100",
        "--config.checkpoint_steps=50",
        "--config.schedule.warmup_steps=10",
        f"--config.curriculum.num_stages={STAGES}",
        "--config.curriculum.image_size=(12,32)",
        "--config.model.blocks=('r1_k3_s1_e1_i8_o8_c1','r2_k3_s2_e2_i8_o16_se0.25')",
        "--config.model.width=0.25",
        "--config.data.num_workers=1",
    ]
    threads = set(threading.enumerate())
    children = set(psutil.Process().children(recursive=True))
    train(load_config(f"{ROOT}/configs/digits.py", [*tiny, *overrides, *args.overrides]), args.workdir)
    records = [r for r in read_metrics(Path(args.workdir) / METRICS_FILE) if "host/memory_mib" in r]
    ends = [(stage + 1) * STEPS // STAGES for stage in range(STAGES)]
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=2)  # it may be about to end
    report = {
        kind: [round([r[f"host/{kind}"] for r in records if r["step"] <= end][-1]) for end in ends]
        for kind in ("memory_mib", "allocated_mib")
    } | {
        "threads": sorted(thread.name for thread in set(threading.enumerate()) - threads),
        "processes": sorted(p.name() for p in set(psutil.Process().children(recursive=True)) - children),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
