"""The log lines of a run: speed, share of waiting for input, time to go."""

from collections.abc import Callable
from typing import Any

import jax
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effv2_jax.config.validate import warnings
from effv2_jax.curriculum import Curriculum, Stage
from effv2_jax.errors import UserError
from effv2_jax.monitoring.stopwatch import Stopwatch, clock
from effv2_jax.runtime.memory import memory_mib

Results = dict[str, dict[str, float]]  # a set of weights -> its 'top1', 'top5', 'loss' and 'count'


def log(line: str) -> None:
    """Prints a line, from the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)


class Progress:
    """Collects the metrics of steps and says every so often how the run goes.

    Args:
      curriculum: for the stage and the time to go.
      batch_size: global.
      stopwatch: of the run.
      unreported: metrics of steps before a restart, as `unreported` was.
    """

    def __init__(
        self, curriculum: Curriculum, batch_size: int, stopwatch: Stopwatch, unreported: list[dict[str, float]]
    ):
        self._curriculum = curriculum
        self._batch_size = batch_size
        self._stopwatch = stopwatch
        self._metrics = list(unreported)
        self._carried = len(unreported)  # their time was another process's
        self._before = dict(stopwatch.seconds)

    @property
    def unreported(self) -> list[dict[str, float]]:
        """The metrics of the steps since the last report."""
        return list(self._metrics)

    def observe(self, step: int, stage: Stage, metrics: dict[str, Any], last_saved: Callable[[], int | None]) -> None:
        """Takes the metrics of the step that made `step`; `last_saved` tells the step of the last checkpoint.

        Raises:
          UserError: where the loss or the gradients are not finite; names step, stage and checkpoint.
        """
        values = {name: value.item() for name, value in metrics.items()}
        if not values.pop("finite"):
            saved = last_saved()
            kept = (
                "no checkpoint was saved yet" if saved is None else f"the last good checkpoint, step {saved}, is kept"
            )
            raise UserError(
                f"step {step} (stage {stage.index + 1}, {stage.image_size} px) is not finite: loss {values['loss']}, "
                f"gradient norm {values['gradient_norm']}; {kept}. Try a lower "
                "config.optimizer.learning_rate_per_256, a longer warm-up or config.optimizer.clip_norm"
            )
        self._metrics.append(values)

    def report(self, step: int, stage: Stage) -> dict[str, float]:
        """Says a line on the steps since the last report, and returns their mean metrics under 'train/'."""
        self._stopwatch.charge("train")
        spent = self._stopwatch.since(self._before)
        self._before = dict(self._stopwatch.seconds)
        waiting, running = spent["input"], spent["input"] + spent["train"]
        images_per_second = (len(self._metrics) - self._carried) * self._batch_size / max(running, 1e-9)
        means = {name: sum(m[name] for m in self._metrics) / len(self._metrics) for name in self._metrics[0]}
        means["learning_rate"] = self._metrics[-1]["learning_rate"]
        self._metrics, self._carried = [], 0
        per_device = images_per_second / jax.device_count()
        share = waiting / max(running, 1e-9)
        eta = self._pixels_to_go(step) / (stage.image_size**2 * images_per_second)
        log(
            f"step {step}/{self._curriculum.total_steps} stage {stage.index + 1}/{len(self._curriculum.stages)} "
            f"{stage.image_size} px | loss {means['loss']:.4f} accuracy {means['accuracy']:.1%} "
            f"lr {means['learning_rate']:.3g} | {per_device:.1f} img/s/device, input wait {share:.0%} | "
            f"ETA {clock(eta)}"
        )
        extra = {"images_per_second_per_device": per_device, "input_wait_share": share, "image_size": stage.image_size}
        host = memory_mib() | {"devices": jax.device_count()}
        return (
            {f"train/{name}": value for name, value in (means | extra).items()}
            | {f"host/{name}": value for name, value in host.items()}
            | self._stopwatch.scalars()
        )

    def _pixels_to_go(self, step: int) -> float:
        """Pixels still to train on: an image's cost goes with its area, so that the ETA holds across stages."""
        return sum(
            max(stage.end_step - max(step, stage.start_step), 0) * self._batch_size * stage.image_size**2
            for stage in self._curriculum.stages
        )


def describe_run(config: ConfigDict, curriculum: Curriculum, mesh: Mesh, sources: Any, params: Any) -> None:
    """Logs the network, the data, the length and the devices of a run, and what in its config is rarely meant."""
    own = " with its own blocks" if config.model.blocks else ""
    log(
        f"{config.model.variant}{own}, {parameter_overview.count_parameters(params):,} parameters, {config.dtype}; "
        f"{len(sources.train):,} training and {len(sources.evaluation):,} evaluation examples "
        f"in {sources.num_classes} classes; "
        f"{curriculum.total_steps} steps of {config.global_batch_size} in {len(curriculum.stages)} stages; "
        f"{mesh.size} {mesh.devices.flat[0].platform} devices in {jax.process_count()} processes"
    )
    for warning in warnings(config, len(sources.train), curriculum.total_steps):
        log(f"WARNING: {warning}")


def describe_results(results: Results) -> str:
    """'raw top-1 97.2% top-5 100.0% loss 0.113 | ema ...', with the number of examples."""
    return " | ".join(
        f"{name} top-1 {shares['top1']:.2%} top-5 {shares['top5']:.2%} loss {shares['loss']:.4f} "
        f"({shares['count']} examples)"
        for name, shares in results.items()
    )


def flatten_results(results: Results) -> dict[str, float]:
    """{'evaluation/raw_top1': ...}"""
    return {f"evaluation/{name}_{key}": value for name, shares in results.items() for key, value in shares.items()}
