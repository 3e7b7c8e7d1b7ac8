"""The training run, top to bottom: `train` prepares, opens the workdir and resumes; `Loop` is the training loop."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import NoReturn

import jax
from etils import epath
from ml_collections import ConfigDict

from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints, has_checkpoints
from effv2_jax.checkpoints.resume import identity_of, resume
from effv2_jax.checkpoints.workdir import open_workdir
from effv2_jax.curriculum import Stage
from effv2_jax.data.pipeline import Batch, BrokenCounter, evaluation_batches, train_batches
from effv2_jax.errors import Preempted, disk_errors
from effv2_jax.evaluate import evaluate
from effv2_jax.experiment import Experiment, prepare
from effv2_jax.learning.step import TrainState
from effv2_jax.monitoring.description import describe_end, describe_run, open_writers
from effv2_jax.monitoring.metrics import Writers
from effv2_jax.monitoring.profiler import Profiler, make_profiler
from effv2_jax.monitoring.progress import Progress, Results, flatten_results, log, stage_waits
from effv2_jax.monitoring.stopwatch import Stopwatch
from effv2_jax.runtime.mesh import put_batch
from effv2_jax.runtime.preemption import Preemption
from effv2_jax.runtime.processes import this_process, wait_for_all
from effv2_jax.weights.init_from import read_initial_weights, start_from


def train(
    config: ConfigDict,
    workdir: epath.PathLike,
    force: bool = False,
    wandb_project: str | None = None,
    profile: tuple[int, int] | None = None,
) -> Results:
    """Trains an experiment, from the newest intact checkpoint in `workdir` or from scratch.

    Args:
      config: of the experiment.
      workdir: for checkpoints and metrics, a local path or gs://; one run at a time uses it.
      force: resumes even if the config conflicts with the run of the checkpoint.
      wandb_project: of Weights & Biases, which gets the metrics too; '' selects its default, None disables it.
      profile: (number of steps before the trace, number of steps to trace); the trace goes to WORKDIR/profile.

    Returns:
      the last evaluation, as `evaluate.evaluate` returns it.

    Raises:
      UserError: invalid config or data, a workdir that cannot be written, checkpoints that are all damaged or of
        another config, or a loss that is not finite.
      Unavailable: the workdir is in use, or other processes or a file system do not answer.
      Preempted: asked to exit, and saved.
    """
    workdir, stopwatch = epath.Path(workdir), Stopwatch()
    with disk_errors(f"the run in '{workdir}' cannot continue"):
        experiment = prepare(config, log)
        profiler = make_profiler(workdir, profile, experiment.total_steps)
        initial_weights = {} if has_checkpoints(workdir / CHECKPOINTS) else read_initial_weights(experiment, log)
        # Nothing is written before this line.
        with open_workdir(workdir, config, log) as (checkpoints, preemption):
            # Asked under the lock: an earlier run may have saved its first checkpoint in the meantime.
            resuming = checkpoints.latest() is not None
            if resuming:
                experiment, state, progress = resume(experiment, checkpoints, workdir, stopwatch, force, log)
            else:
                state, progress = start_from(experiment.compiler.initial_state(), initial_weights), Progress(stopwatch)
            describe_run(config, experiment.curriculum, experiment.mesh, experiment.sources, state.params)
            writers = open_writers(workdir, config, state.params, progress.step, wandb_project)
            # The input position is the step, so state and position cannot disagree.
            source, curriculum = experiment.sources.train, experiment.curriculum
            batches = train_batches(source, config, curriculum, progress.step, **this_process())
            with contextlib.closing(batches), contextlib.closing(profiler):
                stopwatch.charge("restart" if resuming else "start")
                loop = Loop(experiment, workdir, checkpoints, preemption, writers, profiler, batches, state, progress)
                return loop.run()


@dataclasses.dataclass
class Loop:
    """A run in its open workdir. Only `state` and `progress` change; a checkpoint saves both."""

    experiment: Experiment
    workdir: epath.Path
    checkpoints: Checkpoints
    preemption: Preemption
    writers: Writers
    profiler: Profiler
    batches: Iterator[Batch]
    state: TrainState
    progress: Progress

    def __post_init__(self) -> None:
        self._first_step = self._saved_step = self.progress.step
        sources = self.experiment.sources
        self._broken = {"training": BrokenCounter(sources.train), "evaluation": BrokenCounter(sources.evaluation)}

    def run(self) -> Results:
        """Trains from the step of `progress` to the end; returns the last evaluation."""
        wait_for_all("the first step")
        if self.progress.evaluation_due:
            self._evaluate()
        for stage in self.experiment.curriculum.stages:
            if self.progress.step < stage.end_step:
                self._train_stage(stage)
        return self._finish()

    def _train_stage(self, stage: Stage) -> None:
        progress, compiler = self.progress, self.experiment.compiler
        before = dict(progress.stopwatch.seconds)
        with progress.stopwatch.measure("compile"):
            train_step = compiler.train_step(stage)
        compiler.prepare_after(stage)
        self._exit_if_asked()
        first_step = progress.step
        # Implicit transfers would stall the device; put_batch and device_get are explicit.
        with jax.transfer_guard("disallow"):
            while progress.step < stage.end_step:
                with progress.stopwatch.measure("input"):
                    batch = next(self.batches)
                if progress.step == first_step:
                    waits = stage_waits(stage, progress.stopwatch.since(before))
                    self.writers.write_scalars(first_step, waits)
                self._broken["training"].update(batch)
                arrays = put_batch({name: batch[name] for name in ("image", "label")}, self.experiment.mesh)
                self.profiler.before_step(progress.step)
                self.state, metrics = train_step(self.state, arrays)
                progress.read_pending(self.checkpoints.latest)  # of the previous step, while this one runs
                progress.add_step(stage, metrics)
                self.profiler.after_step(progress.step, metrics)
                self._run_hooks(stage)

    def _run_hooks(self, stage: Stage) -> None:
        """Does what is due after a step, in this order: log, exit if asked to, evaluate, save."""
        step, due = self.progress.step, self.experiment.due(self.progress.step)
        exiting = self.preemption.reached() and step < self.experiment.total_steps
        if not due and not exiting:
            return
        self.progress.read_pending(self.checkpoints.latest)
        self.checkpoints.check()
        if "log" in due:
            batch_size = self.experiment.config.global_batch_size
            self.writers.write_scalars(step, self.progress.report(stage, self.experiment.curriculum, batch_size))
        if exiting:
            self._exit()  # there may be no time left for an evaluation
        score = self._evaluate() if "evaluate" in due else None
        if "evaluate" in due or "checkpoint" in due:
            self._save(score)
        self.writers.flush()
        if "evaluate" in due:  # the evaluation may have taken long
            self._exit_if_asked()

    def _evaluate(self) -> float:
        progress, experiment = self.progress, self.experiment
        with progress.stopwatch.measure("compile"):
            step = experiment.compiler.evaluation_step()
        with progress.stopwatch.measure("evaluate"):
            batches = evaluation_batches(experiment.sources.evaluation, experiment.config, **this_process())
            results = evaluate(step, self.state.sets, batches, experiment.mesh, self._broken["evaluation"])
        score = progress.add_evaluation(results)
        self.writers.write_scalars(progress.step, flatten_results(results))
        return score

    def _save(self, score: float | None) -> None:
        self.writers.flush()  # before the checkpoint, so that the metrics reach up to its step after a restart
        experiment, progress = self.experiment, self.progress
        with progress.stopwatch.measure("checkpoint"):
            identity = identity_of(experiment.config, experiment.curriculum, experiment.sources)
            self.checkpoints.save(progress.step, self.state, progress.to_record() | identity, score)
        self._saved_step = progress.step

    def _exit_if_asked(self) -> None:
        if self.preemption.reached() and self.progress.step < self.experiment.total_steps:
            self._exit()

    def _exit(self) -> NoReturn:
        """The one place where a run ends before its last step."""
        # A step that is not finite must not be saved, and no metrics must be lost.
        self.progress.read_pending(self.checkpoints.latest)
        step, total_steps = self.progress.step, self.experiment.total_steps
        if step != self._saved_step:
            self.progress.evaluation_due = "evaluate" in self.experiment.due(step)
            self._save(None)
        self.checkpoints.close()
        self.writers.close()
        outcome = f"saved step {step} of {total_steps}" if step else "no step was made yet"
        raise Preempted(f"asked to exit: {outcome}; the same command resumes")

    def _finish(self) -> Results:
        progress, total_steps = self.progress, self.experiment.total_steps
        with progress.stopwatch.measure("checkpoint"):
            self.checkpoints.close()
        if self._first_step != total_steps:
            self.writers.write_scalars(total_steps, progress.stopwatch.scalars())
        self.writers.close()
        describe_end(progress, self._broken, self.workdir, self.checkpoints.directory)
        return progress.results
