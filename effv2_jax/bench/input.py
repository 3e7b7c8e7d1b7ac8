"""The training input: images per second of the pipeline and of its parts, against tf.data and torchvision.

All sides read the same files and make the same crops and flips, those that our pipeline draws; they take turns in
rounds. Each side draws its own RandAugment.
"""

import contextlib
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import RenderableType

from effv2_jax.bench.peers import check_installed
from effv2_jax.config import defaults, duration
from effv2_jax.curriculum import make_curriculum
from effv2_jax.data.images.crop import random_crop_box, random_flip, resize
from effv2_jax.data.images.decode import BrokenImage, Picture
from effv2_jax.data.images.randaugment import rand_augment
from effv2_jax.data.pipeline import example_generator, place_in_epoch, train_batches
from effv2_jax.data.sources.folder import EXTENSIONS, Folder
from effv2_jax.errors import UserError, check_known
from effv2_jax.monitoring.tables import empty_table

PEERS = ("tf.data", "torchvision")
PARTS = ("read", "decode", "resize", "flip", "augment", "batch", "transfer")
MAGNITUDE = 10.0  # of RandAugment
WARMUP = 4  # untimed batches: what was prefetched, and the start of threads and processes
EPOCH = 20_000  # examples: the files are repeated, so that shuffling costs what it costs on a real data set
MakeIterator = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all sides have in common.

    magnitude: of RandAugment; None is without.
    batches: that each iterator gives.
    scaled: our pipeline decodes at the scale that the size needs.
    """

    image_size: int
    magnitude: float | None
    batch_size: int
    batches: int
    scaled: bool

    def config(self, num_workers: int = 0) -> ConfigDict:
        """Of our pipeline; 0 worker processes are threads."""
        config = defaults()
        config.global_batch_size = self.batch_size
        duration(config, "total", steps=self.batches)
        config.curriculum.num_stages = 1
        config.curriculum.image_size = (self.image_size, self.image_size)
        config.curriculum.randaugment_magnitude = (self.magnitude or 0.0,) * 2
        config.data.augmentation = "none" if self.magnitude is None else "randaugment"
        config.data.num_workers = num_workers
        config.data.scaled_decoding = self.scaled
        return config


def bench_input(
    folder: str,
    sizes: Sequence[int],
    *,
    workers: Sequence[int],
    peers: Sequence[str],
    batch_size: int,
    batches: int,
    rounds: int,
    scaled: bool,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Times every size, without RandAugment and with it.

    Args:
      folder: of images, in any subfolders.
      sizes: pixels.
      workers: numbers of worker processes of our pipeline; 0 is threads.
      peers: of PEERS.
      batch_size: images.
      batches: of each side in a round.
      rounds: in which the sides take turns.
      scaled: our pipeline decodes at the scale that the size needs.
      log: takes a line of progress.

    Returns:
      {'parts': [{'image_size', 'read', 'decode', ...}], microseconds per image of each of PARTS, one after the other;
      'rates': [{'image_size', 'randaugment', 'ours, ...': images per second, ...}], the median of the rounds}.

    Raises:
      UserError: no images, an unknown peer, or one that is not installed.
    """
    for peer in peers:
        check_known("--peer", peer, PEERS)
        check_installed(peer)
    for size in sizes:
        if size < 8:
            raise UserError(f"--image_size={size} is too small; no stage is as small")
    files = _readable(folder)
    log(f"{len(files)} images in {folder}")
    copies = -(-EPOCH // len(files))
    source = Folder(folder, files * copies, [0] * len(files) * copies, ("image",))
    results: dict[str, Any] = {"parts": [], "rates": []}
    for size in sizes:
        results["parts"].append(_time_parts(source, len(files), Setting(size, MAGNITUDE, batch_size, 1, scaled)))
        for magnitude in (None, MAGNITUDE):
            log(f"{size} px, {'with' if magnitude else 'without'} RandAugment ...")
            sides = _sides(source, Setting(size, magnitude, batch_size, WARMUP + batches, scaled), workers, peers)
            rates: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(rounds):
                for side, make_iterator in sides.items():
                    rates[side].append(_rate(make_iterator, batch_size, batches))
            medians = {side: statistics.median(values) for side, values in rates.items()}
            results["rates"].append({"image_size": size, "randaugment": magnitude is not None} | medians)
    return results


def _readable(folder: str) -> list[str]:
    files = sorted(
        path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.suffix.lower() in EXTENSIONS
    )
    readable = []
    for file in files:
        with contextlib.suppress(BrokenImage, OSError):
            Picture(Path(folder, file).read_bytes()).pixels()
            readable.append(file)
    if not readable:
        raise UserError(f"there is no readable image ({', '.join(EXTENSIONS)}) in '{folder}'")
    return readable


def _sides(source: Folder, setting: Setting, workers: Sequence[int], peers: Sequence[str]) -> dict[str, MakeIterator]:
    """A function for each side that makes a new iterator of batches."""
    sides: dict[str, MakeIterator] = {}
    for number in workers:
        config = setting.config(number)
        name = f"ours, {number} processes" if number else "ours, threads"
        sides[name] = functools.partial(train_batches, source, config, make_curriculum(config, len(source)), 0)
    config = setting.config()
    draws = [_draw(source, config, position) for position in range(setting.batch_size * setting.batches)]
    paths = [path for path, _, _ in draws]
    boxes = np.array([box for _, box, _ in draws], np.int32)
    flips = np.array([flip for _, _, flip in draws])
    size, batch_size, magnitude = setting.image_size, setting.batch_size, setting.magnitude
    if "tf.data" in peers:
        from effv2_jax.bench import tf_input

        sides["tf.data"] = lambda: tf_input.batches(paths, boxes, flips, size, batch_size, magnitude)
    if "torchvision" in peers:
        from effv2_jax.bench import torch_input

        photos = torch_input.Photos(paths, boxes, flips, size, magnitude)
        loader = torch_input.loader(photos, batch_size, os.cpu_count() or 1)
        sides["torchvision"] = lambda: iter(loader)
    return sides


def _draw(source: Folder, config: ConfigDict, position: int) -> tuple[str, tuple[int, int, int, int], bool]:
    """(path, box, flip) of a stream position, as our pipeline draws them."""
    epoch, index = place_in_epoch(position, len(source), config.seed)
    picture, _ = source.load(index)
    rng = example_generator(config.seed, epoch, index)
    box = random_crop_box(picture.height, picture.width, rng, config.data.crop_area, config.data.crop_aspect_ratio)
    return source.describe(index), box, rng.random() < 0.5


def _rate(make_iterator: MakeIterator, batch_size: int, batches: int) -> float:
    """Images per second after WARMUP."""
    iterator = make_iterator()
    try:
        for _ in range(WARMUP):
            next(iterator)
        start = time.perf_counter()
        for _ in range(batches):
            next(iterator)
        return batches * batch_size / (time.perf_counter() - start)
    finally:
        if isinstance(iterator, Iterator) and hasattr(iterator, "close"):
            iterator.close()


def _time_parts(source: Folder, count: int, setting: Setting) -> dict[str, Any]:
    """Microseconds per image of each part on one thread, the faster of two passes over `count` images."""
    config, size, batch_size = setting.config(), setting.image_size, setting.batch_size
    best: dict[str, float] = {}
    for _ in range(2):
        spent = dict.fromkeys(PARTS, 0.0)
        images: list[np.ndarray] = []
        for index in range(count):
            rng = example_generator(config.seed, 0, index)
            times = [time.perf_counter()]
            picture, _ = source.load(index)
            times.append(time.perf_counter())
            box = random_crop_box(
                picture.height, picture.width, rng, config.data.crop_area, config.data.crop_aspect_ratio
            )
            crop = picture.crop(box, size if config.data.scaled_decoding else 0)
            times.append(time.perf_counter())
            image = resize(crop, size, config.data.interpolation)
            times.append(time.perf_counter())
            flipped = random_flip(image, rng)
            times.append(time.perf_counter())
            rand_augment(flipped, MAGNITUDE, rng)
            times.append(time.perf_counter())
            for name, start, end in zip(spent, times[:-1], times[1:], strict=False):
                spent[name] += end - start
            images.append(flipped)
            if len(images) == batch_size or index == count - 1:
                start = time.perf_counter()
                batch = np.stack(images)
                middle = time.perf_counter()
                jax.block_until_ready(jax.device_put(batch))
                spent["batch"] += middle - start
                spent["transfer"] += time.perf_counter() - middle
                images = []
        best = {name: min(value, best.get(name, value)) for name, value in spent.items()}
    return {"image_size": size} | {name: value / count * 1e6 for name, value in best.items()}


def input_tables(results: dict[str, Any]) -> list[RenderableType]:
    """The parts, and the rates with the ratio of our best to each peer."""
    parts = empty_table("size\n(px)", *(f"{part}\n(us)" for part in PARTS))
    for row in results["parts"]:
        parts.add_row(str(row["image_size"]), *(f"{row[part]:.0f}" for part in PARTS))
    sides = list(results["rates"][0])[2:]
    peers = [side for side in sides if side in PEERS]
    rate_headers = [f"{side}\n(images/s)" for side in sides]
    rates = empty_table("size\n(px)", "RandAugment", *rate_headers, *(f"our best\n/ {peer}" for peer in peers))
    for row in results["rates"]:
        best = max(row[side] for side in sides if side not in PEERS)
        cells = [str(row["image_size"]), "yes" if row["randaugment"] else "no"]
        cells += [f"{row[side]:.0f}" for side in sides]
        cells += [f"{best / row[peer]:.2f}x" for peer in peers]
        rates.add_row(*cells)
    return [parts, rates]
