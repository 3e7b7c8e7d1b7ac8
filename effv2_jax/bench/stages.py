"""What the compilation of the stages costs: the start, and the stall at each boundary, with and without background.

Two runs of the same config from scratch, each in a process of its own with nothing in any cache: one compiles the next
stage while one trains, the other when its turn comes. The figures are those that training writes to its metrics.
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

ARMS = {"background": True, "in turn": False}


def measure(config: ConfigDict, workdir: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Trains twice, below `workdir`, and gives the figures as JSON can hold them.

    Returns:
      {'background': arm, 'in turn': arm}, an arm {'cold_start': seconds from the first line of training to the first
      step, 'total': seconds of the run, 'stages': [{'image_size', 'step': median seconds, 'compile' and 'input':
      seconds waited at its beginning}, ...]}.

    Raises:
      UserError: `workdir` is not empty.
    """
    if workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"'{workdir}' is not empty: the runs would go on from what is there; name another --workdir")
    results = {}
    for name, background in ARMS.items():
        log(f"training with compilation {name} ...")
        values = to_dict(config)
        values["compilation"] = {"background": background, "cache": "off"}
        run_isolated(f"training with compilation {name}", _train, values, str(workdir / name.replace(" ", "-")))
        results[name] = summarize(read_metrics(workdir / name.replace(" ", "-") / METRICS_FILE), config)
    return results


def _train(values: dict[str, Any], workdir: str) -> None:
    from effv2_jax.train import train

    with contextlib.redirect_stdout(sys.stderr):  # the table has the other to itself
        train(from_dict(values), workdir)


def summarize(records: list[dict[str, Any]], config: ConfigDict) -> dict[str, Any]:
    """An arm's figures from its metrics, in the order in which they were written."""
    stages: list[dict[str, Any]] = []
    seconds: list[list[float]] = []
    for record in records:
        if "stage/number" in record:
            waits = {cause: record[f"stage/{cause}_wait_seconds"] for cause in ("compile", "input")}
            stages.append(waits | {"image_size": int(record["stage/image_size"])})
            seconds.append([])
        if "train/loss" in record:  # a report may reach back over a boundary; the median does not mind one
            devices = record["host/devices"]
            seconds[-1].append(config.global_batch_size / (record["train/images_per_second_per_device"] * devices))
    for stage, each in zip(stages, seconds, strict=True):
        stage["step"] = statistics.median(each) if each else None
    spent = {name.removeprefix("time/"): value for name, value in records[-1].items() if name.startswith("time/")}
    return {
        "cold_start": spent["start"] + stages[0]["compile"] + stages[0]["input"],
        "total": sum(spent.values()),
        "stages": stages,
    }


def stages_table(results: dict[str, Any]) -> RenderableType:
    """A row a boundary: the stall, its parts, and what it is in steps of the new stage; then the whole run."""
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
            stall = stage["compile"] + stage["input"]
            step = stage["step"]
            in_steps = f"{stall / step:.1f}" if step and number else "start" if not number else "–"
            cells += [f"{step:.3f}" if step else "–", f"{stage['compile']:.2f}", f"{stage['input']:.2f}", in_steps]
        table.add_row(str(number + 1), str(pair[0]["image_size"]), *cells)
    table.add_section()
    for label, value in (
        ("cold start (s)", lambda arm: f"{arm['cold_start']:.1f}"),
        ("boundaries (s)", lambda arm: f"{stalled(arm):.2f}"),
        ("whole run (s)", lambda arm: f"{arm['total']:.1f}"),
        ("start's share", lambda arm: f"{arm['cold_start'] / arm['total']:.1%}"),
        ("boundaries' share", lambda arm: f"{stalled(arm) / arm['total']:.1%}"),
    ):
        table.add_row(label, "", *(cell for arm in arms for cell in ("", "", "", value(arm))))
    return table


def stalled(arm: dict[str, Any]) -> float:
    """Seconds waited at all boundaries."""
    return sum(stage["compile"] + stage["input"] for stage in arm["stages"][1:])
