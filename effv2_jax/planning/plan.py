"""Estimate a curriculum on TPU slices without a TPU: memory, collectives, and the compiler's own cycles.

The steps are those that training runs: the training step of every stage, and the evaluation step.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
from ml_collections import ConfigDict
from rich.console import RenderableType

from effv2_jax.config.validate import validate
from effv2_jax.curriculum import Stage, make_curriculum
from effv2_jax.errors import UserError
from effv2_jax.monitoring.tables import empty_table
from effv2_jax.planning.cost_model import EVALUATION, CostModel, StepCost, silence_libtpu
from effv2_jax.planning.slices import Slice, check_name, describe_slice
from effv2_jax.runtime.isolated_process import run_isolated

# What is tried, in this order, if a step does not fit: rematerialisation, micro-batches, a smaller batch.
ACCUMULATION_STEPS = (2, 4, 8, 16)
BATCH_DIVISORS = (2, 4, 8, 16)
# Published hours over estimated hours on the same v3:4x4, the extremes of S, M and L; see docs/plan.md.
PUBLISHED_OVER_ESTIMATED = (0.87, 1.26)
COMPILER_BYTES = 6e9  # memory of one compilation; S takes 3.7 GB


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One step on a slice, derived from the compiler's figures; nothing is measured.

    seconds: cycles divided by the chip's clock, as if nothing overlapped.
    images_per_second_per_chip: at that speed.
    utilization: the program's FLOPs as a share of the chip's bfloat16 peak (MFU).
    bound: the slowest in a roofline of the chip's peaks: 'compute', 'memory' or 'network'.
    roofline_seconds: the time of that alone.
    """

    seconds: float
    images_per_second_per_chip: float
    utilization: float
    bound: str
    roofline_seconds: float


def estimate(cost: StepCost, tpu_slice: Slice, batch_size: int) -> Estimate:
    """The time of a step on a slice; `batch_size` is the global one."""
    chip, devices = tpu_slice.chip, tpu_slice.devices_per_chip
    seconds = cost.cycles / chip.clock
    roofline = {
        "compute": cost.flops * devices / chip.flops,
        "memory": cost.accessed_bytes * devices / chip.hbm_bandwidth,
        # A ring sends and receives every byte about twice.
        "network": 2 * cost.collective_bytes * devices / chip.link_bandwidth,
    }
    bound = max(roofline, key=lambda name: roofline[name])
    return Estimate(
        seconds=seconds,
        images_per_second_per_chip=batch_size / tpu_slice.chips / seconds,
        utilization=roofline["compute"] / seconds,
        bound=bound,
        roofline_seconds=roofline[bound],
    )


def describe_slices(config: ConfigDict, topologies: list[str], num_examples: int) -> list[Slice]:
    """The slices of names such as 'v5e:4x4'.

    Raises:
      UserError: an unknown topology, or a batch that is not a multiple of its devices.
    """
    for name in topologies:
        check_name(name)
    slices = [run_isolated(name, describe_slice, name, initializer=silence_libtpu) for name in topologies]
    for tpu_slice in slices:
        validate(config, num_examples=num_examples, num_devices=tpu_slice.devices)
    return slices


def plan(
    config: ConfigDict, topologies: list[str], cost_model: CostModel, images_per_core: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """One dictionary per topology, which JSON can hold.

    Slices are compiled for in parallel, as many as the cores and the memory of this machine allow.

    Args:
      config: the experiment.
      topologies: names such as 'v5e:4x4'.
      cost_model: compiles the steps.
      images_per_core: images per second that one host core prepares at each stage's size (`effv2 bench input`); () if
        unknown.

    Returns:
      [{'topology', 'chips', 'devices', 'stages': [...], 'evaluation': {...}, 'hours'}]. A stage has 'image_size',
      'steps', 'fits', 'remedy', 'needed_bytes', 'accumulation_steps', 'remat', 'global_batch_size', the fields of
      `StepCost` and `Estimate`, and with images_per_core 'host_cores_per_chip'. 'hours' are those of training alone, or
      None if a stage does not fit.

    Raises:
      UserError: an unknown topology, a batch that is not a multiple of its devices, or not one rate per stage.
      Unavailable: the process that compiled was killed.
    """
    num_stages = config.curriculum.num_stages
    if images_per_core and (len(images_per_core) != num_stages or 0 in images_per_core):
        rates = ",".join(map(str, images_per_core))
        raise UserError(f"--images_per_core={rates} must be {num_stages} rates above 0, one for each stage")
    slices = describe_slices(config, topologies, cost_model.num_examples)
    num_parallel = min(os.cpu_count() or 1, int(psutil.virtual_memory().available / COMPILER_BYTES))
    with ThreadPoolExecutor(max(1, num_parallel)) as pool:
        results = list(pool.map(lambda tpu_slice: _plan_slice(config, tpu_slice, cost_model), slices))
    if images_per_core:
        for result in results:
            for stage, rate in zip(result["stages"], images_per_core, strict=True):
                if stage["fits"]:
                    stage["host_cores_per_chip"] = stage["images_per_second_per_chip"] / rate
    return results


def _plan_slice(config: ConfigDict, tpu_slice: Slice, cost_model: CostModel) -> dict[str, Any]:
    curriculum = make_curriculum(config, cost_model.num_examples)
    stages = [_plan_stage(config, stage, tpu_slice, cost_model) for stage in curriculum.stages]
    evaluation = cost_model.step_cost(config, None, tpu_slice.name)
    hours = None
    if all(stage["fits"] for stage in stages):
        hours = sum(stage["seconds"] * stage["steps"] for stage in stages) / 3600
    return {
        "topology": tpu_slice.name,
        "chips": tpu_slice.chips,
        "devices": tpu_slice.devices,
        "stages": stages,
        "evaluation": _row(evaluation, tpu_slice, config.evaluation.batch_size),
        "hours": hours,
    }


def _plan_stage(config: ConfigDict, stage: Stage, tpu_slice: Slice, cost_model: CostModel) -> dict[str, Any]:
    """The step of a stage as configured, or with the first remedy that makes it fit."""
    needed = 0.0
    for remedy, tried_stage, tried_config in _remedies(config, stage, tpu_slice.devices):
        cost = cost_model.step_cost(tried_config, tried_stage, tpu_slice.name)
        needed = needed or cost.memory_bytes
        if cost.fits:
            applied = remedy
            break
    else:
        applied = "none that was tried"
    return _row(cost, tpu_slice, tried_config.global_batch_size) | {
        "image_size": stage.image_size,
        "steps": stage.num_steps * config.global_batch_size // tried_config.global_batch_size,
        "remedy": applied,
        "needed_bytes": needed * tpu_slice.devices_per_chip,
        "accumulation_steps": tried_stage.accumulation_steps,
        "remat": tried_stage.remat,
        "global_batch_size": tried_config.global_batch_size,
    }


def _remedies(config: ConfigDict, stage: Stage, devices: int) -> Iterator[tuple[str, Stage, ConfigDict]]:
    """(remedy, stage, config) in the order in which they are tried; the first, '', is the stage as configured."""
    yield "", stage, config
    yield "remat", dataclasses.replace(stage, remat=True), config
    per_device = config.global_batch_size // devices
    for steps in ACCUMULATION_STEPS:
        if steps > stage.accumulation_steps and per_device % steps == 0:
            yield f"accumulation_steps={steps}", dataclasses.replace(stage, accumulation_steps=steps), config
    for divisor in BATCH_DIVISORS:
        if per_device % divisor == 0:
            smaller = config.copy_and_resolve_references()
            smaller.global_batch_size //= divisor
            smaller.batch_norm.group_size = min(config.batch_norm.group_size, smaller.global_batch_size)
            yield f"global_batch_size={smaller.global_batch_size}", stage, smaller


def _row(cost: StepCost, tpu_slice: Slice, batch_size: int) -> dict[str, Any]:
    row = dataclasses.asdict(cost)
    if cost.fits:
        row |= dataclasses.asdict(estimate(cost, tpu_slice, batch_size))
    return row


def plan_table(results: list[dict[str, Any]], price: float) -> RenderableType:
    """One row per step and slice; `price` is that of a chip per hour, 0 if unknown."""
    headers = [
        "slice", "step", "steps", "memory per\nchip (GB)", "of\n(GB)", "fits", "collectives\n(MB)", "TFLOP\nper chip",
        "step (s)\nestimated", "images/s/chip\nestimated", "MFU\nestimated", "bound", "times the\nroofline",
    ]  # fmt: skip
    if any("host_cores_per_chip" in row for result in results for row in result["stages"]):
        headers.append("host cores\nper chip")
    table = empty_table(*headers)
    for result in results:
        name, chips, hours = result["topology"], result["chips"], result["hours"]
        tpu_slice = Slice(name, chips, result["devices"])
        for number, row in enumerate(result["stages"], 1):
            step = f"stage {number}, {row['image_size']} px"
            table.add_row(name, step, str(row["steps"]), *_cells(row, tpu_slice))
        table.add_row(name, EVALUATION, "–", *_cells(result["evaluation"], tpu_slice))
        if hours:
            table.add_row(name, f"{_price(hours, chips, price)} of training, estimated")
            low, high = (_price(hours * factor, chips, price) for factor in PUBLISHED_OVER_ESTIMATED)
            table.add_row(name, f"{low} to {high} with the error seen on the paper's v3 runs")
        else:
            table.add_row(name, "does not fit")
        table.add_section()
    return table


def _cells(row: dict[str, Any], tpu_slice: Slice) -> list[str]:
    """The columns of the table from memory on."""
    chip, devices = tpu_slice.chip, tpu_slice.devices_per_chip
    memory = [f"{row['memory_bytes'] * devices / 1e9:.1f}", f"{chip.hbm_bytes / 1e9:.0f}"]
    if not row["fits"]:
        return [*memory, "no"]
    cells = [
        *memory,
        row.get("remedy") or "yes",
        f"{row['collectives']} ({row['collective_bytes'] / 1e6:.1f})",
        f"{row['flops'] * devices / 1e12:.2f}",
        f"{row['seconds']:.3f}",
        f"{row['images_per_second_per_chip']:.0f}",
        f"{row['utilization']:.0%}",
        row["bound"],
        f"{row['seconds'] / row['roofline_seconds']:.1f}x",
    ]
    if "host_cores_per_chip" in row:
        cells.append(f"{row['host_cores_per_chip']:.1f}")
    return cells


def _price(hours: float, chips: int, price: float) -> str:
    if not price:
        return f"{hours:.1f} h"
    return f"{hours:.1f} h ({hours * chips * price:,.0f} at {price:g} per chip-hour)"
