"""The splits and classes in a source folder: tars or trees of ImageNet, and folders of classes."""

import re
from collections import Counter

from etils import epath

from effv2_jax.data.preparation.image_index import Row, find_images
from effv2_jax.data.preparation.imagenet_facts import DatasetFacts
from effv2_jax.data.sources.folder import EXTENSIONS, SPLIT_NAMES, split_folders
from effv2_jax.errors import UserError, join_limited

COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".zip")  # formats without random access
SPLITS = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}  # folder -> our name
_SYNSET = re.compile(r"n\d{8}")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def source_folder(source: epath.PathLike) -> epath.Path:
    root = epath.Path(source)
    if not str(source) or not root.is_dir():
        raise UserError(f"--source='{source}' is not a folder")
    return root


def imagenet_splits(root: epath.Path, facts: DatasetFacts) -> dict[str, str]:
    """Split -> its tar or folder below `root`; '' is `root` itself.

    Raises:
      UserError: a required split is missing, or an optional one may be in a compressed file.
    """
    places = {
        split: next((place for place in known if (root / place).exists()), None)
        for split, known in facts.places.items()
    }
    existing = {split: place for split, place in places.items() if place is not None}
    if facts.exact and len(existing) < len(places):
        missing = "; ".join(f"{split}: {' or '.join(facts.places[split])}" for split in places if split not in existing)
        packed = _compressed_files(root)
        hint = f"; unpack {join_limited(packed)} first" if packed else ""
        raise UserError(f"'{root}' lacks a part of {facts.name}: {missing}{hint}")
    if "" in existing.values():  # the folder contains the classes themselves
        existing = {"train": ""}
    if len(existing) < len(places):
        _refuse_compressed(root)
    return existing


def imagenet_rows(root: epath.Path, place: str, split: str, facts: DatasetFacts) -> list[Row]:
    """The images of a split. A name is that of the file, a class the nearest folder or tar named by a WordNet id.

    Raises:
      UserError: images are of no known class.
    """
    rows, unknown, known = [], Counter[str](), frozenset(facts.class_names)
    for location in find_images(root, place):
        *parents, name = location.name.split("/")
        synset = next((part for part in reversed(parents) if _SYNSET.fullmatch(part)), "")
        if not synset and (match := _VALIDATION.fullmatch(name)):
            number = int(match[1])
            if 1 <= number <= len(facts.validation_labels):
                synset = facts.validation_labels[number - 1]
        if synset and (not known or synset in known):
            rows.append((name, synset, location))
        else:
            unknown["/".join(parents) if synset else location.name] += 1
    if unknown:
        raise UserError(
            f"'{root / place}' has {unknown.total()} images of {split} that belong to no class of {facts.name}: "
            f"{join_limited(sorted(unknown))}; move them elsewhere"
        )
    return rows


def folder_splits(root: epath.Path) -> dict[str, str]:
    """Split -> its folder below `root`; {'train': ''} if `root` contains the classes themselves.

    Raises:
      UserError: two folders are the same split, or a split or class may be in an archive.
    """
    places: dict[str, str] = {}
    for place in split_folders(root):
        split = SPLITS.get(place.lower(), place.lower())
        if split in places:
            raise UserError(f"'{root}' has both '{places[split]}' and '{place}' for the split {split}; remove one")
        places[split] = place
    for path in root.iterdir():
        name, _, ending = path.name.lower().partition(".")
        if name in SPLIT_NAMES and SPLITS.get(name, name) not in places and f".{ending}" in (".tar", *COMPRESSED):
            raise UserError(
                f"'{path}' has the name of a split, which must be a folder of its classes: unpack it to "
                f"'{root / name}' and move it out of the source folder"
            )
    if not places:
        _refuse_compressed(root)
    return places or {"train": ""}


def folder_rows(root: epath.Path, places: dict[str, str]) -> dict[str, list[Row]]:
    """Split -> its images, named by their path below the split; the class is the first folder or tar of that path."""
    rows: dict[str, list[Row]] = {}
    for split, place in places.items():
        for location in find_images(root, place):
            name = location.name.removeprefix(f"{place}/" if place else "")
            if "/" in name:
                rows.setdefault(split, []).append((name, name.partition("/")[0], location))
    return rows


def check_not_empty(root: epath.Path, rows: dict[str, list[Row]]) -> None:
    """Raises UserError if there are no images, or none of a split."""
    extensions = ", ".join(EXTENSIONS)
    if empty := [split for split, part in rows.items() if not part]:
        raise UserError(f"'{root}' has no images ({extensions}) of {' and '.join(empty)}")
    if not rows:
        raise UserError(f"'{root}' has no images ({extensions}) in class folders; create one folder per class")


def _compressed_files(root: epath.Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.lower().endswith(COMPRESSED))


def _refuse_compressed(root: epath.Path) -> None:
    """Raises UserError if there is a compressed file, because it may contain the part that was not found by name."""
    if packed := _compressed_files(root):
        raise UserError(
            f"'{root / packed[0]}' is compressed, but single images are read from tars: unpack it and move it out of "
            "the source folder"
        )
