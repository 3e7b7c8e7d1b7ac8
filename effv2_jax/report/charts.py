"""Curves of runs as inline SVG, in the page's text colour and without any text of a user."""

import io
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from effv2_jax.report.runs import Run

# Readable on light and on dark.
RUN_COLORS = ("#3b82f6", "#e8590c", "#2f9e44", "#c2255c", "#7950f2", "#0c8599", "#b08000", "#868e96")
TRAINING, RAW, AVERAGED = "training", "raw weights", "averaged weights"
SERIES_COLORS = {TRAINING: "#868e96", RAW: "#e8590c", AVERAGED: "#3b82f6"}  # of a single run
CHARTS = {
    "loss": {TRAINING: "train/loss", RAW: "evaluation/raw_loss", AVERAGED: "evaluation/ema_loss"},
    "top-1 (%)": {TRAINING: "train/accuracy", RAW: "evaluation/raw_top1", AVERAGED: "evaluation/ema_top1"},
    "learning rate": {TRAINING: "train/learning_rate"},
    "image size (px)": {TRAINING: "train/image_size"},
    "gradient norm": {TRAINING: "train/gradient_norm"},
    "images per second, all devices": {TRAINING: "images_per_second"},
    "waiting for input (% of the time)": {TRAINING: "train/input_wait_share"},
    "memory of the first process (MiB)": {TRAINING: "host/memory_mib"},
}
MAY_BE_LOGARITHMIC = ("loss", "gradient norm")  # if the largest value is LOGARITHMIC_FROM times the median
LOGARITHMIC_FROM = 10
LARGE = ("loss", "top-1 (%)")
MAX_POINTS = 300  # of a curve; more are invisible at this size
MAX_MARKERS = 60  # each is an element of its own
MAX_LABELS = 8  # of stages
_INK = "#010203"  # stands for the page's text colour


def color_of(number: int) -> str:
    """The colour of run `number`."""
    return RUN_COLORS[number % len(RUN_COLORS)]


def draw_charts(runs: Sequence[Run]) -> dict[str, str]:
    """Title -> SVG of the charts that have records; over images if the batch sizes differ, else over steps."""
    by_images = len({run.batch_size for run in runs}) > 1 and all(run.batch_size for run in runs)
    charts = {}
    for title, series in CHARTS.items():
        lines = [
            (number, label, points)
            for (number, run), (label, metric) in itertools.product(enumerate(runs), series.items())
            if (points := _points(run, metric, by_images, 100 if "%" in title else 1))
        ]
        if lines:
            charts[title] = _draw(title, lines, runs, by_images)
    return charts


def _points(run: Run, metric: str, by_images: bool, factor: float) -> list[tuple[float, float]]:
    derived: dict[str, Callable] = {"images_per_second": run.images_per_second, "train/image_size": run.image_sizes}
    points = derived[metric]() if metric in derived else run.series(metric)
    scale = run.batch_size if by_images else 1
    return thin([(step * scale, value * factor) for step, value in points])


def thin(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `most` of the points, in order: both ends, and the lowest and highest of each of equal parts."""
    if len(points) <= most:
        return list(points)
    kept = {0, len(points) - 1}
    values = np.array([value for _, value in points])
    for part in np.array_split(np.arange(len(points)), (most - 2) // 2):
        kept |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    return [points[index] for index in sorted(kept)]


def _draw(title: str, lines: list[tuple[int, str, Any]], runs: Sequence[Run], by_images: bool) -> str:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    inked = ("text.color", "xtick.color", "ytick.color", "axes.edgecolor", "axes.labelcolor", "grid.color")
    style: Any = dict.fromkeys(inked, _INK) | {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.2, 3.6) if title in LARGE else (4.4, 2.7), layout="constrained")
        axes = figure.subplots()
        alone = len(CHARTS[title]) == 1
        for number, label, points in lines:
            color = color_of(number)
            if len(runs) == 1:
                color = _INK if alone else SERIES_COLORS[label]
            thin_line = label == TRAINING and not alone
            axes.plot(
                *zip(*points, strict=True),
                color=color,
                alpha=0.6 if thin_line else 1,
                linestyle="--" if label == RAW else "-",
                linewidth=1 if thin_line else 1.5,
                marker="o" if len(points) == 1 or (label != TRAINING and len(points) <= MAX_MARKERS) else None,
                markersize=3.5,
            )
        axes.set_title(title, loc="left", fontsize=10, pad=14)
        axes.set_xlabel("images" if by_images else "step")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6 if title in LARGE else 5, integer=True))
        axes.grid(alpha=0.15, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        _set_scale(axes, title, [value for _, _, points in lines for _, value in points])
        end = max(run.step * (run.batch_size if by_images else 1) for run in runs) or 1
        axes.set_xlim(0, 1.01 * end)
        _mark_stages(axes, runs, by_images)
        return _to_inline(figure, title)


def _set_scale(axes: Any, title: str, values: list[float]) -> None:
    """Starts at 0, or is logarithmic if a few large values would flatten the others."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    if title in MAY_BE_LOGARITHMIC and min(values) > 0 and max(values) > LOGARITHMIC_FROM * np.median(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    elif min(values) >= 0:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}" if title == "learning rate" else "{x:,.6g}"))


def _mark_stages(axes: Any, runs: Sequence[Run], by_images: bool) -> None:
    """A dotted line at each boundary; the image sizes too if all runs have the same stages."""
    stages = {(run.stages, run.batch_size if by_images else 1): run for run in runs if run.stages}
    end = axes.get_xlim()[1]
    for (stages_of_run, scale), run in stages.items():
        color = _INK if len(stages) == 1 else color_of(runs.index(run))
        for stage in stages_of_run:
            if stage.index and stage.start_step * scale < end:
                axes.axvline(stage.start_step * scale, color=color, alpha=0.5, linewidth=0.8, linestyle=":")
            middle = (stage.start_step + stage.end_step) / 2 * scale
            if len(stages) == 1 and len(stages_of_run) <= MAX_LABELS and middle < end:
                axes.text(
                    middle,
                    1,
                    f"{stage.image_size} px",
                    transform=axes.get_xaxis_transform(),
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    alpha=0.7,
                )


def _to_inline(figure: Any, title: str) -> str:
    """The SVG element alone, without ids that several on one page would share, and without namespace addresses."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| id="[\w.]+_\d+"', "", svg)
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg)
    svg = re.sub(r'^<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
