"""Where metrics go: TensorBoard's event files and `metrics.jsonl`."""

import io
import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from absl import logging
from etils import epath

from effv2_jax.errors import UserError, is_disk_full_or_readonly
from effv2_jax.files import is_remote, write_atomically

METRICS_FILE = "metrics.jsonl"
_event_files = itertools.count()  # in the names of this process's event files


class Writer(Protocol):
    """What a training loop needs of a metric writer."""

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class EventFile:
    """A new event file of TensorBoard in `folder`, in the form of `tf.summary.scalar`, written without TensorFlow.

    A flush appends to a local file, which TensorBoard may be reading. A bucket cannot append, so there a flush replaces
    the whole file.
    """

    def __init__(self, folder: epath.Path):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._scalar = Event, scalar_pb
        number = next(_event_files)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{number}.v2"
        self._path = folder / name
        self._remote = is_remote(folder)
        self._unwritten = io.BytesIO()
        self._records = RecordWriter(self._unwritten)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._write(self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value)))

    def flush(self) -> None:
        events = self._unwritten.getvalue()
        if self._remote:
            write_atomically(self._path, events)
        elif events:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab") as file:
                file.write(events)
            self._unwritten.seek(0)
            self._unwritten.truncate()

    close = flush

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


class JsonLines:
    """One JSON object per line, {'step': 100, 'train/loss': 2.3, ...}; drops existing lines beyond `step`.

    The file is rewritten as a whole, so that it works on object stores and a crash leaves the old file or the new one.
    """

    def __init__(self, path: epath.Path, step: int):
        self._path = path
        self._lines = [json.dumps(record) for record in read_metrics(path) if record["step"] <= step]

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        self._lines.append(json.dumps({"step": step} | {name: float(value) for name, value in scalars.items()}))

    def flush(self) -> None:
        write_atomically(self._path, "".join(line + "\n" for line in self._lines).encode())

    close = flush


class Writers:
    """Writes to several writers in turn; raises UserError if the disk is full or read-only."""

    def __init__(self, writers: list[Writer]):
        self._writers = writers

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        self._each(lambda writer: writer.write_scalars(step, scalars))

    def flush(self) -> None:
        self._each(lambda writer: writer.flush())

    def close(self) -> None:
        self._each(lambda writer: writer.close())

    def _each(self, call: Callable[[Writer], None]) -> None:
        for writer in self._writers:
            try:
                call(writer)
            except Exception as error:  # OSError, or for a bucket another one of the library behind epath
                if not is_disk_full_or_readonly(error):
                    raise
                raise UserError(f"metrics cannot be written ({type(writer).__name__}): {error}") from error


def make_writers(workdir: epath.Path, step: int, others: Sequence[Callable[[], Writer]] = ()) -> Writers:
    """The writers of TensorBoard files and JSON lines in `workdir`, for a run at `step`.

    `others` create further writers, which come last.
    """
    own: list[Writer] = [EventFile(workdir), JsonLines(workdir / METRICS_FILE, step)]
    return Writers(own + [make() for make in others])


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a metrics file, in order, up to the first damaged one; [] if there is no file."""
    path = epath.Path(path)
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                logging.warning("%s is damaged after %d lines; the rest is left out", path, len(records))
                break
    return records
