"""Preparation of ImageNet, ImageNet-21k and folders of images as TFDS data sets with random access.

A prepared data set is in OUT/NAME/VERSION/, in TFDS's layout. Shards are written first and the metadata last, so an
unfinished data set is never mistaken for a complete one; the same command resumes it.
"""

import contextlib
import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from effv2_jax.data.preparation.image_index import (
    Row,
    find_tars,
    load_index,
    make_index,
    only_tars,
    save_index,
    stamp_of,
)
from effv2_jax.data.preparation.imagenet_facts import DatasetFacts, check_counts, check_md5
from effv2_jax.data.preparation.shards import RECORDS, Shard, finished_record, make_shards, write_shards
from effv2_jax.data.preparation.source_layout import (
    check_not_empty,
    folder_rows,
    folder_splits,
    imagenet_rows,
    imagenet_splits,
    source_folder,
)
from effv2_jax.errors import Unavailable, UserError, is_disk_full_or_readonly, join_limited, one_line
from effv2_jax.files import write_atomically, write_folder
from effv2_jax.monitoring.progress_bar import bar
from effv2_jax.runtime.lock import LOCK_FILE, exclusive

REPORT = "prepare_report.json"
INFO = "dataset_info.json"  # TFDS treats a folder with this file as a prepared data set
INDEX = "index.npz"
MAX_LISTED = 30  # images listed on the terminal; of ImageNet 23 are encoded again


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared data set.

    Args:
      name: its name, for config.data.name.
      folder: where it is.
      classes: the number of classes.
      examples: split -> number of images.
      encoded_again: {'split', 'file', 'why'} of images whose bytes differ from the source's.
      left_out: the same of broken images.
      notes: lines for the user.
    """

    name: str
    folder: str
    classes: int
    examples: dict[str, int]
    encoded_again: list[dict[str, str]]
    left_out: list[dict[str, str]]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a preparation."""

    workers: int = 0  # processes; 0 works in this process
    strict: bool = False  # whether a broken image is an error
    checksums: bool = True  # whether MD5 sums are compared


def prepare_imagenet(
    facts: DatasetFacts, source: epath.PathLike, out: epath.PathLike, settings: Settings = Settings()
) -> Prepared:
    """Prepares ImageNet or ImageNet-21k from a folder with its tars or with the unpacked splits.

    Classes are folders or tars named by a WordNet id, at any depth. Validation images may be in a flat folder.

    Args:
      facts: the published facts that the source must match.
      source: the folder.
      out: a local or gs:// folder; the data set gets its own folder below it.
      settings: see `Settings`.

    Raises:
      UserError: the source does not exist, its checksums, classes or numbers of images differ from the published ones,
        or an image is broken and `settings.strict` is set.
      Unavailable: another process prepares the same data set, or a worker was killed.
    """
    root = source_folder(source)
    places = imagenet_splits(root, facts)

    def find_rows() -> dict[str, list[Row]]:
        return {split: imagenet_rows(root, place, split, facts) for split, place in places.items()}

    folder = epath.Path(out) / facts.name / facts.version
    return _prepare(facts, root, folder, list(places.values()), find_rows, settings)


def prepare_folder(
    source: epath.PathLike, out: epath.PathLike, name: str = "", settings: Settings = Settings()
) -> Prepared:
    """Prepares `SOURCE/SPLIT/CLASS/*`, or `SOURCE/CLASS/*` as the split 'train'; a class may also be a tar.

    `name` is that of the new data set, by default the folder's. Other arguments and errors as in `prepare_imagenet`.
    """
    import tensorflow_datasets as tfds

    root = source_folder(source)
    name = name or re.sub(r"\W+", "_", root.resolve().name).strip("_").lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"'{name}' is not a valid name of a data set; set --name=... with a-z, 0-9 and _ only")
    if name in tfds.list_builders(with_community_datasets=False):
        raise UserError(f"'{name}' is a data set of TFDS; set --name=... to another name")
    places = folder_splits(root)
    facts = DatasetFacts(name, "1.0.0", places={}, md5={}, examples={}, exact=False)
    folder = epath.Path(out) / name / facts.version
    return _prepare(facts, root, folder, list(places.values()), lambda: folder_rows(root, places), settings)


def _prepare(
    facts: DatasetFacts,
    root: epath.Path,
    folder: epath.Path,
    places: list[str],
    find_rows: Callable[[], dict[str, list[Row]]],
    settings: Settings,
) -> Prepared:
    """Writes index, shards and metadata; steps that an earlier attempt finished are skipped."""
    with _locked(folder):
        if (folder / INFO).exists():
            return _load_finished(folder, root, settings.strict)
        tars = find_tars(root, places)
        if settings.checksums:
            check_md5(tars, facts.md5, folder / RECORDS / "md5.json")
        index_path = folder / RECORDS / INDEX
        stamp = stamp_of(root, tars) if only_tars(root, places) else ""  # new files in folders would not change a stamp
        classes_and_index = load_index(index_path, stamp) if stamp else None
        if classes_and_index is None:
            print(f"looking for images in {root}", file=sys.stderr)
            rows = find_rows()
            check_not_empty(root, rows)
            classes_and_index = make_index(root, rows, facts.class_names)
        classes, index = classes_and_index
        notes = check_counts(facts, root, len(classes), index)
        if stamp:
            save_index(index_path, stamp, classes, index)
        shards = {
            split: make_shards(folder, facts.name, split, split_index, settings.strict)
            for split, split_index in index.items()
        }
        records = _write_shards(shards, settings.workers)
        _remove_stale_shards(folder, facts.name, {shard.name for part in shards.values() for shard in part})
        examples = {split: sum(record["examples"] for record in part) for split, part in records.items()}
        prepared = Prepared(
            name=facts.name,
            folder=str(folder),
            classes=len(classes),
            examples=examples,
            encoded_again=_images_of(records, "encoded_again"),
            left_out=_images_of(records, "left_out"),
            notes=notes,
        )
        report = dataclasses.asdict(prepared) | {"source": str(root.resolve())}
        del report["folder"]  # the data set may be moved
        write_atomically(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())
        _write_metadata(facts, folder, classes, records)
        return prepared


def _write_shards(shards: dict[str, list[Shard]], workers: int) -> dict[str, list[dict[str, Any]]]:
    """Writes all unfinished shards and returns the records of all shards by split."""
    all_shards = [shard for part in shards.values() for shard in part]
    records = {shard.name: record for shard in all_shards if (record := finished_record(shard)) is not None}
    unfinished = [shard for shard in all_shards if shard.name not in records]
    if records:
        print(f"{len(records)} of {len(all_shards)} shards are already written", file=sys.stderr)
    with bar("writing", sum(len(shard.images) for shard in unfinished)) as advance:

        def done(shard: Shard, record: dict[str, Any]) -> None:
            records[shard.name] = record
            advance(len(shard.images))

        write_shards(unfinished, workers, done)
    return {split: [records[shard.name] for shard in part] for split, part in shards.items()}


def _remove_stale_shards(folder: epath.Path, name: str, files: set[str]) -> None:
    """Removes shards of an earlier attempt with another number of images."""
    for path in folder.iterdir():
        if path.name.startswith(f"{name}-") and path.name not in files:
            path.unlink()


def _images_of(records: dict[str, list[dict[str, Any]]], key: str) -> list[dict[str, str]]:
    return [{"split": split} | image for split, part in records.items() for record in part for image in record[key]]


def _write_metadata(
    facts: DatasetFacts, folder: epath.Path, classes: Sequence[str], records: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes TFDS's own files; INFO, which marks the data set as complete, is last."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=facts.name, filetype_suffix="array_record")
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[record["examples"] for record in part],
            num_bytes=sum(record["bytes"] for record in part),
            filename_template=template.replace(split=split),
        )
        for split, part in records.items()
    ]
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=facts.name, version=facts.version, data_dir=str(folder), module_name=""
    )
    features = {
        "image": tfds.features.Image(encoding_format="jpeg" if facts.class_names else None),
        "label": tfds.features.ClassLabel(names=list(classes)),
        "file_name": tfds.features.Text(),
    }
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(splits))
    with tempfile.TemporaryDirectory() as temporary:
        info.write_to_directory(temporary)
        write_folder(Path(temporary), folder, last=INFO)


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    """Locks the folder of a data set, and finally removes files that are needed neither by TFDS nor to resume."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder))
        except Unavailable:
            raise Unavailable(f"another process prepares '{folder}'; the file '{LOCK_FILE}' there names it") from None
        for path in folder.iterdir():
            if path.name.endswith(".part"):
                path.unlink(missing_ok=True)
        try:
            yield
        except Exception as error:  # raised by ArrayRecord, TensorFlow or Python
            if isinstance(error, UserError | Unavailable) or not is_disk_full_or_readonly(error):
                raise
            raise UserError(f"the data set in '{folder}' cannot be written: {one_line(error)}") from None
        finally:
            if (folder / INFO).exists() and (folder / RECORDS).exists():
                (folder / RECORDS).rmtree()
            (folder / LOCK_FILE).unlink(missing_ok=True)
            for empty in (folder, folder.parent):
                if empty.exists() and not any(empty.iterdir()):
                    empty.rmdir()


def _load_finished(folder: epath.Path, root: epath.Path, strict: bool) -> Prepared:
    """The finished data set in `folder`; raises UserError if it is from another source than `root` or not strict."""
    again = f"to prepare it again, delete the folder '{folder}'"
    if not (folder / REPORT).exists():
        raise UserError(f"'{folder}' contains a data set that this command did not create; choose another --out")
    report = json.loads((folder / REPORT).read_text())
    if (source := report.pop("source", None)) and source != str(root.resolve()):
        raise UserError(
            f"the data set in '{folder}' was prepared from '{source}', not from '{root}'; use it as it is, or {again}"
        )
    if strict and (left_out := report["left_out"]):
        raise UserError(
            f"the data set in '{folder}' was prepared without --strict, and images were left out: "
            f"{join_limited([image['file'] for image in left_out])}; repair them and delete the folder, or omit "
            "--strict"
        )
    notes = [f"it is already prepared; {again}", *report.pop("notes")]
    return Prepared(**report, folder=str(folder), notes=notes)


def describe(prepared: Prepared, out: epath.PathLike) -> str:
    """The lines for the terminal: the data set, images that were changed or left out, and how to use it in a config."""
    images = ", ".join(f"{count:,} images of {split}" for split, count in prepared.examples.items())
    lines = [f"{prepared.folder}: {images}, {prepared.classes:,} classes", *prepared.notes]
    for title, changed in (("encoded again", prepared.encoded_again), ("left out", prepared.left_out)):
        lines += [f"{title}: {image['file']} of {image['split']}, {image['why']}" for image in changed[:MAX_LISTED]]
        if len(changed) > MAX_LISTED:
            lines.append(f"{title}: {len(changed) - MAX_LISTED} more; {REPORT} lists all")
    flags = f"--config.data.source=tfds --config.data.name={prepared.name} --config.data.data_dir={out}"
    return "\n".join([*lines, f"in a config: {flags}"])
