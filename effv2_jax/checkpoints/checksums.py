"""SHA-256 checksums of a folder's files, in the format of `sha256sum`, and whether the files still have them."""

import hashlib
import os
from collections.abc import Collection

from etils import epath

from effv2_jax.files import is_remote

CHECKSUMS = "SHA256SUMS"
_BLOCK = 1 << 22  # bytes read at a time


def write_checksums(folder: epath.PathLike, exclude: Collection[str] = ()) -> None:
    """Writes `SHA256SUMS` for the files below `folder`, and syncs a local folder to the disk.

    Args:
      folder: local or remote.
      exclude: paths below it that may change later.
    """
    folder = epath.Path(folder)
    names = [name for name in _files(folder) if name not in exclude]
    lines = [f"{_digest(folder / name, sync=True)}  {name}\n" for name in names]
    path = folder / CHECKSUMS
    path.write_text("".join(lines))
    if not is_remote(folder):
        for entry in (path, *(folder / name for name in _folders(folder)), folder):
            _sync(entry)


def find_damage(folder: epath.PathLike, exclude: Collection[str] = ()) -> list[str]:
    """Compares the files of a folder with its `SHA256SUMS`; returns one line per fault, [] if it is intact.

    Args:
      folder: as passed to `write_checksums`.
      exclude: as passed to `write_checksums`.

    Raises:
      OSError: a file cannot be read at all, which says nothing about its content.
    """
    folder = epath.Path(folder)
    if not (folder / CHECKSUMS).exists():
        return [f"{CHECKSUMS} is missing"]
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError:  # not text, or other lines
        return [f"{CHECKSUMS} is damaged"]
    present = set(_files(folder)) - set(exclude)
    unknown = present - expected.keys()
    missing = sorted(expected.keys() - present)
    damaged = [name for name in sorted(expected.keys() & present) if _digest(folder / name) != expected[name]]
    return (
        [f"{name} is missing" for name in missing]
        + [f"{name} is damaged" for name in damaged]
        + ([f"{CHECKSUMS} is cut short, {len(unknown)} files are not in it"] if unknown else [])
    )


def _digest(path: epath.Path, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if sync and not is_remote(path):
        _sync(path)
    return digest.hexdigest()


def _sync(path: epath.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: epath.Path, prefix: str = "") -> list[str]:
    """Sorted paths of the files below a folder, without its checksums."""
    names = []
    for path in sorted(folder.iterdir()):
        name = f"{prefix}{path.name}"
        names += _files(path, f"{name}/") if path.is_dir() else [name]
    return [name for name in names if name != CHECKSUMS]


def _folders(folder: epath.Path, prefix: str = "") -> list[str]:
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            names += [f"{prefix}{path.name}", *_folders(path, f"{prefix}{path.name}/")]
    return names
