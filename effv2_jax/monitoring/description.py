"""The description of a run: its first and last log lines, and the files in its workdir that describe it."""

import json
from typing import Any

import jax
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effv2_jax.config import to_dict
from effv2_jax.config.validate import warnings
from effv2_jax.curriculum import Curriculum
from effv2_jax.files import write_atomically
from effv2_jax.learning.optimizer import FACTORS, describe_factors
from effv2_jax.monitoring.metrics import METRICS_FILE, Writers, make_writers
from effv2_jax.monitoring.plots import draw_metrics
from effv2_jax.monitoring.progress import Progress, describe_results, log
from effv2_jax.monitoring.wandb_writer import WandbWriter
from effv2_jax.network.types import PyTree

CONFIG_FILE = "config.json"
PARAMETERS_FILE = "parameters.txt"


def describe_run(config: ConfigDict, curriculum: Curriculum, mesh: Mesh, sources: Any, params: PyTree) -> None:
    """Logs network, data, length and devices of a run, and warnings about settings that are valid but rarely meant."""
    blocks = " with its own blocks" if config.model.blocks else ""
    log(
        f"{config.model.variant}{blocks}, {parameter_overview.count_parameters(params):,} parameters, {config.dtype}; "
        f"{len(sources.train):,} training and {len(sources.evaluation):,} evaluation examples "
        f"in {sources.num_classes} classes; "
        f"{curriculum.total_steps} steps of {config.global_batch_size} in {len(curriculum.stages)} stages; "
        f"{mesh.size} {mesh.devices.flat[0].platform} devices in {jax.process_count()} processes"
    )
    for warning in warnings(config, len(sources.train), curriculum.total_steps):
        log(f"WARNING: {warning}")


def open_writers(
    workdir: epath.Path, config: ConfigDict, params: PyTree, step: int, wandb_project: str | None
) -> Writers:
    """Writes config and list of parameters, and opens the metric writers; does nothing except on the first process.

    Args:
      workdir: of the run.
      config: of the experiment.
      params: the parameters of the network.
      step: at which the run starts or resumes.
      wandb_project: of Weights & Biases; '' selects its default, None disables it.
    """
    if jax.process_index() != 0:
        return Writers([])
    write_atomically(workdir / CONFIG_FILE, json.dumps(to_dict(config), indent=1).encode())
    # The rules that decide a parameter's weight decay and learning rate.
    rules = [line for field in FACTORS for line in describe_factors(config, field, params)]
    lines = [parameter_overview.get_parameter_overview(params), *rules]
    write_atomically(workdir / PARAMETERS_FILE, ("\n".join(lines) + "\n").encode())
    others = [] if wandb_project is None else [lambda: WandbWriter(workdir, config, wandb_project)]
    return make_writers(workdir, step, others)


def describe_end(progress: Progress, unreadable: dict[str, Any], workdir: epath.Path, checkpoints: epath.Path) -> None:
    """Logs time and results of a finished run, and draws its metrics.

    Args:
      progress: at the last step.
      unreadable: split -> `data.pipeline.BrokenCounter`.
      workdir: of the run.
      checkpoints: the folder of its checkpoints.
    """
    log(f"finished {progress.step} steps in {progress.stopwatch.summary()}")
    if any(counter.count for counter in unreadable.values()):
        counts = ", ".join(f"{counter.count} in {split}" for split, counter in unreadable.items())
        log(f"unreadable images: {counts}")
    log(f"result at step {progress.step} | {describe_results(progress.results)}")
    log(f"best top-1 {progress.best['top1']:.2%} at step {progress.best['step']}; checkpoints in {checkpoints}")
    if jax.process_index() == 0:
        log(f"metrics in {workdir} (TensorBoard files, {METRICS_FILE}); picture in {draw_metrics(workdir)}")
