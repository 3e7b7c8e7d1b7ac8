"""Exact evaluation: counts every example once, on any number of devices and processes."""

import collections
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints
from effv2_jax.config import from_dict
from effv2_jax.config.validate import validate, validate_evaluation
from effv2_jax.curriculum import make_curriculum
from effv2_jax.data.pipeline import BrokenCounter, evaluation_batches
from effv2_jax.data.source import Source
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import UserError
from effv2_jax.learning.step import make_evaluation_step
from effv2_jax.monitoring.progress import Results
from effv2_jax.runtime.compilation_cache import use_compilation_cache
from effv2_jax.runtime.compiler import Compiler, jit_on_mesh
from effv2_jax.runtime.mesh import make_mesh, put_batch, replicated
from effv2_jax.runtime.processes import this_process
from effv2_jax.weights import Bundle, read_weights
from effv2_jax.weights.relabel import with_labels_of


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
      weights: name -> {'params', 'batch_stats'}, such as {'raw': ..., 'ema': ...}, on the mesh.
      batches: this process's part, as of `pipeline.evaluation_batches`.
      mesh: of the devices.
      broken: counts unreadable images.

    Returns:
      name -> {'top1': share, 'top5': share, 'loss': mean, 'count': examples}.
    """
    totals: dict[str, collections.Counter] = {name: collections.Counter() for name in weights}
    pending: dict[str, Any] = {}

    def read_pending() -> None:
        for name, sums in jax.device_get(pending).items():
            totals[name].update({key: value.item() for key, value in sums.items()})

    for batch in batches:
        broken.update(batch)
        arrays = put_batch({name: batch[name] for name in ("image", "label", "mask")}, mesh)
        dispatched = {name: evaluation_step(variables, arrays) for name, variables in weights.items()}
        read_pending()  # the previous batch, while this one runs
        pending = dispatched
    read_pending()
    return {name: _shares(sums) for name, sums in totals.items()}


def _shares(sums: collections.Counter) -> dict[str, float]:
    count = sums["count"]
    return {"count": count} | {key: sums[key] / max(count, 1) for key in ("top1", "top5", "loss")}


def confidence_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` examples; z = 1.96 gives 95 % confidence."""
    if not count:
        return 0.0, 1.0
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return center - half, center + half


def evaluate_weights(path: str, config: ConfigDict) -> tuple[Bundle, Results]:
    """Evaluates weights of any format on the data of a config.

    The weights decide network and normalisation; the config decides image size, crop and interpolation.

    Args:
      path: as for `weights.read_weights`.
      config: of an experiment; only data and evaluation are used.

    Returns:
      the weights, and their results as `evaluate` returns them.

    Raises:
      UserError: unreadable weights or data, or classes that the weights do not have.
    """
    bundle = read_weights(path)
    mesh = make_mesh()
    validate(config)
    validate_evaluation(config, num_devices=mesh.size, num_processes=jax.process_count())
    config = config.copy_and_resolve_references()
    if not config.data.holdout_percent:
        config.data.train_split = config.data.evaluation_split  # a training split need not exist
        config.data.num_examples = 0
    sources = make_sources(config)
    config.data.normalization = bundle.preprocess.normalization
    source = with_labels_of(sources.evaluation, bundle)
    step = jit_on_mesh(make_evaluation_step(config, bundle.model), mesh)
    return bundle, _evaluate_source(step, jax.device_put(bundle.sets, replicated(mesh)), source, config, mesh)


def _evaluate_source(
    evaluation_step: Callable, weights: dict[str, Any], source: Source, config: ConfigDict, mesh: Mesh
) -> Results:
    """`evaluate` on a whole source; adds 'unreadable', the number of images left out.

    Raises:
      UserError: no image could be read.
    """
    batches = evaluation_batches(source, config, **this_process())
    broken = BrokenCounter(source)
    results = evaluate(evaluation_step, weights, batches, mesh, broken)
    if broken.count == len(source):
        raise UserError(f"none of the {len(source)} images can be read, the first is {source.describe(0)}")
    return {name: shares | {"unreadable": broken.count} for name, shares in results.items()}


def evaluate_run(workdir: epath.PathLike, which: str = "latest") -> tuple[int, Results]:
    """Evaluates a checkpoint of a training run with the config and data of that run.

    Args:
      workdir: of `train.train`.
      which: 'latest', 'best' or the number of a step.

    Returns:
      the step, and its results as `evaluate` returns them.

    Raises:
      UserError: the workdir has no run or no such checkpoint.
    """
    directory = epath.Path(workdir) / CHECKPOINTS
    if not directory.exists():
        raise UserError(f"'{workdir}' holds no training run: there is no {CHECKPOINTS}/ in it")
    checkpoints = Checkpoints(directory, read_only=True)
    step = checkpoints.find(which)
    config = from_dict(checkpoints.restore_run(step)["config"])
    use_compilation_cache(config, epath.Path(workdir))
    mesh = make_mesh()
    validate_evaluation(config, num_devices=mesh.size, num_processes=jax.process_count())
    sources = make_sources(config)
    curriculum = make_curriculum(config, len(sources.train))
    compiler = Compiler(config, curriculum, sources.num_classes, len(sources.train), mesh, log=lambda line: None)
    state, _ = checkpoints.restore(step, compiler.abstract_state)
    checkpoints.close()
    return step, _evaluate_source(compiler.evaluation_step(), state.sets, sources.evaluation, config, mesh)
