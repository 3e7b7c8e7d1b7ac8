"""The event files of TensorBoard: what it reads from them, on a disk and in a bucket."""

import numpy as np
import pytest
from etils import epath
from needs import tensorflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.util.tensor_util import make_ndarray

from effv2_jax.errors import UserError
from effv2_jax.monitoring.metrics import EventFile, make_writers

WRITTEN = [(1, {"train/loss": np.float32(2.5), "train/top1": 3}), (4, {"train/loss": 1.25})]


def write(folder):
    writers = make_writers(folder, 0)
    for step, scalars in WRITTEN:
        writers.write_scalars(step, scalars)
        writers.flush()
    writers.close()


def series(folder):
    """By tag, the steps and values that TensorBoard finds."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, float(make_ndarray(event.tensor_proto))) for event in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }


def events(folder):
    """Step, tag, metadata and value of each event but the first."""
    [path] = folder.glob("events.out.tfevents.*")
    parsed = [Event.FromString(data) for data in RawEventFileLoader(str(path)).Load()]
    assert parsed[0].file_version == "brain.Event:2" and all(event.wall_time > 1e9 for event in parsed)
    values = [(event.step, value) for event in parsed[1:] for value in event.summary.value]
    return [(step, value.tag, value.metadata, make_ndarray(value.tensor)) for step, value in values]


def test_tensorboard_reads_tags_steps_and_values(tmp_path):
    write(epath.Path(tmp_path))
    assert series(tmp_path) == {"train/loss": [(1, 2.5), (4, 1.25)], "train/top1": [(1, 3.0)]}


def test_each_start_of_a_run_has_its_own_file(tmp_path):
    write(epath.Path(tmp_path))
    write(epath.Path(tmp_path))
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2


def test_events_are_those_that_tensorflow_writes(tmp_path):
    tf = tensorflow()
    write(epath.Path(tmp_path / "ours"))
    writer = tf.summary.create_file_writer(str(tmp_path / "theirs"))
    with writer.as_default():
        for step, scalars in WRITTEN:
            for name, value in scalars.items():
                tf.summary.scalar(name, value, step=step)
    writer.close()
    assert events(tmp_path / "ours") == events(tmp_path / "theirs")


def test_a_bucket_gets_the_whole_file_at_every_flush(bucket):
    folder = epath.Path("gs://mine/work")
    writer = EventFile(folder)
    writer.write_scalars(1, {"loss": 2.0})
    writer.flush()
    stored = bucket / "mine" / "work"
    assert series(stored) == {"loss": [(1, 2.0)]}
    writer.write_scalars(2, {"loss": 1.0})
    writer.close()
    assert series(stored) == {"loss": [(1, 2.0), (2, 1.0)]}
    write(folder)
    assert len([path for path in stored.iterdir() if "tfevents" in path.name]) == 2


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("no folder")
    writers = make_writers(epath.Path(tmp_path / "file" / "work"), 0)
    with pytest.raises(UserError, match=r"metrics cannot be written \(EventFile\): .*Not a directory"):
        writers.flush()
