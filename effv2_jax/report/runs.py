"""What a workdir tells of its run. Only reads, takes no lock, and makes do with what is there."""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints
from effv2_jax.config import flatten, from_dict
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

    config: flat, {'model.variant': ...}; {} where it cannot be read.
    records: of the metrics file; [] before the first.
    stages: () where neither a checkpoint nor the data at hand tell them.
    notes: what could not be read, a sentence each.
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
        causes = ({k[5:]: v for k, v in record.items() if k.startswith("time/")} for record in self.records)
        last = max(causes, key=lambda seconds: sum(seconds.values()), default={})
        return dict(sorted(last.items(), key=lambda item: -item[1]))

    def series(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of every record that has the metric."""
        return [(record["step"], record[metric]) for record in self.records if metric in record]

    def images_per_second(self) -> list[tuple[int, float]]:
        """(step, images a second on all devices)."""
        name = "train/images_per_second_per_device"
        return [(r["step"], r[name] * r.get("host/devices", 1)) for r in self.records if name in r]

    def image_sizes(self) -> list[tuple[int, float]]:
        """(step, pixels) at both ends of every stage that has begun."""
        ends: list[tuple[int, float]] = [
            (step, stage.image_size)
            for stage in self.stages
            for step in (stage.start_step, min(stage.end_step, self.step))
            if stage.start_step < self.step
        ]
        return ends or self.series("train/image_size")

    def accuracies(self) -> list[tuple[int, float, int]]:
        """(step, top-1, examples) of every evaluation, of the averaged weights where there are any."""
        found = []
        for record in self.records:
            for which in ("ema", "raw"):
                if (name := f"evaluation/{which}_top1") in record:
                    found.append((record["step"], record[name], int(record[f"evaluation/{which}_count"])))
                    break
        return found


def read_runs(workdirs: Sequence[epath.PathLike]) -> list[Run]:
    """The runs in the order of their workdirs, each with a name of its own.

    Raises:
      UserError: a workdir that holds no run.
    """
    paths = list(dict.fromkeys(map(epath.Path, workdirs)))
    last = [path.expanduser().resolve().name if not is_remote(path) else path.name for path in paths]
    names = last if len(set(last)) == len(last) else list(map(str, paths))
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(workdir: epath.Path, name: str) -> Run:
    try:
        known = any((workdir / part).exists() for part in (CONFIG_FILE, METRICS_FILE, CHECKPOINTS))
    except Exception as error:  # of whichever library speaks to the bucket
        raise UserError(f"the workdir '{workdir}' cannot be read: {reason(error)}") from None
    if not known:
        raise UserError(f"'{workdir}' holds no training run: no {CONFIG_FILE}, {METRICS_FILE} or {CHECKPOINTS}/")
    notes = []
    config: dict[str, Any] = {}
    try:
        config = json.loads((workdir / CONFIG_FILE).read_text())
    except (OSError, ValueError):  # of a run that begins, or whose disk was full
        notes.append(f"{CONFIG_FILE} cannot be read.")
    records: list[Record] = []
    try:
        records = read_metrics(workdir / METRICS_FILE)
    except OSError:
        notes.append(f"{METRICS_FILE} cannot be read.")
    try:
        saved = _newest_record(workdir)
    except Exception as error:  # of Orbax and TensorStore; a run that goes on deletes checkpoints while they are read
        saved = {}
        notes.append(f"The newest checkpoint cannot be read: {reason(error)}.")
    if saved and not config:
        config = saved["config"]
    if saved and saved["step"] > max((record["step"] for record in records), default=-1):
        records = records + _records_of(saved)
    stages: tuple[Stage, ...] = ()
    try:
        stages = tuple(Stage(**stage) for stage in saved["stages"]) if saved else _planned_stages(config)
    except Exception as error:  # a config of another version, or data that are not at hand
        notes.append(f"The stages are not known: there is no checkpoint yet, and {reason(error)}.")
    return Run(workdir, name, flatten(config), records, stages, tuple(notes))


def _newest_record(workdir: epath.Path) -> Record:
    """What the newest checkpoint keeps beside the state; {} where there is none."""
    if not (workdir / CHECKPOINTS).exists():
        return {}
    checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    try:
        step = checkpoints.latest()
        return {} if step is None else checkpoints.restore_run(step)
    finally:
        checkpoints.close()


def _records_of(saved: Record) -> list[Record]:
    """What a checkpoint knows of the metrics, for a run that stopped between two records, or whose file is lost."""
    records = []
    if saved["best"]:
        which = "ema" if "ema" in saved["results"] else "raw"
        best = {"top1": saved["best"]["top1"], "count": saved["results"][which]["count"]}
        records = [{"step": saved["best"]["step"]} | flatten_results({which: best})]
    return [*records, {"step": saved["step"]} | {f"time/{cause}": spent for cause, spent in saved["stopwatch"].items()}]


def _planned_stages(config: dict[str, Any]) -> tuple[Stage, ...]:
    whole = from_dict(config)
    return make_curriculum(whole, whole.data.num_examples or len(make_sources(whole).train)).stages


def reason(error: BaseException) -> str:
    """An error in a few words, for the middle of a sentence."""
    return one_line(error).rstrip(".")


def facts(run: Run) -> dict[str, tuple[str, str]]:
    """What a person wants to know of a run first: {'best top-1': ('98.0 %', 'the details'), ...}."""
    accuracies = run.accuracies()
    devices = list(dict.fromkeys(str(int(count)) for _, count in run.series("host/devices")))
    own_blocks = "with its own blocks" if run.config.get("model.blocks") else ""
    return {
        "final top-1": _accuracy(accuracies[-1:]),
        "best top-1": _accuracy(accuracies),
        "state": _state(run),
        "network": (run.config.get("model.variant", "not known"), own_blocks),
        "data": _data(run.config),
        "wall time": (clock(sum(run.seconds.values())) if run.seconds else "not known yet", ""),
        "images seen": (f"{run.step * run.batch_size:,}" if run.batch_size else "not known", ""),
        "devices": (", then ".join(devices) or "not known yet", ""),
    }


def _accuracy(accuracies: Sequence[tuple[int, float, int]]) -> tuple[str, str]:
    """The best of `Run.accuracies`, the newest of equals, with its 95 % interval."""
    if not accuracies:
        return "not evaluated yet", ""
    step, share, count = max(accuracies, key=lambda item: (item[1], item[0]))
    low, high = confidence_interval(share, count)
    return f"{share:.2%}", f"95 % interval {low:.1%} to {high:.1%} ({count:,} examples), step {step:,}"


def _state(run: Run) -> tuple[str, str]:
    if not run.records:
        return "no step was recorded yet", ""
    total = run.stages[-1].end_step if run.stages else 0
    if run.step == total:
        return "finished", f"{total:,} steps"
    path = run.workdir / METRICS_FILE
    written = path.stat().mtime if path.exists() else None
    when = f"last record {time.strftime('%Y-%m-%d %H:%M', time.localtime(written))}" if written else ""
    return f"at step {run.step:,} of {f'{total:,}' if total else 'an unknown number'}", when


def _data(config: dict[str, Any]) -> tuple[str, str]:
    if "data.source" not in config:
        return "not known", ""
    if config["data.source"] == "digits":
        return "digits", ""
    name, split = str(config.get("data.name")), config.get("data.evaluation_split")
    held_out = config.get("data.holdout_percent")
    how = f"{held_out:g} % held out" if held_out else f"evaluated on {split}"
    return name.rstrip("/").rpartition("/")[2], f"{config['data.source']} {name}, {how}"
