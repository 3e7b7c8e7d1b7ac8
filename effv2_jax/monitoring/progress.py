"""How far a run is, and its log lines: metrics, speed, share of time spent waiting for input, remaining time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from effv2_jax.curriculum import Curriculum, Stage
from effv2_jax.errors import UserError
from effv2_jax.monitoring.stopwatch import Stopwatch, clock
from effv2_jax.runtime.memory import memory_mib

Results = dict[str, dict[str, float]]  # set of weights -> its 'top1', 'top5', 'loss' and 'count'


def log(line: str) -> None:
    """Prints a line on the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)


@dataclasses.dataclass
class Progress:
    """How far a run is. A checkpoint saves all of it, next to the training state.

    step: optimizer steps done.
    best: {'top1', 'step'} of the best evaluation so far, {} before the first.
    results: of the last evaluation.
    evaluation_due: the run exited before the evaluation that was due at `step`.
    unreported: metrics of the steps since the last log line.
    stopwatch: seconds by cause.
    """

    stopwatch: Stopwatch
    step: int = 0
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    results: Results = dataclasses.field(default_factory=dict)
    evaluation_due: bool = False
    unreported: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._num_restored = len(self.unreported)  # another process spent the time for these steps
        self._reported_seconds = dict(self.stopwatch.seconds)
        self._pending: tuple[int, Stage, dict[str, jax.Array]] | None = None

    def to_record(self) -> dict[str, Any]:
        """The fields, in types that JSON can hold."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"unreported": list(self.unreported), "stopwatch": dict(self.stopwatch.seconds)}

    @classmethod
    def from_record(cls, record: dict[str, Any], stopwatch: Stopwatch) -> "Progress":
        """The inverse of `to_record`, except for the stopwatch. Missing fields take their defaults."""
        names = {field.name for field in dataclasses.fields(cls)} - {"stopwatch"}
        return cls(stopwatch, **{name: record[name] for name in names if name in record})

    def add_step(self, stage: Stage, metrics: dict[str, jax.Array]) -> None:
        """Counts a dispatched step; its metrics stay on the devices until `read_pending`."""
        self.step += 1
        self._pending = self.step, stage, metrics

    def read_pending(self, last_saved: Callable[[], int | None]) -> None:
        """Waits for the last added step, and observes its metrics; arguments and errors as in `observe`."""
        if self._pending is not None:
            step, stage, metrics = self._pending
            self.observe(step, stage, jax.device_get(metrics), last_saved)
            self._pending = None

    def observe(self, step: int, stage: Stage, metrics: dict[str, Any], last_saved: Callable[[], int | None]) -> None:
        """Adds the metrics of a step to `unreported`.

        Args:
          step: its number, from 1.
          stage: of the step.
          metrics: of `learning.step.make_train_step`, on the host.
          last_saved: returns the step of the last checkpoint, or None.

        Raises:
          UserError: the loss or the gradients are not finite; the message names step, stage and checkpoint.
        """
        values = {name: value.item() for name, value in metrics.items()}
        if not values.pop("finite"):
            saved = last_saved()
            checkpoint = "no checkpoint was saved yet"
            if saved is not None:
                checkpoint = f"the last good checkpoint, step {saved}, is kept"
            raise UserError(
                f"step {step} (stage {stage.index + 1}, {stage.image_size} px) is not finite: loss {values['loss']}, "
                f"gradient norm {values['gradient_norm']}; {checkpoint}. Try a lower "
                "config.optimizer.learning_rate_per_256, a longer warm-up or config.optimizer.clip_norm"
            )
        self.unreported.append(values)

    def add_evaluation(self, results: Results) -> float:
        """Stores and logs the results of an evaluation at `step`; returns the score that ranks checkpoints."""
        self.results, self.evaluation_due = results, False
        score = results.get("ema", results["raw"])["top1"]
        if not self.best or score >= self.best["top1"]:
            self.best = {"top1": score, "step": self.step}
        log(f"step {self.step} evaluation | {describe_results(results)}")
        return score

    def report(self, stage: Stage, curriculum: Curriculum, batch_size: int) -> dict[str, float]:
        """Logs a line about the steps since the last such line; returns their means, memory and times for the metrics.

        Args:
          stage: of the last step.
          curriculum: of the run, for the remaining time.
          batch_size: examples in one optimizer step.
        """
        self.stopwatch.charge("train")
        spent = self.stopwatch.since(self._reported_seconds)
        self._reported_seconds = dict(self.stopwatch.seconds)
        running = max(spent["input"] + spent["train"], 1e-9)
        images_per_second = (len(self.unreported) - self._num_restored) * batch_size / running
        names = self.unreported[0]
        means = {name: sum(metrics[name] for metrics in self.unreported) / len(self.unreported) for name in names}
        means["learning_rate"] = self.unreported[-1]["learning_rate"]
        self.unreported, self._num_restored = [], 0
        per_device = images_per_second / jax.device_count()
        input_wait = spent["input"] / running
        eta = _remaining_pixels(curriculum, self.step, batch_size) / (stage.image_size**2 * images_per_second)
        log(
            f"step {self.step}/{curriculum.total_steps} stage {stage.index + 1}/{len(curriculum.stages)} "
            f"{stage.image_size} px | loss {means['loss']:.4f} accuracy {means['accuracy']:.1%} "
            f"lr {means['learning_rate']:.3g} | {per_device:.1f} img/s/device, input wait {input_wait:.0%} | "
            f"ETA {clock(eta)}"
        )
        means |= {
            "images_per_second_per_device": per_device,
            "input_wait_share": input_wait,
            "image_size": stage.image_size,
        }
        host = memory_mib() | {"devices": jax.device_count()}
        return (
            {f"train/{name}": value for name, value in means.items()}
            | {f"host/{name}": value for name, value in host.items()}
            | self.stopwatch.scalars()
        )


def _remaining_pixels(curriculum: Curriculum, step: int, batch_size: int) -> float:
    """Pixels still to train on. The cost of an image is taken as its area, so that the ETA holds across stages."""
    return sum(
        max(stage.end_step - max(step, stage.start_step), 0) * batch_size * stage.image_size**2
        for stage in curriculum.stages
    )


def stage_waits(stage: Stage, seconds: dict[str, float]) -> dict[str, float]:
    """The metrics of the start of a stage: seconds spent waiting for compilation and for the first batch."""
    waits = {f"stage/{cause}_wait_seconds": seconds[cause] for cause in ("compile", "input")}
    return waits | {"stage/number": stage.index + 1, "stage/image_size": stage.image_size}


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
