"""Preparation of folders of images."""

import shutil
from pathlib import Path

import ilsvrc
import pytest
from prepared_data import read_back, write_cats_and_dogs

from effv2_jax.config import defaults
from effv2_jax.data.preparation import imagenet_facts
from effv2_jax.data.preparation.prepare import prepare_folder, prepare_imagenet
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import UserError


def test_a_folder_with_splits_keeps_its_bytes(tmp_path):
    write_cats_and_dogs(tmp_path / "My photos")
    result = prepare_folder(tmp_path / "My photos", tmp_path / "out")
    assert result.name == "my_photos" and result.examples == {"train": 6, "validation": 6} and not result.encoded_again
    config = defaults()
    config.data.update(name="my_photos", data_dir=str(tmp_path / "out"), num_examples=0)
    sources = make_sources(config)
    assert sources.class_names == ("cat", "dog") and len(sources.evaluation) == 6
    found = read_back(Path(result.folder), "validation")
    assert found["cat/1.png"] == ((tmp_path / "My photos" / "val" / "cat" / "1.png").read_bytes(), "cat")


def test_a_folder_of_classes_is_one_split(tmp_path):
    write_cats_and_dogs(tmp_path, ("pets",))
    (tmp_path / "pets" / "dog" / "young").mkdir()
    shutil.copy(tmp_path / "pets" / "cat" / "0.jpg", tmp_path / "pets" / "dog" / "young" / "0.jpg")
    result = prepare_folder(tmp_path / "pets", tmp_path / "out", "animals")
    assert result.examples == {"train": 7}
    assert read_back(Path(result.folder), "train")["dog/young/0.jpg"][1] == "dog"


@pytest.mark.parametrize(
    ("splits", "name", "message"),
    [
        (("train", "val"), "Mine!", r"'Mine!' is not a valid name of a data set; set --name="),
        (("train", "val"), "cifar10", r"'cifar10' is a data set of TFDS; set --name="),
        (("val", "validation"), "mine", r"has both 'val' and 'validation' for the split validation; remove one"),
        ((), "mine", r"has no images .* in class folders; create one folder per class"),
    ],
)
def test_invalid_folders(tmp_path, splits, name, message):
    (tmp_path / "source").mkdir()
    write_cats_and_dogs(tmp_path / "source", splits)
    with pytest.raises(UserError, match=message):
        prepare_folder(tmp_path / "source", tmp_path / "out", name)
    assert not list(tmp_path.glob("out/*/*/dataset_info.json"))


@pytest.mark.parametrize("there", [(), ("train",)])
@pytest.mark.parametrize("name", ["val.tar", "VAL.tar", "test.tar.gz", "valid.zip"])
def test_an_archive_named_like_a_split_is_an_error(tmp_path, there, name):
    (tmp_path / "source").mkdir()
    write_cats_and_dogs(tmp_path / "source", there)
    (tmp_path / "source" / name).write_bytes(ilsvrc.tar_of({"cat/0.jpg": ilsvrc.encoded(ilsvrc.photo(0))}))
    with pytest.raises(UserError, match=rf"{name}' has the name of a split, .*: unpack it to '.*source/\w+' and move"):
        prepare_folder(tmp_path / "source", tmp_path / "out")


def test_an_archive_beside_classes_is_an_error(tmp_path):
    write_cats_and_dogs(tmp_path, ("pets",))
    (tmp_path / "pets" / "bird.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"bird\.tar\.gz' is compressed, .*unpack it"):
        prepare_folder(tmp_path / "pets", tmp_path / "out")
    (tmp_path / "21k").mkdir()
    (tmp_path / "21k" / "winter21_whole.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"winter21_whole\.tar\.gz' is compressed, .*unpack it"):
        prepare_imagenet(imagenet_facts.imagenet21k(), tmp_path / "21k", tmp_path / "out")


def test_splits_must_have_the_same_classes(tmp_path):
    write_cats_and_dogs(tmp_path / "source")
    shutil.rmtree(tmp_path / "source" / "val" / "dog")
    with pytest.raises(UserError, match=r"classes without an image in '.*source': validation has no dog"):
        prepare_folder(tmp_path / "source", tmp_path / "out")
