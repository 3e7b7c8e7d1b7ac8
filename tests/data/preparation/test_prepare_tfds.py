"""Preparation of data sets by TFDS itself."""

import ilsvrc
import pytest
import tensorflow_datasets as tfds
from needs import tensorflow

from effv2_jax.data.preparation.prepare_tfds import prepare_by_tfds
from effv2_jax.errors import UserError


class EightPictures(tfds.core.GeneratorBasedBuilder):
    """Eight pictures with a class each."""

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
    """Two pictures and a class, all three in TFDS's supervised keys."""

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
def test_invalid_data_sets_of_tfds(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(UserError, match=message) as raised:
        prepare_by_tfds(name, tmp_path)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_data_set_of_tfds_that_exists_in_other_files(tmp_path):
    tensorflow()
    EightPictures(data_dir=tmp_path, file_format="tfrecord").download_and_prepare()
    with pytest.raises(
        UserError, match=r"eight_pictures/1\.0\.0' already holds the data set, in tfrecord files, .* --out$"
    ):
        prepare_by_tfds("eight_pictures", tmp_path)


def test_tfds_own_data_sets_go_to_a_bucket(tmp_path, bucket, monkeypatch):
    tensorflow()
    monkeypatch.setattr(tfds, "builder_from_directory", lambda path: tfds.core.read_only_builder.ReadOnlyBuilder(
        builder_dir=str(path).replace("gs://", f"{bucket}/")))  # fmt: skip
    assert prepare_by_tfds("eight_pictures", "gs://mine/data").examples == {"train": 8}
    folder = bucket / "mine" / "data" / "eight_pictures" / "1.0.0"
    source = tfds.core.read_only_builder.ReadOnlyBuilder(builder_dir=folder).as_data_source("train")
    assert sorted(int(example["label"]) for example in source) == [0] * 4 + [1] * 4
