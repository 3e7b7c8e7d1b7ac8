"""A small ILSVRC 2012: tars and tree, with all irregularities of the real data set."""

import hashlib
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from effv2_jax.data.preparation.imagenet_facts import DatasetFacts

SYNSETS = ("n01440764", "n01443537", "n02105855", "n13037406")
TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
IMAGES = 6  # of a class
CMYK, PNG, BROKEN = "n13037406_4.JPEG", "n02105855_3.JPEG", "n01443537_2.JPEG"
VALIDATION_LABELS = [SYNSETS[(3 * number) % 4] for number in range(8)]


def photo(seed: int) -> np.ndarray:
    """A smooth picture in colour, uint8 [24, 32, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(coarse, (32, 24), interpolation=cv2.INTER_CUBIC)


def encoded(image: np.ndarray, format: str = "JPEG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, format, quality=95)
    return file.getvalue()


def train_files() -> dict[str, dict[str, bytes]]:
    """synset -> name -> bytes."""
    files: dict[str, dict[str, bytes]] = {}
    for label, synset in enumerate(SYNSETS):
        for number in range(IMAGES):
            name, image = f"{synset}_{number}.JPEG", photo(100 * label + number)
            data = encoded(image, "PNG" if name == PNG else "JPEG", "CMYK" if name == CMYK else "RGB")
            files.setdefault(synset, {})[name] = data[: len(data) // 2] if name == BROKEN else data
    return files


def validation_files() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{number + 1:08}.JPEG": encoded(photo(1000 + number)) for number in range(8)}


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tars(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # The order is not that of the names, as in the real tar.
    classes = {f"{synset}.tar": tar_of(files) for synset, files in reversed(train_files().items())}
    (folder / TRAIN).write_bytes(tar_of(classes))
    (folder / VALIDATION).write_bytes(tar_of(dict(reversed(validation_files().items()))))


def write_tree(folder: Path, by_class: bool) -> None:
    for synset, files in train_files().items():
        (folder / "train" / synset).mkdir(parents=True)
        for name, data in files.items():
            (folder / "train" / synset / name).write_bytes(data)
    for label, (name, data) in zip(VALIDATION_LABELS, validation_files().items(), strict=True):
        place = folder / "val" / label if by_class else folder / "val"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


def facts(**changes) -> DatasetFacts:
    """The facts about the small data set."""
    tars = {f"{synset}.tar": tar_of(files) for synset, files in reversed(train_files().items())}
    fields = {
        "name": "imagenet2012",
        "version": "5.1.0",
        "places": {"train": (TRAIN, "train"), "validation": (VALIDATION, "val", "validation")},
        "md5": {
            TRAIN: hashlib.md5(tar_of(tars)).hexdigest(),
            VALIDATION: hashlib.md5(tar_of(dict(reversed(validation_files().items())))).hexdigest(),
        },
        "examples": {4: {"train": 24, "validation": 8}},
        "exact": True,
        "class_names": SYNSETS,
        "validation_labels": tuple(VALIDATION_LABELS),
    }
    return DatasetFacts(**fields | changes)
