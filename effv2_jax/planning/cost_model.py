"""Training and evaluation steps compiled for TPU slices without a TPU, and their costs according to the compiler.

Each step is compiled in a process of its own, and its cost is cached under the content of the program.
"""

import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effv2_jax.config import from_dict, to_dict
from effv2_jax.curriculum import Curriculum, Stage, make_curriculum
from effv2_jax.files import write_atomically
from effv2_jax.planning.hlo import program_stats
from effv2_jax.planning.slices import slice_mesh
from effv2_jax.runtime.compiler import Compiler
from effv2_jax.runtime.isolated_process import run_isolated

EVALUATION = "evaluation"
_OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

# (config, curriculum, stage, num_classes, num_examples, mesh) to a step that is ready for compilation.
LowerStep = Callable[[ConfigDict, Curriculum, Stage, int, int, Mesh], jax.stages.Lowered]


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of one compiled step on one device. If it does not fit, all but `memory_bytes` is 0."""

    fits: bool
    memory_bytes: float
    flops: float = 0.0
    accessed_bytes: float = 0.0
    cycles: int = 0
    collectives: int = 0
    collective_bytes: int = 0


def lower_train_step(
    config: ConfigDict, curriculum: Curriculum, stage: Stage, num_classes: int, num_examples: int, mesh: Mesh
) -> jax.stages.Lowered:
    """The training step that `train` runs."""
    return Compiler(config, curriculum, num_classes, num_examples, mesh).lower_train_step(stage)


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Compiles steps; the data need not be at hand.

    Args:
      num_classes, num_examples: of the data.
      cache: the folder of the cached costs.
      log: takes a line of progress.
    """

    num_classes: int
    num_examples: int
    cache: Path
    log: Callable[[str], None]

    def step_cost(
        self,
        config: ConfigDict,
        stage: Stage | None,
        topology: str,
        lower: LowerStep = lower_train_step,
        variant: str = "",
    ) -> StepCost:
        """The cost of a stage's training step, or of the evaluation step (None), on a slice such as 'v5e:4x4'.

        Args:
          config: the experiment.
          stage: the stage, which replaces the one with its index in the config's curriculum.
          topology: the slice.
          lower: makes the training step; a function of a module, so that it can be pickled.
          variant: names the step of another `lower` in the log.

        Raises:
          Unavailable: the process that compiled was killed.
        """
        step = f"stage {stage.index + 1}, {stage.image_size} px" if stage else EVALUATION
        label = ", ".join(filter(None, (topology, step, variant)))
        self.log(f"{label}: compiling ...")
        cost, seconds = run_isolated(
            label,
            _compile,
            _Job(to_dict(config), stage, topology, self.num_classes, self.num_examples, self.cache, lower),
            initializer=silence_libtpu,
            waiting=lambda seconds: self.log(f"{label}: still compiling after {seconds:.0f} s"),
        )
        self.log(f"{label}: compiled in {seconds:.0f} s" if seconds else f"{label}: cached")
        return cost


def silence_libtpu() -> None:
    """Drops standard error, where libtpu reports at length that there is no TPU. Its errors also raise exceptions."""
    jax.config.update("jax_platforms", "cpu")
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), 2)


@dataclasses.dataclass(frozen=True)
class _Job:
    """The arguments of `CostModel.step_cost`, for the process that compiles."""

    config: dict[str, Any]
    stage: Stage | None
    topology: str
    num_classes: int
    num_examples: int
    cache: Path
    lower: LowerStep


def _compile(job: _Job) -> tuple[StepCost, float]:
    """(cost, seconds of compilation; 0 if cached)."""
    lowered = _lower(job)
    key = hashlib.sha256("\n".join((lowered.as_text(), job.topology, version("libtpu"))).encode()).hexdigest()
    path = job.cache / f"{key}.json"
    if path.exists():
        return StepCost(**json.loads(path.read_text())), 0.0
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:  # JAX has no exception class of its own for this
        match = _OUT_OF_MEMORY.search(str(error))
        if not match:
            raise
        cost = StepCost(fits=False, memory_bytes=float(match[1]) * _UNITS[match[2]])
    else:
        cost = _cost_of(compiled)
    write_atomically(epath.Path(path), json.dumps(dataclasses.asdict(cost)).encode())
    return cost, time.perf_counter() - start


def _lower(job: _Job) -> jax.stages.Lowered:
    config = from_dict(job.config)
    curriculum = make_curriculum(config, job.num_examples)
    mesh = slice_mesh(job.topology)
    if job.stage is None:
        return Compiler(config, curriculum, job.num_classes, job.num_examples, mesh).lower_evaluation_step()
    stages = tuple(job.stage if stage.index == job.stage.index else stage for stage in curriculum.stages)
    curriculum = dataclasses.replace(curriculum, stages=stages)
    return job.lower(config, curriculum, job.stage, job.num_classes, job.num_examples, mesh)


def _cost_of(compiled: jax.stages.Compiled) -> StepCost:
    memory: Any = compiled.memory_analysis()
    analysis: Any = compiled.cost_analysis()
    return StepCost(
        fits=True,
        memory_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        flops=analysis["flops"],
        accessed_bytes=analysis["bytes accessed"],
        **dataclasses.asdict(program_stats(compiled.as_text() or "")),
    )
