"""The index of the images to prepare, in columns: the location, label and name of each image."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from effv2_jax.data.preparation.tar_index import read_member, tar_members
from effv2_jax.data.sources.folder import EXTENSIONS
from effv2_jax.errors import UserError, join_limited
from effv2_jax.files import is_remote, write_atomically

WHOLE_FILE = -1  # the offset of an image that is not part of a tar


@dataclasses.dataclass(frozen=True, slots=True)
class ImageLocation:
    """An image below a folder: a file, or a member of a tar, which counts as a folder named without '.tar'."""

    name: str  # a path below the folder
    place: str  # the path of the file or of the tar below the folder
    offset: int = WHOLE_FILE
    size: int = 0


def find_images(root: epath.Path, place: str = "") -> Iterator[ImageLocation]:
    """All images in the folder or tar `root / place` and in the folders and tars below it, in no particular order.

    Raises:
      UserError: a tar is not local or cannot be read.
    """
    path = root / place
    if _is_tar(path):
        for member in tar_members(_local(path)):
            if _is_image(member.name):
                yield ImageLocation(f"{place[:-4]}/{member.name}", place, member.offset, member.size)
        return
    for child in path.iterdir():
        child_place = f"{place}/{child.name}" if place else child.name
        if child.name.startswith("."):
            continue
        if _is_image(child.name):
            yield ImageLocation(child_place, child_place)
        elif _is_tar(child) or child.is_dir():
            yield from find_images(root, child_place)


def find_tars(root: epath.Path, places: Iterable[str]) -> list[epath.Path]:
    """The tars among `root / place` and directly below them, sorted; raises UserError if one is not local."""
    tars = []
    for path in (root / place for place in places):
        tars += [path] if _is_tar(path) else [child for child in path.iterdir() if _is_tar(child)]
    return sorted(epath.Path(_local(tar)) for tar in tars)


def only_tars(root: epath.Path, places: Iterable[str]) -> bool:
    """Whether all images are in the tars of `find_tars`, whose sizes and times then reveal every change."""
    return not any(
        _is_image(child.name) or (not _is_tar(child) and child.is_dir())
        for path in (root / place for place in places)
        if not _is_tar(path)
        for child in path.iterdir()
        if not child.name.startswith(".")
    )


def _is_tar(path: epath.Path) -> bool:
    return path.suffix.lower() == ".tar"


def _local(path: epath.Path) -> str:
    if is_remote(path):
        raise UserError(f"'{path}' is a remote tar, but single images are read from it; copy it to a local disk")
    return str(path)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.rpartition("/")[2].startswith(".")


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """The N images of one split, ordered by name.

    Args:
      root: the folder that contains `places`.
      names: unique names, bytes [N], such as 'n01440764_10026.JPEG'.
      labels: int32 [N].
      places: the path of the file or tar below `root`, bytes [N].
      offsets, sizes: of the image in the tar in bytes, int64 [N]; WHOLE_FILE and 0 for an image outside tars.
    """

    root: str
    names: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> "SplitIndex":
        """The images at `rows`, in that order."""
        return SplitIndex(self.root, *(getattr(self, field)[rows] for field in COLUMNS))

    def read(self, row: int) -> bytes:
        """The bytes of an image; raises OSError if it cannot be read."""
        path = f"{self.root}/{os.fsdecode(self.places[row])}"
        if self.offsets[row] == WHOLE_FILE:
            return epath.Path(path).read_bytes()
        return read_member(path, int(self.offsets[row]), int(self.sizes[row]))

    def name(self, row: int) -> str:
        return os.fsdecode(self.names[row])

    @property
    def fingerprint(self) -> str:
        """A hash of names and labels, independent of where the images are stored."""
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(name + b"\0")
        # Sizes are left out because those of files outside tars are unknown, and offsets because they do not matter.
        digest.update(self.labels.astype("<i4").tobytes())
        return digest.hexdigest()


COLUMNS = ("names", "labels", "places", "offsets", "sizes")
Row = tuple[str, str, ImageLocation]  # the image's name, its class, its location
ImageIndex = dict[str, SplitIndex]  # by split


def make_index(
    root: epath.Path, splits: dict[str, list[Row]], classes: Sequence[str] = ()
) -> tuple[tuple[str, ...], ImageIndex]:
    """The class names and the index. Labels are positions in `classes`, by default all classes of the rows, sorted.

    Raises:
      UserError: two images of a split have the same name, or a split lacks a class.
    """
    classes_of = {split: {label for _, label, _ in rows} for split, rows in splits.items()}
    names = tuple(classes) or tuple(sorted(set().union(*classes_of.values())))
    missing = {split: sorted(set(names) - present) for split, present in classes_of.items()}
    if any(missing.values()):
        listed = "; ".join(f"{split} has no {join_limited(absent)}" for split, absent in missing.items() if absent)
        raise UserError(f"classes without an image in '{root}': {listed}")
    labels = {name: label for label, name in enumerate(names)}
    return names, {split: _split_index(root, rows, labels) for split, rows in splits.items()}


def _split_index(root: epath.Path, rows: list[Row], labels: dict[str, int]) -> SplitIndex:
    rows = sorted(rows, key=lambda row: row[0])
    for (name, _, location), (next_name, _, next_location) in itertools.pairwise(rows):
        if name == next_name:
            raise UserError(f"'{root}' has two images named '{name}': {location.name} and {next_location.name}")
    return SplitIndex(
        str(root),
        np.array([os.fsencode(name) for name, _, _ in rows], np.bytes_),
        np.array([labels[label] for _, label, _ in rows], np.int32),
        np.array([os.fsencode(location.place) for _, _, location in rows], np.bytes_),
        np.array([location.offset for _, _, location in rows], np.int64),
        np.array([location.size for _, _, location in rows], np.int64),
    )


def save_index(path: epath.Path, stamp: str, classes: Sequence[str], index: ImageIndex) -> None:
    """Saves the index, so that `load_index` with the same stamp avoids reading all headers again."""
    columns = {
        f"{split}.{column}": getattr(split_index, column)
        for split, split_index in index.items()
        for column in ("root", *COLUMNS)
    }
    buffer = io.BytesIO()
    np.savez(buffer, stamp=np.array(stamp), classes=np.array(classes), **columns)
    write_atomically(path, buffer.getvalue())


def load_index(path: epath.Path, stamp: str) -> tuple[tuple[str, ...], ImageIndex] | None:
    """The saved class names and index; None if the file does not exist, has another stamp or is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            if str(file["stamp"]) != stamp:
                return None
            splits = sorted({name.partition(".")[0] for name in file.files if "." in name})
            return tuple(map(str, file["classes"])), {
                split: SplitIndex(str(file[f"{split}.root"]), *(file[f"{split}.{column}"] for column in COLUMNS))
                for split in splits
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def stamp_of(root: epath.Path, tars: Sequence[epath.Path]) -> str:
    """A text that changes whenever the size or the modification time of a tar changes."""
    stats = [(str(tar), os.stat(tar)) for tar in tars]
    return json.dumps([str(root), [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]])
