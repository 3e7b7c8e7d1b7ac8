"""Helpers for tests of prepared data sets: sources to prepare, interruptions, and what TFDS reads."""

import hashlib
import json
from pathlib import Path

import ilsvrc
import tensorflow_datasets as tfds

from effv2_jax.data.preparation import prepare, shards


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 sums of the files of a folder; the report is hashed without the name of its source."""
    sums_by_file = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    if prepare.REPORT in sums_by_file:
        report = json.loads((folder / prepare.REPORT).read_text())
        sums_by_file[prepare.REPORT] = json.dumps({name: value for name, value in report.items() if name != "source"})
    return sums_by_file


def prepared_folder(out: Path) -> Path:
    return out / "imagenet2012" / "5.1.0"


def read_back(folder: Path, split: str) -> dict[str, tuple[bytes, str]]:
    """name -> (bytes, class), read by TFDS alone."""
    builder = tfds.builder_from_directory(folder)
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    names = builder.info.features["label"].names
    return {example["file_name"].decode(): (example["image"], names[example["label"]]) for example in source}


def interrupted_after(count, monkeypatch):
    """Makes `write_shard` raise KeyboardInterrupt after `count` shards; returns the list of the shards written."""
    original, calls = shards.write_shard, []

    def write_shard(shard):
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(shard.name)
        return original(shard)

    monkeypatch.setattr(shards, "write_shard", write_shard)
    return calls


def write_cats_and_dogs(root, splits=("train", "val")):
    """Three images of each of two classes per split."""
    for split in splits:
        for label, name in enumerate(("cat", "dog")):
            for number in range(3):
                path = root / split / name / f"{number}.{'png' if number else 'jpg'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(ilsvrc.encoded(ilsvrc.photo(10 * label + number), "PNG" if number else "JPEG"))
