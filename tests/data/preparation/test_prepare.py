"""Preparing data sets: what TFDS reads afterwards, whatever the source's form, the workers and the interruptions."""

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import ilsvrc
import isolated_work
import numpy as np
import psutil
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import ROOT
from needs import tensorflow
from PIL import Image

from effv2_jax.config import defaults
from effv2_jax.data.preparation import image_index as listing_module
from effv2_jax.data.preparation import imagenet_facts as published
from effv2_jax.data.preparation import prepare, shards
from effv2_jax.data.preparation.image_index import Entry, make_listings
from effv2_jax.data.preparation.prepare import Settings, prepare_folder, prepare_imagenet
from effv2_jax.data.preparation.prepare_tfds import prepare_by_tfds
from effv2_jax.data.preparation.tar_index import read_member, tar_members
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import Unavailable, UserError
from effv2_jax.runtime import lock


@pytest.fixture
def several_shards(monkeypatch):
    """Of five images, where there would be one of thousands."""
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 5)


@pytest.fixture
def tars(tmp_path):
    ilsvrc.write_tars(tmp_path / "tars")
    return tmp_path / "tars"


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 sums of its files, of the report without the source that it names."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    if prepare.REPORT in found:
        report = json.loads((folder / prepare.REPORT).read_text())
        found[prepare.REPORT] = json.dumps({name: value for name, value in report.items() if name != "source"})
    return found


def prepared_folder(out: Path) -> Path:
    return out / "imagenet2012" / "5.1.0"


def read_back(folder: Path, split: str) -> dict[str, tuple[bytes, str]]:
    """name -> (bytes, class), by TFDS alone."""
    builder = tfds.builder_from_directory(folder)
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    names = builder.info.features["label"].names
    return {example["file_name"].decode(): (example["image"], names[example["label"]]) for example in source}


def test_tars_become_what_tfds_reads(tars, tmp_path, several_shards):
    result = prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    folder = prepared_folder(tmp_path / "out")
    assert result.examples == {"train": 23, "validation": 8} and result.classes == 4 and not result.notes
    found = read_back(folder, "train")
    expected = {name: (data, synset) for synset, files in ilsvrc.train_files().items() for name, data in files.items()}
    assert found.keys() == expected.keys() - {ilsvrc.BROKEN}
    for name, (data, synset) in found.items():
        assert synset == expected[name][1]
        if name not in (ilsvrc.CMYK, ilsvrc.PNG):
            assert data == expected[name][0], name
    validation = read_back(folder, "validation")
    for (name, data), synset in zip(ilsvrc.validation_files().items(), ilsvrc.VALIDATION_LABELS, strict=True):
        assert validation[name] == (data, synset)
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(
        [f"imagenet2012-train.array_record-0000{shard}-of-00005" for shard in range(5)]
        + [f"imagenet2012-validation.array_record-0000{shard}-of-00002" for shard in range(2)]
        + ["dataset_info.json", "features.json", "label.labels.txt", "prepare_report.json"]
    )


def test_odd_images_are_encoded_again_or_left_out_and_told(tars, tmp_path):
    result = prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    again = {image["file"]: image["why"] for image in result.encoded_again}
    assert again == {ilsvrc.CMYK: "a JPEG in CMYK", ilsvrc.PNG: "a PNG named as a JPEG"}
    assert [(image["split"], image["file"]) for image in result.left_out] == [("train", ilsvrc.BROKEN)]
    report = json.loads((prepared_folder(tmp_path / "out") / prepare.REPORT).read_text())
    assert report["left_out"] == result.left_out and report["encoded_again"] == result.encoded_again
    found = read_back(prepared_folder(tmp_path / "out"), "train")
    for name in again:
        picture = Image.open(io.BytesIO(found[name][0]))
        assert (picture.format, picture.mode) == ("JPEG", "RGB")
        label, number = ilsvrc.SYNSETS.index(name[:9]), int(name[10])
        error = np.abs(np.asarray(picture, np.int32) - ilsvrc.photo(100 * label + number))
        assert error.mean() < (1 if name == ilsvrc.PNG else 12)  # CMYK had been compressed before, without subsampling


@pytest.mark.parametrize("by_class", [False, True])
def test_a_tree_gives_the_very_files_of_the_tars(tars, tmp_path, several_shards, by_class):
    prepare_imagenet(ilsvrc.published(), tars, tmp_path / "from_tars")
    ilsvrc.write_tree(tmp_path / "tree", by_class)
    prepare_imagenet(ilsvrc.published(), tmp_path / "tree", tmp_path / "from_tree")
    assert sums(prepared_folder(tmp_path / "from_tars")) == sums(prepared_folder(tmp_path / "from_tree"))


def test_the_config_of_imagenet_reads_it_by_name(tars, tmp_path):
    prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    config = defaults()
    config.data.update(data_dir=str(tmp_path / "out"), train_split="train[7:]", evaluation_split="train[:7]")
    sources = make_sources(config)
    assert (len(sources.train), len(sources.evaluation)) == (16, 7)
    picture, label = sources.train.load(0)
    assert picture.pixels().shape == (24, 32, 3) and 0 <= label < 4


def test_the_true_tables():
    table = published.imagenet()
    assert len(table.class_names) == 1000 and list(table.class_names) == sorted(table.class_names)
    assert len(table.validation_labels) == 50_000 and set(table.validation_labels) == set(table.class_names)
    assert table.class_names == tuple(tfds.builder("imagenet2012", data_dir="/nowhere").info.features["label"].names)
    assert str(tfds.builder_cls("imagenet2012").VERSION) == table.version
    # The first image of the validation set is a snake; so say the labels that come with the devkit.
    assert table.validation_labels[0] == "n01751748"


def interrupted_after(count, monkeypatch):
    """`write_shard` that is cut off by a Ctrl-C after some shards."""
    true, calls = shards.write_shard, []

    def write_shard(shard):
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(shard.name)
        return true(shard)

    monkeypatch.setattr(shards, "write_shard", write_shard)
    return calls


def test_a_rerun_skips_what_is_there_and_gives_the_same(tars, tmp_path, several_shards, monkeypatch):
    prepare_imagenet(ilsvrc.published(), tars, tmp_path / "undisturbed")
    folder = prepared_folder(tmp_path / "out")
    with monkeypatch.context() as patch:
        interrupted_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    there = {path.name: path.stat().st_ino for path in folder.glob("*.array_record*")}
    assert len(there) == 3
    config = defaults()
    config.data.data_dir = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"'imagenet2012' is not prepared in .*effv2 data prepare imagenet --source"):
        make_sources(config)
    # A shard cut short by a lost disk, and rubbish of a process that was killed.
    cut = folder / sorted(there)[0]
    cut.write_bytes(cut.read_bytes()[:-1])
    (folder / ".imagenet2012-train.array_record-00004-of-00005.1.part").write_bytes(b"rubbish")
    with monkeypatch.context() as patch:
        calls = interrupted_after(100, patch)
        patch.setattr(listing_module, "tar_members", lambda path: pytest.fail("the headers were read again"))
        prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    assert len(calls) == 7 - 2 and cut.name in calls
    assert all((folder / name).stat().st_ino == there[name] for name in there if name != cut.name)
    assert sums(folder) == sums(prepared_folder(tmp_path / "undisturbed"))
    with monkeypatch.context() as patch:
        calls = interrupted_after(0, patch)
        result = prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    assert not calls and result.examples["train"] == 23 and "prepared before" in result.notes[0]


def test_strict_takes_no_shard_that_lacks_an_image(tars, tmp_path, several_shards, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(6, patch)
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    with pytest.raises(UserError, match=rf"'{ilsvrc.BROKEN}' is broken"):
        prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out", Settings(strict=True))


def test_strict_takes_no_finished_data_set_that_lacks_an_image(tars, tmp_path):
    result = prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    with pytest.raises(UserError, match=rf"without --strict, and images were left out: {ilsvrc.BROKEN}; mend them"):
        prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out", Settings(strict=True))
    assert prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out").left_out == result.left_out
    write_folder(tmp_path / "pets")
    for strict in (False, True):
        assert not prepare_folder(tmp_path / "pets", tmp_path / "out", settings=Settings(strict=strict)).left_out


def test_a_finished_data_set_is_not_taken_for_that_of_another_source(tmp_path):
    for name in ("a", "b"):
        write_folder(tmp_path / name)
    prepare_folder(tmp_path / "a", tmp_path / "out", "pets")
    before = sums(tmp_path / "out" / "pets" / "1.0.0")
    with pytest.raises(UserError, match=r"was prepared from '.*/a', not from '.*/b'; it can be used as it is, and to "):
        prepare_folder(tmp_path / "b", tmp_path / "out", "pets")
    assert prepare_folder(tmp_path / "b" / ".." / "a", tmp_path / "out", "pets").notes[0].startswith("it was prepared")
    assert sums(tmp_path / "out" / "pets" / "1.0.0") == before


def test_a_mended_image_is_taken_after_an_interruption(tmp_path, several_shards, monkeypatch):
    ilsvrc.write_tree(tmp_path / "tree", by_class=False)
    with monkeypatch.context() as patch:
        calls = interrupted_after(6, patch)  # of seven; the broken one is of train, whose five are written first
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.published(), tmp_path / "tree", tmp_path / "out")
    assert sum("train" in name for name in calls) == 5
    mended = ilsvrc.encoded(ilsvrc.photo(102))
    (tmp_path / "tree" / "train" / ilsvrc.BROKEN[:9] / ilsvrc.BROKEN).write_bytes(mended)
    with monkeypatch.context() as patch:
        calls = interrupted_after(100, patch)
        result = prepare_imagenet(ilsvrc.published(), tmp_path / "tree", tmp_path / "out")
    assert len(calls) == 2 and result.examples["train"] == 24 and not result.left_out
    assert read_back(Path(result.folder), "train")[ilsvrc.BROKEN] == (mended, ilsvrc.BROKEN[:9])


def test_another_source_is_indexed_again(tars, tmp_path, several_shards, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    os.utime(tars / ilsvrc.TRAIN, (1, 1))
    seen = []
    true = listing_module.tar_members
    monkeypatch.setattr(listing_module, "tar_members", lambda path: seen.append(path) or true(path))
    prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    assert len(seen) == 2


def test_an_image_that_was_missing_beside_a_tar_is_found(tars, tmp_path):
    ilsvrc.write_tree(tmp_path / "tree", by_class=False)
    shutil.copytree(tmp_path / "tree" / "val", tars / "val")
    (tars / ilsvrc.VALIDATION).unlink()
    missing = tars / "val" / "ILSVRC2012_val_00000005.JPEG"
    data = missing.read_bytes()
    missing.unlink()
    with pytest.raises(UserError, match=r"7 images of validation, published are 8"):
        prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    missing.write_bytes(data)
    assert prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out").examples["validation"] == 8


@pytest.mark.parametrize("added", ["dog/3.jpg", "bird/deep.tar", "loose.tar"])
def test_an_image_added_after_an_interruption_is_taken(tmp_path, several_shards, monkeypatch, added):
    source = tmp_path / "pets"
    write_folder(tmp_path, ("pets",))
    (source / "bird").mkdir()
    for path in (source / "cat.tar", source / "bird" / "first.tar"):
        path.write_bytes(ilsvrc.tar_of({f"{path.stem}.png": ilsvrc.encoded(ilsvrc.photo(50), "PNG")}))
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            prepare_folder(source, tmp_path / "out")
    new = ilsvrc.encoded(ilsvrc.photo(60), "PNG")
    (source / added).write_bytes(ilsvrc.tar_of({"new.png": new}) if added.endswith(".tar") else new)
    result = prepare_folder(source, tmp_path / "out")
    assert result.examples == {"train": 9} and result.classes == (4 if added == "loose.tar" else 3)


DRIVER = """
import sys
import ilsvrc
from effv2_jax.data import shards
from effv2_jax.data.prepare import Settings, prepare_imagenet
if __name__ == "__main__":
    shards.IMAGES_PER_SHARD = 1
    prepare_imagenet(ilsvrc.published(), sys.argv[1], sys.argv[2], Settings(workers=int(sys.argv[3])))
"""


@pytest.mark.slow
def test_killed_with_its_workers_it_goes_on_to_the_same(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 1)
    prepare_imagenet(ilsvrc.published(), tars, tmp_path / "undisturbed")
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    folder = prepared_folder(tmp_path / "out")

    def start(workers):
        command = [sys.executable, str(driver), str(tars), str(tmp_path / "out"), str(workers)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    first = start(2)
    end = time.monotonic() + 60
    while not list(folder.glob("imagenet2012-*")) and first.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    workers = psutil.Process(first.pid).children(recursive=True)
    assert workers, "it was done before it could be killed"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not psutil.wait_procs(workers, timeout=60)[1]
    second = start(3)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert sums(folder) == sums(prepared_folder(tmp_path / "undisturbed"))


def test_a_worker_that_is_killed_is_a_sentence(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "write_shard", isolated_work.die)
    with pytest.raises(Unavailable, match=r"a process that wrote a shard was killed; .*The same command goes on"):
        prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out", Settings(workers=1))


def test_files_of_another_source_do_not_stay(tars, tmp_path, several_shards, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(7, patch)
        patch.setattr(prepare, "_write_metadata", lambda *_: pytest.fail("not interrupted"))
        patch.setattr(shards, "IMAGES_PER_SHARD", 4)  # as if there were other images
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    prepare_imagenet(ilsvrc.published(), tars, tmp_path / "other")
    assert sums(prepared_folder(tmp_path / "out")) == sums(prepared_folder(tmp_path / "other"))


def test_two_at_once(tars, tmp_path):
    with (
        lock.exclusive(prepared_folder(tmp_path / "out")),
        pytest.raises(Unavailable, match=r"another process prepares '.*5\.1\.0'"),
    ):
        prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")


def mistakes():
    """name -> (what is done to the tars, changes of the table, settings, message)."""
    return {
        "checksum": (
            lambda tars: (tars / ilsvrc.VALIDATION).write_bytes((tars / ilsvrc.VALIDATION).read_bytes() + b"\0"),
            {},
            Settings(),
            rf"img_val\.tar' has the MD5 sum [0-9a-f]{{32}}, published is {ilsvrc.published().md5[ilsvrc.VALIDATION]}",
        ),
        "count": (
            None,
            {"examples": {4: {"train": 25, "validation": 8}}},
            Settings(),
            r"not imagenet2012 as published: 24 images of train, published are 25",
        ),
        "classes": (
            None,
            {"class_names": (*ilsvrc.SYNSETS, "n99999999")},
            Settings(),
            r"classes without an image in .*: train has no n99999999; validation has no n99999999",
        ),
        "strange class": (
            None,
            {"class_names": ilsvrc.SYNSETS[1:]},
            Settings(),
            r"holds 6 images of train that are of no class of imagenet2012: ILSVRC2012_img_train/n01440764",
        ),
        "no part": (
            lambda tars: (tars / ilsvrc.VALIDATION).unlink(),
            {},
            Settings(),
            r"lacks a part of imagenet2012: validation: ILSVRC2012_img_val\.tar or val or validation",
        ),
        "cut short": (
            lambda tars: (tars / ilsvrc.TRAIN).write_bytes((tars / ilsvrc.TRAIN).read_bytes()[:20_000]),
            {},
            Settings(checksums=False),
            r"img_train\.tar' cannot be read as a tar file: .*downloaded again",
        ),
        "no tar": (
            lambda tars: (tars / ilsvrc.TRAIN).write_bytes(gzip.compress((tars / ilsvrc.TRAIN).read_bytes())),
            {},
            Settings(checksums=False),
            r"img_train\.tar' cannot be read as a tar file: .*has to be unpacked",
        ),
        "packed": (
            lambda tars: (tars / ilsvrc.VALIDATION).rename(tars / "val.tar.gz"),
            {},
            Settings(),
            r"lacks a part of imagenet2012: validation: .*; what is in val\.tar\.gz has to be unpacked first",
        ),
        "strict": (
            None,
            {},
            Settings(strict=True),
            rf"'{ilsvrc.BROKEN}' is broken: .*; without --strict it is left out",
        ),
        "strict in workers": (None, {}, Settings(2, strict=True), rf"'{ilsvrc.BROKEN}' is broken: "),
    }


@pytest.mark.parametrize("mistake", mistakes())
def test_mistakes_leave_no_data_set(tars, tmp_path, mistake):
    change, table, how, message = mistakes()[mistake]
    if change:
        change(tars)
    with pytest.raises(UserError, match=message) as raised:
        prepare_imagenet(ilsvrc.published(**table), tars, tmp_path / "out", how)
    assert "\n" not in str(raised.value)
    left = {path.name for path in tmp_path.glob("out/*/*/*")}
    assert prepare.INFO not in left and lock.LOCK_FILE not in left
    assert left or not list(tmp_path.glob("out/*"))


def test_no_source(tmp_path):
    with pytest.raises(UserError, match=r"--source='.*nowhere' is no folder"):
        prepare_imagenet(ilsvrc.published(), tmp_path / "nowhere", tmp_path)


def test_checksums_are_compared_once_and_may_be_skipped(tars, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(0, patch)
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    table, wrong = ilsvrc.published(), ilsvrc.published(md5={ilsvrc.TRAIN: "0" * 32})
    monkeypatch.setattr(published.hashlib, "md5", lambda **_: pytest.fail("summed again"))
    prepare_imagenet(table, tars, tmp_path / "out")
    prepare_imagenet(wrong, tars, tmp_path / "other", Settings(checksums=False))


def test_an_archive_that_nobody_needs_stops_nothing(tars, tmp_path):
    (tars / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"")
    assert prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out").examples["train"] == 23
    write_folder(tmp_path / "pets")
    for name in ("pets.zip", "val.tar.gz"):  # the split is there, unpacked
        (tmp_path / "pets" / name).write_bytes(b"")
    assert prepare_folder(tmp_path / "pets", tmp_path / "out").examples == {"train": 6, "validation": 6}


def table_21k(**examples):
    return ilsvrc.published(
        name="imagenet21k", version="1.0.0", places=published.imagenet21k().places, md5={}, class_names=(),
        validation_labels=(), examples={4: examples}, exact=False,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["a tar per synset", "one tar", "train and val"])
def test_imagenet21k(tmp_path, form):
    source = tmp_path / "source"
    files = train = ilsvrc.train_files()
    if form == "train and val":
        for split, numbers in (("imagenet21k_train", "01234"), ("imagenet21k_val", "5")):
            for synset, images in files.items():
                (source / split / synset).mkdir(parents=True)
                for name, data in images.items():
                    if name[10] in numbers:
                        (source / split / synset / name).write_bytes(data)
    else:
        source.mkdir()
        parts = {f"{synset}.tar": ilsvrc.tar_of(train[synset]) for synset in train}
        whole = {"fall11_whole.tar": ilsvrc.tar_of(parts)} if form == "one tar" else parts
        for name, data in whole.items():
            (source / name).write_bytes(data)
    result = prepare_imagenet(table_21k(train=25), source, tmp_path / "out")
    splits = {"train": 19, "validation": 4} if form == "train and val" else {"train": 23}
    assert result.examples == splits and result.classes == 4
    assert result.notes == [
        f"{sum(splits.values()) + 1 - splits.get('validation', 0)} images of train, published are 25"
    ]
    found = read_back(tmp_path / "out" / "imagenet21k" / "1.0.0", "train")
    assert all(synset == name[:9] for name, (_, synset) in found.items())
    with pytest.raises(UserError, match=r"has 4 classes, imagenet21k has 21,841 or 19,167 or 11,221 or 10,450"):
        prepare_imagenet(published.imagenet21k(), source, tmp_path / "true")


def write_folder(root, splits=("train", "val")):
    for split in splits:
        for label, name in enumerate(("cat", "dog")):
            for number in range(3):
                path = root / split / name / f"{number}.{'png' if number else 'jpg'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(ilsvrc.encoded(ilsvrc.photo(10 * label + number), "PNG" if number else "JPEG"))


def test_a_folder_with_splits_keeps_its_bytes(tmp_path):
    write_folder(tmp_path / "My photos")
    result = prepare_folder(tmp_path / "My photos", tmp_path / "out")
    assert result.name == "my_photos" and result.examples == {"train": 6, "validation": 6} and not result.encoded_again
    config = defaults()
    config.data.update(name="my_photos", data_dir=str(tmp_path / "out"), num_examples=0)
    sources = make_sources(config)
    assert sources.class_names == ("cat", "dog") and len(sources.evaluation) == 6
    found = read_back(Path(result.folder), "validation")
    assert found["cat/1.png"] == ((tmp_path / "My photos" / "val" / "cat" / "1.png").read_bytes(), "cat")


def test_a_folder_of_classes_is_one_split(tmp_path):
    write_folder(tmp_path, ("pets",))
    (tmp_path / "pets" / "dog" / "young").mkdir()
    shutil.copy(tmp_path / "pets" / "cat" / "0.jpg", tmp_path / "pets" / "dog" / "young" / "0.jpg")
    result = prepare_folder(tmp_path / "pets", tmp_path / "out", "animals")
    assert result.examples == {"train": 7}
    assert read_back(Path(result.folder), "train")["dog/young/0.jpg"][1] == "dog"


@pytest.mark.parametrize(
    ("splits", "name", "message"),
    [
        (("train", "val"), "Mine!", r"'Mine!' cannot be the name of a data set; --name="),
        (("train", "val"), "cifar10", r"'cifar10' is a data set of TFDS; --name="),
        (("val", "validation"), "mine", r"has both 'val' and 'validation' for the split validation"),
        ((), "mine", r"has no images .* in folders of their classes"),
    ],
)
def test_mistakes_with_a_folder(tmp_path, splits, name, message):
    (tmp_path / "source").mkdir()
    write_folder(tmp_path / "source", splits)
    with pytest.raises(UserError, match=message):
        prepare_folder(tmp_path / "source", tmp_path / "out", name)
    assert not list(tmp_path.glob("out/*/*/dataset_info.json"))


@pytest.mark.parametrize("there", [(), ("train",)])
@pytest.mark.parametrize("name", ["val.tar", "VAL.tar", "test.tar.gz", "valid.zip"])
def test_a_split_in_one_file_is_no_class(tmp_path, there, name):
    (tmp_path / "source").mkdir()
    write_folder(tmp_path / "source", there)
    (tmp_path / "source" / name).write_bytes(ilsvrc.tar_of({"cat/0.jpg": ilsvrc.encoded(ilsvrc.photo(0))}))
    with pytest.raises(
        UserError, match=rf"{name}' has the name of a split, .*: unpack it into '.*source/\w+', and move"
    ):
        prepare_folder(tmp_path / "source", tmp_path / "out")


def test_what_is_compressed_beside_classes_may_be_one(tmp_path):
    write_folder(tmp_path, ("pets",))
    (tmp_path / "pets" / "bird.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"bird\.tar\.gz' is compressed, .*unpack it"):
        prepare_folder(tmp_path / "pets", tmp_path / "out")
    (tmp_path / "21k").mkdir()
    (tmp_path / "21k" / "winter21_whole.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"winter21_whole\.tar\.gz' is compressed, .*unpack it"):
        prepare_imagenet(published.imagenet21k(), tmp_path / "21k", tmp_path / "out")


def test_splits_must_have_the_same_classes(tmp_path):
    write_folder(tmp_path / "source")
    shutil.rmtree(tmp_path / "source" / "val" / "dog")
    with pytest.raises(UserError, match=r"classes without an image in '.*source': validation has no dog"):
        prepare_folder(tmp_path / "source", tmp_path / "out")


def test_a_data_set_of_somebody_else_is_not_touched(tars, tmp_path):
    folder = prepared_folder(tmp_path / "out")
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a data set that this command did not make"):
        prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")
    assert (folder / "dataset_info.json").read_text() == "{}"


class EightPictures(tfds.core.GeneratorBasedBuilder):
    """Eight pictures, of TFDS' own making."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(24, 32, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(8):
            yield number, {"image": ilsvrc.photo(number), "label": number % 2}


def test_any_other_data_set_is_prepared_by_tfds(tmp_path):
    tensorflow()
    for _ in range(2):
        result = prepare_by_tfds("eight_pictures", tmp_path)
        assert result.examples == {"train": 8} and result.classes == 2
    assert tfds.builder("eight_pictures", data_dir=tmp_path).info.file_format.value == "array_record"
    with pytest.raises(UserError, match=r"'eight_picturs' is neither imagenet, imagenet21k, folder nor a data set of"):
        prepare_by_tfds("eight_picturs", tmp_path)


class EightTagged(EightPictures):
    """Eight pictures of one or two classes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        tags = tfds.features.Sequence(tfds.features.ClassLabel(num_classes=2))
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(24, 32, 3)), "label": tags})
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

    def _generate_examples(self):
        for number in range(8):
            yield number, {"image": ilsvrc.photo(number), "label": [0, 1][: 1 + number % 2]}


def test_a_data_set_of_tfds_with_several_labels(tmp_path):
    tensorflow()
    result = prepare_by_tfds("eight_tagged", tmp_path)
    assert result.examples == {"train": 8} and result.classes == 2


class Pairs(EightPictures):
    """Two pictures and a class, of which TFDS names three."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {name: tfds.features.Image(shape=(24, 32, 3)) for name in ("first", "second")}
        features = tfds.features.FeaturesDict(features | {"class": tfds.features.ClassLabel(num_classes=2)})
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("first", "second", "class"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist/foo", r"TFDS cannot open 'mnist/foo': BuilderConfig foo not found with version \S+\."),
        (
            "mnist:9.9.9",
            r"TFDS cannot open 'mnist:9\.9\.9': Dataset mnist cannot be loaded at version 9\.9\.9, only: \S+$",
        ),
        ("mnist/", r"TFDS cannot open 'mnist/': Parsing builder name string mnist/ failed"),
        ("div2k", r"'div2k' has no 8-bit image 'lr' with a class label 'hr'; its features are hr, lr$"),
        (
            "pairs",
            r"'pairs' has no 8-bit image 'first' with a class label 'second'; its features are class, first, second$",
        ),
    ],
)
def test_mistakes_with_a_data_set_of_tfds(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(UserError, match=message) as raised:
        prepare_by_tfds(name, tmp_path)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_data_set_of_tfds_that_is_there_in_other_files(tmp_path):
    tensorflow()
    EightPictures(data_dir=tmp_path, file_format="tfrecord").download_and_prepare()
    with pytest.raises(
        UserError, match=r"eight_pictures/1\.0\.0' holds the data set already, in tfrecord files, .* --out$"
    ):
        prepare_by_tfds("eight_pictures", tmp_path)


def test_a_bucket_gets_the_same_files_as_a_disk(tars, tmp_path, bucket, several_shards):
    prepare_imagenet(ilsvrc.published(), tars, tmp_path / "local")
    result = prepare_imagenet(ilsvrc.published(), tars, "gs://mine/data")
    assert result.folder == "gs://mine/data/imagenet2012/5.1.0"
    assert sums(prepared_folder(bucket / "mine" / "data")) == sums(prepared_folder(tmp_path / "local"))
    assert "prepared before" in prepare_imagenet(ilsvrc.published(), tars, "gs://mine/data").notes[0]


def test_images_may_come_from_a_bucket_but_tars_not(tmp_path, bucket):
    ilsvrc.write_tree(bucket / "mine" / "tree", by_class=True)
    ilsvrc.write_tree(tmp_path / "tree", by_class=True)
    prepare_imagenet(ilsvrc.published(), "gs://mine/tree", tmp_path / "out")
    prepare_imagenet(ilsvrc.published(), tmp_path / "tree", tmp_path / "other")
    assert sums(prepared_folder(tmp_path / "out")) == sums(prepared_folder(tmp_path / "other"))
    ilsvrc.write_tars(bucket / "mine" / "tars")
    with pytest.raises(UserError, match=r"img_train\.tar' is a tar that is not local; copy it to a local disk"):
        prepare_imagenet(ilsvrc.published(), "gs://mine/tars", tmp_path / "third", Settings(checksums=False))


def test_tfds_own_data_sets_go_to_a_bucket(tmp_path, bucket, monkeypatch):
    tensorflow()
    monkeypatch.setattr(tfds, "builder_from_directory", lambda path: tfds.core.read_only_builder.ReadOnlyBuilder(
        builder_dir=str(path).replace("gs://", f"{bucket}/")))  # fmt: skip
    assert prepare_by_tfds("eight_pictures", "gs://mine/data").examples == {"train": 8}
    folder = bucket / "mine" / "data" / "eight_pictures" / "1.0.0"
    source = tfds.core.read_only_builder.ReadOnlyBuilder(builder_dir=folder).as_data_source("train")
    assert sorted(int(example["label"]) for example in source) == [0] * 4 + [1] * 4


# A tree of names to bytes or to such a tree, which becomes a tar inside the tar.
trees = st.recursive(
    st.dictionaries(st.sampled_from(["a", "b/c", "d" * 120, "é"]), st.binary(max_size=2000), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(["x.tar", "y.tar"]), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(trees)
def test_members_of_nested_tars_are_where_the_index_says(tmp_path_factory, tree):
    def pack(tree):
        return ilsvrc.tar_of({name: pack(part) if isinstance(part, dict) else part for name, part in tree.items()})

    def flat(tree, prefix=""):
        for name, part in tree.items():
            if isinstance(part, dict):
                yield from flat(part, prefix + name.removesuffix(".tar") + "/")
            else:
                yield prefix + name, part

    path = tmp_path_factory.mktemp("tars") / "whole.tar"
    path.write_bytes(pack(tree))
    found = {member.name: read_member(str(path), member.offset, member.size) for member in tar_members(str(path))}
    assert found == dict(flat(tree))


def test_pax_headers_and_links_in_a_tar(tmp_path):
    path = tmp_path / "whole.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in (("folder", tarfile.DIRTYPE), ("./folder/" + "ü" * 200 + ".jpg", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "folder"
        tar.addfile(link)
    [member] = tar_members(str(path))
    assert member.name.startswith("folder/ü") and read_member(str(path), member.offset, member.size) == b"abc"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(100, 2000), min_size=2, max_size=6), st.text("abc", max_size=3), st.floats(0.1, 0.9))
def test_the_first_images_are_a_random_sample_of_the_classes(counts, salt, share):
    """That makes 'train[:25021]' a fair minival: Hoeffding's bound, which holds without replacement, at 1e-9."""
    rows = [
        (f"{salt}{label}_{number}.JPEG", str(label), Entry("", ""))
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    _, listings = make_listings(Path("/"), {"train": rows})
    listing = listings["train"]
    order = shards.shuffled(listing, "train")
    assert sorted(order) == list(range(len(rows)))
    first = order[: int(share * len(rows))]
    found = np.bincount(listing.labels[first], minlength=len(counts)) / len(first)
    bound = np.sqrt(np.log(2e9) / (2 * len(first)))
    assert np.abs(found - np.array(counts) / len(rows)).max() < bound


def test_an_image_keeps_its_place_when_others_come():
    def order(names):
        _, listings = make_listings(Path("/"), {"train": [(name, "x", Entry("", "")) for name in names]})
        return [listings["train"].name(row) for row in shards.shuffled(listings["train"], "train")]

    some, more = order(map(str, range(50))), order(map(str, range(80)))
    assert [name for name in more if name in some] == some


def test_a_full_disk_is_a_sentence(tars, tmp_path, monkeypatch):
    from array_record.python import array_record_module

    class Full:
        def __init__(self, path, options):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(UserError, match=r"the data set in '.*5\.1\.0' cannot go on: .*No space left"):
        prepare_imagenet(ilsvrc.published(), tars, tmp_path / "out")


def test_the_command(effv2, tmp_path, tars, monkeypatch):
    write_folder(tmp_path / "pets")
    (tmp_path / "pets" / "train" / "cat" / "3.jpg").write_bytes(b"rubbish")
    code, out, err = effv2("data", "prepare", "folder", f"--source={tmp_path}/pets", f"--out={tmp_path}/out")
    assert code == 0, err
    assert f"{tmp_path}/out/pets/1.0.0: 6 images of train, 6 images of validation, 2 classes" in out
    assert "left out: cat/3.jpg of train, not an image" in out
    assert f"--config.data.source=tfds --config.data.name=pets --config.data.data_dir={tmp_path}/out" in out
    monkeypatch.setattr(published, "imagenet", ilsvrc.published)
    code, out, err = effv2("data", "prepare", "imagenet", f"--source={tars}", f"--out={tmp_path}/out", "--workers=2")
    assert code == 0 and "23 images of train, 8 images of validation, 4 classes" in out, err
    for words, message in (
        (["imagenet"], "'effv2 data prepare imagenet' needs --source=DIR with its tars or images"),
        (["imagenet", "--source=x", "--name=y"], "--name is for a folder; 'imagenet' has a name"),
        (["imagenett"], "'imagenett' is neither imagenet, imagenet21k, folder nor a data set of TFDS"),
    ):
        code, _, err = effv2("data", "prepare", *words, f"--out={tmp_path}/new")
        assert code == 2 and message in err and "Traceback" not in err
