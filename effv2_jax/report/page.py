"""The page: a template, and its sections."""

import string
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np
from etils import epath

from effv2_jax import __version__
from effv2_jax.config import defaults, flatten, to_dict
from effv2_jax.errors import UserError
from effv2_jax.files import check_place, write_atomically
from effv2_jax.monitoring.stopwatch import clock
from effv2_jax.report.charts import AVERAGED, LARGE, RAW, SERIES_COLORS, TRAINING, color_of, draw_charts
from effv2_jax.report.markup import Html, escape, paragraph, section, swatch, table
from effv2_jax.report.misclassified import misclassified_section
from effv2_jax.report.runs import Run, facts, read_runs

CAUSE_COLORS = {
    "train": "#2f9e44",
    "input": "#e8590c",
    "compile": "#7950f2",
    "evaluate": "#3b82f6",
    "checkpoint": "#0c8599",
    "start": "#868e96",
    "restart": "#c2255c",
}


def write_report(
    workdirs: Sequence[epath.PathLike], out: epath.PathLike, confusion: bool, log: Callable[[str], None]
) -> None:
    """Writes the page of the runs in `workdirs`, finished or not, and writes nothing into these.

    Args:
      workdirs: of `train.train`, local or gs://.
      out: the page; an existing file is replaced.
      confusion: classifies the evaluation images of each run with its checkpoint; if one of these cannot be read, the
        page gives the reason.
      log: takes a line of progress.

    Raises:
      UserError: a workdir without a run, or `out` cannot be written.
    """
    out = epath.Path(out).expanduser()
    if out.is_dir():
        raise UserError(f"--out='{out}' cannot be written: it is a folder")
    check_place(f"--out='{out}'", out)
    page = make_page(read_runs(workdirs), confusion, log)
    try:
        write_atomically(out, page.encode())
    except OSError as error:
        raise UserError(f"--out='{out}' cannot be written: {error}") from None


def make_page(runs: Sequence[Run], confusion: bool, log: Callable[[str], None]) -> str:
    """The page as text; arguments as for `write_report`."""
    several = len(runs) > 1
    if several:
        parts = [_results_table(runs), _notes(runs)]
        parts.append(section("Differences between the configs", _differences(runs)))
    else:
        parts = [_cards(runs[0]), _notes(runs)]
    parts += [_curves(runs), section("Stages", _stages(runs)), section("Time", _times(runs))]
    for run in runs:
        title = f"Misclassified images of {run.name}" if several else "Misclassified images"
        omitted = paragraph("Left out by --no_confusion.")
        parts.append(section(title, misclassified_section(run, log) if confusion else omitted))
    if not several:
        parts.append(section("Config", _changed_fields(runs[0])))
    names = ", ".join(run.name for run in runs)
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    template = string.Template(resources.files("effv2_jax.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{names} – effv2 report"),
        heading=escape(names if len(runs) < 4 else f"{len(runs)} runs"),
        subtitle=escape(f"{', '.join(str(run.workdir) for run in runs)} · made {made} by effv2_jax {__version__}"),
        body="\n".join(parts),
    )


def _cards(run: Run) -> Html:
    cards = (f"<div class=card>{escape(name)}{_fact(*values, 'b')}</div>" for name, values in facts(run).items())
    return Html(f"<div class=cards>{''.join(cards)}</div>")


def _results_table(runs: Sequence[Run]) -> Html:
    columns = [facts(run) for run in runs]
    names = [swatch(color_of(number), run.name) for number, run in enumerate(runs)]
    return table(["", *names], [[name, *(_fact(*column[name], "div") for column in columns)] for name in columns[0]])


def _fact(value: str, details: str, tag: str) -> Html:
    return Html(f"<{tag}>{escape(value)}</{tag}><span class=pale>{escape(details)}</span>")


def _notes(runs: Sequence[Run]) -> Html:
    several = len(runs) > 1
    return Html("".join(paragraph(f"{run.name}: {note}" if several else note) for run in runs for note in run.notes))


def _differences(runs: Sequence[Run]) -> Html:
    """The fields that differ, with one column per run."""
    fields = sorted({field for run in runs for field in run.config})
    rows = [(field, [run.config.get(field, "–") for run in runs]) for field in fields]
    differing = [[field, *map(_value, values)] for field, values in rows if any(v != values[0] for v in values)]
    if not differing:
        return paragraph("None.")
    return table(["", *(run.name for run in runs)], differing, "config")


def _changed_fields(run: Run) -> Html:
    """The fields of a run's config that differ from their defaults."""
    default_values = {field: _as_lists(value) for field, value in flatten(to_dict(defaults())).items()}
    rows = [
        [field, _value(value), _value(default_values.get(field, "–"))]
        for field, value in sorted(run.config.items())
        if _as_lists(value) != default_values.get(field)
    ]
    fields = table(["", "this run", "default"], rows, "config")
    return Html(f"<details><summary>{len(rows)} fields that differ from their defaults</summary>{fields}</details>")


def _as_lists(value: Any) -> Any:
    """Tuples as lists, as in JSON."""
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else repr(value)


def _curves(runs: Sequence[Run]) -> Html:
    charts = draw_charts(runs)
    if not charts:
        return section("Curves", paragraph("No metrics yet."))
    if len(runs) == 1:
        legend = [swatch(color, name) for name, color in SERIES_COLORS.items()]
    else:
        legend = [swatch(color_of(number), run.name) for number, run in enumerate(runs)]
        legend.append(escape(f"{AVERAGED}: points on a line; {RAW}: dashed; {TRAINING}: thin"))
    large = "".join(f"<div>{svg}</div>" for title, svg in charts.items() if title in LARGE)
    small = "".join(f"<div>{svg}</div>" for title, svg in charts.items() if title not in LARGE)
    note = "Dotted lines: the starts of stages. Training accuracy is on augmented and mixed images."
    return section(
        "Curves",
        f'<p class="legend pale">{"".join(legend)}</p><div class="charts large">{large}</div>'
        f"<div class=charts>{small}</div>{paragraph(note)}",
    )


def _stages(runs: Sequence[Run]) -> Html:
    headers = ("stage", "steps", "image size", "RandAugment", "mixup", "cutmix", "dropout", "survival", "accumulation")
    measured = ("images/s", "input wait", "stall at start")
    parts = []
    for run in runs:
        rows = []
        for stage in run.stages:
            augment = run.config.get("data.augmentation") == "randaugment"
            rows.append(
                [
                    stage.index + 1,
                    f"{stage.start_step:,} – {stage.end_step:,}",
                    f"{stage.image_size} px",
                    f"{stage.randaugment_magnitude:.3g}" if augment else "–",
                    *(f"{value:.3g}" for value in (stage.mixup_alpha, stage.cutmix_alpha, stage.dropout_rate)),
                    f"{stage.survival_probability:.3g}",
                    stage.accumulation_steps,
                    *_measured(run, stage.start_step, stage.end_step),
                ]
            )
        if rows:
            name = Html(f"<h3>{escape(run.name)}</h3>") if len(runs) > 1 else ""
            parts.append(f"{name}{table([*headers, *measured], rows, 'numbers')}")
    return Html("".join(parts))


def _measured(run: Run, start: int, end: int) -> list[str]:
    """Median speed and input-wait share of a stage's steps, and the seconds waited at its start."""

    def median(series: list[tuple[int, float]]) -> float | None:
        values = [value for step, value in series if start < step <= end]
        return float(np.median(values)) if values else None

    speed, share = median(run.images_per_second()), median(run.series("train/input_wait_share"))
    waits = [
        sum(value for name, value in record.items() if name.startswith("stage/") and name.endswith("_wait_seconds"))
        for record in run.records
        if record["step"] == start and "stage/number" in record
    ]
    return [
        "–" if speed is None else f"{speed:,.4g}",
        "–" if share is None else f"{share:.0%}",
        f"{waits[0]:.1f} s" if waits else "–",
    ]


def _times(runs: Sequence[Run]) -> Html:
    causes = [cause for cause in CAUSE_COLORS if any(cause in run.seconds for run in runs)]
    if not causes:
        return Html()
    bars, rows = [], []
    for run in runs:
        seconds = run.seconds
        total = sum(seconds.values()) or 1.0
        pieces = [_bar_piece(cause, seconds[cause], total) for cause in causes if seconds.get(cause)]
        name = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        bars.append(f"{name}<div class=bar>{''.join(pieces)}</div>")
        cells = [f"{clock(seconds.get(cause, 0))} ({seconds.get(cause, 0) / total:.0%})" for cause in causes]
        rows.append([run.name, clock(total), *cells])
    headers = ["", "total", *(swatch(CAUSE_COLORS[cause], cause) for cause in causes)]
    note = (
        "compile, input and checkpoint: training waited for them; restart: later starts, and the repeated work after "
        "the last checkpoint."
    )
    return Html(f"{''.join(bars)}{table(headers, rows, 'numbers')}{paragraph(note)}")


def _bar_piece(cause: str, seconds: float, total: float) -> str:
    label = cause if seconds > 0.08 * total else ""
    style = f"flex:{seconds:.3f};background:{CAUSE_COLORS[cause]}"
    return f'<span style="{style}" title="{cause} {clock(seconds)}">{label}</span>'
