"""The page: a template, and its parts as HTML in which every text of a user is escaped."""

import base64
import html
import itertools
import string
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import Any

import cv2
import numpy as np
from etils import epath

from effv2_jax import __version__
from effv2_jax.config import defaults, flatten, to_dict
from effv2_jax.data.sources.folder import EXTENSIONS
from effv2_jax.errors import UserError
from effv2_jax.files import check_place, write_atomically
from effv2_jax.monitoring.stopwatch import clock
from effv2_jax.report.charts import AVERAGED, LARGE, RAW, SERIES_COLORS, TRAINING, color_of, draw_charts
from effv2_jax.report.confusion import Predictions, predict_run
from effv2_jax.report.runs import Run, facts, read_runs, reason

MOST_CLASSES = 12  # of the matrix
MOST_PAIRS = 8
MOST_THUMBNAILS = 5  # of a pair
THUMBNAIL = 160  # pixels of the longer side
CAUSE_COLORS = {
    "train": "#2f9e44",
    "input": "#e8590c",
    "compile": "#7950f2",
    "evaluate": "#3b82f6",
    "checkpoint": "#0c8599",
    "start": "#868e96",
    "restart": "#c2255c",
}


class Html(str):
    """Text that is HTML already."""


def escape(value: Any) -> Html:
    """For the text of an element or a quoted attribute; a byte of a file's name that is no UTF-8 becomes \\udcff."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(str(value).encode("utf-8", "backslashreplace").decode()))


def write_report(
    workdirs: Sequence[epath.PathLike], out: epath.PathLike, confusion: bool, log: Callable[[str], None]
) -> None:
    """Writes the page of the runs in `workdirs`, which need not be finished; nothing is written there.

    Args:
      workdirs: of `train.train`, local or gs://.
      out: the page; a file there is replaced.
      confusion: computes what the runs take for what, with their checkpoints and evaluation data; where these are not
        at hand, the page says so.
      log: is told of what takes long.

    Raises:
      UserError: a workdir without a run, or a place that cannot be written.
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
    """The page as text; arguments as `write_report`."""
    several = len(runs) > 1
    parts = [_results_table(runs) if several else _cards(runs[0])]
    parts += [_notes(runs)]
    if several:
        parts.append(_section("What differs between the configs", _differences(runs)))
    parts += [_curves(runs), _section("Stages", _stages(runs)), _section("Time", _times(runs))]
    parts += [
        _section(f"Mistakes{f' of {run.name}' if several else ''}", _mistakes(run, confusion, log)) for run in runs
    ]
    if not several:
        parts.append(_section("Config", _own_fields(runs[0])))
    names = ", ".join(run.name for run in runs)
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    template = string.Template(resources.files("effv2_jax.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{names} – effv2 report"),
        heading=escape(names if len(runs) < 4 else f"{len(runs)} runs"),
        subtitle=escape(f"{', '.join(str(run.workdir) for run in runs)} · made {made} by effv2_jax {__version__}"),
        body="\n".join(parts),
    )


def _section(title: str, content: str) -> Html:
    return Html(f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else "")


def _table(headers: Iterable[Any], rows: Iterable[Sequence[Any]], kind: str = "") -> Html:
    """The first cell of a row is its header."""
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = "\n".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return Html(
        f'<div class=scroll><table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _paragraph(text: str) -> Html:
    return Html(f"<p class=pale>{escape(text)}</p>")


def _swatch(color: str, text: str) -> Html:
    return Html(f'<span><i class=swatch style="background:{color}"></i>{escape(text)}</span>')


def _cards(run: Run) -> Html:
    cards = (f"<div class=card>{escape(name)}{_fact(*values, 'b')}</div>" for name, values in facts(run).items())
    return Html(f"<div class=cards>{''.join(cards)}</div>")


def _results_table(runs: Sequence[Run]) -> Html:
    columns = [facts(run) for run in runs]
    names = [_swatch(color_of(number), run.name) for number, run in enumerate(runs)]
    return _table(["", *names], [[name, *(_fact(*column[name], "div") for column in columns)] for name in columns[0]])


def _fact(value: str, details: str, tag: str) -> Html:
    return Html(f"<{tag}>{escape(value)}</{tag}><span class=pale>{escape(details)}</span>")


def _notes(runs: Sequence[Run]) -> Html:
    several = len(runs) > 1
    return Html("".join(_paragraph(f"{run.name}: {note}" if several else note) for run in runs for note in run.notes))


def _differences(runs: Sequence[Run]) -> Html:
    """The fields that differ, a column a run."""
    fields = sorted({field for run in runs for field in run.config})
    rows = [(field, [run.config.get(field, "–") for run in runs]) for field in fields]
    differing = [[field, *map(_value, values)] for field, values in rows if any(v != values[0] for v in values)]
    return _table(["", *(run.name for run in runs)], differing, "config") if differing else _paragraph("Nothing.")


def _own_fields(run: Run) -> Html:
    """What the config of one run has otherwise than the defaults."""
    usual = {field: _listed(value) for field, value in flatten(to_dict(defaults())).items()}
    rows = [
        [field, _value(value), _value(usual.get(field, "–"))]
        for field, value in sorted(run.config.items())
        if _listed(value) != usual.get(field)
    ]
    table = _table(["", "this run", "default"], rows, "config")
    return Html(f"<details><summary>{len(rows)} fields that are not at their defaults</summary>{table}</details>")


def _listed(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else repr(value)


def _curves(runs: Sequence[Run]) -> Html:
    charts = draw_charts(runs)
    if not charts:
        return _section("Curves", _paragraph("No metrics yet."))
    if len(runs) == 1:
        legend = [_swatch(color, name) for name, color in SERIES_COLORS.items()]
    else:
        legend = [_swatch(color_of(number), run.name) for number, run in enumerate(runs)]
        legend.append(escape(f"{AVERAGED}: points on a line; {RAW}: dashed; {TRAINING}: thin"))
    large = "".join(f"<div>{svg}</div>" for title, svg in charts.items() if title in LARGE)
    small = "".join(f"<div>{svg}</div>" for title, svg in charts.items() if title not in LARGE)
    note = "Dotted lines: where a stage begins. Training accuracy is on augmented and mixed images."
    return _section(
        "Curves",
        f'<p class="legend pale">{"".join(legend)}</p><div class="charts large">{large}</div>'
        f"<div class=charts>{small}</div>{_paragraph(note)}",
    )


def _stages(runs: Sequence[Run]) -> Html:
    headers = ("stage", "steps", "image size", "RandAugment", "mixup", "cutmix", "dropout", "survival", "accumulation")
    measured = ("images/s", "input wait", "stall at its start")
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
            parts.append(f"{name}{_table([*headers, *measured], rows, 'numbers')}")
    return Html("".join(parts))


def _measured(run: Run, start: int, end: int) -> list[str]:
    """Median speed and share of waiting for input of the steps of a stage, and what its start waited."""

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
        pieces = "".join(
            f'<span style="flex:{seconds[cause]:.3f};background:{CAUSE_COLORS[cause]}" '
            f'title="{cause} {clock(seconds[cause])}">{cause if seconds[cause] > 0.08 * total else ""}</span>'
            for cause in causes
            if seconds.get(cause)
        )
        name = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        bars.append(f"{name}<div class=bar>{pieces}</div>")
        cells = [f"{clock(seconds.get(cause, 0))} ({seconds.get(cause, 0) / total:.0%})" for cause in causes]
        rows.append([run.name, clock(total), *cells])
    headers = ["", "in all", *(_swatch(CAUSE_COLORS[cause], cause) for cause in causes)]
    note = (
        "compile, input and checkpoint: the training waited for them; restart: later starts, and work after the last "
        "checkpoint that was done again."
    )
    return Html(f"{''.join(bars)}{_table(headers, rows, 'numbers')}{_paragraph(note)}")


def _mistakes(run: Run, confusion: bool, log: Callable[[str], None]) -> Html:
    if not confusion:
        return _paragraph("Left out by --no_confusion.")
    try:
        log(f"{run.workdir}: naming the evaluation images")
        predictions = predict_run(run.workdir, log)
    except Exception as error:  # of whatever the data and the checkpoint lie in; the rest of the page is worth having
        return _paragraph(f"Left out: {reason(error)}.")
    number, unreadable = len(predictions.labels), len(predictions.source) - len(predictions.labels)
    if not number:
        return _paragraph("Left out: none of the evaluation images can be read.")
    text = (
        f"{predictions.weights.capitalize()} of step {predictions.step:,}: {predictions.right:,} of {number:,} "
        f"evaluation images right ({predictions.right / number:.2%})"
    )
    text += f"; not read: {unreadable:,}." if unreadable else "."
    pairs = predictions.pairs()
    if not pairs:
        return _paragraph(f"{text} There is no mistake to show.")
    return Html(
        f"<p>{escape(text)}</p>{_matrix(predictions)}<h3>The most frequent mistakes, the surest first</h3>"
        f"<div class=pairs>{''.join(_pair(predictions, pair, count) for pair, count in pairs[:MOST_PAIRS])}</div>"
    )


def _matrix(predictions: Predictions) -> Html:
    """Rows are the labels, columns what they are taken for; each cell shaded by its share of the row."""
    classes, names = predictions.most_confused(MOST_CLASSES), predictions.class_names
    counts = predictions.matrix(classes)
    other = counts[:, -1].any()
    totals = counts.sum(1)
    head = "".join(f"<th><span>{escape(names[label])}</span></th>" for label in classes)
    head += "<th><span>any other</span></th>" if other else ""
    rows = []
    for row, label in enumerate(classes):
        cells = []
        for column, count in enumerate(counts[row] if other else counts[row, :-1]):
            share = count / max(totals[row], 1)
            color = "good" if column == row else "bad"
            strength = 0.55 * share if column == row else min(0.12 + 1.2 * share, 0.8)
            style = f' style="background:rgba(var(--{color}),{strength:.2f})"' if count else ""
            cells.append(f"<td{style}>{count or ''}</td>")
        name = escape(names[label])
        recall = f"{counts[row, row] / max(totals[row], 1):.0%}"
        rows.append(f'<tr><th title="{name}">{name}</th>{"".join(cells)}<td>{recall}</td></tr>')
    which = "All classes" if len(classes) == len(names) else f"The {len(classes)} classes in most mistakes"
    if len(classes) < len(names) and len(classes) < MOST_CLASSES:
        which = f"The {len(classes)} classes with mistakes, of {len(names)}"
    note = _paragraph(f"{which}. Rows: what they are; columns: what they are taken for; last: how many are right.")
    return Html(
        f"{note}<div class=scroll><table class=matrix><thead><tr><th></th>{head}<th></th></tr></thead>\n<tbody>"
        f"{''.join(rows)}</tbody></table></div>"
    )


def _pair(predictions: Predictions, pair: tuple[int, int], count: int) -> Html:
    label, taken_for = (predictions.class_names[number] for number in pair)
    of = int((predictions.labels == pair[0]).sum())
    pictures = ((place, predictions.picture(place)) for place in predictions.mistaken(pair))
    shown = itertools.islice(((place, picture) for place, picture in pictures if picture is not None), MOST_THUMBNAILS)
    thumbs = []
    for place, picture in shown:
        file = predictions.source.describe(int(predictions.indices[place]))
        short = file.rpartition("/")[2] if file.lower().endswith(EXTENSIONS) else file  # or 'record 3 of ...'
        caption = f"{predictions.probability[place]:.0%} sure<br>{escape(short)}"
        thumbs.append(
            f'<figure title="{escape(file)}">{_thumbnail(picture)}<figcaption>{caption}</figcaption></figure>'
        )
    return Html(
        f"<div class=pair><h3>{escape(label)} taken for {escape(taken_for)}: {count:,} of {of:,}</h3>"
        f"<div class=thumbs>{''.join(thumbs)}</div></div>"
    )


def _thumbnail(picture: np.ndarray) -> Html:
    """An image within the page: small ones as they are, for the browser to enlarge."""
    height, width, _ = picture.shape
    small = max(height, width) <= THUMBNAIL // 2
    if max(height, width) > THUMBNAIL:
        scale = THUMBNAIL / max(height, width)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    ending, kind = (".png", "png") if small else (".jpg", "jpeg")
    options = [] if small else [cv2.IMWRITE_JPEG_QUALITY, 80]
    _, data = cv2.imencode(ending, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    encoded = base64.b64encode(data.tobytes()).decode()
    return Html(f'<img class="{"small" if small else ""}" alt="" src="data:image/{kind};base64,{encoded}">')
