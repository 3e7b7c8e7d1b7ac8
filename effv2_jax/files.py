"""Atomic writes of files, to a local disk or to a bucket."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from etils import epath

from effv2_jax.errors import UserError, require


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket, such as gs://NAME/FOLDER, and not in a file system of this machine."""
    return "://" in os.fspath(path)


def check_bucket_support() -> None:
    """Raises UserError where neither of the packages by which epath reads gs:// is installed."""
    if importlib.util.find_spec("tensorflow") is None:
        require("gcsfs", "gcs", "a path that begins with gs://")


class AtomicFile:
    """A temporary local file that replaces `path`, which may be remote, if the block ends without an exception.

    On a local disk the file replaces `path` in one step, after its content has reached the disk. After an exception
    the temporary file is deleted and `path` is unchanged.
    """

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)
        self._remote = is_remote(path)

    def __enter__(self) -> Path:
        self._folder = tempfile.mkdtemp() if self._remote else str(self._path.parent)
        self._file = Path(self._folder) / f".{self._path.name}.{os.getpid()}.part"
        self._file.touch()
        # The mode of a new file. os.umask can only be read by changing it, which other threads would see.
        self._mode = self._file.stat().st_mode
        return self._file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None and self._remote:
                part = self._path.with_name(self._file.name)
                epath.Path(self._file).copy(part, overwrite=True)
                part.replace(self._path)
            elif kind is None:
                self._file.chmod(self._mode)  # some libraries replace it by one that only the owner can read
                with open(self._file, "rb") as file:
                    os.fsync(file.fileno())  # a power failure must not leave an empty file at `path`
                self._file.replace(str(self._path))
        finally:
            self._file.unlink(missing_ok=True)
            if self._remote:
                shutil.rmtree(self._folder, ignore_errors=True)


def check_place(name: str, path: Path | epath.Path) -> None:
    """Raises UserError, before any work is done, if the local folder of the output `path` does not exist.

    `name` is what the message calls the output.
    """
    if not is_remote(path) and not path.parent.is_dir():
        raise UserError(f"{name} cannot be written: there is no folder '{path.parent}'; create it first")


def write_atomically(path: epath.PathLike, data: bytes) -> None:
    """Writes a file completely or not at all; creates its folder if necessary."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with AtomicFile(path) as file:
        file.write_bytes(data)


def write_folder(source: Path, folder: epath.Path, last: str) -> None:
    """Copies the files of a local folder to another; the file named `last`, which completes the copy, is last."""
    for path in sorted(source.iterdir(), key=lambda path: path.name == last):
        write_atomically(folder / path.name, path.read_bytes())
