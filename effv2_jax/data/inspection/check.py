"""Inspects a data set before training: counts, image sizes, broken images, and duplicates across splits."""

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

# Bits of 128. Among 720 x 240 pairs of flower photos, all 25 pairs within 10 bits are copies of one photo and the next
# pair has 19. The nearest two of 650 ImageNet photos have 20. A copy of two thirds of the size and JPEG quality 60 has
# at most 6.
NEAR = 10
MAX_LISTED = 10  # classes, broken images and pairs in a table; --json lists all
_BLOCK = 1024  # images submitted to the thread pool at a time


@dataclasses.dataclass
class InspectedImages:
    """Facts about each of the N images of a split.

    Args:
      labels: one tuple per image; () if the image is broken.
      sizes: height and width, int32 [N, 2]; 0 if the image is broken.
      digests: SHA-256 of the image's bytes, truncated; b'' if the image is broken.
      hashes: uint64 [N, 2], see `difference_hash`; 0 if the image is broken.
      broken: index -> reason.
    """

    labels: list[tuple[int, ...]]
    sizes: np.ndarray
    digests: list[bytes]
    hashes: np.ndarray
    broken: dict[int, str]


def inspect(source: Source, title: str) -> InspectedImages:
    """Decodes every image of a source; `title` is shown beside the progress bar."""
    count = len(source)
    images = InspectedImages(
        labels=[()] * count,
        sizes=np.zeros((count, 2), np.int32),
        digests=[b""] * count,
        hashes=np.zeros((count, 2), np.uint64),
        broken={},
    )

    def inspect_image(index: int) -> None:
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

    with bar(title, count) as advance, concurrent.futures.ThreadPoolExecutor(available_cores()) as pool:
        for start in range(0, count, _BLOCK):
            block = range(start, min(start + _BLOCK, count))
            for _ in pool.map(inspect_image, block):
                advance(1)
    return images


def _bytes(data: bytes | np.ndarray) -> bytes:
    return data if isinstance(data, bytes) else data.tobytes()


def check(sources: Mapping[str, Source], small: int, near: int = NEAR) -> dict[str, Any]:
    """Inspects every image of every split; the result can be written as JSON.

    Args:
      sources: split name -> source.
      small: pixels; images with a shorter side are counted.
      near: the number of bits, of 128, in which the hashes of two near images may differ.

    Returns:
      {'splits': {name: {'images', 'classes': {name: count}, 'sizes': {...}, 'broken': [{'file', 'why'}]}},
      'equal', 'near': [{'first', 'second', 'labels', 'bits'}] of pairs across splits}; no pair is in both lists.
    """
    inspected = {name: inspect(source, f"inspecting {name}") for name, source in sources.items()}
    splits = {name: _describe(sources[name], images, small) for name, images in inspected.items()}
    equal, near_but_not_equal = [], []
    for one, other in itertools.combinations(sources, 2):
        first, second = inspected[one], inspected[other]
        equal_indices = equal_pairs(first.digests, second.digests)

        def pair(i: int, j: int, bits: int, one: str = one, other: str = other) -> dict[str, Any]:
            places = ((one, i), (other, j))
            return {
                "first": sources[one].describe(i),
                "second": sources[other].describe(j),
                "labels": [
                    " and ".join(sources[split].class_names[label] for label in inspected[split].labels[index])
                    for split, index in places
                ],
                "bits": bits,
            }

        equal += [pair(i, j, 0) for i, j in equal_indices]
        known = set(equal_indices)
        near_indices = near_pairs(first.hashes, second.hashes, near)
        near_but_not_equal += [pair(i, j, bits) for i, j, bits in near_indices if (i, j) not in known]
    return {"small": small, "near_bits": near, "splits": splits, "equal": equal, "near": near_but_not_equal}


def _describe(source: Source, images: InspectedImages, small: int) -> dict[str, Any]:
    labels = list(itertools.chain.from_iterable(images.labels))
    counts = np.bincount(np.array(labels, int), minlength=len(source.class_names))
    sides = images.sizes[images.sizes[:, 0] > 0]
    sizes: dict[str, Any] = {}
    if len(sides):
        for name, values in (("short_side", sides.min(1)), ("long_side", sides.max(1))):
            sizes[name] = {
                "smallest": int(values.min()),
                "median": float(np.median(values)),
                "largest": int(values.max()),
            }
        sizes["below"] = float((sides.min(1) < small).mean())
    return {
        "images": len(images.labels),
        "classes": {name: int(count) for name, count in zip(source.class_names, counts, strict=True)},
        "sizes": sizes,
        "broken": [{"file": source.describe(index), "why": why} for index, why in sorted(images.broken.items())],
    }


def check_tables(results: dict[str, Any]) -> RenderableType:
    """One row per split, then the smallest and largest classes, broken images, and images in two splits."""
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
        broken = [f"{image['file']}: {image['why']}" for image in split["broken"]]
        parts += _titled_list(f"broken images in {name}", broken)
    for kind, title in (
        ("equal", "identical bytes in two splits"),
        ("near", f"nearly identical in two splits (at most {results['near_bits']} of {BITS} bits differ)"),
    ):
        parts += _titled_list(title, [_pair_line(pair) for pair in results[kind]])
    return Group(*parts)


def _classes(name: str, split: dict[str, Any]) -> RenderableType:
    """Classes ordered by their number of images; the middle of a long list is omitted."""
    ordered = sorted(split["classes"].items(), key=lambda item: (item[1], item[0]))
    table = empty_table(f"class in {name}", "images")
    half = MAX_LISTED // 2
    is_long = len(ordered) > MAX_LISTED + 1
    for class_name, count in ordered[:half] if is_long else ordered:
        table.add_row(Text(class_name), str(count))
    if is_long:
        table.add_row(Text(f"... {len(ordered) - MAX_LISTED} more"), "")
        for class_name, count in ordered[-half:]:
            table.add_row(Text(class_name), str(count))
    table.add_row(Text("total"), str(sum(count for _, count in ordered)))
    return table


def _pair_line(pair: dict[str, Any]) -> str:
    first, second = pair["labels"]
    labels = first if first == second else f"{first} and {second}: the labels differ"
    return f"{pair['first']} and {pair['second']} ({labels}; {pair['bits']} bits)"


def _titled_list(title: str, lines: list[str]) -> list[RenderableType]:
    more = [f"  ... {len(lines) - MAX_LISTED} more; --json lists all"] if len(lines) > MAX_LISTED else []
    return [Text(f"{title}: {len(lines)}"), *(Text(f"  {line}") for line in lines[:MAX_LISTED]), *map(Text, more)]
