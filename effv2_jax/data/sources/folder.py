"""A folder of images with one subfolder per class, local or remote (any scheme of etils's epath, such as gs://)."""

import hashlib
import os

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from effv2_jax.data.images.decode import BrokenImage, Picture
from effv2_jax.data.source import Sources
from effv2_jax.errors import UserError, join_limited

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
SPLIT_ALIASES = {  # common names of such folders, best first
    "train_split": ("train", "training"),
    "evaluation_split": ("validation", "val", "valid", "test", "testing", "eval"),
}
SPLIT_NAMES = frozenset(name for names in SPLIT_ALIASES.values() for name in names)


class Folder:
    """Images of a folder, in the order of their paths.

    Args:
      root: the folder.
      files: '/'-separated paths below it.
      labels: one label per file.
      class_names: by label.
    """

    def __init__(self, root: str, files: list[str], labels: list[int], class_names: tuple[str, ...]):
        self.class_names = class_names
        self._root = root
        # One array of bytes, because a million Python strings would be copied to every worker process.
        self._files = np.array([os.fsencode(name) for name in files])
        self._labels = np.array(labels, np.int32)

    @property
    def fingerprint(self) -> str:
        """Covers names and classes, but not the contents of the files, which would all have to be read."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        for array in (self._files, self._labels):
            digest.update(array.tobytes())
        return f"{len(self)} images in {len(self.class_names)} folders, {digest.hexdigest()[:12]}"

    def __len__(self) -> int:
        return len(self._labels)

    def load(self, index: int) -> tuple[Picture, int]:
        try:
            data = epath.Path(self.describe(index)).read_bytes()
        except OSError as error:
            raise BrokenImage(str(error)) from None
        return Picture(data), int(self._labels[index])

    def describe(self, index: int) -> str:
        return f"{self._root}/{os.fsdecode(self._files[index])}"


def folder_sources(config: ConfigDict) -> Sources:
    """The sources of `DIR/train/CLASS/*` and `DIR/EVALUATION/CLASS/*`, or of `DIR/CLASS/*` with a held-out share.

    Raises:
      UserError: the folder or a split does not exist, a class is empty, or the splits have different classes.
    """
    data = config.data
    root = epath.Path(data.name)
    if not data.name or not root.is_dir():
        raise UserError(f"config.data.name='{data.name}' is not a folder of images")
    splits = _subfolders(root)
    if data.holdout_percent:
        if data.train_split in splits and _subfolders(root / data.train_split):
            raise UserError(
                f"'{root}' is already split, but config.data.holdout_percent needs a folder of classes: set "
                f"--config.data.name={root / data.train_split} to hold out a share of its training images, or "
                "--config.data.holdout_percent=0 to use the existing splits"
            )
        return _held_out(root, splits, data.holdout_percent)
    for field in ("train_split", "evaluation_split"):
        if data[field] not in splits:
            raise UserError(_missing_split(root, splits, field, data))
    roots = root / data.train_split, root / data.evaluation_split
    images = [_list_images(split, _subfolders(split)) for split in roots]
    train, evaluation = map(set, images)
    if train != evaluation:
        raise UserError(
            f"the classes of '{roots[0]}' and '{roots[1]}' differ: "
            f"only in the first: {', '.join(sorted(train - evaluation)) or 'none'}; "
            f"only in the second: {', '.join(sorted(evaluation - train)) or 'none'}"
        )
    return Sources(*map(_source, roots, images))


def split_folders(root: epath.Path) -> list[str]:
    """The subfolders that have the name of a split (see SPLIT_ALIASES) and contain folders or tars."""
    return [
        name
        for name in _subfolders(root)
        if name.lower() in SPLIT_NAMES
        and any(path.suffix == ".tar" or path.is_dir() for path in (root / name).iterdir())
    ]


def all_splits(root: epath.PathLike) -> dict[str, Folder]:
    """All splits of a folder; one split 'images' if the folder contains the classes themselves.

    Raises:
      UserError: there are no class folders, or one is empty.
    """
    root = epath.Path(root)
    splits = {name: root / name for name in split_folders(root)} or {"images": root}
    return {name: _source(path, _list_images(path, _subfolders(path))) for name, path in splits.items()}


def _missing_split(root: epath.Path, splits: list[str], field: str, data: ConfigDict) -> str:
    aliases = SPLIT_ALIASES[field]
    close = [name for name in splits if name.lower() in aliases]
    if close:
        best = min(close, key=lambda name: aliases.index(name.lower()))
        hint = f"set --config.data.{field}={best}"
    elif field == "evaluation_split":
        hint = (
            f"set --config.data.name={root / data.train_split} --config.data.holdout_percent=20 to hold out a share of "
            "the training images"
        )
    else:
        hint = "if these are classes, set --config.data.holdout_percent=20 to hold out a share of each"
    existing = join_limited(splits, 10) or "none"
    return f"'{root}' has no subfolder '{data[field]}' (config.data.{field}); it has {existing}; {hint}"


def _held_out(root: epath.Path, classes: list[str], percent: float) -> Sources:
    images = _list_images(root, classes)
    train: dict[str, list[str]] = {}
    evaluation: dict[str, list[str]] = {}
    for name, files in images.items():
        # The hash of its name alone decides where a file goes, so that it stays there when others are added. The first
        # file in the order of the hashes is always for training.
        order = sorted(files, key=_share)
        evaluation[name] = sorted(file for file in order[1:] if _share(file) * 100 >= 100 - percent)
        train[name] = sorted(set(files) - set(evaluation[name]))
    if not any(evaluation.values()):
        raise UserError(f"config.data.holdout_percent={percent} holds out no image of '{root}'; increase it")
    return Sources(_source(root, train), _source(root, evaluation))


def _share(file: str) -> float:
    """A pseudo-random number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(file)).digest()[:8], "big") / 2**64


def _subfolders(folder: epath.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())


def _list_images(root: epath.Path, classes: list[str]) -> dict[str, list[str]]:
    """Class name -> paths of its images below `root`."""
    if not classes:
        raise UserError(f"'{root}' has no subfolders; create one for each class")
    images = {name: sorted(_walk(root / name, name)) for name in classes}
    if empty := [name for name, files in images.items() if not files]:
        raise UserError(f"no images ({', '.join(EXTENSIONS)}) in the class folders {', '.join(empty)} of '{root}'")
    return images


def _walk(folder: epath.Path, prefix: str) -> list[str]:
    files = []
    for path in folder.iterdir():
        name = f"{prefix}/{path.name}"
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in EXTENSIONS:
            files.append(name)
        elif path.is_dir():
            files += _walk(path, name)
    return files


def _source(root: epath.Path, images: dict[str, list[str]]) -> Folder:
    names = tuple(images)
    files = [file for name in names for file in images[name]]
    labels = [label for label, name in enumerate(names) for _ in images[name]]
    return Folder(str(root), files, labels, names)
