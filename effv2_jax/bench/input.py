"""The training input: images a second of the pipeline and of its parts, against tf.data and torchvision.

All sides read the same files, and make the same crops and flips of them, those of our pipeline; they take turns in
rounds. RandAugment's draws are each side's own.
"""

import contextlib
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
MAGNITUDE = 10.0  # of RandAugment
WARMUP = 4  # batches before the clock starts: what was made ahead, and starts of threads and processes
EXAMPLES = 20_000  # an epoch: the files as often as that, so that the order costs what it costs on a real data set
Maker = Callable[[], Any]


def measure(
    folder: str,
    sizes: Sequence[int],
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
      folder: of images, anywhere below it.
      sizes: pixels.
      workers: numbers of worker processes of our pipeline; 0 is threads.
      peers: of PEERS.
      batch_size: images.
      batches: that a round of one side takes.
      rounds: of all sides in turn.
      scaled: ours decodes at the scale that the size needs.
      log: takes a line of progress.

    Returns:
      {'parts': [{'image_size', 'read', 'decode', 'resize', 'flip', 'augment', 'batch', 'transfer'}], microseconds an
      image, one after the other; 'rates': [{'image_size', 'randaugment', 'ours, ...': images a second, ...}]}, each the
      median of the rounds.

    Raises:
      UserError: no images there, an unknown peer, or one that is not installed.
    """
    for peer in peers:
        check_known("--peer", peer, PEERS)
        check_installed(peer)
    for size in sizes:
        if size < 8:
            raise UserError(f"--image_size={size} is too small; no stage is as small")
    files = _readable(folder)
    log(f"{len(files)} images in {folder}")
    copies = -(-EXAMPLES // len(files))
    source = Folder(folder, files * copies, [0] * len(files) * copies, ("image",))
    results: dict[str, Any] = {"parts": [], "rates": []}
    for size in sizes:
        results["parts"].append(_parts(source, len(files), _config(size, MAGNITUDE, 0, batch_size, 1, scaled)))
        for magnitude in (None, MAGNITUDE):
            log(f"{size} px, {'with' if magnitude else 'without'} RandAugment ...")
            makers = _makers(source, size, magnitude, workers, peers, batch_size, WARMUP + batches, scaled)
            found: dict[str, list[float]] = {name: [] for name in makers}
            for _ in range(rounds):
                for name, make in makers.items():
                    found[name].append(_rate(make, batch_size, batches))
            medians = {name: statistics.median(values) for name, values in found.items()}
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


def _config(
    size: int, magnitude: float | None, workers: int, batch_size: int, batches: int, scaled: bool
) -> ConfigDict:
    config = defaults()
    config.global_batch_size = batch_size
    duration(config, "total", steps=batches)
    config.curriculum.num_stages = 1
    config.curriculum.image_size = (size, size)
    config.curriculum.randaugment_magnitude = (magnitude or 0.0,) * 2
    config.data.augmentation = "none" if magnitude is None else "randaugment"
    config.data.num_workers = workers
    config.data.scaled_decoding = scaled
    return config


def _makers(
    source: Folder,
    size: int,
    magnitude: float | None,
    workers: Sequence[int],
    peers: Sequence[str],
    batch_size: int,
    batches: int,
    scaled: bool,
) -> dict[str, Maker]:
    """What makes each side's iterator of batches anew."""
    makers: dict[str, Maker] = {}
    for number in workers:
        config = _config(size, magnitude, number, batch_size, batches, scaled)
        curriculum = make_curriculum(config, len(source))
        name = f"ours, {number} processes" if number else "ours, threads"
        makers[name] = functools.partial(train_batches, source, config, curriculum, 0)
    config = _config(size, magnitude, 0, batch_size, batches, scaled)
    draws = [_draw(source, config, position) for position in range(batch_size * batches)]
    paths = [path for path, _, _ in draws]
    boxes = np.array([box for _, box, _ in draws], np.int32)
    flips = np.array([flip for _, _, flip in draws])
    if "tf.data" in peers:
        from effv2_jax.bench import tf_input

        makers["tf.data"] = lambda: tf_input.batches(paths, boxes, flips, size, batch_size, magnitude)
    if "torchvision" in peers:
        from effv2_jax.bench import torch_input

        photos = torch_input.Photos(paths, boxes, flips, size, magnitude)
        loader = torch_input.loader(photos, batch_size, os.cpu_count() or 1)
        makers["torchvision"] = lambda: iter(loader)
    return makers


def _draw(source: Folder, config: ConfigDict, position: int) -> tuple[str, tuple[int, int, int, int], bool]:
    """(path, box, flip) of a stream position, as our pipeline draws them."""
    epoch, index = place_in_epoch(position, len(source), config.seed)
    picture, _ = source.load(index)
    rng = example_generator(config.seed, epoch, index)
    box = random_crop_box(picture.height, picture.width, rng, config.data.crop_area, config.data.crop_aspect_ratio)
    return source.describe(index), box, rng.random() < 0.5


def _rate(make: Maker, batch_size: int, batches: int) -> float:
    """Images a second, from the first batch after WARMUP on."""
    iterator = make()
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


def _parts(source: Folder, count: int, config: ConfigDict) -> dict[str, Any]:
    """Microseconds an image of each part, the faster of two passes over `count` images, by one thread."""
    size, batch_size = config.curriculum.image_size[0], config.global_batch_size
    best: dict[str, float] = {}
    for _ in range(2):
        spent = dict.fromkeys(("read", "decode", "resize", "flip", "augment", "batch", "transfer"), 0.0)
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
    """The parts, and the rates with their ratios to the best of ours."""
    parts = empty_table("size\n(px)", *(f"{name}\n(us)" for name in list(results["parts"][0])[1:]))
    for row in results["parts"]:
        parts.add_row(str(row["image_size"]), *(f"{value:.0f}" for name, value in row.items() if name != "image_size"))
    sides = list(results["rates"][0])[2:]
    others = [name for name in sides if not name.startswith("ours")]
    rates = empty_table(
        *("size\n(px)", "RandAugment"),
        *(f"{name}\n(images/s)" for name in sides),
        *(f"best of ours\n/ {name}" for name in others),
    )
    for row in results["rates"]:
        best = max(row[name] for name in sides if name.startswith("ours"))
        rates.add_row(
            str(row["image_size"]),
            "yes" if row["randaugment"] else "no",
            *(f"{row[name]:.0f}" for name in sides),
            *(f"{best / row[name]:.2f}x" for name in others),
        )
    return [parts, rates]
