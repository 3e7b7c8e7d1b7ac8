"""The training run, top to bottom."""

import json
from typing import Any

import jax
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from effv2_jax.checkpoint import CHECKPOINTS, Checkpoints
from effv2_jax.compile import Compiler
from effv2_jax.config import to_dict
from effv2_jax.curriculum import make_curriculum, steps_of
from effv2_jax.data.pipeline import BrokenCounter, check_input, evaluation_batches, train_batches
from effv2_jax.data.sources import make_sources
from effv2_jax.evaluate import evaluate, weights_of
from effv2_jax.mesh import make_mesh, put_batch
from effv2_jax.metrics import METRICS_FILE, make_writers
from effv2_jax.optimizer import describe_weight_decay
from effv2_jax.pictures import draw_metrics
from effv2_jax.progress import Progress, Results, Stopwatch, describe_results, describe_run, flatten_results, say
from effv2_jax.step import check_batch

CONFIG_FILE = "config.json"
PARAMETERS_FILE = "parameters.txt"


def describe_parameters(config: ConfigDict, params: Any) -> str:
    """Every parameter with its shape and statistics, and what decides its weight decay."""
    lines = describe_weight_decay(params, config.optimizer.weight_decay_mask)
    return "\n".join([parameter_overview.get_parameter_overview(params), *lines]) + "\n"


def train(config: ConfigDict, workdir: epath.PathLike) -> Results:
    """Trains as `config` says, from the newest checkpoint in `workdir` or from scratch.

    Returns:
      the last evaluation, as `evaluate.evaluate` gives it.

    Raises:
      UserError: a mistake in the config or the data, or a loss that is not finite.
    """
    stopwatch = Stopwatch()
    workdir = epath.Path(workdir)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    # What can be wrong is checked before anything is written.
    sources = make_sources(config)
    num_examples = len(sources.train)
    curriculum = make_curriculum(config, num_examples)
    total_steps = curriculum.total_steps
    mesh = make_mesh()
    check_input(config, jax.process_count())
    check_batch(config, curriculum, mesh.size)
    every = {
        name: max(
            1,
            round(
                steps_of(
                    config,
                    name,
                    batch_size=config.global_batch_size,
                    num_examples=num_examples,
                    total_steps=total_steps,
                )
            ),
        )
        for name in ("log", "evaluate", "checkpoint")
    }
    compiler = Compiler(config, curriculum, sources.num_classes, num_examples, mesh, say)
    checkpoints = Checkpoints(workdir / CHECKPOINTS, config.checkpoint.keep_last, config.checkpoint.keep_best)

    # The input position is the step: batch k is a function of (seed, k). State and position cannot disagree.
    step, best, results = 0, {}, {}
    if (latest := checkpoints.latest()) is not None:
        state, run = checkpoints.restore(latest, compiler.abstract_state)
        step, best, results = latest, run["best"], run["results"]
        stopwatch = Stopwatch(run["stopwatch"])
        say(f"going on from step {step} of {total_steps} in {workdir}")
    else:
        state = compiler.initial_state()
    describe_run(config, curriculum, mesh, sources, state.params)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / CONFIG_FILE).write_text(json.dumps(to_dict(config), indent=1))
        (workdir / PARAMETERS_FILE).write_text(describe_parameters(config, state.params))
    writers = make_writers(workdir, step, active=jax.process_index() == 0)
    progress = Progress(curriculum, config.global_batch_size, stopwatch)
    broken = BrokenCounter(sources.train), BrokenCounter(sources.evaluation)
    stopwatch.charge("start")

    def due(name: str, step: int) -> bool:
        return step % every[name] == 0 or step == total_steps

    pending: tuple[Any, ...] | None = None  # the metrics of a dispatched step, not read yet

    def read_pending() -> None:
        nonlocal pending
        if pending is not None:
            step, stage, metrics = pending
            last = checkpoints.latest()
            kept = "no checkpoint was saved yet" if last is None else f"the last good checkpoint, step {last}, is kept"
            progress.observe(step, stage, jax.device_get(metrics), kept)
            pending = None

    for stage in curriculum.stages:
        if step >= stage.end_step:
            continue
        with stopwatch.measure("compile"):
            train_step = compiler.train_step(stage)
        batches = train_batches(sources.train, config, stage, step, **processes)
        # Implicit transfers would stall the device; put_batch and device_get are the explicit ones.
        with jax.transfer_guard("disallow"):
            while step < stage.end_step:
                with stopwatch.measure("input"):
                    batch = next(batches)
                broken[0].update(batch)
                arrays = put_batch({name: batch[name] for name in ("image", "label")}, mesh)
                state, metrics = train_step(state, arrays)
                step += 1
                read_pending()  # of the step before, while this one runs
                pending = step, stage, metrics
                if not any(due(name, step) for name in every):
                    continue
                read_pending()
                if due("log", step):
                    writers.write_scalars(step, progress.report(step, stage))
                score = None
                if due("evaluate", step):
                    with stopwatch.measure("compile"):
                        evaluation_step = compiler.evaluation_step()
                    with stopwatch.measure("evaluate"):
                        batches_once = evaluation_batches(sources.evaluation, config, **processes)
                        results = evaluate(evaluation_step, weights_of(state), batches_once, mesh, broken[1])
                    score = results.get("ema", results["raw"])["top1"]
                    if not best or score > best["top1"]:
                        best = {"top1": score, "step": step}
                    say(f"step {step} evaluation | " + describe_results(results))
                    writers.write_scalars(step, flatten_results(results))
                writers.flush()  # before the checkpoint: what a restart finds reaches up to its step
                if due("checkpoint", step) or score is not None:
                    with stopwatch.measure("checkpoint"):
                        run = {"step": step, "best": best, "results": results, "stopwatch": dict(stopwatch.seconds)}
                        checkpoints.save(step, state, run | {"config": to_dict(config)}, score)
        batches.close()

    with stopwatch.measure("checkpoint"):
        checkpoints.close()
    writers.close()
    say(f"finished {total_steps} steps in {stopwatch.summary()}")
    if any(counter.count for counter in broken):
        say(f"unreadable images: {broken[0].count} in training, {broken[1].count} in evaluation")
    say(f"result at step {total_steps} | {describe_results(results)}")
    say(f"best top-1 {best['top1']:.2%} at step {best['step']}; checkpoints in {checkpoints.directory}")
    if jax.process_index() == 0:
        say(f"metrics in {workdir} (TensorBoard files, {METRICS_FILE}); picture in {draw_metrics(workdir)}")
    return results
