"""ArrayRecord files as TFDS reads them, written by several processes, each file as a whole or not at all.

Which image is where in which file is a function of the images' names alone: the same on every machine, with any number
of processes, and however often the work was interrupted.
"""

import concurrent.futures.process
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from etils import epath

from effv2_jax.data.images.decode import BrokenImage, Picture
from effv2_jax.data.preparation.image_index import Listing
from effv2_jax.errors import Unavailable, UserError
from effv2_jax.files import AtomicFile, is_remote, write_atomically

RECORDS = "prepare"  # folder of what is known of finished shards, while others are not
IMAGES_PER_SHARD = 4096  # of ImageNet 0.45 GB: what an interruption loses of each process's work
MAX_SHARDS = 512  # a reader keeps all of them open, and a process often may have only 1024 files
JPEG_ENDINGS = (".jpg", ".jpeg")
QUALITY = 100  # of an image that has to be encoded again, as TFDS does: a few images, no loss that is worth a byte


def shuffled(listing: Listing, split: str) -> np.ndarray:
    """The order of the images in the files, int64 [N]: by a hash of split and name.

    A random order, so that 'train[:25021]' is a random sample, and yet one that needs no seed, no library's random
    numbers and no other images: each name has its place for good.
    """
    keys = [hashlib.sha256(f"{split}/".encode() + name).digest() for name in listing.names]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to write: `listing` holds its images in their order."""

    folder: str
    name: str  # of the file
    listing: Listing
    strict: bool  # a broken image stops the work

    @property
    def path(self) -> epath.Path:
        return epath.Path(self.folder) / self.name

    @property
    def record_path(self) -> epath.Path:
        return epath.Path(self.folder) / RECORDS / f"{self.name}.json"


def make_shards(folder: epath.Path, data_set: str, split: str, listing: Listing, strict: bool) -> list[Shard]:
    """The files of a split, whose numbers of images differ by one at most."""
    order = shuffled(listing, split)
    count = min(MAX_SHARDS, -(-len(listing) // IMAGES_PER_SHARD))
    bounds = [len(listing) * index // count for index in range(count + 1)]
    return [
        Shard(
            str(folder),
            f"{data_set}-{split}.array_record-{index:05}-of-{count:05}",
            listing.take(order[bounds[index] : bounds[index + 1]]),
            strict,
        )
        for index in range(count)
    ]


def finished(shard: Shard) -> dict[str, Any] | None:
    """What `write_shard` gave when it wrote this very shard whole, or None: what was left out may be mended by now."""
    try:
        record = json.loads(shard.record_path.read_text())
        known = record["fingerprint"] == shard.listing.fingerprint
        if known and _size(shard.path) == record["bytes"] and not record["left_out"]:
            return record
    except (OSError, ValueError, KeyError):
        pass
    return None


def _size(path: epath.Path) -> int:
    # etils' own asks for the name of the owner, who may have none in a container.
    return path.stat().length if is_remote(path) else os.stat(path).st_size


def write_shard(shard: Shard) -> dict[str, Any]:
    """Writes a shard; gives {'fingerprint', 'bytes' of the file, 'examples', 'encoded_again', 'left_out'}.

    The last two are lists of {'file', 'why'}.

    Raises:
      UserError: an image is broken and the shard is strict; the source cannot be read.
    """
    from array_record.python import array_record_module

    record: dict[str, Any] = {"fingerprint": shard.listing.fingerprint, "encoded_again": [], "left_out": []}
    with AtomicFile(shard.path) as path:
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for row in range(len(shard.listing)):
            if (example := _example(shard, row, record)) is not None:
                writer.write(example)
        writer.close()
        record["bytes"] = path.stat().st_size
    record["examples"] = len(shard.listing) - len(record["left_out"])
    write_atomically(shard.record_path, json.dumps(record).encode())
    return record


def _example(shard: Shard, row: int, record: dict[str, Any]) -> bytes | None:
    """The serialized example of a row, or None where the image is left out; `record` tells of it."""
    name = shard.listing.name(row)
    try:
        data, why = normalize_encoding(name, shard.listing.read(row))
    except OSError as error:
        raise UserError(f"'{name}' cannot be read from '{shard.listing.root}': {error}; is the source whole?") from None
    except BrokenImage as error:
        if shard.strict:
            raise UserError(f"'{name}' is broken: {error}; without --strict it is left out") from None
        record["left_out"].append({"file": name, "why": str(error)})
        return None
    if why:
        record["encoded_again"].append({"file": name, "why": why})
    return serialize({"image": data, "label": int(shard.listing.labels[row]), "file_name": os.fsencode(name)})


def serialize(example: dict[str, bytes | int]) -> bytes:
    """A tf.Example of bytes and whole numbers as TFDS stores them, without TensorFlow; equal examples, equal bytes."""
    from tensorflow_datasets.proto import tf_example_pb2

    proto = tf_example_pb2.Example()
    for name, value in example.items():
        feature = proto.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(value)
    return proto.SerializeToString(deterministic=True)


def normalize_encoding(name: str, data: bytes) -> tuple[bytes, str]:
    """The bytes to store and why they are other ones, '' where they are not.

    A JPEG in CMYK, and a file with the name of a JPEG that is of another format, become JPEGs in RGB: TensorFlow and
    others read them wrongly or not at all. All else keeps its bytes.

    Raises:
      BrokenImage: with the reason; the whole image is decoded.
    """
    picture = Picture(data)
    pixels = picture.pixels()
    is_jpeg = data.startswith(b"\xff\xd8")  # Pillow calls some of them by another name
    if is_jpeg and picture.mode == "CMYK":
        why = "a JPEG in CMYK"
    elif not is_jpeg and name.lower().endswith(JPEG_ENDINGS):
        why = f"a {picture.format} named as a JPEG"
    else:
        return data, ""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        QUALITY,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return encoded.tobytes(), why


def write_shards(shards: list[Shard], workers: int, done: Callable[[Shard, dict[str, Any]], None]) -> None:
    """Writes shards in `workers` processes, 0: in this one; `done(shard, record)` is called as each is finished.

    Raises:
      UserError: as `write_shard`; the others are given up.
      Unavailable: a process was killed.
    """
    if not workers:
        for shard in shards:
            done(shard, write_shard(shard))
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(shards) or 1), context, _end_with_the_parent)
    try:
        futures = {pool.submit(write_shard, shard): shard for shard in shards}
        for future in concurrent.futures.as_completed(futures):
            done(futures[future], future.result())
    except concurrent.futures.process.BrokenProcessPool:
        raise Unavailable(
            "a process that wrote a shard was killed; memory may be short. The same command goes on, and "
            "--workers=N sets how many there are"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _end_with_the_parent() -> None:
    """A worker leaves when its parent is gone, however that ended, and not on a Ctrl-C that is meant for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
