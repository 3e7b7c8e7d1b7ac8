"""A curriculum compiled for TPU slices that need not be there: memory, collectives, and the compiler's own estimates.

Every stage's training step, and the evaluation step, is the very one that training runs. A program is compiled in a
process of its own, and what was found is kept by the program's content.
"""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import RenderableType

from effv2_jax.compile import Compiler
from effv2_jax.config import from_dict, to_dict
from effv2_jax.curriculum import Stage, make_curriculum
from effv2_jax.hlo import figures
from effv2_jax.isolated import in_a_process
from effv2_jax.step import check_batch
from effv2_jax.tables import empty_table
from effv2_jax.tpu import Slice, check_name, describe_slice, slice_mesh

EVALUATION = "evaluation"
ACCUMULATION = (2, 4, 8, 16)  # micro-batches that are tried where a step does not fit
_TOO_LARGE = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
    """Figures of one compiled step on one device, and whether it fits; all but memory are 0 where it does not."""

    fits: bool
    memory_bytes: float
    flops: float = 0.0
    accessed_bytes: float = 0.0
    cycles: int = 0
    collectives: int = 0
    collective_bytes: int = 0


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


def plan(
    config: ConfigDict,
    topologies: list[str],
    num_classes: int,
    num_examples: int,
    cache: Path,
    log: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A dictionary a topology, as JSON can hold it.

    Args:
      config: the experiment.
      topologies: names as 'v5e:4x4'.
      num_classes, num_examples: of the data, which need not be at hand.
      cache: a folder where figures are kept.
      log: takes a line of progress.

    Returns:
      [{'topology', 'chips', 'devices', 'stages': [...], 'evaluation': {...}, 'hours'}], a stage {'image_size', 'steps',
      'fits', 'remedy', 'accumulation_steps', 'remat', figures of `Program` and `Estimate`}; 'hours' is None where a
      stage does not fit, and counts training alone.

    Raises:
      UserError: an unknown topology, or a batch that its devices do not divide.
      Unavailable: the process that compiled was killed.
    """
    curriculum = make_curriculum(config, num_examples)
    for name in topologies:
        check_name(name)
    slices = [in_a_process(name, describe_slice, name, initializer=_quietly) for name in topologies]
    for where in slices:
        check_batch(config, curriculum, where.devices)
    results = []
    for name, where in zip(topologies, slices, strict=True):
        stages = []
        for stage in curriculum.stages:
            stages.append(_plan_stage(config, stage, where, num_classes, num_examples, cache, log))
        evaluation = _measure(config, None, where, num_classes, num_examples, cache, log)
        hours = sum(stage["seconds"] * stage["steps"] for stage in stages if stage["fits"]) / 3600
        results.append(
            {
                "topology": name,
                "chips": where.chips,
                "devices": where.devices,
                "stages": stages,
                "evaluation": _row(evaluation, where, config.evaluation.batch_size),
                "hours": hours if all(stage["fits"] for stage in stages) else None,
            }
        )
    return results


def plan_table(results: list[dict[str, Any]], price: float) -> RenderableType:
    """A row a stage and slice; `price` of a chip and hour, 0 where it is not known."""
    table = empty_table(
        "slice", "step", "steps", "memory a chip\n(GB)", "of\n(GB)", "fits", "exchanges\n(MB)", "TFLOP\na chip",
        "step (s)\nestimated", "images/s/chip\nestimated", "MFU\nestimated", "bound", "of the\nroofline"
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
            table.add_row(result["topology"], *cells)
        hours = result["hours"]
        cost = f", {hours * result['chips'] * price:,.0f} at {price:g} a chip and hour" if hours and price else ""
        table.add_row(result["topology"], f"{hours:.1f} h of training, estimated{cost}" if hours else "does not fit")
        table.add_section()
    return table


def _plan_stage(
    config: ConfigDict,
    stage: Stage,
    where: Slice,
    num_classes: int,
    num_examples: int,
    cache: Path,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """The step of a stage as the config has it, or the first remedy with which it fits."""
    per_device = config.global_batch_size // where.devices
    tries = [("", stage), ("remat", dataclasses.replace(stage, remat=True))]
    for steps in ACCUMULATION:
        if steps > stage.accumulation_steps and per_device % steps == 0:
            tries.append((f"accumulation_steps={steps}", dataclasses.replace(stage, accumulation_steps=steps)))
    programs: list[Program] = []
    for _, changed in tries:
        programs.append(_measure(config, changed, where, num_classes, num_examples, cache, log))
        if programs[-1].fits:
            break
    program = programs[-1]
    remedy, changed = tries[len(programs) - 1]
    row = _row(program, where, config.global_batch_size)
    return row | {
        "image_size": stage.image_size,
        "steps": stage.num_steps,
        "remedy": remedy if program.fits else "none that was tried",
        "needed_bytes": programs[0].memory_bytes * where.devices_per_chip,
        "accumulation_steps": changed.accumulation_steps,
        "remat": changed.remat,
    }


def _row(program: Program, where: Slice, batch_size: int) -> dict[str, Any]:
    row = dataclasses.asdict(program)
    return row | (dataclasses.asdict(estimate(program, where, batch_size)) if program.fits else {})


def _measure(
    config: ConfigDict,
    stage: Stage | None,
    where: Slice,
    num_classes: int,
    num_examples: int,
    cache: Path,
    log: Callable[[str], None],
) -> Program:
    """Figures of a stage's step, or of evaluation (None)."""
    what = f"{where.name}, {f'stage {stage.index + 1}, {stage.image_size} px' if stage else EVALUATION}"
    log(f"{what}: compiling ...")
    fields = dataclasses.asdict(stage) if stage else None
    found, seconds = in_a_process(
        what,
        _compile,
        to_dict(config),
        fields,
        where.name,
        num_classes,
        num_examples,
        str(cache),
        initializer=_quietly,
    )
    log(f"{what}: {f'compiled in {seconds:.0f} s' if seconds else 'known already'}")
    return Program(**found)


def _quietly() -> None:
    """libtpu tells on standard error, at length, that there is no TPU; its errors come as exceptions too."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _compile(
    values: dict[str, Any],
    fields: dict[str, Any] | None,
    topology: str,
    num_classes: int,
    num_examples: int,
    cache: str,
) -> tuple[dict[str, Any], float]:
    """(the fields of `Program`, seconds of compilation or 0)."""
    config = from_dict(values)
    curriculum = make_curriculum(config, num_examples)
    stage = Stage(**fields) if fields else None
    if stage:
        stages = tuple(stage if other.index == stage.index else other for other in curriculum.stages)
        curriculum = dataclasses.replace(curriculum, stages=stages)
    compiler = Compiler(config, curriculum, num_classes, num_examples, slice_mesh(topology))
    lowered = compiler.lower_train_step(stage) if stage else compiler.lower_evaluation_step()
    key = hashlib.sha256("\n".join((lowered.as_text(), topology, version("libtpu"))).encode()).hexdigest()
    path = Path(cache, f"{key}.json")
    if path.exists():
        return json.loads(path.read_text()), 0.0
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:  # JAX's runtime errors have no class of their own for this
        match = _TOO_LARGE.search(str(error))
        if not match:
            raise
        found = {"fits": False, "memory_bytes": float(match[1]) * _UNITS[match[2]]}
    else:
        memory: Any = compiled.memory_analysis()
        cost: Any = compiled.cost_analysis()
        counted = figures(compiled.as_text() or "")
        found = dataclasses.asdict(counted) | {
            "fits": True,
            "memory_bytes": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes,
            "flops": cost["flops"],
            "accessed_bytes": cost["bytes accessed"],
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    # A plan that was stopped leaves no half-written figures.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(found, file)
    os.replace(file.name, path)
    return found, time.perf_counter() - start
