"""The training run, top to bottom."""

import contextlib
import json
from typing import Any, NoReturn

import jax
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints, has_checkpoints, quarantine_damaged
from effv2_jax.checkpoints.resume import check_faults, identity_of, resume_curriculum
from effv2_jax.config import steps_of, to_dict
from effv2_jax.config.validate import validate
from effv2_jax.curriculum import make_curriculum
from effv2_jax.data.pipeline import BrokenCounter, evaluation_batches, train_batches
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import Preempted, UserError, is_disk_full_or_readonly
from effv2_jax.evaluate import evaluate
from effv2_jax.learning.optimizer import FACTORS, describe_factors
from effv2_jax.monitoring.metrics import METRICS_FILE, make_writers, read_metrics
from effv2_jax.monitoring.plots import draw_metrics
from effv2_jax.monitoring.progress import Progress, Results, describe_results, describe_run, flatten_results, log
from effv2_jax.monitoring.stopwatch import Stopwatch, lost_seconds
from effv2_jax.monitoring.wandb_writer import WandbWriter
from effv2_jax.runtime.compilation_cache import drop_torn_programs, use_compilation_cache
from effv2_jax.runtime.compiler import Compiler
from effv2_jax.runtime.lock import exclusive
from effv2_jax.runtime.mesh import make_mesh, put_batch
from effv2_jax.runtime.preemption import Preemption
from effv2_jax.runtime.processes import on_first_process, wait_for_all
from effv2_jax.weights.init_from import arrays_to_start_from, start_from

CONFIG_FILE = "config.json"
PARAMETERS_FILE = "parameters.txt"


def describe_parameters(config: ConfigDict, params: Any) -> str:
    """Every parameter with its shape and statistics, and what decides its weight decay and learning rate."""
    lines = [line for field in FACTORS for line in describe_factors(config, field, params)]
    return "\n".join([parameter_overview.get_parameter_overview(params), *lines]) + "\n"


def cadences(config: ConfigDict, num_examples: int, total_steps: int) -> dict[str, int]:
    """Steps between two logs, evaluations and checkpoints."""
    run = {"batch_size": config.global_batch_size, "num_examples": num_examples, "total_steps": total_steps}
    return {name: max(1, round(steps_of(config, name, **run))) for name in ("log", "evaluate", "checkpoint")}


def train(
    config: ConfigDict, workdir: epath.PathLike, force: bool = False, wandb_project: str | None = None
) -> Results:
    """Trains as `config` says, from the newest intact checkpoint in `workdir` or from scratch.

    Args:
      config: of the experiment.
      workdir: for checkpoints and metrics, a local path or gs://; of one process (group) at a time.
      force: goes on from a checkpoint also where `config` is of another run.
      wandb_project: of Weights & Biases, for the metrics too; '' is its default, None no project.

    Returns:
      the last evaluation, as `evaluate.evaluate` gives it.

    Raises:
      UserError: a mistake in the config or the data, a workdir that is taken or cannot be written, checkpoints that are
        all damaged or of another run, or a loss that is not finite.
      Unavailable: other processes or a file system do not answer.
      Preempted: asked to leave, and saved.
    """
    try:
        with contextlib.ExitStack() as stack:
            return _train(config, epath.Path(workdir), force, wandb_project, stack)
    except OSError as error:
        if not is_disk_full_or_readonly(error):
            raise
        raise UserError(f"the run in '{workdir}' cannot go on: {error}") from error


def _train(
    config: ConfigDict, workdir: epath.Path, force: bool, wandb_project: str | None, stack: contextlib.ExitStack
) -> Results:
    stopwatch = Stopwatch()
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    first_process = jax.process_index() == 0

    # What can be wrong is checked before anything is written.
    validate(config)
    sources, mesh = make_sources(config), make_mesh()
    num_examples = len(sources.train)
    validate(config, num_examples=num_examples, num_devices=mesh.size, num_processes=jax.process_count())
    curriculum = make_curriculum(config, num_examples)
    compiler = Compiler(config, curriculum, sources.num_classes, num_examples, mesh, log)
    given = {}
    if config.init_from and not has_checkpoints(workdir / CHECKPOINTS):
        given = arrays_to_start_from(config, compiler.abstract_state, sources.class_names, log)

    def take_workdir() -> None:
        stack.enter_context(exclusive(workdir))
        quarantine_damaged(workdir / CHECKPOINTS, log)
        drop_torn_programs(workdir)

    on_first_process("take the workdir", take_workdir)
    preemption = stack.enter_context(Preemption())
    use_compilation_cache(config, workdir)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, config.checkpoint.keep_last, config.checkpoint.keep_best)
    stack.callback(checkpoints.close)  # what was saved before an error gets to the disk

    # The input position is the step: batch k is a function of (seed, k). State and position cannot disagree.
    step, best, results, unreported, evaluation_due, cause = 0, {}, {}, [], False, "start"
    if (latest := checkpoints.latest()) is not None:
        run = checkpoints.restore_run(latest)
        going_on, faults = resume_curriculum(run, config, curriculum, sources)
        if force and faults:
            log(f"WARNING: --force goes on although the run was another: {'; '.join(faults)}")
        else:
            check_faults(faults, workdir, latest)
        if going_on.total_steps < latest:
            raise UserError(
                f"the run in '{workdir}' is at step {latest}, beyond the {going_on.total_steps} of this config"
            )
        if going_on != curriculum:
            curriculum = going_on
            compiler = Compiler(config, curriculum, sources.num_classes, num_examples, mesh, log)
        state, run = checkpoints.restore(latest, compiler.abstract_state)
        step, best, results, unreported, cause = latest, run["best"], run["results"], run["unreported"], "restart"
        evaluation_due = run["evaluation_due"]
        stopwatch.restore(run["stopwatch"], lost_seconds(read_metrics(workdir / METRICS_FILE), step, run["stopwatch"]))
        log(f"going on from step {step} of {curriculum.total_steps} in {workdir}")
    else:
        # Precedence: what this run has saved itself, then other weights, then fresh ones.
        state = start_from(compiler.initial_state(), given)
    total_steps = curriculum.total_steps
    every = cadences(config, num_examples, total_steps)
    describe_run(config, curriculum, mesh, sources, state.params)
    if first_process:
        (workdir / CONFIG_FILE).write_text(json.dumps(to_dict(config), indent=1))
        (workdir / PARAMETERS_FILE).write_text(describe_parameters(config, state.params))
    wandb = [] if wandb_project is None else [lambda: WandbWriter(workdir, config, wandb_project)]
    writers = make_writers(workdir, step, active=first_process, others=wandb)
    progress = Progress(curriculum, config.global_batch_size, stopwatch, unreported)
    broken = BrokenCounter(sources.train), BrokenCounter(sources.evaluation)
    batches = train_batches(sources.train, config, curriculum, step, **processes)
    stack.callback(batches.close)
    stopwatch.charge(cause)

    def due(name: str, step: int) -> bool:
        return step % every[name] == 0 or step == total_steps

    pending: tuple[Any, ...] | None = None  # the metrics of a dispatched step, not read yet
    saved = latest

    def read_pending() -> None:
        nonlocal pending
        if pending is not None:
            step, stage, metrics = pending
            progress.observe(step, stage, jax.device_get(metrics), checkpoints.latest)
            pending = None

    def evaluate_now() -> float:
        nonlocal results, best
        with stopwatch.measure("compile"):
            evaluation_step = compiler.evaluation_step()
        with stopwatch.measure("evaluate"):
            batches_once = evaluation_batches(sources.evaluation, config, **processes)
            results = evaluate(evaluation_step, state.sets, batches_once, mesh, broken[1])
        score = results.get("ema", results["raw"])["top1"]
        if not best or score >= best["top1"]:
            best = {"top1": score, "step": step}
        log(f"step {step} evaluation | " + describe_results(results))
        writers.write_scalars(step, flatten_results(results))
        return score

    def save(score: float | None, evaluation_due: bool = False) -> None:
        nonlocal saved
        writers.flush()  # before the checkpoint: what a restart finds reaches up to its step
        with stopwatch.measure("checkpoint"):
            run = {"step": step, "best": best, "results": results, "evaluation_due": evaluation_due}
            run |= {"unreported": progress.unreported, "stopwatch": dict(stopwatch.seconds)}
            checkpoints.save(step, state, run | identity_of(config, curriculum, sources), score)
        saved = step

    def leave() -> NoReturn:
        read_pending()  # a step that is not finite must not be saved, nor its metrics lost
        if step and saved != step:
            save(None, evaluation_due=due("evaluate", step))  # there may be no time for an evaluation
        checkpoints.close()
        writers.close()
        what = f"saved step {step} of {total_steps}" if step else "no step was made yet"
        raise Preempted(f"asked to leave: {what}; the same command goes on")

    wait_for_all("the first step")
    if evaluation_due:
        evaluate_now()
    for stage in curriculum.stages:
        if step >= stage.end_step:
            continue
        before, switching = dict(stopwatch.seconds), True
        with stopwatch.measure("compile"):
            train_step = compiler.train_step(stage)
        compiler.prepare_after(stage)
        if preemption.reached():
            leave()
        # Implicit transfers would stall the device; put_batch and device_get are the explicit ones.
        with jax.transfer_guard("disallow"):
            while step < stage.end_step:
                with stopwatch.measure("input"):
                    batch = next(batches)
                if switching:
                    spent, switching = stopwatch.since(before), False
                    waits = {f"stage/{cause}_wait_seconds": spent[cause] for cause in ("compile", "input")}
                    which = {"stage/number": stage.index + 1, "stage/image_size": stage.image_size}
                    writers.write_scalars(step, which | waits)
                broken[0].update(batch)
                arrays = put_batch({name: batch[name] for name in ("image", "label")}, mesh)
                state, metrics = train_step(state, arrays)
                step += 1
                read_pending()  # of the step before, while this one runs
                pending = step, stage, metrics
                leaving = preemption.reached() and step < total_steps
                if not leaving and not any(due(name, step) for name in every):
                    continue
                read_pending()
                checkpoints.check()
                if due("log", step):
                    writers.write_scalars(step, progress.report(step, stage))
                if leaving:
                    leave()
                score = evaluate_now() if due("evaluate", step) else None
                if due("checkpoint", step) or score is not None:
                    save(score)
                writers.flush()
                if score is not None and preemption.reached() and step < total_steps:  # evaluations are long
                    leave()

    with stopwatch.measure("checkpoint"):
        checkpoints.close()
    if latest != total_steps:
        writers.write_scalars(step, stopwatch.scalars())
    writers.close()
    log(f"finished {total_steps} steps in {stopwatch.summary()}")
    if any(counter.count for counter in broken):
        log(f"unreadable images: {broken[0].count} in training, {broken[1].count} in evaluation")
    log(f"result at step {total_steps} | {describe_results(results)}")
    log(f"best top-1 {best['top1']:.2%} at step {best['step']}; checkpoints in {checkpoints.directory}")
    if first_process:
        log(f"metrics in {workdir} (TensorBoard files, {METRICS_FILE}); picture in {draw_metrics(workdir)}")
    return results
