"""Ahead-of-time compilation of the steps: one for each distinct stage and one for evaluation, each compiled once.

While a stage trains, a background thread compiles the evaluation step and the next stage's step. Tracing shares the
interpreter with the training loop; XLA does not hold it. Executables are cached on disk, so a restart compiles nothing.
"""

import dataclasses
import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effv2_jax.curriculum import Curriculum, Stage
from effv2_jax.learning import step as step_lib
from effv2_jax.learning.optimizer import make_optimizer, make_schedule
from effv2_jax.learning.step import TrainState
from effv2_jax.network.cpu_kernels import compiler_options
from effv2_jax.network.model import make_model
from effv2_jax.runtime import mesh as mesh_lib
from effv2_jax.runtime.memory import return_freed_memory


def jit_on_mesh(function: Callable, mesh: Mesh, **jit_options: Any) -> jax.stages.Wrapped:
    """`jax.jit` with results replicated on the mesh, and with the compiler options of its platform."""
    options = compiler_options(mesh.devices.flat[0].platform)
    return jax.jit(function, out_shardings=mesh_lib.replicated(mesh), compiler_options=options, **jit_options)


class Compiler:
    """Makes the executables of a run from shapes alone.

    Args:
      config: the resolved config.
      curriculum: its stages.
      num_classes: of the data.
      num_examples: in one epoch.
      mesh: where the steps run; its devices may be mere descriptions (a topology without hardware).
      log: called with a line for each compilation.
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
        self._curriculum = curriculum
        self._mesh = mesh
        self.log = log
        self._model = functools.partial(make_model, config, num_classes, mesh.devices.flat[0].platform)
        self._schedule = make_schedule(config, num_examples=num_examples, total_steps=curriculum.total_steps)
        variables = jax.eval_shape(lambda: step_lib.initial_variables(self._model(), config.seed))
        self._optimizer = make_optimizer(config, self._schedule, variables["params"])
        self._executables: dict[Any, Future[jax.stages.Compiled]] = {}

    @property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the training state."""
        return mesh_lib.replicate_shapes(jax.eval_shape(self._initial_state), self._mesh)

    def initial_state(self) -> TrainState:
        """A fresh state on the mesh."""
        return self._compile("initial state", lambda: self._lower(self._initial_state, ()))()

    def train_step(self, stage: Stage) -> jax.stages.Compiled:
        """The training step of a stage, (state, batch) -> (state, metrics); the state is donated.

        Waits if it is being compiled, and compiles it if it is not compiled yet.
        """
        return self._get(_executable_key(stage), functools.partial(self._compile_train_step, stage))

    def evaluation_step(self) -> jax.stages.Compiled:
        """The evaluation step, (variables, batch) -> sums."""
        return self._get("evaluation", self._compile_evaluation_step)

    def prepare_after(self, stage: Stage) -> None:
        """In the background: compiles what follows the first step of `stage`, and frees the executables before it."""
        jobs: dict[Any, Callable] = {}
        if self._config.compilation.background:
            jobs["evaluation"] = self._compile_evaluation_step
            for following in self._curriculum.stages[stage.index + 1 : stage.index + 2]:
                jobs[_executable_key(following)] = functools.partial(self._compile_train_step, following)
            jobs = {key: job for key, job in jobs.items() if key not in self._executables}
        futures: dict[Any, Future] = {key: Future() for key in jobs}
        needed = {"evaluation"} | {_executable_key(later) for later in self._curriculum.stages[stage.index :]}
        outdated = [self._executables.pop(key) for key in self._executables.keys() - needed]
        self._executables |= futures

        def work() -> None:
            outdated.clear()  # waits for the last step of the previous stage
            for key, job in jobs.items():
                _run_job(job, futures[key])
            return_freed_memory()

        if jobs or outdated:
            # No daemon: an interpreter that exits during a compilation may crash.
            threading.Thread(target=work, name="compile").start()

    def _get(self, key: Any, job: Callable[[], jax.stages.Compiled]) -> jax.stages.Compiled:
        if key not in self._executables:
            self._executables[key] = Future()
            _run_job(job, self._executables[key])
        return self._executables[key].result()

    def lower_train_step(self, stage: Stage) -> jax.stages.Lowered:
        """The training step of a stage, ready for compilation."""
        step = step_lib.make_train_step(self._config, stage, self._model(stage), self._optimizer, self._schedule)
        batch = mesh_lib.abstract_batch(
            self._config.global_batch_size, stage.image_size, self._config.data.max_labels, self._mesh
        )
        return self._lower(step, (self.abstract_state, batch), donate_argnums=0)

    def lower_evaluation_step(self) -> jax.stages.Lowered:
        """The evaluation step, ready for compilation."""
        config = self._config.evaluation
        variables = mesh_lib.replicate_shapes(
            jax.eval_shape(lambda: step_lib.initial_variables(self._model(), self._config.seed)), self._mesh
        )
        batch = mesh_lib.abstract_batch(
            config.batch_size, config.image_size, self._config.data.max_labels, self._mesh, mask="bool"
        )
        step = step_lib.make_evaluation_step(self._config, self._model())
        return self._lower(step, (variables, batch))

    def _compile_train_step(self, stage: Stage) -> jax.stages.Compiled:
        name = f"training step of stage {stage.index + 1}, {stage.image_size} px"
        return self._compile(name, functools.partial(self.lower_train_step, stage))

    def _compile_evaluation_step(self) -> jax.stages.Compiled:
        return self._compile(f"evaluation, {self._config.evaluation.image_size} px", self.lower_evaluation_step)

    def _initial_state(self) -> TrainState:
        return step_lib.initial_state(self._model(), self._optimizer, self._config)

    def _lower(self, function: Callable, arguments: tuple, **jit_options: Any) -> jax.stages.Lowered:
        return jit_on_mesh(function, self._mesh, **jit_options).lower(*arguments)

    def _compile(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> jax.stages.Compiled:
        start = time.perf_counter()
        executable = lower().compile()
        self.log(f"compiled {name} in {time.perf_counter() - start:.1f} s")
        return executable


def _executable_key(stage: Stage) -> Stage:
    """Equal for stages that share an executable: ignores what happens on the host and when the stage runs."""
    return dataclasses.replace(stage, index=0, start_step=0, end_step=0, randaugment_magnitude=0.0)


def _run_job(job: Callable[[], Any], future: Future) -> None:
    """Runs a job, and hands its result or exception to the future."""
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)
