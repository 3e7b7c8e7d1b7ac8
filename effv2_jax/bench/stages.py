"""The cost of compiling the stages: the cold start, and the stall at each boundary, with and without background.

Two runs of the same config from scratch, each in a process of its own without any cache: one compiles the next stage
while the current one trains, the other at the boundary. The figures come from the metrics that training writes.
"""

import contextlib
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import RenderableType

from effv2_jax.config import from_dict, to_dict
from effv2_jax.errors import UserError
from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics
from effv2_jax.monitoring.tables import empty_table
from effv2_jax.runtime.isolated_process import run_isolated

ARMS = {"background": True, "in turn": False}  # config.compilation.background of each run


def bench_stages(config: ConfigDict, workdir: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Trains twice, below `workdir`.

    Returns:
      {'background': arm, 'in turn': arm}, which JSON can hold. An arm is {'cold_start': seconds from the start of
      `train` to the first step, 'total': seconds of the run, 'stages': [{'image_size', 'step': median seconds,
      'compile' and 'input': seconds waited at its start}, ...]}.

    Raises:
      UserError: `workdir` is not empty.
    """
    if workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"'{workdir}' is not empty, and the runs would resume from it; choose another --workdir")
    results = {}
    for name, background in ARMS.items():
        log(f"training with compilation {name} ...")
        values = to_dict(config)
        values["compilation"] = {"background": background, "cache": "off"}
        folder = workdir / name.replace(" ", "-")
        run_isolated(f"training with compilation {name}", _train, values, str(folder))
        results[name] = summarize(read_metrics(folder / METRICS_FILE), config)
    return results


def _train(values: dict[str, Any], workdir: str) -> None:
    from effv2_jax.train import train

    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the table
        train(from_dict(values), workdir)


def summarize(records: list[dict[str, Any]], config: ConfigDict) -> dict[str, Any]:
    """An arm's figures from the records of its metrics, in the order in which they were written."""
    stages: list[dict[str, Any]] = []
    seconds: list[list[float]] = []
    for record in records:
        if "stage/number" in record:
            waits = {cause: record[f"stage/{cause}_wait_seconds"] for cause in ("compile", "input")}
            stages.append(waits | {"image_size": int(record["stage/image_size"])})
            seconds.append([])
        if "train/loss" in record:  # its average may reach back over a boundary; the median tolerates one such
            devices = record["host/devices"]
            seconds[-1].append(config.global_batch_size / (record["train/images_per_second_per_device"] * devices))
    for stage, steps in zip(stages, seconds, strict=True):
        stage["step"] = statistics.median(steps) if steps else None
    spent = {name.removeprefix("time/"): value for name, value in records[-1].items() if name.startswith("time/")}
    return {
        "cold_start": spent["start"] + stages[0]["compile"] + stages[0]["input"],
        "total": sum(spent.values()),
        "stages": stages,
    }


def stages_table(results: dict[str, Any]) -> RenderableType:
    """One row per boundary: the stall, its parts, and its length in steps of the new stage; then the whole run."""
    headers = [
        f"{name}:\n{part}"
        for name in ARMS
        for part in ("step\n(s)", "compile\nwait (s)", "input\nwait (s)", "stall\n(steps)")
    ]
    table = empty_table("stage", "size\n(px)", *headers)
    arms = [results[name] for name in ARMS]
    for number, pair in enumerate(zip(*(arm["stages"] for arm in arms), strict=True)):
        cells = []
        for stage in pair:
            step, stall = stage["step"], stage["compile"] + stage["input"]
            stall_in_steps = f"{stall / step:.1f}" if step else "–"
            cells += [f"{step:.3f}" if step else "–", f"{stage['compile']:.2f}", f"{stage['input']:.2f}"]
            cells.append(stall_in_steps if number else "start")
        table.add_row(str(number + 1), str(pair[0]["image_size"]), *cells)
    table.add_section()
    for label, value in (
        ("cold start (s)", lambda arm: f"{arm['cold_start']:.1f}"),
        ("boundaries (s)", lambda arm: f"{boundary_seconds(arm):.2f}"),
        ("whole run (s)", lambda arm: f"{arm['total']:.1f}"),
        ("start's share", lambda arm: f"{arm['cold_start'] / arm['total']:.1%}"),
        ("boundaries' share", lambda arm: f"{boundary_seconds(arm) / arm['total']:.1%}"),
    ):
        table.add_row(label, "", *(cell for arm in arms for cell in ("", "", "", value(arm))))
    return table


def boundary_seconds(arm: dict[str, Any]) -> float:
    """Seconds waited at all boundaries together."""
    return sum(stage["compile"] + stage["input"] for stage in arm["stages"][1:])
