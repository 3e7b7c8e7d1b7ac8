"""What there is to know of a data set before training on it: counts, sizes, broken images, duplicates across splits."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from effv2_jax.data.images.decode import BrokenImage
from effv2_jax.data.inspection.duplicates import BITS, difference_hash, equal_pairs, near_pairs
from effv2_jax.data.pipeline import available_cores
from effv2_jax.data.source import Source
from effv2_jax.monitoring.progress_bar import bar
from effv2_jax.monitoring.tables import empty_table

# Bits of 128. Of 720 x 240 photos of flowers all 25 pairs up to 10 are one photo and its copy, the next has 19; of 650
# ImageNet photos the nearest two have 20; a copy of two thirds of the size and JPEG quality 60 has 6 at most.
NEAR = 10
MAX_LISTED = 10  # classes, broken images and pairs that a table has; --json has all
_BLOCK = 1024  # images of which the results are awaited together


@dataclasses.dataclass
class Images:
    """What is kept of each of N images of a split.

    Args:
      labels: of each, () where it is broken.
      sizes: int32 [N, 2], height and width; 0 where it is broken.
      digests: of its bytes, b'' where it is broken.
      hashes: uint64 [N, 2], see `difference_hash`; 0 where it is broken.
      broken: index -> reason.
    """

    labels: list[tuple[int, ...]]
    sizes: np.ndarray
    digests: list[bytes]
    hashes: np.ndarray
    broken: dict[int, str]


def look(source: Source, what: str) -> Images:
    """Decodes every image of a source; `what` is the title of the bar."""
    count = len(source)
    images = Images([()] * count, np.zeros((count, 2), np.int32), [b""] * count, np.zeros((count, 2), np.uint64), {})

    def look_at(index: int) -> None:
        try:
            picture, label = source.load(index)
            pixels = picture.pixels()
        except BrokenImage as error:
            images.broken[index] = str(error)
            return
        images.labels[index] = label if isinstance(label, tuple) else (label,)
        images.sizes[index] = pixels.shape[:2]
        images.digests[index] = hashlib.sha256(_bytes(picture.data)).digest()[:16]
        images.hashes[index] = difference_hash(pixels)

    with bar(what, count) as advance, concurrent.futures.ThreadPoolExecutor(available_cores()) as pool:
        for start in range(0, count, _BLOCK):
            block = range(start, min(start + _BLOCK, count))
            for _ in pool.map(look_at, block):
                advance(1)
    return images


def _bytes(data: bytes | np.ndarray) -> bytes:
    return data if isinstance(data, bytes) else data.tobytes()


def check(sources: Mapping[str, Source], small: int, near: int = NEAR) -> dict[str, Any]:
    """Looks at every image of every split; the result can be written as JSON.

    Args:
      sources: by the names of the splits.
      small: pixels; images with a side below are counted.
      near: bits of 128 that two hashes may differ in.

    Returns:
      {'splits': {name: {'images', 'classes': {name: count}, 'sizes': {...}, 'broken': [{'file', 'why'}]}},
      'equal', 'near': [{'first', 'second', 'labels', 'bits'}] of images in two splits}; in 'near' are none of 'equal'.
    """
    looks = {name: look(source, f"looking at {name}") for name, source in sources.items()}
    splits = {name: _describe(sources[name], images, small) for name, images in looks.items()}
    equal, close = [], []
    for one, other in itertools.combinations(sources, 2):
        first, second = looks[one], looks[other]
        same = equal_pairs(first.digests, second.digests)
        known = set(same)

        def pair(i: int, j: int, bits: int, one: str = one, other: str = other) -> dict[str, Any]:
            places = ((one, i), (other, j))
            return {
                "first": sources[one].describe(i),
                "second": sources[other].describe(j),
                "labels": [
                    " and ".join(sources[split].class_names[label] for label in looks[split].labels[index])
                    for split, index in places
                ],
                "bits": bits,
            }

        equal += [pair(i, j, 0) for i, j in same]
        close += [pair(*found) for found in near_pairs(first.hashes, second.hashes, near) if found[:2] not in known]
    return {"small": small, "near_bits": near, "splits": splits, "equal": equal, "near": close}


def _describe(source: Source, images: Images, small: int) -> dict[str, Any]:
    labels = list(itertools.chain.from_iterable(images.labels))
    counts = np.bincount(np.array(labels, int), minlength=len(source.class_names))
    sides = images.sizes[images.sizes[:, 0] > 0]
    shares: dict[str, Any] = {}
    if len(sides):
        for name, values in (("short_side", sides.min(1)), ("long_side", sides.max(1))):
            shares[name] = {
                "smallest": int(values.min()),
                "median": float(np.median(values)),
                "largest": int(values.max()),
            }
        shares["below"] = float((sides.min(1) < small).mean())
    return {
        "images": len(images.labels),
        "classes": {name: int(count) for name, count in zip(source.class_names, counts, strict=True)},
        "sizes": shares,
        "broken": [{"file": source.describe(index), "why": why} for index, why in sorted(images.broken.items())],
    }


def check_tables(results: dict[str, Any]) -> RenderableType:
    """A line a split, the smallest and largest classes, what is broken, and what is in two splits."""
    table = empty_table(
        "split", "images", "classes", "smallest\nclass", "median", "largest", "short\nside", "median", "largest",
        "long\nside", "median", "largest", f"below\n{results['small']} px", "broken",
    )  # fmt: skip
    for name, split in results["splits"].items():
        counts = sorted(split["classes"].values())
        sizes = split["sizes"]
        cells = [str(counts[0]), f"{np.median(counts):g}", str(counts[-1])]
        for side in ("short_side", "long_side"):
            values = sizes.get(side, {"smallest": "-", "median": "-", "largest": "-"})
            cells += [str(values["smallest"]), f"{values['median']:g}" if sizes else "-", str(values["largest"])]
        cells.append(f"{sizes['below']:.1%}" if sizes else "-")
        table.add_row(Text(name), str(split["images"]), str(len(counts)), *cells, str(len(split["broken"])))
    parts: list[RenderableType] = [table, *(_classes(name, split) for name, split in results["splits"].items())]
    for name, split in results["splits"].items():
        parts += _listed(f"broken in {name}", [f"{image['file']}: {image['why']}" for image in split["broken"]])
    for kind, title in (
        ("equal", "the same bytes in two splits"),
        ("near", f"nearly the same in two splits ({results['near_bits']} bits of {BITS} or fewer)"),
    ):
        parts += _listed(title, [_pair_line(pair) for pair in results[kind]])
    return Group(*parts)


def _classes(name: str, split: dict[str, Any]) -> RenderableType:
    """Classes by their numbers of images, those in the middle left out."""
    ordered = sorted(split["classes"].items(), key=lambda item: (item[1], item[0]))
    table = empty_table(f"class in {name}", "images")
    half = MAX_LISTED // 2
    cut = len(ordered) > MAX_LISTED + 1
    for class_name, count in ordered[:half] if cut else ordered:
        table.add_row(Text(class_name), str(count))
    if cut:
        table.add_row(Text(f"... {len(ordered) - MAX_LISTED} more"), "")
        for class_name, count in ordered[-half:]:
            table.add_row(Text(class_name), str(count))
    table.add_row(Text("total"), str(sum(count for _, count in ordered)))
    return table


def _pair_line(pair: dict[str, Any]) -> str:
    one, other = pair["labels"]
    labels = one if one == other else f"{one} and {other}: the labels differ"
    return f"{pair['first']} and {pair['second']} ({labels}; {pair['bits']} bits)"


def _listed(title: str, lines: list[str]) -> list[RenderableType]:
    more = [f"  ... {len(lines) - MAX_LISTED} more: --json"] if len(lines) > MAX_LISTED else []
    return [Text(f"{title}: {len(lines)}"), *(Text(f"  {line}") for line in lines[:MAX_LISTED]), *map(Text, more)]
