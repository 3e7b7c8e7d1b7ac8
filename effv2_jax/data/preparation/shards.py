"""ArrayRecord files in TFDS's format, written by several processes, each file completely or not at all.

The position of each image is a function of the images' names alone, so the files are equal on every machine, with any
number of processes, and after any interruption.
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
from effv2_jax.data.preparation.image_index import SplitIndex
from effv2_jax.errors import Unavailable, UserError
from effv2_jax.files import AtomicFile, is_remote, write_atomically

RECORDS = "prepare"  # folder of the records of finished shards while the data set is unfinished
IMAGES_PER_SHARD = 4096  # 0.45 GB of ImageNet; an interruption loses at most this much work per process
MAX_SHARDS = 512  # a reader keeps all shards open, and the limit is often 1024 open files per process
JPEG_ENDINGS = (".jpg", ".jpeg")
QUALITY = 100  # of re-encoded JPEGs, as in TFDS; there are few, so their size does not matter


def shuffled(index: SplitIndex, split: str) -> np.ndarray:
    """The order of the images in the files, int64 [N], by a hash of split and name.

    The order is random, so that 'train[:25021]' is a random sample. It depends on no seed and no library, and adding
    images does not change the relative order of the others.
    """
    keys = [hashlib.sha256(f"{split}/".encode() + name).digest() for name in index.names]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to write; `images` are in the order of the file."""

    folder: str
    name: str  # of the file
    images: SplitIndex
    strict: bool  # whether a broken image is an error

    @property
    def path(self) -> epath.Path:
        return epath.Path(self.folder) / self.name

    @property
    def record_path(self) -> epath.Path:
        return epath.Path(self.folder) / RECORDS / f"{self.name}.json"


def make_shards(folder: epath.Path, data_set: str, split: str, index: SplitIndex, strict: bool) -> list[Shard]:
    """The files of a split; their numbers of images differ by at most one."""
    order = shuffled(index, split)
    count = min(MAX_SHARDS, -(-len(index) // IMAGES_PER_SHARD))
    bounds = [len(index) * number // count for number in range(count + 1)]
    return [
        Shard(
            str(folder),
            f"{data_set}-{split}.array_record-{number:05}-of-{count:05}",
            index.take(order[bounds[number] : bounds[number + 1]]),
            strict,
        )
        for number in range(count)
    ]


def finished_record(shard: Shard) -> dict[str, Any] | None:
    """The record of `write_shard` if the shard is finished, else None.

    A shard that left out an image counts as unfinished, because the image may have been repaired.
    """
    try:
        record = json.loads(shard.record_path.read_text())
        is_same = record["fingerprint"] == shard.images.fingerprint
        if is_same and _size(shard.path) == record["bytes"] and not record["left_out"]:
            return record
    except (OSError, ValueError, KeyError):
        pass
    return None


def _size(path: epath.Path) -> int:
    # etils looks up the owner's name, which may not exist in a container.
    return path.stat().length if is_remote(path) else os.stat(path).st_size


def write_shard(shard: Shard) -> dict[str, Any]:
    """Writes a shard and its record {'fingerprint', 'bytes' of the file, 'examples', 'encoded_again', 'left_out'}.

    The last two are lists of {'file', 'why'}.

    Raises:
      UserError: the source cannot be read, or an image is broken and the shard is strict.
    """
    from array_record.python import array_record_module

    record: dict[str, Any] = {"fingerprint": shard.images.fingerprint, "encoded_again": [], "left_out": []}
    with AtomicFile(shard.path) as path:
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for row in range(len(shard.images)):
            if (example := _example(shard, row, record)) is not None:
                writer.write(example)
        writer.close()
        record["bytes"] = path.stat().st_size
    record["examples"] = len(shard.images) - len(record["left_out"])
    write_atomically(shard.record_path, json.dumps(record).encode())
    return record


def _example(shard: Shard, row: int, record: dict[str, Any]) -> bytes | None:
    """The serialized example of a row, or None if the image is left out; both cases are noted in `record`."""
    name = shard.images.name(row)
    try:
        data, why = normalize_encoding(name, shard.images.read(row))
    except OSError as error:
        raise UserError(
            f"'{name}' cannot be read from '{shard.images.root}': {error}; check that the source is complete"
        ) from None
    except BrokenImage as error:
        if shard.strict:
            raise UserError(f"'{name}' is broken: {error}; omit --strict to leave it out") from None
        record["left_out"].append({"file": name, "why": str(error)})
        return None
    if why:
        record["encoded_again"].append({"file": name, "why": why})
    return serialize({"image": data, "label": int(shard.images.labels[row]), "file_name": os.fsencode(name)})


def serialize(example: dict[str, bytes | int]) -> bytes:
    """A tf.Example of bytes and integers in TFDS's format, deterministic and without TensorFlow."""
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
    """The bytes to store, and the reason if they differ from `data`, else ''.

    CMYK JPEGs, and files of another format with the name of a JPEG, become RGB JPEGs, because TensorFlow and other
    libraries misread or reject them. All other bytes are kept.

    Raises:
      BrokenImage: with the reason. The whole image is decoded to find damage.
    """
    picture = Picture(data)
    pixels = picture.pixels()
    is_jpeg = data.startswith(b"\xff\xd8")  # Pillow reports another format for some JPEGs
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
    """Writes shards in `workers` processes, or in this process if 0; calls `done(shard, record)` after each.

    Raises:
      UserError: as `write_shard`; the remaining shards are cancelled.
      Unavailable: a worker was killed.
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
            "a worker process was killed, possibly because memory ran out; run the same command again to resume, with "
            "fewer workers (--workers=N) if it happens again"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _end_with_the_parent() -> None:
    """Makes a worker exit when its parent process ends for any reason, and ignore Ctrl-C, which the parent handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
