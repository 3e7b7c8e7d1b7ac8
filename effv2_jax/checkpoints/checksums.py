"""SHA-256 checksums of a folder's files, in the format of `sha256sum`, and whether the files still have them."""

import hashlib
import os
from collections.abc import Collection

from etils import epath

from effv2_jax.files import is_remote

CHECKSUMS = "SHA256SUMS"
_BLOCK = 1 << 22  # bytes read at a time


def write_checksums(folder: epath.PathLike, leave_out: Collection[str] = ()) -> None:
    """Writes `SHA256SUMS` for the files below `folder`, and has a local file system bring all of it to the disk.

    Args:
      folder: local, or anywhere that etils' epath reads.
      leave_out: paths below it that may change later.
    """
    folder = epath.Path(folder)
    names = [name for name in _files(folder) if name not in leave_out]
    lines = [f"{_digest(folder / name, sync=True)}  {name}\n" for name in names]
    path = folder / CHECKSUMS
    path.write_text("".join(lines))
    if not is_remote(folder):
        for entry in (path, *(folder / name for name in _folders(folder)), folder):
            _sync(entry)


def find_damage(folder: epath.PathLike, leave_out: Collection[str] = ()) -> list[str]:
    """What is wrong with a folder that `write_checksums` has been through, a line a file; [] where it is sound.

    Args:
      folder: that was given to `write_checksums`.
      leave_out: what was left out then.

    Raises:
      OSError: a file cannot be read at all, which tells nothing about its content.
    """
    folder = epath.Path(folder)
    if not (folder / CHECKSUMS).exists():
        return [f"{CHECKSUMS} is missing"]
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError:  # no text, or other lines
        return [f"{CHECKSUMS} is damaged"]
    found = set(_files(folder)) - set(leave_out)
    unknown = found - expected.keys()
    missing = sorted(expected.keys() - found)
    kept = sorted(expected.keys() & found)
    damaged = [name for name in kept if _digest(folder / name) != expected[name]]
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
    """Paths of the files below a folder, its checksums left out, in alphabetic order."""
    found = []
    for path in sorted(folder.iterdir()):
        name = f"{prefix}{path.name}"
        found += _files(path, f"{name}/") if path.is_dir() else [name]
    return [name for name in found if name != CHECKSUMS]


def _folders(folder: epath.Path, prefix: str = "") -> list[str]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found += [f"{prefix}{path.name}", *_folders(path, f"{prefix}{path.name}/")]
    return found
