"""Preparation of ImageNet and ImageNet-21k from tars and trees, and faults in the source."""

import gzip
import io
import json
import shutil

import ilsvrc
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from prepared_data import interrupted_after, prepared_folder, read_back, sums, write_cats_and_dogs

from effv2_jax.config import defaults
from effv2_jax.data.preparation import imagenet_facts, prepare
from effv2_jax.data.preparation.prepare import Settings, prepare_folder, prepare_imagenet
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import UserError
from effv2_jax.runtime import lock


def test_tars_become_what_tfds_reads(tars, tmp_path, several_shards):
    result = prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
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


def test_odd_images_are_encoded_again_or_left_out_and_reported(tars, tmp_path):
    result = prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
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
def test_a_tree_gives_the_same_files_as_the_tars(tars, tmp_path, several_shards, by_class):
    prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "from_tars")
    ilsvrc.write_tree(tmp_path / "tree", by_class)
    prepare_imagenet(ilsvrc.facts(), tmp_path / "tree", tmp_path / "from_tree")
    assert sums(prepared_folder(tmp_path / "from_tars")) == sums(prepared_folder(tmp_path / "from_tree"))


def test_the_config_of_imagenet_reads_it_by_name(tars, tmp_path):
    prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    config = defaults()
    config.data.update(data_dir=str(tmp_path / "out"), train_split="train[7:]", evaluation_split="train[:7]")
    sources = make_sources(config)
    assert (len(sources.train), len(sources.evaluation)) == (16, 7)
    picture, label = sources.train.load(0)
    assert picture.pixels().shape == (24, 32, 3) and 0 <= label < 4


def test_the_facts_of_imagenet_agree_with_tfds():
    table = imagenet_facts.imagenet()
    assert len(table.class_names) == 1000 and list(table.class_names) == sorted(table.class_names)
    assert len(table.validation_labels) == 50_000 and set(table.validation_labels) == set(table.class_names)
    assert table.class_names == tuple(tfds.builder("imagenet2012", data_dir="/nowhere").info.features["label"].names)
    assert str(tfds.builder_cls("imagenet2012").VERSION) == table.version
    # The first image of the validation set is a snake; so say the labels that come with the devkit.
    assert table.validation_labels[0] == "n01751748"


def test_an_image_that_was_missing_beside_a_tar_is_found(tars, tmp_path):
    ilsvrc.write_tree(tmp_path / "tree", by_class=False)
    shutil.copytree(tmp_path / "tree" / "val", tars / "val")
    (tars / ilsvrc.VALIDATION).unlink()
    missing = tars / "val" / "ILSVRC2012_val_00000005.JPEG"
    data = missing.read_bytes()
    missing.unlink()
    with pytest.raises(UserError, match=r"7 images of validation instead of the published 8"):
        prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    missing.write_bytes(data)
    assert prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out").examples["validation"] == 8


def faults():
    """name -> (change of the tars, changes of the facts, settings, message)."""
    return {
        "checksum": (
            lambda tars: (tars / ilsvrc.VALIDATION).write_bytes((tars / ilsvrc.VALIDATION).read_bytes() + b"\0"),
            {},
            Settings(),
            r"img_val\.tar' has the MD5 sum [0-9a-f]{32} instead of the published "
            + ilsvrc.facts().md5[ilsvrc.VALIDATION],
        ),
        "count": (
            None,
            {"examples": {4: {"train": 25, "validation": 8}}},
            Settings(),
            r"differs from the published imagenet2012: 24 images of train instead of the published 25",
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
            r"has 6 images of train that belong to no class of imagenet2012: ILSVRC2012_img_train/n01440764",
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
            r"img_train\.tar' cannot be read as a tar file: .*download it again if it is truncated",
        ),
        "no tar": (
            lambda tars: (tars / ilsvrc.TRAIN).write_bytes(gzip.compress((tars / ilsvrc.TRAIN).read_bytes())),
            {},
            Settings(checksums=False),
            r"img_train\.tar' cannot be read as a tar file: .*unpack it first if it is compressed",
        ),
        "packed": (
            lambda tars: (tars / ilsvrc.VALIDATION).rename(tars / "val.tar.gz"),
            {},
            Settings(),
            r"lacks a part of imagenet2012: validation: .*; unpack val\.tar\.gz first",
        ),
        "strict": (
            None,
            {},
            Settings(strict=True),
            rf"'{ilsvrc.BROKEN}' is broken: .*; omit --strict to leave it out",
        ),
        "strict in workers": (None, {}, Settings(2, strict=True), rf"'{ilsvrc.BROKEN}' is broken: "),
    }


@pytest.mark.parametrize("fault", faults())
def test_invalid_input_leaves_no_data_set(tars, tmp_path, fault):
    change, table, how, message = faults()[fault]
    if change:
        change(tars)
    with pytest.raises(UserError, match=message) as raised:
        prepare_imagenet(ilsvrc.facts(**table), tars, tmp_path / "out", how)
    assert "\n" not in str(raised.value)
    left = {path.name for path in tmp_path.glob("out/*/*/*")}
    assert prepare.INFO not in left and lock.LOCK_FILE not in left
    assert left or not list(tmp_path.glob("out/*"))


def test_a_missing_source(tmp_path):
    with pytest.raises(UserError, match=r"--source='.*nowhere' is not a folder"):
        prepare_imagenet(ilsvrc.facts(), tmp_path / "nowhere", tmp_path)


def test_checksums_are_compared_once_and_may_be_skipped(tars, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(0, patch)
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    table, wrong = ilsvrc.facts(), ilsvrc.facts(md5={ilsvrc.TRAIN: "0" * 32})
    monkeypatch.setattr(imagenet_facts.hashlib, "md5", lambda **_: pytest.fail("summed again"))
    prepare_imagenet(table, tars, tmp_path / "out")
    prepare_imagenet(wrong, tars, tmp_path / "other", Settings(checksums=False))


def test_an_unneeded_archive_is_ignored(tars, tmp_path):
    (tars / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"")
    assert prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out").examples["train"] == 23
    write_cats_and_dogs(tmp_path / "pets")
    for name in ("pets.zip", "val.tar.gz"):  # the split is there, unpacked
        (tmp_path / "pets" / name).write_bytes(b"")
    assert prepare_folder(tmp_path / "pets", tmp_path / "out").examples == {"train": 6, "validation": 6}


def table_21k(**examples):
    return ilsvrc.facts(
        name="imagenet21k", version="1.0.0", places=imagenet_facts.imagenet21k().places, md5={}, class_names=(),
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
        f"{sum(splits.values()) + 1 - splits.get('validation', 0)} images of train instead of the published 25"
    ]
    found = read_back(tmp_path / "out" / "imagenet21k" / "1.0.0", "train")
    assert all(synset == name[:9] for name, (_, synset) in found.items())
    with pytest.raises(UserError, match=r"has 4 classes, but imagenet21k has 21,841 or 19,167 or 11,221 or 10,450"):
        prepare_imagenet(imagenet_facts.imagenet21k(), source, tmp_path / "true")


def test_a_bucket_gets_the_same_files_as_a_disk(tars, tmp_path, bucket, several_shards):
    prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "local")
    result = prepare_imagenet(ilsvrc.facts(), tars, "gs://mine/data")
    assert result.folder == "gs://mine/data/imagenet2012/5.1.0"
    assert sums(prepared_folder(bucket / "mine" / "data")) == sums(prepared_folder(tmp_path / "local"))
    assert "already prepared" in prepare_imagenet(ilsvrc.facts(), tars, "gs://mine/data").notes[0]


def test_images_may_come_from_a_bucket_but_tars_not(tmp_path, bucket):
    ilsvrc.write_tree(bucket / "mine" / "tree", by_class=True)
    ilsvrc.write_tree(tmp_path / "tree", by_class=True)
    prepare_imagenet(ilsvrc.facts(), "gs://mine/tree", tmp_path / "out")
    prepare_imagenet(ilsvrc.facts(), tmp_path / "tree", tmp_path / "other")
    assert sums(prepared_folder(tmp_path / "out")) == sums(prepared_folder(tmp_path / "other"))
    ilsvrc.write_tars(bucket / "mine" / "tars")
    with pytest.raises(UserError, match=r"img_train\.tar' is a remote tar, .*; copy it to a local disk"):
        prepare_imagenet(ilsvrc.facts(), "gs://mine/tars", tmp_path / "third", Settings(checksums=False))


def test_the_command(effv2, tmp_path, tars, monkeypatch):
    write_cats_and_dogs(tmp_path / "pets")
    (tmp_path / "pets" / "train" / "cat" / "3.jpg").write_bytes(b"rubbish")
    code, out, err = effv2("data", "prepare", "folder", f"--source={tmp_path}/pets", f"--out={tmp_path}/out")
    assert code == 0, err
    assert f"{tmp_path}/out/pets/1.0.0: 6 images of train, 6 images of validation, 2 classes" in out
    assert "left out: cat/3.jpg of train, not an image" in out
    assert f"--config.data.source=tfds --config.data.name=pets --config.data.data_dir={tmp_path}/out" in out
    monkeypatch.setattr(imagenet_facts, "imagenet", ilsvrc.facts)
    code, out, err = effv2("data", "prepare", "imagenet", f"--source={tars}", f"--out={tmp_path}/out", "--workers=2")
    assert code == 0 and "23 images of train, 8 images of validation, 4 classes" in out, err
    for words, message in (
        (["imagenet"], "'effv2 data prepare imagenet' needs --source=DIR with its tars or images"),
        (["imagenet", "--source=x", "--name=y"], "--name is for a folder; 'imagenet' has a name"),
        (["imagenett"], "'imagenett' is neither imagenet, imagenet21k, folder nor a data set of TFDS"),
    ):
        code, _, err = effv2("data", "prepare", *words, f"--out={tmp_path}/new")
        assert code == 2 and message in err and "Traceback" not in err
