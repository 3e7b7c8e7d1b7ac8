"""The images to prepare, in columns: where each lies, its label, and the name that it keeps."""

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
from effv2_jax.errors import UserError
from effv2_jax.files import is_remote, write_atomically

WHOLE = -1  # the offset of an image that is a file of its own


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An image below a folder: a file, or part of a tar, which counts as a folder of its name without '.tar'."""

    name: str  # a path below the folder
    place: str  # the path of the file or of the tar below the folder
    offset: int = WHOLE
    size: int = 0


def find_images(root: epath.Path, place: str = "") -> Iterator[Entry]:
    """All images at `root / place`, a folder or a tar, and in the folders and tars below it, in no order.

    Raises:
      UserError: a tar that is not local or cannot be read.
    """
    path = root / place
    if path.suffix.lower() == ".tar":
        for member in tar_members(_local(path)):
            if _is_image(member.name):
                yield Entry(f"{place[:-4]}/{member.name}", place, member.offset, member.size)
        return
    for child in path.iterdir():
        below = f"{place}/{child.name}" if place else child.name
        if child.name.startswith("."):
            continue
        if _is_image(child.name):
            yield Entry(below, below)
        elif child.suffix.lower() == ".tar" or child.is_dir():
            yield from find_images(root, below)


def find_tars(root: epath.Path, places: Iterable[str]) -> list[epath.Path]:
    """The tars among `root / place` and right below them, sorted; raises UserError where one is not local."""
    paths = [root / place for place in places]
    found = [path for path in paths if path.suffix.lower() == ".tar"]
    for path in paths:
        if path.suffix.lower() != ".tar":
            found += [child for child in path.iterdir() if child.suffix.lower() == ".tar"]
    return sorted(epath.Path(_local(path)) for path in found)


def only_tars(root: epath.Path, places: Iterable[str]) -> bool:
    """Whether every image lies in one of the tars of `find_tars`, so that their sizes and times tell of all images."""
    return not any(
        _is_image(child.name) or (child.suffix.lower() != ".tar" and child.is_dir())
        for path in (root / place for place in places)
        if path.suffix.lower() != ".tar"
        for child in path.iterdir()
        if not child.name.startswith(".")
    )


def _local(path: epath.Path) -> str:
    if is_remote(path):
        raise UserError(f"'{path}' is a tar that is not local; copy it to a local disk, where its parts can be read")
    return str(path)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.rpartition("/")[2].startswith(".")


@dataclasses.dataclass(frozen=True)
class Listing:
    """Images of one split, in the order of their names; N of them.

    Args:
      root: the folder that `places` are below.
      names: bytes [N], unique; 'n01440764_10026.JPEG'.
      labels: int32 [N].
      places: bytes [N], of the file or tar.
      offsets, sizes: int64 [N], of the bytes in the tar; WHOLE and 0 for a file of its own.
    """

    root: str
    names: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> "Listing":
        """Some of the rows."""
        return Listing(self.root, *(getattr(self, field)[rows] for field in COLUMNS))

    def read(self, row: int) -> bytes:
        """The bytes of an image; raises OSError."""
        path = f"{self.root}/{os.fsdecode(self.places[row])}"
        if self.offsets[row] == WHOLE:
            return epath.Path(path).read_bytes()
        return read_member(path, int(self.offsets[row]), int(self.sizes[row]))

    def name(self, row: int) -> str:
        return os.fsdecode(self.names[row])

    @property
    def fingerprint(self) -> str:
        """Tells these images from others, wherever they lie."""
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(name + b"\0")
        # Of files of their own the size is not known, nor does it matter where in a tar an image lies.
        digest.update(self.labels.astype("<i4").tobytes())
        return digest.hexdigest()


COLUMNS = ("names", "labels", "places", "offsets", "sizes")
Row = tuple[str, str, Entry]  # the image's name, its class, where it is
Listings = dict[str, Listing]  # of the splits


def make_listings(
    root: epath.Path, splits: dict[str, list[Row]], classes: Sequence[str] = ()
) -> tuple[tuple[str, ...], Listings]:
    """The classes, sorted, and the listings of the splits, whose labels are places in `classes` (by default all found).

    Raises:
      UserError: two images of one name, or a class that a split lacks.
    """
    found = {split: {label for _, label, _ in rows} for split, rows in splits.items()}
    names = tuple(classes) or tuple(sorted(set().union(*found.values())))
    lacking = {split: sorted(set(names) - there) for split, there in found.items()}
    if any(lacking.values()):
        which = "; ".join(f"{split} has no {some(absent)}" for split, absent in lacking.items() if absent)
        raise UserError(f"classes without an image in '{root}': {which}")
    labels = {name: label for label, name in enumerate(names)}
    return names, {split: _listing(root, rows, labels) for split, rows in splits.items()}


def _listing(root: epath.Path, rows: list[Row], labels: dict[str, int]) -> Listing:
    rows = sorted(rows, key=lambda row: row[0])
    for (name, _, one), (other, _, two) in itertools.pairwise(rows):
        if name == other:
            raise UserError(f"'{root}' holds two images of the name '{name}': {one.name} and {two.name}")
    return Listing(
        str(root),
        np.array([os.fsencode(name) for name, _, _ in rows], np.bytes_),
        np.array([labels[label] for _, label, _ in rows], np.int32),
        np.array([os.fsencode(entry.place) for _, _, entry in rows], np.bytes_),
        np.array([entry.offset for _, _, entry in rows], np.int64),
        np.array([entry.size for _, _, entry in rows], np.int64),
    )


def some(names: Sequence[str], most: int = 5) -> str:
    """'a, b, c and 7 more'."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def save_index(path: epath.Path, stamp: str, classes: Sequence[str], listings: Listings) -> None:
    """Keeps what reading all headers took; `load_index` takes it where the stamp is the same."""
    columns = {
        f"{split}.{column}": getattr(listing, column)
        for split, listing in listings.items()
        for column in ("root", *COLUMNS)
    }
    buffer = io.BytesIO()
    np.savez(buffer, stamp=np.array(stamp), classes=np.array(classes), **columns)
    write_atomically(path, buffer.getvalue())


def load_index(path: epath.Path, stamp: str) -> tuple[tuple[str, ...], Listings] | None:
    """What was saved, or None: nothing, of another stamp, or damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            if str(file["stamp"]) != stamp:
                return None
            splits = sorted({name.partition(".")[0] for name in file.files if "." in name})
            return tuple(map(str, file["classes"])), {
                split: Listing(str(file[f"{split}.root"]), *(file[f"{split}.{column}"] for column in COLUMNS))
                for split in splits
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def stamp_of(root: epath.Path, tars: Sequence[epath.Path]) -> str:
    """Changes when a tar does, by its size and time."""
    stats = [(str(tar), os.stat(tar)) for tar in tars]
    return json.dumps([str(root), [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]])
