"""Where metrics go: TensorBoard files (clu) and `metrics.jsonl`."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from absl import logging
from etils import epath

from effv2_jax.errors import UserError, is_disk_full_or_readonly
from effv2_jax.files import write_atomically

METRICS_FILE = "metrics.jsonl"


class Writer(Protocol):
    """What a training loop needs of a metric writer."""

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, {'step': 100, 'train/loss': 2.3, ...}; starts by dropping what lies beyond `step`.

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
    """Writes to several writers in turn; raises UserError where the disk takes no more."""

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
            except Exception as error:  # OSError of Python's files, TensorFlow's own of its files
                if not is_disk_full_or_readonly(error):
                    raise
                raise UserError(f"metrics cannot be written ({type(writer).__name__}): {error}") from error


def make_writers(workdir: epath.Path, step: int, active: bool, others: Sequence[Callable[[], Writer]] = ()) -> Writers:
    """TensorBoard and JSON lines in `workdir`, for a run that goes on at `step`; nothing where not `active`.

    `others` make more writers, which come last.
    """
    if not active:
        return Writers([])
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # says so at length otherwise
    from clu import metric_writers  # imports TensorFlow: seconds, and only the process that writes pays them

    own = [metric_writers.SummaryWriter(str(workdir)), JsonLines(workdir / METRICS_FILE, step)]
    return Writers(own + [make() for make in others])


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a metrics file, in order, up to the first that is damaged; [] where there is none."""
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
