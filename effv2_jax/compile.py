"""Ahead-of-time compilation of the steps: one for every stage that differs, one for evaluation, each compiled once."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effv2_jax import mesh as mesh_lib
from effv2_jax import step as step_lib
from effv2_jax.architecture import get_architecture
from effv2_jax.curriculum import Curriculum, Stage
from effv2_jax.errors import check_known
from effv2_jax.model import NORMALIZATIONS, EfficientNet
from effv2_jax.optimizer import make_optimizer, make_schedule
from effv2_jax.step import TrainState


def make_model(config: ConfigDict, num_classes: int, platform: str, stage: Stage | None = None) -> EfficientNet:
    """The network of a config, regularised as `stage` says (None: for evaluation), lowered for 'cpu', 'tpu', ..."""
    lowering = config.model.lowering
    if lowering == "auto":
        lowering = "decomposed" if platform == "cpu" else "native"
    for field, value, known in (
        ("dtype", config.dtype, ("float32", "bfloat16")),
        ("model.lowering", lowering, ("native", "decomposed")),
        ("data.normalization", config.data.normalization, tuple(NORMALIZATIONS)),
    ):
        check_known(f"config.{field}", value, known)
    return EfficientNet(
        get_architecture(
            config.model.variant, blocks=config.model.blocks, width=config.model.width, depth=config.model.depth
        ),
        num_classes,
        dropout_rate=stage.dropout_rate if stage else 0.0,
        survival_probability=stage.survival_probability if stage else 1.0,
        batch_norm_group_size=config.batch_norm.group_size,
        batch_norm_epsilon=config.batch_norm.epsilon,
        dtype=jnp.dtype(config.dtype),
        remat=bool(stage and stage.remat),
        lowering=lowering,
        scan_blocks=config.model.scan_blocks,
    )


class Compiler:
    """Makes the executables of a run from shapes alone.

    Args:
      config: the resolved config.
      curriculum: its stages.
      num_classes: of the data.
      num_examples: in one epoch.
      mesh: where the steps run; its devices may be described only (a topology without hardware).
      log: is told of each compilation and its seconds.
    """

    def __init__(
        self,
        config: ConfigDict,
        curriculum: Curriculum,
        num_classes: int,
        num_examples: int,
        mesh: Mesh,
        log: Callable[[str], None] = lambda line: None,
    ):
        self._config = config
        self._mesh = mesh
        self._log = log
        self._model = functools.partial(make_model, config, num_classes, mesh.devices.flat[0].platform)
        self._schedule = make_schedule(config, num_examples=num_examples, total_steps=curriculum.total_steps)
        variables = jax.eval_shape(lambda: step_lib.initial_variables(self._model(), config.seed))
        self._optimizer = make_optimizer(config, self._schedule, variables["params"])
        self._executables: dict[Any, jax.stages.Compiled] = {}

    @property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the training state."""
        return _replicate(jax.eval_shape(self._initial_state), self._mesh)

    def initial_state(self) -> TrainState:
        """A fresh state on the mesh."""
        return self._compiled("initial state", "initial state", lambda: self._lower(self._initial_state, ()))()

    def train_step(self, stage: Stage) -> jax.stages.Compiled:
        """The training step of a stage, (state, batch) -> (state, metrics); the state is donated."""
        # What happens on the host, or tells only when the stage runs, makes no other executable.
        key = dataclasses.replace(stage, index=0, start_step=0, end_step=0, randaugment_magnitude=0.0)
        name = f"training step of stage {stage.index + 1}, {stage.image_size} px"
        return self._compiled(key, name, lambda: self.lower_train_step(stage))

    def lower_train_step(self, stage: Stage) -> jax.stages.Lowered:
        """The training step of a stage as a program that is not compiled yet."""
        step = step_lib.make_train_step(self._config, stage, self._model(stage), self._optimizer, self._schedule)
        batch = mesh_lib.abstract_batch(self._config.global_batch_size, stage.image_size, self._mesh)
        return self._lower(step, (self.abstract_state, batch), donate_argnums=0)

    def evaluation_step(self) -> jax.stages.Compiled:
        """The evaluation step, (variables, batch) -> sums."""
        config = self._config.evaluation
        variables = _replicate(
            jax.eval_shape(lambda: step_lib.initial_variables(self._model(), self._config.seed)), self._mesh
        )
        batch = mesh_lib.abstract_batch(config.batch_size, config.image_size, self._mesh, mask="bool")
        step = step_lib.make_evaluation_step(self._config, self._model())
        return self._compiled(
            "evaluation", f"evaluation, {config.image_size} px", lambda: self._lower(step, (variables, batch))
        )

    def _initial_state(self) -> TrainState:
        return step_lib.initial_state(self._model(), self._optimizer, self._config)

    def _lower(self, function: Callable, arguments: tuple, **jit_options: Any) -> jax.stages.Lowered:
        return jax.jit(function, out_shardings=mesh_lib.replicated(self._mesh), **jit_options).lower(*arguments)

    def _compiled(self, key: Any, name: str, lower: Callable[[], jax.stages.Lowered]) -> jax.stages.Compiled:
        if key not in self._executables:
            start = time.perf_counter()
            self._executables[key] = lower().compile()
            self._log(f"compiled {name} in {time.perf_counter() - start:.1f} s")
        return self._executables[key]


def _replicate(shapes: Any, mesh: Mesh) -> Any:
    sharding = mesh_lib.replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
