"""Batches: order, augmentation, padding and broken images. Grain runs the pipeline in threads or processes.

The position in the input is the step. Stream position j is place j % N of epoch j // N. Batch k of B examples holds the
positions kB to (k + 1)B, of which process p of P makes the p-th of P equal runs. So the global batch k is a function of
(seed, k) alone: it is the same with any number of processes, workers and threads, and a run resumes at any step at no
cost. One iterator covers all stages: the first batches of a stage are made while the last batches of the stage before
it are trained on.
"""

import dataclasses
import functools
import gc
import os
import signal
from collections.abc import Callable, Generator
from typing import Any

import grain
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from effv2_jax.curriculum import Curriculum, Stage
from effv2_jax.data.images.crop import evaluation_crop, random_flip, random_resized_crop
from effv2_jax.data.images.decode import BrokenImage, Picture
from effv2_jax.data.images.ops import noise_cutout
from effv2_jax.data.images.randaugment import auto_augment, rand_augment
from effv2_jax.data.source import Label, Source
from effv2_jax.errors import UserError

Batch = dict[str, np.ndarray]
MAX_BROKEN_RUN = 100  # consecutive unreadable images after which the whole data set counts as unreadable


def place_in_epoch(position: int, num_examples: int, seed: int) -> tuple[int, int]:
    """(epoch, index) of a stream position: each epoch visits every example once, in its own order.

    The order is a keyed permutation that is computed place by place, so nothing is stored.
    """
    epoch, place = divmod(position, num_examples)
    if num_examples == 1:
        return epoch, 0
    return epoch, grain.experimental.index_shuffle(
        place, max_index=num_examples - 1, seed=_order_key(seed, epoch), rounds=4
    )


def example_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random draws of an example's augmentation in an epoch: first the crop, then the flip, then the operations."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, index))))


@functools.lru_cache(maxsize=16)
def _order_key(seed: int, epoch: int) -> int:
    [key] = np.random.SeedSequence((seed, epoch)).generate_state(1)
    return int(key)


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """Random access to this process's augmented examples: element i belongs to batch start_step + i // local batch."""

    source: Source
    config: ConfigDict
    curriculum: Curriculum
    start_step: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return (self.curriculum.total_steps - self.start_step) * self._local_batch_size

    @property
    def _local_batch_size(self) -> int:
        return self.config.global_batch_size // self.process_count

    def __getitem__(self, element: int) -> dict[str, Any]:
        step, offset = divmod(int(element), self._local_batch_size)
        batch_start = (self.start_step + step) * self.config.global_batch_size
        position = batch_start + self.process_index * self._local_batch_size + offset
        size = len(self.source)
        epoch, index = place_in_epoch(position, size, self.config.seed)
        stage = self.curriculum.stage_at(self.start_step + step)
        broken = -1
        attempts = min(MAX_BROKEN_RUN, size)
        for attempt in range(attempts):
            try:
                picture, label = self.source.load(index)
                image = self.augment(picture, epoch, index, stage)
                break
            except BrokenImage as error:
                if not self.config.data.skip_broken:
                    raise UserError(_broken_sentence(self.source, index, error)) from None
                broken = index if broken < 0 else broken
                # The next places of the same epoch, so that the replacement does not depend on process or worker.
                _, index = place_in_epoch(epoch * size + (position + attempt + 1) % size, size, self.config.seed)
        else:
            raise UserError(
                f"{attempts} images in a row cannot be read, the first is {self.source.describe(broken)}; "
                "check config.data"
            )
        labels = _labels(label, self.config.data.max_labels, self.source, index)
        return {"image": image, "label": labels, "broken": np.int32(broken)}

    def augment(self, picture: Picture, epoch: int, index: int, stage: Stage) -> np.ndarray:
        """Example `index` as `stage` trains on it in an epoch, before mixing: uint8 [S, S, 3]."""
        rng = example_generator(self.config.seed, epoch, index)
        data = self.config.data
        image = random_resized_crop(
            picture,
            stage.image_size,
            rng,
            data.crop_area,
            data.crop_aspect_ratio,
            data.interpolation,
            data.scaled_decoding,
        )
        if data.flip:
            image = random_flip(image, rng)
        if data.augmentation == "randaugment":
            image = rand_augment(image, stage.randaugment_magnitude, rng, data.randaugment_layers)
        elif data.augmentation == "autoaugment":
            image = auto_augment(image, rng)
        elif data.augmentation == "cutout":
            image = noise_cutout(image, stage.image_size // 4, rng)
        return image


@dataclasses.dataclass(frozen=True)
class EvaluationExamples:
    """Random access to this process's part of the evaluation batches, padded at the end with masked black images."""

    source: Source
    config: ConfigDict
    process_index: int
    process_count: int

    def __len__(self) -> int:
        batches = -(-len(self.source) // self.config.evaluation.batch_size)
        return batches * self._local_batch_size

    @property
    def _local_batch_size(self) -> int:
        return self.config.evaluation.batch_size // self.process_count

    def __getitem__(self, element: int) -> dict[str, Any]:
        evaluation, data = self.config.evaluation, self.config.data
        step, offset = divmod(int(element), self._local_batch_size)
        index = step * evaluation.batch_size + self.process_index * self._local_batch_size + offset
        size = evaluation.image_size
        example = {
            "image": np.zeros((size, size, 3), np.uint8),
            "label": _labels(0, data.max_labels, self.source, index),
            "mask": np.bool_(False),
            "broken": np.int32(-1),
        }
        if index >= len(self.source):
            return example
        try:
            picture, label = self.source.load(index)
            image = evaluation_crop(picture.pixels(), size, data.evaluation_crop, data.interpolation)
        except BrokenImage as error:
            if not data.skip_broken:
                raise UserError(_broken_sentence(self.source, index, error)) from None
            return example | {"broken": np.int32(index)}
        labels = _labels(label, data.max_labels, self.source, index)
        return example | {"image": image, "label": labels, "mask": np.bool_(True)}


def train_batches(
    source: Source,
    config: ConfigDict,
    curriculum: Curriculum,
    start_step: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch, None, None]:
    """This process's part of the batches from `start_step` to the end of the run, at the image size S of each stage.

    Yields:
      {'image': uint8 [b, S, S, 3], 'label': int32 [b], 'broken': int32 [b]}, b = global_batch_size / process_count.
      With data.max_labels above 1 'label' is [b, max_labels], padded with -1. 'broken' is the index of an unreadable
      example that the next readable one replaces, or -1.

    Raises:
      UserError: an image cannot be read and `data.skip_broken` is off, or MAX_BROKEN_RUN in a row cannot be read.
    """

    def batches(start_step: int) -> Generator[Batch, None, None]:
        examples = TrainExamples(source, _frozen(config), curriculum, start_step, process_index, process_count)
        return _batches(examples, config.global_batch_size // process_count, config)

    return _reused(batches, curriculum, start_step) if config.data.reuse_batch else batches(start_step)


def evaluation_batches(
    source: Source, config: ConfigDict, *, process_index: int = 0, process_count: int = 1
) -> Generator[Batch, None, None]:
    """This process's part of one pass over all examples in order; every process makes the same number of batches.

    Yields:
      {'image': uint8 [b, S, S, 3], 'label': int32 [b], 'mask': bool [b], 'broken': int32 [b]}, b =
      evaluation.batch_size / process_count. The mask is False for padding and for unreadable images, whose index is in
      'broken' (-1 elsewhere).

    Raises:
      UserError: an image cannot be read and `data.skip_broken` is off.
    """
    examples = EvaluationExamples(source, _frozen(config), process_index, process_count)
    return _batches(examples, config.evaluation.batch_size // process_count, config)


class BrokenCounter:
    """Counts the unreadable images of a source and logs each of them once."""

    def __init__(self, source: Source):
        self._source = source
        self._seen: set[int] = set()

    @property
    def count(self) -> int:
        return len(self._seen)

    def update(self, batch: Batch) -> None:
        """Reads the 'broken' indices of a batch."""
        for index in map(int, batch["broken"][batch["broken"] >= 0]):
            if index not in self._seen:
                self._seen.add(index)
                logging.warning("cannot read %s", self._source.describe(index))


def _batches(examples: Any, batch_size: int, config: ConfigDict) -> Generator[Batch, None, None]:
    """Prefetched batches of `examples`; threads and processes end when the iterator is exhausted or closed."""
    data = config.data
    dataset = grain.MapDataset.source(examples)
    ahead = data.prefetch_batches
    if data.num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which this command line does not parse
        # Each worker process makes whole batches: few large messages.
        options = grain.ReadOptions(num_threads=min(data.num_threads or 2, ahead), prefetch_buffer_size=ahead)
        workers = grain.MultiprocessingOptions(num_workers=data.num_workers, per_worker_buffer_size=ahead)
        iterable = (
            dataset.batch(batch_size).to_iter_dataset(options).mp_prefetch(workers, worker_init_fn=_ignore_signals)
        )
    else:
        # An element is a part of a batch, so that all threads work on the next batch. It is not a single example: each
        # element costs the calling thread 0.2 ms, which would be 60 ms for a batch of 256.
        # More threads than cores wait for each other: on 2 cores 16 threads are half as fast as 2.
        num_threads = data.num_threads or available_cores()
        part = _part_size(batch_size, num_threads)
        buffer = ahead * (batch_size // part)
        options = grain.ReadOptions(num_threads=min(num_threads, buffer), prefetch_buffer_size=buffer)
        iterable = dataset.batch(part).to_iter_dataset(options).batch(batch_size // part)
    iterator = iter(iterable)
    try:
        for batch in iterator:
            if data.num_workers:
                # Copied out of shared memory, which an array that outlives the iterator would leak.
                copy = {name: np.array(value) for name, value in batch.items()}
                del batch
                yield copy
            else:
                # From [parts, part, ...] to [batch, ...].
                yield {name: value.reshape(batch_size, *value.shape[2:]) for name, value in batch.items()}
    finally:
        iterator.close()
        if data.num_workers:
            # After a worker ends, its final exception and the iterator refer to each other and keep the last batches in
            # shared memory.
            del iterator
            gc.collect()


def _labels(label: Label, max_labels: int, source: Source, index: int) -> np.ndarray | np.int32:
    """The label as int32, or if an example may have several, int32 [max_labels], padded with -1."""
    labels = label if isinstance(label, tuple) else (label,)
    if len(labels) > max_labels:
        raise UserError(
            f"{source.describe(index)} has {len(labels)} labels, and config.data.max_labels is {max_labels}; it must "
            "be as large as any example needs"
        )
    if max_labels == 1:
        return np.int32(labels[0])
    return np.array([*labels, *[-1] * (max_labels - len(labels))], np.int32)


def _reused(
    batches: Callable[[int], Generator[Batch, None, None]], curriculum: Curriculum, start_step: int
) -> Generator[Batch, None, None]:
    """The first batch of each stage, repeated for all of its steps."""
    for stage in curriculum.stages:
        if stage.end_step > start_step:
            iterator = batches(stage.start_step)
            batch = next(iterator)
            iterator.close()
            for _ in range(max(stage.start_step, start_step), stage.end_step):
                yield batch


def _ignore_signals(worker_index: int, worker_count: int) -> None:
    """A stop signal often reaches all processes of a job, but the main process still needs its workers."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)


def available_cores() -> int:
    """The number of cores that this process may use; on Linux that may be fewer than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _part_size(batch_size: int, num_threads: int) -> int:
    """The largest divisor of a batch, at most 16, that leaves a part for every thread."""
    largest = max(1, min(16, batch_size // num_threads))
    return next(part for part in range(largest, 0, -1) if batch_size % part == 0)


def _broken_sentence(source: Source, index: int, error: BrokenImage) -> str:
    return f"cannot read {source.describe(index)}: {error}; --config.data.skip_broken=True skips it"


def _frozen(config: ConfigDict) -> Any:
    """A copy that later changes do not affect and that worker processes can unpickle."""
    return config.copy_and_resolve_references()
