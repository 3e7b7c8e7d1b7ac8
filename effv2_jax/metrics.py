"""Where metrics go: TensorBoard files (clu), `metrics.jsonl`, and `metrics.png` at the end of a run."""

import json
import os
from typing import Any, Protocol

from etils import epath

METRICS_FILE = "metrics.jsonl"
PICTURE_FILE = "metrics.png"


class Writer(Protocol):
    """What a training loop needs of a metric writer."""

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, {'step': 100, 'train/loss': 2.3, ...}; starts by dropping what lies beyond `step`.

    The file is rewritten as a whole, so that it works on object stores and a crash leaves the old file or the new one.
    """

    def __init__(self, path: epath.Path, step: int):
        self._path = path
        self._lines = [json.dumps(record) for record in read_metrics(path) if record["step"] <= step]

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        self._lines.append(json.dumps({"step": step} | {name: float(value) for name, value in scalars.items()}))

    def flush(self) -> None:
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_text("".join(line + "\n" for line in self._lines))
        temporary.replace(self._path)

    close = flush


class Writers:
    """Writes to several writers in turn."""

    def __init__(self, writers: list[Writer]):
        self._writers = writers

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def make_writers(workdir: epath.Path, step: int, active: bool) -> Writers:
    """TensorBoard and JSON lines in `workdir`, for a run that goes on at `step`; nothing where not `active`."""
    if not active:
        return Writers([])
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # says so at length otherwise
    from clu import metric_writers  # imports TensorFlow: seconds, and only the process that writes pays them

    return Writers([metric_writers.SummaryWriter(str(workdir)), JsonLines(workdir / METRICS_FILE, step)])


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a metrics file, in order; [] where there is none."""
    path = epath.Path(path)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def draw_metrics(workdir: epath.Path) -> epath.Path:
    """Draws loss, accuracy, image size and learning rate over steps from the metrics file; returns the picture."""
    from matplotlib.figure import Figure

    records = read_metrics(workdir / METRICS_FILE)
    panels = {
        "loss": {"train/loss": "training", "evaluation/raw_loss": "raw", "evaluation/ema_loss": "averaged"},
        "accuracy": {"train/accuracy": "training", "evaluation/raw_top1": "raw", "evaluation/ema_top1": "averaged"},
        "image size (px)": {"train/image_size": "training"},
        "learning rate": {"train/learning_rate": "training"},
    }
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (title, series) in zip(figure.subplots(2, 2, sharex=True).flat, panels.items(), strict=True):
        for name, label in series.items():
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                style = {"drawstyle": "steps-pre"} if name == "train/image_size" else {}
                marker = "o" if name.startswith("evaluation") else None
                axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, **style)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    path = workdir / PICTURE_FILE
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=120)
    return path
