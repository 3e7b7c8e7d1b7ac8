"""An experiment: everything that is made from a config, validated once, before anything is written."""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effv2_jax.config import steps_of
from effv2_jax.config.validate import validate
from effv2_jax.curriculum import Curriculum, make_curriculum
from effv2_jax.data.source import Sources
from effv2_jax.data.sources import make_sources
from effv2_jax.runtime.compiler import Compiler
from effv2_jax.runtime.mesh import make_mesh

CADENCES = ("log", "evaluate", "checkpoint")  # durations of the config: how often a run does what


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run.

    config: resolved and valid.
    sources: the training and the evaluation examples.
    curriculum: the stages.
    mesh: all devices.
    compiler: makes the initial state and the steps; knows model and optimizer.
    cadences: name in CADENCES -> steps between two log lines, evaluations or checkpoints.
    """

    config: ConfigDict
    sources: Sources
    curriculum: Curriculum
    mesh: Mesh
    compiler: Compiler
    cadences: dict[str, int]

    @property
    def total_steps(self) -> int:
        return self.curriculum.total_steps

    def with_curriculum(self, curriculum: Curriculum) -> "Experiment":
        """The experiment with another curriculum, such as the one that a resumed run keeps."""
        return _make(self.config, self.sources, curriculum, self.mesh, self.compiler.log)

    def due(self, step: int) -> set[str]:
        """The names in CADENCES that are due after `step`; all of them after the last step."""
        return {name for name, every in self.cadences.items() if step % every == 0 or step == self.total_steps}


def prepare(config: ConfigDict, log: Callable[[str], None] = lambda line: None) -> Experiment:
    """Makes an experiment; every fault of its config is an error here, before anything is written.

    Args:
      config: of the experiment, from `config.defaults`.
      log: called with a line for each compilation.

    Raises:
      UserError: invalid fields, or data that are missing or do not match the config.
    """
    validate(config)  # before data are searched for
    sources, mesh = make_sources(config), make_mesh()
    num_examples = len(sources.train)
    validate(config, num_examples=num_examples, num_devices=mesh.size, num_processes=jax.process_count())
    return _make(config, sources, make_curriculum(config, num_examples), mesh, log)


def _make(
    config: ConfigDict, sources: Sources, curriculum: Curriculum, mesh: Mesh, log: Callable[[str], None]
) -> Experiment:
    num_examples, total_steps = len(sources.train), curriculum.total_steps
    run = {"batch_size": config.global_batch_size, "num_examples": num_examples, "total_steps": total_steps}
    cadences = {name: max(1, round(steps_of(config, name, **run))) for name in CADENCES}
    compiler = Compiler(config, curriculum, sources.num_classes, num_examples, mesh, log)
    return Experiment(config, sources, curriculum, mesh, compiler, cadences)
