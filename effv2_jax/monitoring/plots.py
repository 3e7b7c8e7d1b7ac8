"""Pictures of a curriculum and of a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from effv2_jax.curriculum import Curriculum
from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics

PICTURE_FILE = "metrics.png"


def draw_curriculum(curriculum: Curriculum, path: epath.PathLike, epochs_per_step: float) -> None:
    """Draws image size and regularisation over epochs; the file suffix, such as .svg or .png, sets the format."""
    from matplotlib.figure import Figure

    panels = {
        "image size (px)": "image_size",
        "RandAugment magnitude": "randaugment_magnitude",
        "mixup alpha": "mixup_alpha",
        "dropout rate": "dropout_rate",
    }
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for axes, (title, field) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for stage in curriculum.stages:
            start, end = stage.start_step * epochs_per_step, stage.end_step * epochs_per_step
            value = getattr(stage, field)
            axes.bar(start, value, end - start, align="edge", color=f"C{stage.index}", edgecolor="white")
            label = str(value) if isinstance(value, int) else f"{value:.2f}".rstrip("0").rstrip(".")
            axes.text((start + end) / 2, value, label, ha="center", va="bottom", fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, epath.Path(path))


def draw_metrics(workdir: epath.Path) -> epath.Path:
    """Draws loss, accuracy, image size and learning rate over steps from the metrics file; returns its path."""
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
    _save(figure, path)
    return path


def draw_rows(rows: Sequence[tuple[str, np.ndarray]], path: epath.PathLike) -> None:
    """Draws rows of a title and pictures, uint8 [N, S, S, 3], scaled to one width without interpolation."""
    from matplotlib.figure import Figure

    columns = max(len(pictures) for _, pictures in rows)
    figure = Figure(figsize=(1.5 * columns, 1.8 * len(rows)), layout="constrained")
    for part, (title, pictures) in zip(figure.subfigures(len(rows), 1, squeeze=False).flat, rows, strict=True):
        part.suptitle(title, fontsize=10)
        for axes, picture in zip(part.subplots(1, columns, squeeze=False).flat, pictures, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
    _save(figure, epath.Path(path))


def _save(figure: Any, path: epath.Path) -> None:
    metadata = {"Date": None} if path.suffix == ".svg" else None  # equal files for equal figures
    with path.open("wb") as file:
        figure.savefig(file, format=path.suffix[1:], dpi=120, metadata=metadata)
