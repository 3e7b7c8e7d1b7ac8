"""A curriculum on TPU slices that need not be there: memory, collectives, and the compiler's own estimates.

Every stage's training step, and the evaluation step, is the very one that training runs.
"""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
from ml_collections import ConfigDict
from rich.console import RenderableType

from effv2_jax.config.validate import validate
from effv2_jax.curriculum import Stage, make_curriculum
from effv2_jax.errors import UserError
from effv2_jax.monitoring.tables import empty_table
from effv2_jax.planning.cost_model import EVALUATION, Program, Programs, quietly
from effv2_jax.planning.slices import Slice, check_name, describe_slice
from effv2_jax.runtime.isolated_process import run_isolated

ACCUMULATION = (2, 4, 8, 16)  # micro-batches that are tried where a step does not fit
SMALLER = (2, 4, 8, 16)  # and then parts of the batch
# Published hours of S, M and L by those estimated on the same v3:4x4, the least and the most; see docs/plan.md.
PUBLISHED_BY_ESTIMATED = (0.87, 1.26)
COMPILER_BYTES = 6e9  # of memory that one compilation takes: S 3.7 GB


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one step on a slice, from the compiler's figures; nothing of it was measured.

    seconds: cycles by the chip's clock, as if nothing overlapped.
    images_per_second_per_chip: at that.
    utilization: share of the chip's bfloat16 peak that the program's FLOPs take (MFU).
    bound: what a roofline of the chip's peaks says is slowest: 'compute', 'memory' or 'network'.
    roofline_seconds: that slowest alone.
    """

    seconds: float
    images_per_second_per_chip: float
    utilization: float
    bound: str
    roofline_seconds: float


def estimate(program: Program, where: Slice, batch_size: int) -> Estimate:
    """What a program takes on a slice; `batch_size` is of all chips."""
    chip, share = where.chip, where.devices_per_chip
    seconds = program.cycles / chip.clock
    parts = {
        "compute": program.flops * share / chip.flops,
        "memory": program.accessed_bytes * share / chip.hbm_bandwidth,
        # A ring sends and receives every byte about twice.
        "network": 2 * program.collective_bytes * share / chip.link_bandwidth,
    }
    bound = max(parts, key=lambda name: parts[name])
    return Estimate(
        seconds=seconds,
        images_per_second_per_chip=batch_size / where.chips / seconds,
        utilization=parts["compute"] / seconds,
        bound=bound,
        roofline_seconds=parts[bound],
    )


def describe_slices(config: ConfigDict, topologies: list[str], num_examples: int) -> list[Slice]:
    """The slices of names as 'v5e:4x4'.

    Raises:
      UserError: an unknown topology, or a batch that its devices do not divide.
    """
    for name in topologies:
        check_name(name)
    slices = [run_isolated(name, describe_slice, name, initializer=quietly) for name in topologies]
    for where in slices:
        validate(config, num_examples=num_examples, num_devices=where.devices)
    return slices


def plan(
    config: ConfigDict, topologies: list[str], programs: Programs, images_per_core: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """A dictionary a topology, as JSON can hold it.

    Slices are compiled for side by side, as many as cores and memory at hand allow.

    Args:
      config: the experiment.
      topologies: names as 'v5e:4x4'.
      programs: compiles.
      images_per_core: a second, that the input makes at each stage's size (`effv2 bench input`); () is not known.

    Returns:
      [{'topology', 'chips', 'devices', 'stages': [...], 'evaluation': {...}, 'hours'}], a stage {'image_size', 'steps',
      'fits', 'remedy', 'accumulation_steps', 'remat', 'global_batch_size', figures of `Program` and `Estimate`, and
      'host_cores_per_chip' where images_per_core is known}; 'hours' is None where a stage does not fit, and counts
      training alone.

    Raises:
      UserError: an unknown topology, a batch that its devices do not divide, or not as many rates as stages.
      Unavailable: the process that compiled was killed.
    """
    num_stages = config.curriculum.num_stages
    if images_per_core and (len(images_per_core) != num_stages or 0 in images_per_core):
        rates = ",".join(map(str, images_per_core))
        raise UserError(f"--images_per_core={rates} must be {num_stages} rates above 0, one for each stage")
    slices = describe_slices(config, topologies, programs.num_examples)
    at_once = min(os.cpu_count() or 1, int(psutil.virtual_memory().available / COMPILER_BYTES))
    with ThreadPoolExecutor(max(1, at_once)) as pool:
        results = list(pool.map(lambda where: _plan_slice(config, where, programs), slices))
    for result in results:
        for stage, rate in zip(result["stages"], images_per_core, strict=False):
            if stage["fits"]:
                stage["host_cores_per_chip"] = stage["images_per_second_per_chip"] / rate
    return results


def _plan_slice(config: ConfigDict, where: Slice, programs: Programs) -> dict[str, Any]:
    curriculum = make_curriculum(config, programs.num_examples)
    stages = [_plan_stage(config, stage, where, programs) for stage in curriculum.stages]
    evaluation = programs.measure(config, None, where.name)
    hours = sum(stage["seconds"] * stage["steps"] for stage in stages if stage["fits"]) / 3600
    return {
        "topology": where.name,
        "chips": where.chips,
        "devices": where.devices,
        "stages": stages,
        "evaluation": _row(evaluation, where, config.evaluation.batch_size),
        "hours": hours if all(stage["fits"] for stage in stages) else None,
    }


def plan_table(results: list[dict[str, Any]], price: float) -> RenderableType:
    """A row a stage and slice; `price` of a chip and hour, 0 where it is not known."""
    with_cores = any("host_cores_per_chip" in row for result in results for row in result["stages"])
    table = empty_table(
        "slice", "step", "steps", "memory a chip\n(GB)", "of\n(GB)", "fits", "exchanges\n(MB)", "TFLOP\na chip",
        "step (s)\nestimated", "images/s/chip\nestimated", "MFU\nestimated", "bound", "of the\nroofline",
        *(["host cores\na chip"] if with_cores else []),
    )  # fmt: skip
    for result in results:
        where = Slice(result["topology"], result["chips"], result["devices"])
        share = where.devices_per_chip
        for number, row in enumerate([*result["stages"], result["evaluation"]], 1):
            training = "steps" in row
            what = f"stage {number}, {row['image_size']} px" if training else EVALUATION
            fits = "no" if not row["fits"] else row.get("remedy") or "yes"
            cells = [what, str(row["steps"]) if training else "–", f"{row['memory_bytes'] * share / 1e9:.1f}"]
            cells += [f"{where.chip.hbm_bytes / 1e9:.0f}", fits]
            if row["fits"]:
                cells += [
                    f"{row['collectives']} ({row['collective_bytes'] / 1e6:.1f})",
                    f"{row['flops'] * share / 1e12:.2f}",
                    f"{row['seconds']:.3f}",
                    f"{row['images_per_second_per_chip']:.0f}",
                    f"{row['utilization']:.0%}",
                    row["bound"],
                    f"{row['seconds'] / row['roofline_seconds']:.1f}x",
                ]
                if "host_cores_per_chip" in row:
                    cells.append(f"{row['host_cores_per_chip']:.1f}")
            table.add_row(result["topology"], *cells)
        hours = result["hours"]
        if hours:
            table.add_row(result["topology"], f"{_price(hours, result['chips'], price)} of training, estimated")
            least, most = (_price(hours * factor, result["chips"], price) for factor in PUBLISHED_BY_ESTIMATED)
            table.add_row(result["topology"], f"{least} to {most} if as far off as for the paper's runs on v3")
        else:
            table.add_row(result["topology"], "does not fit")
        table.add_section()
    return table


def _price(hours: float, chips: int, price: float) -> str:
    return f"{hours:.1f} h" + (f" ({hours * chips * price:,.0f} at {price:g} a chip and hour)" if price else "")


def _plan_stage(config: ConfigDict, stage: Stage, where: Slice, programs: Programs) -> dict[str, Any]:
    """The step of a stage as the config has it, or the first remedy with which it fits."""
    per_device = config.global_batch_size // where.devices
    tries = [("", stage, config), ("remat", dataclasses.replace(stage, remat=True), config)]
    for steps in ACCUMULATION:
        if steps > stage.accumulation_steps and per_device % steps == 0:
            tries.append((f"accumulation_steps={steps}", dataclasses.replace(stage, accumulation_steps=steps), config))
    for parts in SMALLER:
        if per_device % parts == 0:
            smaller = config.copy_and_resolve_references()
            smaller.global_batch_size //= parts
            smaller.batch_norm.group_size = min(config.batch_norm.group_size, smaller.global_batch_size)
            tries.append((f"global_batch_size={smaller.global_batch_size}", stage, smaller))
    needed = 0.0
    for attempt in tries:
        remedy, changed, other = attempt
        program = programs.measure(other, changed, where.name)
        needed = needed or program.memory_bytes
        if program.fits:
            break
    return _row(program, where, other.global_batch_size) | {
        "image_size": stage.image_size,
        "steps": stage.num_steps * config.global_batch_size // other.global_batch_size,
        "remedy": remedy if program.fits else "none that was tried",
        "needed_bytes": needed * where.devices_per_chip,
        "accumulation_steps": changed.accumulation_steps,
        "remat": changed.remat,
        "global_batch_size": other.global_batch_size,
    }


def _row(program: Program, where: Slice, batch_size: int) -> dict[str, Any]:
    row = dataclasses.asdict(program)
    return row | (dataclasses.asdict(estimate(program, where, batch_size)) if program.fits else {})
