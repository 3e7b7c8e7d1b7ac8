"""Published facts about ImageNet and ImageNet-21k, and the comparison of local files with them."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from etils import epath

from effv2_jax.data.preparation.image_index import ImageIndex, stamp_of
from effv2_jax.errors import UserError
from effv2_jax.files import write_atomically
from effv2_jax.monitoring.progress_bar import bar

_BLOCK = 1 << 24  # bytes read at a time


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """Published facts about the files of a data set.

    Args:
      name, version: as in TFDS.
      places: split -> its possible files or folders in the source, best first.
      md5: tar name -> MD5 sum.
      examples: number of classes -> split -> number of images if known; {} accepts any number of classes.
      exact: whether a differing number of images is an error or only reported.
      class_names: sorted; () accepts the classes of the source.
      validation_labels: the class names of ILSVRC2012_val_00000001 and so on.
    """

    name: str
    version: str
    places: Mapping[str, tuple[str, ...]]
    md5: Mapping[str, str]
    examples: Mapping[int, Mapping[str, int]]
    exact: bool
    class_names: tuple[str, ...] = ()
    validation_labels: tuple[str, ...] = ()


def imagenet() -> DatasetFacts:
    """ILSVRC 2012; the MD5 sums are from torchvision's `datasets/imagenet.py`, the labels from TFDS."""
    import tensorflow_datasets as tfds

    folder = Path(str(tfds.core.tfds_path("datasets/imagenet2012")))
    return DatasetFacts(
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


def imagenet21k() -> DatasetFacts:
    """The releases of fall 2011 (21,841 classes) and winter 2021 (19,167) and their processed versions.

    Numbers of the processed versions are from Alibaba-MIIL/ImageNet21K
    `dataset_preprocessing/processing_instructions.md`, that of the full release is from image-net.org. Copies of the
    full release differ by a few images, so a differing number is reported and not an error.
    """
    return DatasetFacts(
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


def check_counts(facts: DatasetFacts, root: epath.Path, classes: int, index: ImageIndex) -> list[str]:
    """One note per split whose number of images differs from the published one.

    Raises:
      UserError: the number of classes differs, or a number of images does and `facts.exact` is set.
    """
    if not facts.examples:
        return []
    if classes not in facts.examples:
        known = " or ".join(f"{number:,}" for number in facts.examples)
        raise UserError(
            f"'{root}' has {classes:,} classes, but {facts.name} has {known}; check that the download is complete"
        )
    notes = [
        f"{len(index[split]):,} images of {split} instead of the published {number:,}"
        for split, number in facts.examples[classes].items()
        if split in index and len(index[split]) != number
    ]
    if notes and facts.exact:
        raise UserError(
            f"'{root}' differs from the published {facts.name}: {'; '.join(notes)}; check that the download is complete"
        )
    return notes


def check_md5(tars: Sequence[epath.Path], md5: Mapping[str, str], record: epath.Path) -> None:
    """Compares the tars that are named in `md5` with these MD5 sums; the file `record` lists tars already verified.

    Raises:
      UserError: a sum differs.
    """
    verified = json.loads(record.read_text()) if record.exists() else []
    for tar in tars:
        stamp = [stamp_of(tar.parent, [tar]), md5.get(tar.name)]
        if tar.name not in md5 or stamp in verified:
            continue
        digest = hashlib.md5(usedforsecurity=False)
        with bar(f"MD5 of {tar.name}", os.stat(tar).st_size, "bytes") as advance, open(tar, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                advance(len(block))
        if digest.hexdigest() != md5[tar.name]:
            raise UserError(
                f"'{tar}' has the MD5 sum {digest.hexdigest()} instead of the published {md5[tar.name]}: download it "
                "again, or use it as it is with --skip_checksums"
            )
        verified.append(stamp)
        write_atomically(record, json.dumps(verified).encode())
