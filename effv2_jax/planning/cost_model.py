"""Training and evaluation steps compiled for TPU slices that need not be there, and what the compiler tells of them.

Each program is compiled in a process of its own, and what was found is kept by the program's content.
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
from ml_collections import ConfigDict

from effv2_jax.config import from_dict, to_dict
from effv2_jax.curriculum import Curriculum, Stage, make_curriculum
from effv2_jax.files import write_atomically
from effv2_jax.learning.optimizer import make_schedule
from effv2_jax.network.model import config_architecture
from effv2_jax.planning.hlo import figures
from effv2_jax.planning.slices import slice_mesh
from effv2_jax.runtime import mesh as mesh_lib
from effv2_jax.runtime.compiler import Compiler
from effv2_jax.runtime.isolated_process import run_isolated

EVALUATION = "evaluation"
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
class Programs:
    """The programs of data that need not be at hand.

    Args:
      num_classes, num_examples: of the data.
      cache: a folder where figures are kept.
      log: takes a line of progress.
    """

    num_classes: int
    num_examples: int
    cache: Path
    log: Callable[[str], None]

    def measure(self, config: ConfigDict, stage: Stage | None, topology: str, plain: bool = False) -> Program:
        """Figures of a stage's training step, or of evaluation (None), on a slice named as 'v5e:4x4'.

        With `plain` the training step is that of `bench.baseline`.

        Raises:
          Unavailable: the process that compiled was killed.
        """
        kind = f"stage {stage.index + 1}, {stage.image_size} px" if stage else EVALUATION
        what = f"{topology}, {kind}{', plain Flax' if plain else ''}"
        self.log(f"{what}: compiling ...")
        found, seconds = run_isolated(
            what,
            _compile,
            *(to_dict(config), dataclasses.asdict(stage) if stage else None, topology),
            *(self.num_classes, self.num_examples, str(self.cache), plain),
            initializer=quietly,
            waiting=lambda seconds: self.log(f"{what}: still compiling after {seconds:.0f} s"),
        )
        self.log(f"{what}: {f'compiled in {seconds:.0f} s' if seconds else 'known already'}")
        return Program(**found)


def quietly() -> None:
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
    plain: bool,
) -> tuple[dict[str, Any], float]:
    """(the fields of `Program`, seconds of compilation or 0)."""
    config = from_dict(values)
    curriculum = make_curriculum(config, num_examples)
    stage = Stage(**fields) if fields else None
    if stage:
        stages = tuple(stage if other.index == stage.index else other for other in curriculum.stages)
        curriculum = dataclasses.replace(curriculum, stages=stages)
    mesh = slice_mesh(topology)
    if stage and plain:
        lowered = _lower_plain(config, curriculum, stage, num_classes, num_examples, mesh)
    else:
        compiler = Compiler(config, curriculum, num_classes, num_examples, mesh)
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
    write_atomically(epath.Path(path), json.dumps(found).encode())
    return found, time.perf_counter() - start


def _lower_plain(
    config: ConfigDict, curriculum: Curriculum, stage: Stage, num_classes: int, num_examples: int, mesh: Any
) -> jax.stages.Lowered:
    from effv2_jax.bench.baseline import plain_train_step

    schedule = make_schedule(config, num_examples=num_examples, total_steps=curriculum.total_steps)
    initial_state, step = plain_train_step(config, stage, config_architecture(config), num_classes, schedule)
    state = mesh_lib.replicate_shapes(jax.eval_shape(initial_state), mesh)
    batch = mesh_lib.abstract_batch(config.global_batch_size, stage.image_size, 1, mesh)
    return jax.jit(step, out_shardings=mesh_lib.replicated(mesh), donate_argnums=0).lower(state, batch)
