"""What is known of ImageNet's true files, and whether those at hand are they."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from etils import epath

from effv2_jax.data.preparation.image_index import Listings, stamp_of
from effv2_jax.errors import UserError
from effv2_jax.files import write_atomically
from effv2_jax.monitoring.progress_bar import bar

_BLOCK = 1 << 24  # bytes read at a time


@dataclasses.dataclass(frozen=True)
class Published:
    """What is known of a data set's true files.

    Args:
      name, version: TFDS'.
      places: split -> what it is called in the source, best first.
      md5: of tars by name.
      examples: number of classes -> split -> images, where known; {}: any number of classes will do.
      exact: whether other numbers of images are an error; else they are told.
      class_names: sorted, or () where they are what the source has.
      validation_labels: class names of ILSVRC2012_val_00000001 and so on.
    """

    name: str
    version: str
    places: Mapping[str, tuple[str, ...]]
    md5: Mapping[str, str]
    examples: Mapping[int, Mapping[str, int]]
    exact: bool
    class_names: tuple[str, ...] = ()
    validation_labels: tuple[str, ...] = ()


def imagenet() -> Published:
    """ILSVRC 2012: sums as torchvision's `datasets/imagenet.py` has them, labels from TFDS."""
    import tensorflow_datasets as tfds

    folder = Path(str(tfds.core.tfds_path("datasets/imagenet2012")))
    return Published(
        name="imagenet2012",
        version="5.1.0",
        places={
            "train": ("ILSVRC2012_img_train.tar", "train"),
            "validation": ("ILSVRC2012_img_val.tar", "val", "validation"),
        },
        md5={
            "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
            "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
        },
        examples={1000: {"train": 1_281_167, "validation": 50_000}},
        exact=True,
        class_names=tuple((folder / "labels.txt").read_text().split()),
        validation_labels=tuple((folder / "validation_labels.txt").read_text().split()),
    )


def imagenet21k() -> Published:
    """The releases of fall 2011 and winter 2021 and their processed versions; numbers of the latter from
    Alibaba-MIIL/ImageNet21K `dataset_preprocessing/processing_instructions.md`, of the whole from image-net.org.

    Copies of the whole differ by some images, so their numbers are told and no error.
    """
    return Published(
        name="imagenet21k",
        version="1.0.0",
        places={
            "train": ("train", "imagenet21k_train", ""),
            "validation": ("val", "validation", "imagenet21k_val"),
        },
        md5={},
        examples={
            21_841: {"train": 14_197_122},
            19_167: {},
            11_221: {"train": 11_797_632, "validation": 561_052},
            10_450: {"train": 11_060_223, "validation": 522_500},
        },
        exact=False,
    )


def check_numbers(published: Published, root: epath.Path, classes: int, listings: Listings) -> list[str]:
    """What differs from the published numbers of images.

    Raises:
      UserError: another number of classes; of images, where these are exact.
    """
    if not published.examples:
        return []
    if classes not in published.examples:
        known = " or ".join(f"{number:,}" for number in published.examples)
        raise UserError(f"'{root}' has {classes:,} classes, {published.name} has {known}; is it whole?")
    notes = [
        f"{len(listings[split]):,} images of {split}, published are {number:,}"
        for split, number in published.examples[classes].items()
        if split in listings and len(listings[split]) != number
    ]
    if notes and published.exact:
        raise UserError(f"'{root}' is not {published.name} as published: {'; '.join(notes)}; is it whole?")
    return notes


def check_md5(tars: Sequence[epath.Path], md5: Mapping[str, str], seen: epath.Path) -> None:
    """Compares the MD5 sums of the tars that `md5` names; `seen` is a file that keeps which were right.

    Raises:
      UserError: a sum differs.
    """
    right = json.loads(seen.read_text()) if seen.exists() else []
    for tar in tars:
        stamp = [stamp_of(tar.parent, [tar]), md5.get(tar.name)]
        if tar.name not in md5 or stamp in right:
            continue
        digest = hashlib.md5(usedforsecurity=False)
        with bar(f"MD5 of {tar.name}", os.stat(tar).st_size, "bytes") as advance, open(tar, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                advance(len(block))
        if digest.hexdigest() != md5[tar.name]:
            raise UserError(
                f"'{tar}' has the MD5 sum {digest.hexdigest()}, published is {md5[tar.name]}: download it again, or "
                "take it as it is with --skip_checksums"
            )
        right.append(stamp)
        write_atomically(seen, json.dumps(right).encode())
