"""A run read from its workdir: without a lock, without writing, and from whichever files can be read."""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints
from effv2_jax.config import flatten, from_dict
from effv2_jax.config.validate import validate
from effv2_jax.curriculum import Stage, make_curriculum
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import UserError, one_line
from effv2_jax.evaluate import confidence_interval
from effv2_jax.files import is_remote
from effv2_jax.monitoring.description import CONFIG_FILE
from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics
from effv2_jax.monitoring.progress import flatten_results
from effv2_jax.monitoring.stopwatch import clock

Record = dict[str, Any]  # of the metrics file


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, finished or not.

    config: flat, {'model.variant': ...}; {} if it cannot be read.
    records: of the metrics file; [] before the first.
    stages: () if neither a checkpoint nor the data give them.
    notes: one sentence for each thing that could not be read.
    """

    workdir: epath.Path
    name: str
    config: dict[str, Any]
    records: list[Record]
    stages: tuple[Stage, ...]
    notes: tuple[str, ...]

    @property
    def step(self) -> int:
        """Of the last record."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def batch_size(self) -> int:
        return self.config.get("global_batch_size", 0)

    @property
    def seconds(self) -> dict[str, float]:
        """The stopwatch: seconds by cause, the longest first."""
        prefix = "time/"
        stopwatches = (
            {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}
            for record in self.records
        )
        last = max(stopwatches, key=lambda seconds: sum(seconds.values()), default={})
        return dict(sorted(last.items(), key=lambda item: -item[1]))

    def series(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of every record that has the metric."""
        return [(record["step"], record[metric]) for record in self.records if metric in record]

    def images_per_second(self) -> list[tuple[int, float]]:
        """(step, images per second on all devices)."""
        name = "train/images_per_second_per_device"
        return [(r["step"], r[name] * r.get("host/devices", 1)) for r in self.records if name in r]

    def image_sizes(self) -> list[tuple[int, float]]:
        """(step, pixels) at both ends of every stage that has started."""
        ends: list[tuple[int, float]] = [
            (step, stage.image_size)
            for stage in self.stages
            for step in (stage.start_step, min(stage.end_step, self.step))
            if stage.start_step < self.step
        ]
        return ends or self.series("train/image_size")

    def accuracies(self) -> list[tuple[int, float, int]]:
        """(step, top-1, examples) of every evaluation, of the averaged weights if there are any."""
        accuracies = []
        for record in self.records:
            for which in ("ema", "raw"):
                if (name := f"evaluation/{which}_top1") in record:
                    count = int(record[f"evaluation/{which}_count"])
                    accuracies.append((record["step"], record[name], count))
                    break
        return accuracies


def read_runs(workdirs: Sequence[epath.PathLike]) -> list[Run]:
    """The runs in the order of their workdirs, with unique names.

    Raises:
      UserError: a workdir without a run.
    """
    paths = list(dict.fromkeys(map(epath.Path, workdirs)))
    names = [path.name if is_remote(path) else path.expanduser().resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = list(map(str, paths))
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(workdir: epath.Path, name: str) -> Run:
    try:
        is_run = any((workdir / part).exists() for part in (CONFIG_FILE, METRICS_FILE, CHECKPOINTS))
    except Exception as error:  # any library that accesses the bucket
        raise UserError(f"the workdir '{workdir}' cannot be read: {reason(error)}") from None
    if not is_run:
        raise UserError(f"'{workdir}' holds no training run: no {CONFIG_FILE}, {METRICS_FILE} or {CHECKPOINTS}/")
    notes = []
    config: dict[str, Any] = {}
    try:
        config = json.loads((workdir / CONFIG_FILE).read_text())
    except (OSError, ValueError):  # the run is starting, or its disk was full
        notes.append(f"{CONFIG_FILE} cannot be read.")
    records: list[Record] = []
    try:
        records = read_metrics(workdir / METRICS_FILE)
    except OSError:
        notes.append(f"{METRICS_FILE} cannot be read.")
    try:
        saved = _newest_record(workdir)
    except Exception as error:  # Orbax's or TensorStore's; an active run deletes checkpoints while they are read
        saved = {}
        notes.append(f"The newest checkpoint cannot be read: {reason(error)}.")
    if saved and not config:
        config = saved["config"]
    if saved and saved["step"] > max((record["step"] for record in records), default=-1):
        records = records + _records_of(saved)
    stages: tuple[Stage, ...] = ()
    try:
        stages = tuple(Stage(**stage) for stage in saved["stages"]) if saved else _planned_stages(config)
    except Exception as error:  # the config is another version's, or the data are missing
        notes.append(f"The stages are not known: there is no checkpoint yet, and {reason(error)}.")
    return Run(workdir, name, flatten(config), records, stages, tuple(notes))


def _newest_record(workdir: epath.Path) -> Record:
    """What the newest checkpoint keeps beside the state; {} if there is none."""
    if not (workdir / CHECKPOINTS).exists():
        return {}
    checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    try:
        step = checkpoints.latest()
        return {} if step is None else checkpoints.restore_run(step)
    finally:
        checkpoints.close()


def _records_of(saved: Record) -> list[Record]:
    """Metrics from a checkpoint, for a run that stopped between two records or lost its metrics file."""
    records = []
    if saved["best"]:
        which = "ema" if "ema" in saved["results"] else "raw"
        best = {"top1": saved["best"]["top1"], "count": saved["results"][which]["count"]}
        records = [{"step": saved["best"]["step"]} | flatten_results({which: best})]
    return [*records, {"step": saved["step"]} | {f"time/{cause}": spent for cause, spent in saved["stopwatch"].items()}]


def _planned_stages(config: dict[str, Any]) -> tuple[Stage, ...]:
    experiment = from_dict(config)
    num_examples = experiment.data.num_examples or len(make_sources(experiment).train)
    validate(experiment, num_examples=num_examples)
    return make_curriculum(experiment, num_examples).stages


def reason(error: BaseException) -> str:
    """The line of an error without its full stop, for the middle of a sentence."""
    return one_line(error).rstrip(".")


def facts(run: Run) -> dict[str, tuple[str, str]]:
    """The summary of a run: {'best top-1': ('98.0 %', 'the details'), ...}."""
    accuracies = run.accuracies()
    devices = list(dict.fromkeys(str(int(count)) for _, count in run.series("host/devices")))
    custom_blocks = "with custom blocks" if run.config.get("model.blocks") else ""
    return {
        "final top-1": _accuracy(accuracies[-1:]),
        "best top-1": _accuracy(accuracies),
        "state": _state(run),
        "network": (run.config.get("model.variant", "unknown"), custom_blocks),
        "data": _data(run.config),
        "wall time": (clock(sum(run.seconds.values())) if run.seconds else "not yet known", ""),
        "images seen": (f"{run.step * run.batch_size:,}" if run.batch_size else "unknown", ""),
        "devices": (", then ".join(devices) or "not yet known", ""),
    }


def _accuracy(accuracies: Sequence[tuple[int, float, int]]) -> tuple[str, str]:
    """The best of `Run.accuracies`, the newest among equals, with its 95 % interval."""
    if not accuracies:
        return "not evaluated yet", ""
    step, share, count = max(accuracies, key=lambda item: (item[1], item[0]))
    low, high = confidence_interval(share, count)
    return f"{share:.2%}", f"95 % interval {low:.1%} to {high:.1%} ({count:,} examples), step {step:,}"


def _state(run: Run) -> tuple[str, str]:
    if not run.records:
        return "no step recorded yet", ""
    total = run.stages[-1].end_step if run.stages else 0
    if run.step == total:
        return "finished", f"{total:,} steps"
    path = run.workdir / METRICS_FILE
    when = ""
    if path.exists():
        when = f"last record {time.strftime('%Y-%m-%d %H:%M', time.localtime(path.stat().mtime))}"
    total_steps = f"{total:,}" if total else "an unknown number"
    return f"at step {run.step:,} of {total_steps}", when


def _data(config: dict[str, Any]) -> tuple[str, str]:
    if "data.source" not in config:
        return "unknown", ""
    if config["data.source"] == "digits":
        return "digits", ""
    name, split = str(config.get("data.name")), config.get("data.evaluation_split")
    held_out = config.get("data.holdout_percent")
    evaluation = f"{held_out:g} % held out" if held_out else f"evaluated on {split}"
    return name.rstrip("/").rpartition("/")[2], f"{config['data.source']} {name}, {evaluation}"
