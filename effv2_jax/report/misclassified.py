"""The section on misclassified images: a confusion matrix, and the most frequent confusions with their images."""

import base64
import itertools
from collections.abc import Callable

import cv2
import numpy as np

from effv2_jax.data.sources.folder import EXTENSIONS
from effv2_jax.report.confusion import Predictions, predict_run
from effv2_jax.report.markup import Html, escape, paragraph
from effv2_jax.report.runs import Run, reason

MAX_CLASSES = 12  # of the matrix
MAX_PAIRS = 8
MAX_THUMBNAILS = 5  # of a pair
THUMBNAIL = 160  # pixels of the longer side


def misclassified_section(run: Run, log: Callable[[str], None]) -> Html:
    """The section of a run, from its checkpoint and its evaluation data; if these cannot be read, the reason."""
    try:
        log(f"{run.workdir}: classifying the evaluation images")
        predictions = predict_run(run.workdir, log)
    except Exception as error:  # any library that reads data or checkpoints; the rest of the page is still of use
        return paragraph(f"Left out: {reason(error)}.")
    count = len(predictions.labels)
    unreadable = len(predictions.source) - count
    if not count:
        return paragraph("Left out: none of the evaluation images can be read.")
    summary = (
        f"{predictions.weights.capitalize()} of step {predictions.step:,}: {predictions.num_correct:,} of {count:,} "
        f"evaluation images correct ({predictions.num_correct / count:.2%})"
    )
    summary += f"; not read: {unreadable:,}." if unreadable else "."
    pairs = predictions.pairs()
    if not pairs:
        return paragraph(f"{summary} No image is misclassified.")
    shown = "".join(_pair(predictions, pair, number) for pair, number in pairs[:MAX_PAIRS])
    return Html(
        f"<p>{escape(summary)}</p>{_matrix(predictions)}<h3>The most frequent confusions, the most confident first</h3>"
        f"<div class=pairs>{shown}</div>"
    )


def _matrix(predictions: Predictions) -> Html:
    """Rows are labels, columns predictions; each cell is shaded by its share of the row."""
    classes, names = predictions.most_confused(MAX_CLASSES), predictions.class_names
    counts = predictions.matrix(classes)
    has_others = counts[:, -1].any()
    totals = counts.sum(1)
    head = "".join(f"<th><span>{escape(names[label])}</span></th>" for label in classes)
    if has_others:
        head += "<th><span>any other</span></th>"
    rows = []
    for row, label in enumerate(classes):
        cells = []
        for column, count in enumerate(counts[row] if has_others else counts[row, :-1]):
            share = count / max(totals[row], 1)
            color = "good" if column == row else "bad"
            strength = 0.55 * share if column == row else min(0.12 + 1.2 * share, 0.8)
            style = f' style="background:rgba(var(--{color}),{strength:.2f})"' if count else ""
            cells.append(f"<td{style}>{count or ''}</td>")
        name = escape(names[label])
        recall = f"{counts[row, row] / max(totals[row], 1):.0%}"
        rows.append(f'<tr><th title="{name}">{name}</th>{"".join(cells)}<td>{recall}</td></tr>')
    if len(classes) == len(names):
        which = "All classes"
    elif len(classes) < MAX_CLASSES:
        which = f"The {len(classes)} classes with errors, of {len(names)}"
    else:
        which = f"The {len(classes)} classes with the most errors"
    note = paragraph(f"{which}. Rows: true class; columns: predicted class; last column: recall.")
    return Html(
        f"{note}<div class=scroll><table class=matrix><thead><tr><th></th>{head}<th></th></tr></thead>\n<tbody>"
        f"{''.join(rows)}</tbody></table></div>"
    )


def _pair(predictions: Predictions, pair: tuple[int, int], count: int) -> Html:
    label, predicted = (predictions.class_names[number] for number in pair)
    total = int((predictions.labels == pair[0]).sum())
    pictures = ((place, predictions.picture(place)) for place in predictions.confused(pair))
    readable = ((place, picture) for place, picture in pictures if picture is not None)
    thumbnails = []
    for place, picture in itertools.islice(readable, MAX_THUMBNAILS):
        file = predictions.source.describe(int(predictions.indices[place]))
        # Sources without files describe an example as 'record 3 of ...'.
        short = file.rpartition("/")[2] if file.lower().endswith(EXTENSIONS) else file
        caption = f"{predictions.probability[place]:.0%} confident<br>{escape(short)}"
        thumbnails.append(
            f'<figure title="{escape(file)}">{_thumbnail(picture)}<figcaption>{caption}</figcaption></figure>'
        )
    return Html(
        f"<div class=pair><h3>{escape(label)} classified as {escape(predicted)}: {count:,} of {total:,}</h3>"
        f"<div class=thumbs>{''.join(thumbnails)}</div></div>"
    )


def _thumbnail(picture: np.ndarray) -> Html:
    """An image embedded in the page; the browser enlarges small ones."""
    height, width, _ = picture.shape
    is_small = max(height, width) <= THUMBNAIL // 2
    if max(height, width) > THUMBNAIL:
        scale = THUMBNAIL / max(height, width)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    suffix, kind, style, options = ".jpg", "jpeg", "", [cv2.IMWRITE_JPEG_QUALITY, 80]
    if is_small:
        suffix, kind, style, options = ".png", "png", "small", []
    _, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    encoded = base64.b64encode(data.tobytes()).decode()
    return Html(f'<img class="{style}" alt="" src="data:image/{kind};base64,{encoded}">')
