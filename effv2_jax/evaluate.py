"""Exact evaluation: every example counted once, on any number of devices and processes."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from effv2_jax.checkpoint import CHECKPOINTS, Checkpoints
from effv2_jax.compile import Compiler, use_compilation_cache
from effv2_jax.config import from_dict
from effv2_jax.curriculum import make_curriculum
from effv2_jax.data.pipeline import BrokenCounter, evaluation_batches
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import UserError
from effv2_jax.mesh import make_mesh, put_batch
from effv2_jax.progress import Results, say
from effv2_jax.step import TrainState


def weights_of(state: TrainState) -> dict[str, Any]:
    """The sets of weights worth evaluating: {'raw': variables, 'ema': variables}, without 'ema' where it is off."""
    return {"raw": state.variables} | ({"ema": state.ema} if state.ema else {})


def evaluate(
    evaluation_step: Callable,
    weights: dict[str, Any],
    batches: Iterable[dict[str, Any]],
    mesh: Mesh,
    broken: BrokenCounter,
) -> Results:
    """Evaluates several sets of weights in one pass over the input.

    Args:
      evaluation_step: compiled, (variables, batch) -> sums (see `step.make_evaluation_step`).
      weights: name -> {'params', 'batch_stats'}, such as {'raw': ..., 'ema': ...}.
      batches: this process's part, as `pipeline.evaluation_batches` gives it.
      mesh: where the weights lie.
      broken: counts unreadable images.

    Returns:
      name -> {'top1': share, 'top5': share, 'loss': mean, 'count': examples}.
    """
    totals: dict[str, collections.Counter] = {name: collections.Counter() for name in weights}
    pending: dict[str, Any] = {}

    def read() -> None:
        for name, sums in jax.device_get(pending).items():
            totals[name].update({key: value.item() for key, value in sums.items()})

    for batch in batches:
        broken.update(batch)
        arrays = put_batch({name: batch[name] for name in ("image", "label", "mask")}, mesh)
        dispatched = {name: evaluation_step(variables, arrays) for name, variables in weights.items()}
        read()  # the batch before, while this one runs
        pending = dispatched
    read()
    return {name: _shares(sums) for name, sums in totals.items()}


def _shares(sums: collections.Counter) -> dict[str, float]:
    count = sums["count"]
    return {"count": count} | {key: sums[key] / max(count, 1) for key in ("top1", "top5", "loss")}


def evaluate_run(workdir: epath.PathLike, which: str = "latest") -> tuple[int, Results]:
    """Evaluates a checkpoint of a training run with the config and data of that run.

    Args:
      workdir: of `train.train`.
      which: 'latest', 'best' or the number of a step.

    Returns:
      the step, and its results as `evaluate` gives them.

    Raises:
      UserError: no run or no such checkpoint there.
    """
    directory = epath.Path(workdir) / CHECKPOINTS
    if not directory.exists():
        raise UserError(f"'{workdir}' holds no training run: there is no {CHECKPOINTS}/ in it")
    checkpoints = Checkpoints(directory, read_only=True)
    step = checkpoints.find(which)
    config = from_dict(checkpoints.restore_run(step)["config"])
    use_compilation_cache(config, epath.Path(workdir))
    sources = make_sources(config)
    mesh = make_mesh()
    curriculum = make_curriculum(config, len(sources.train))
    compiler = Compiler(config, curriculum, sources.num_classes, len(sources.train), mesh, log=lambda line: None)
    state, _ = checkpoints.restore(step, compiler.abstract_state)
    checkpoints.close()
    batches = evaluation_batches(
        sources.evaluation, config, process_index=jax.process_index(), process_count=jax.process_count()
    )
    broken = BrokenCounter(sources.evaluation)
    results = evaluate(compiler.evaluation_step(), weights_of(state), batches, mesh, broken)
    if broken.count:
        say(f"unreadable images, left out: {broken.count}")
    return step, results
