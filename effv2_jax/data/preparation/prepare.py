"""ImageNet, ImageNet-21k and folders of images as data sets of TFDS with random access; any other by TFDS itself.

What is prepared lies in OUT/NAME/VERSION/ as TFDS has it. Shards are written first and the metadata last, so that an
unfinished data set is not taken for a whole one; the same command goes on with it.
"""

import contextlib
import dataclasses
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from effv2_jax.data.preparation.image_index import (
    Row,
    find_images,
    find_tars,
    load_index,
    make_listings,
    only_tars,
    save_index,
    some,
    stamp_of,
)
from effv2_jax.data.preparation.imagenet_facts import Published, check_md5, check_numbers
from effv2_jax.data.preparation.shards import RECORDS, Shard, finished, make_shards, write_shards
from effv2_jax.data.sources.folder import EXTENSIONS, SPLIT_NAMES, split_folders
from effv2_jax.errors import Unavailable, UserError, is_disk_full_or_readonly, one_line
from effv2_jax.files import write_atomically, write_folder
from effv2_jax.monitoring.progress_bar import bar
from effv2_jax.runtime.lock import LOCK_FILE, exclusive

REPORT = "prepare_report.json"
INFO = "dataset_info.json"  # TFDS takes a folder with it for a prepared data set
INDEX = "index.npz"
COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".zip")  # what cannot be read at any place
MAX_LISTED = 30  # images that are named on the terminal; ImageNet has 23 that are encoded again
SPLITS = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}  # folder -> our name
_SYNSET = re.compile(r"n\d{8}")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a preparation leaves.

    Args:
      name: of the data set, as config.data.name has it.
      folder: in which it is.
      classes: their number.
      examples: split -> number of images.
      encoded_again, left_out: {'split', 'file', 'why'} of images whose bytes are not the source's, and of broken ones.
      notes: what a person should know.
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
    """How to prepare: by how many processes, 0: this one; whether broken images stop it and MD5 sums are compared."""

    workers: int = 0
    strict: bool = False
    checksums: bool = True


def prepare_imagenet(
    published: Published, source: epath.PathLike, out: epath.PathLike, settings: Settings = Settings()
) -> Prepared:
    """Prepares ImageNet or ImageNet-21k of a folder with its tars, or with the unpacked splits.

    Classes are folders or tars named by a WordNet id, at any depth; validation images may lie flat.

    Args:
      published: what `source` is compared with.
      source: the folder.
      out: a folder, local or gs://; the data set gets one of its own below.
      settings: how.

    Raises:
      UserError: no such source; other checksums, classes or numbers than the published; a broken image where strict.
      Unavailable: another process prepares there; a worker was killed.
    """
    root = _source(source)
    places = {split: _find(root, known) for split, known in published.places.items()}
    if published.exact and (missing := [split for split, place in places.items() if place is None]):
        names = "; ".join(f"{split}: {' or '.join(published.places[split])}" for split in missing)
        hint = f"; what is in {some(packed)} has to be unpacked first" if (packed := _compressed(root)) else ""
        raise UserError(f"'{root}' lacks a part of {published.name}: {names}{hint}")
    there = {split: place for split, place in places.items() if place is not None}
    if "" in there.values():  # classes lie in the folder itself
        there = {"train": ""}
    if len(there) < len(places):
        _refuse_compressed(root)

    def rows() -> dict[str, list[Row]]:
        return {split: _imagenet_rows(root, place, split, published) for split, place in there.items()}

    folder = epath.Path(out) / published.name / published.version
    return _prepare(published, root, folder, list(there.values()), rows, settings)


def prepare_folder(
    source: epath.PathLike, out: epath.PathLike, name: str = "", settings: Settings = Settings()
) -> Prepared:
    """Prepares `SOURCE/SPLIT/CLASS/*`, or `SOURCE/CLASS/*` as the split 'train'; a class may be a tar, too.

    Args and raises as `prepare_imagenet`; `name` is that of the new data set, by default the folder's.
    """
    import tensorflow_datasets as tfds

    root = _source(source)
    name = name or re.sub(r"\W+", "_", root.resolve().name).strip("_").lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"'{name}' cannot be the name of a data set; --name=... takes a-z, 0-9 and _")
    if name in tfds.list_builders(with_community_datasets=False):
        raise UserError(f"'{name}' is a data set of TFDS; --name=... gives this one another name")
    places = _folder_splits(root)

    def rows() -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for split, place in places.items():
            for entry in find_images(root, place):
                inside = entry.name.removeprefix(f"{place}/" if place else "")
                if "/" in inside:
                    found.setdefault(split, []).append((inside, inside.partition("/")[0], entry))
        return found

    unknown = Published(name, "1.0.0", {}, {}, {}, exact=False)
    return _prepare(unknown, root, epath.Path(out) / name / "1.0.0", list(places.values()), rows, settings)


def _prepare(
    published: Published,
    root: epath.Path,
    folder: epath.Path,
    places: list[str],
    find_rows: Callable[[], dict[str, list[Row]]],
    settings: Settings,
) -> Prepared:
    """Index, numbers, shards, metadata; each is passed over where an earlier start has done it."""
    with _exclusive(folder):
        if (folder / INFO).exists():
            return _report(folder, root, settings.strict)
        tars = find_tars(root, places)
        if settings.checksums:
            check_md5(tars, published.md5, folder / RECORDS / "md5.json")
        index = folder / RECORDS / INDEX
        stamp = stamp_of(root, tars) if only_tars(root, places) else ""  # of folders nothing tells that a file came
        found = load_index(index, stamp) if stamp else None
        if found is None:
            print(f"looking for images in {root}", file=sys.stderr)
            found = make_listings(root, _not_empty(root, find_rows()), published.class_names)
        classes, listings = found
        notes = check_numbers(published, root, len(classes), listings)
        if stamp:
            save_index(index, stamp, classes, listings)
        shards = {
            split: make_shards(folder, published.name, split, listing, settings.strict)
            for split, listing in listings.items()
        }
        records = _write_shards(shards, settings.workers)
        _remove_others(folder, published.name, {shard.name for part in shards.values() for shard in part})
        examples = {split: sum(record["examples"] for record in part) for split, part in records.items()}
        again, left_out = (_told(records, what) for what in ("encoded_again", "left_out"))
        prepared = Prepared(published.name, str(folder), len(classes), examples, again, left_out, notes)
        report = dataclasses.asdict(prepared) | {"source": str(root.resolve())}
        del report["folder"]  # may be moved
        write_atomically(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())
        _write_metadata(published, folder, classes, records)
        return prepared


def _write_shards(shards: dict[str, list[Shard]], workers: int) -> dict[str, list[dict[str, Any]]]:
    """The records of all shards, those that were written before included."""
    everything = [shard for part in shards.values() for shard in part]
    records = {shard.name: record for shard in everything if (record := finished(shard)) is not None}
    left = [shard for shard in everything if shard.name not in records]
    if records:
        print(f"{len(records)} of {len(everything)} shards are there already", file=sys.stderr)
    with bar("writing", sum(len(shard.listing) for shard in left)) as advance:

        def done(shard: Shard, record: dict[str, Any]) -> None:
            records[shard.name] = record
            advance(len(shard.listing))

        write_shards(left, workers, done)
    return {split: [records[shard.name] for shard in part] for split, part in shards.items()}


def _remove_others(folder: epath.Path, name: str, files: set[str]) -> None:
    """Removes shards of an earlier start whose source held another number of images."""
    for path in folder.iterdir():
        if path.name.startswith(f"{name}-") and path.name not in files:
            path.unlink()


def _told(records: dict[str, list[dict[str, Any]]], what: str) -> list[dict[str, str]]:
    return [{"split": split} | image for split, part in records.items() for record in part for image in record[what]]


def _write_metadata(
    published: Published, folder: epath.Path, classes: Sequence[str], records: dict[str, list[dict[str, Any]]]
) -> None:
    """TFDS' own files; the one that makes the folder a data set comes last."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=published.name, filetype_suffix="array_record"
    )
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
        name=published.name, version=published.version, data_dir=str(folder), module_name=""
    )
    features = {
        "image": tfds.features.Image(encoding_format="jpeg" if published.class_names else None),
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
def _exclusive(folder: epath.Path) -> Iterator[None]:
    """Holds the folder of a data set; leaves in it what a finished one needs, or an unfinished one to go on."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder))
        except Unavailable:
            raise Unavailable(f"another process prepares '{folder}', which '{LOCK_FILE}' there names") from None
        for left in folder.iterdir():
            if left.name.endswith(".part"):
                left.unlink(missing_ok=True)
        try:
            yield
        except Exception as error:  # of ArrayRecord, TensorFlow or Python
            if isinstance(error, UserError | Unavailable) or not is_disk_full_or_readonly(error):
                raise
            raise UserError(f"the data set in '{folder}' cannot go on: {one_line(error)}") from None
        finally:
            if (folder / INFO).exists() and (folder / RECORDS).exists():
                (folder / RECORDS).rmtree()
            (folder / LOCK_FILE).unlink(missing_ok=True)
            for empty in (folder, folder.parent):
                if empty.exists() and not any(empty.iterdir()):
                    empty.rmdir()


def _report(folder: epath.Path, root: epath.Path, strict: bool) -> Prepared:
    """Of a finished data set, made of `root`."""
    anew = f"to prepare it anew, delete the folder '{folder}'"
    if not (folder / REPORT).exists():
        raise UserError(f"'{folder}' holds a data set that this command did not make; take another --out")
    report = json.loads((folder / REPORT).read_text())
    if (source := report.pop("source", None)) and source != str(root.resolve()):
        raise UserError(
            f"the data set in '{folder}' was prepared from '{source}', not from '{root}'; it can be used as it is, and "
            f"{anew}"
        )
    if strict and (left_out := report["left_out"]):
        raise UserError(
            f"the data set in '{folder}' was prepared without --strict, and images were left out: "
            f"{some([image['file'] for image in left_out])}; mend them and delete the folder, or do without --strict"
        )
    notes = [f"it was prepared before; {anew}", *report.pop("notes")]
    return Prepared(**report, folder=str(folder), notes=notes)


def _source(source: epath.PathLike) -> epath.Path:
    root = epath.Path(source)
    if not str(source) or not root.is_dir():
        raise UserError(f"--source='{source}' is no folder")
    return root


def _compressed(root: epath.Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.lower().endswith(COMPRESSED))


def _refuse_compressed(root: epath.Path) -> None:
    """Where a part was not found by its name: whatever is compressed may hold it."""
    if packed := _compressed(root):
        raise UserError(
            f"'{root / packed[0]}' is compressed, and images are read one by one from a tar: unpack it, and move it "
            "out of the folder"
        )


def _find(root: epath.Path, places: tuple[str, ...]) -> str | None:
    return next((place for place in places if (root / place).exists()), None)


def _folder_splits(root: epath.Path) -> dict[str, str]:
    """Split -> its folder: those below `root` with the name of a split and folders or tars in them, or all of it."""
    found: dict[str, str] = {}
    for place in split_folders(root):
        split = SPLITS.get(place.lower(), place.lower())
        if split in found:
            raise UserError(f"'{root}' has both '{found[split]}' and '{place}' for the split {split}")
        found[split] = place
    for path in root.iterdir():
        name, _, ending = path.name.lower().partition(".")
        if name in SPLIT_NAMES and SPLITS.get(name, name) not in found and f".{ending}" in (".tar", *COMPRESSED):
            raise UserError(
                f"'{path}' has the name of a split, which has to be a folder of folders or tars of its classes: unpack "
                f"it into '{root / name}', and move it out of the folder"
            )
    if not found:
        _refuse_compressed(root)
    return found or {"train": ""}


def _not_empty(root: epath.Path, rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    if empty := [split for split, part in rows.items() if not part]:
        raise UserError(f"'{root}' has no images ({', '.join(EXTENSIONS)}) of {' and '.join(empty)}")
    if not rows:
        raise UserError(f"'{root}' has no images ({', '.join(EXTENSIONS)}) in folders of their classes")
    return rows


def _imagenet_rows(root: epath.Path, place: str, split: str, published: Published) -> list[Row]:
    """An image's name is that of its file; its class the nearest folder or tar named by a WordNet id."""
    rows, strange, known = [], Counter[str](), frozenset(published.class_names)
    for entry in find_images(root, place):
        *parents, name = entry.name.split("/")
        synset = next((part for part in reversed(parents) if _SYNSET.fullmatch(part)), "")
        if not synset and (found := _VALIDATION.fullmatch(name)):
            number = int(found[1])
            if 1 <= number <= len(published.validation_labels):
                synset = published.validation_labels[number - 1]
        if synset and (not known or synset in known):
            rows.append((name, synset, entry))
        else:
            strange[entry.name if not synset else "/".join(parents)] += 1
    if strange:
        raise UserError(
            f"'{root / place}' holds {sum(strange.values())} images of {split} that are of no class of "
            f"{published.name}: {some(sorted(strange))}"
        )
    return rows


def describe(prepared: Prepared, out: epath.PathLike) -> str:
    """What a person reads when it is done: what was made, what is not as it was, and how to name it in a config."""
    images = ", ".join(f"{count:,} images of {split}" for split, count in prepared.examples.items())
    lines = [f"{prepared.folder}: {images}, {prepared.classes:,} classes", *prepared.notes]
    for what, images_told in (("encoded again", prepared.encoded_again), ("left out", prepared.left_out)):
        lines += [f"{what}: {image['file']} of {image['split']}, {image['why']}" for image in images_told[:MAX_LISTED]]
        if len(images_told) > MAX_LISTED:
            lines.append(f"{what}: {len(images_told) - MAX_LISTED} more; {REPORT} has all")
    name = f"--config.data.source=tfds --config.data.name={prepared.name} --config.data.data_dir={out}"
    return "\n".join([*lines, f"in a config: {name}"])
