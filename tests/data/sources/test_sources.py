"""Sources of digits, folders and TFDS, and the errors that they raise before training starts."""

import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from needs import tensorflow

from effv2_jax.config import defaults
from effv2_jax.data.images.decode import BrokenImage
from effv2_jax.data.pipeline import evaluation_batches
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import UserError


def config_of(**fields):
    config = defaults()
    config.data.num_examples = 0
    config.data.update(fields)
    return config


def write_image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((4, 6, 3), value, np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Two splits with two classes each, and some files that are not images."""
    for split, count in (("train", 3), ("validation", 2)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                write_image(tmp_path / split / name / f"{number}.png", 10 * label + number)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / ".cache").mkdir()
    write_image(tmp_path / "train" / "dog" / "more" / "3.PNG", 13)
    return tmp_path


def test_digits_have_an_even_and_fixed_split():
    sources = make_sources(config_of(source="digits"))
    assert (len(sources.train), len(sources.evaluation), sources.num_classes) == (1442, 355, 10)
    labels = [sources.evaluation.load(index)[1] for index in range(355)]
    assert set(np.bincount(labels)) <= {34, 35, 36}
    names = [{source.describe(index) for index in range(len(source))} for source in (sources.train, sources.evaluation)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 1797
    images = np.stack([sources.train.load(index)[0].pixels() for index in range(50)])
    assert images.shape == (50, 8, 8, 3) and images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)


def test_folder_with_two_splits(folder):
    sources = make_sources(config_of(source="folder", name=str(folder)))
    assert sources.class_names == ("cat", "dog")
    assert (len(sources.train), len(sources.evaluation)) == (7, 4)
    loaded = [sources.train.load(index) for index in range(7)]
    assert [(int(picture.pixels()[0, 0, 0]), label) for picture, label in loaded] == [
        (0, 0), (1, 0), (2, 0), (10, 1), (11, 1), (12, 1), (13, 1),
    ]  # fmt: skip
    assert sources.train.describe(6) == f"{folder}/train/dog/more/3.PNG"


def test_broken_file_of_a_folder_is_a_broken_image(folder):
    (folder / "train" / "cat" / "1.png").write_bytes(b"no image")
    sources = make_sources(config_of(source="folder", name=str(folder)))
    with pytest.raises(BrokenImage):
        sources.train.load(1)


def test_holdout_is_a_share_of_each_class_and_stays_when_files_are_added(tmp_path):
    for name in ("cat", "dog"):
        for number in range(100):
            write_image(tmp_path / name / f"{number}.png")

    def held_out():
        sources = make_sources(config_of(source="folder", name=str(tmp_path), holdout_percent=20.0))
        sides = [{s.describe(i) for i in range(len(s))} for s in (sources.train, sources.evaluation)]
        assert not sides[0] & sides[1]
        return sides

    train, evaluation = held_out()
    assert len(train) + len(evaluation) == 200 and 24 <= len(evaluation) <= 56  # 40 +- 3 standard deviations
    for number in range(100, 150):
        write_image(tmp_path / "cat" / f"{number}.png")
    train_later, evaluation_later = held_out()
    assert evaluation <= evaluation_later and train <= train_later


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (None, {"name": "/nowhere"}, r"config\.data\.name='/nowhere' is not a folder of images"),
        (
            None,
            {"evaluation_split": "test"},
            r"no subfolder 'test' .*has train, validation; set --config.data.evaluation_split=validation",
        ),
        ("train/fox/x.png train/owl/x.png", {}, r"differ: only in the first: fox, owl; only in the second: none"),
        ("train/fox/x.txt validation/fox/y.txt", {}, r"no images .* in the class folders fox of '.*train'"),
        (None, {"holdout_percent": 20.0}, r"is already split, .*holdout_percent=0 to use the existing splits"),
        (None, {"num_examples": 9}, r"num_examples is 9, but the training split has 7"),
    ],
)
def test_invalid_folders(folder, change, fields, message):
    for name in (change or "").split():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    with pytest.raises(UserError, match=message):
        make_sources(config_of(**({"source": "folder", "name": str(folder)} | fields)))


def test_holdout_must_leave_images_on_both_sides(folder):
    with pytest.raises(UserError, match=r"holdout_percent=0\.001 holds out no image"):
        make_sources(config_of(source="folder", name=str(folder / "train"), holdout_percent=0.001))


class TenPhotos(tfds.core.GeneratorBasedBuilder):
    """Ten grey squares of two classes, for the tests."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=["a", "b"])}
        )
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(8), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        for number in range(count):
            yield number, {"image": np.full((5, 7, 3), number, np.uint8), "label": number % 2}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    tensorflow()
    folder = tmp_path_factory.mktemp("tfds")
    TenPhotos(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def test_tfds_by_array_record(tfds_dir):
    sources = make_sources(config_of(source="tfds", name="ten_photos", data_dir=tfds_dir))
    assert sources.class_names == ("a", "b")
    assert (len(sources.train), len(sources.evaluation)) == (8, 2)
    seen = {}
    for index in range(8):
        picture, label = sources.train.load(index)
        image = picture.pixels()
        assert image.shape == (5, 7, 3) and label == image[0, 0, 0] % 2
        seen[int(image[0, 0, 0])] = index
    assert set(seen) == set(range(8))
    assert sources.train.describe(3) == "record 3 of ten_photos/1.0.0 train"


def test_tfds_splits_by_index(tfds_dir):
    whole = make_sources(config_of(source="tfds", name="ten_photos", data_dir=tfds_dir)).train
    fields = {"source": "tfds", "name": "ten_photos", "data_dir": tfds_dir}
    sources = make_sources(config_of(**fields, train_split="train[3:]", evaluation_split="train[:3]"))
    assert (len(sources.train), len(sources.evaluation)) == (5, 3)
    np.testing.assert_array_equal(sources.train.load(0)[0].pixels(), whole.load(3)[0].pixels())
    np.testing.assert_array_equal(sources.evaluation.load(2)[0].pixels(), whole.load(2)[0].pixels())


class SeveralLabels(tfds.core.GeneratorBasedBuilder):
    """Three squares of one, two and three classes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        names = tfds.features.ClassLabel(names=["a", "b", "c"])
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.Sequence(names)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "validation": self._generate_examples()}

    def _generate_examples(self):
        for number in range(3):
            yield number, {"image": np.full((5, 7, 3), number, np.uint8), "label": list(range(number + 1))}


def test_several_labels_per_example(tmp_path):
    tensorflow()
    SeveralLabels(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    config = config_of(source="tfds", name="several_labels", data_dir=str(tmp_path), max_labels=4)
    sources = make_sources(config)
    assert sources.class_names == ("a", "b", "c")
    config.evaluation.batch_size, config.evaluation.image_size = 3, 8
    [batch] = evaluation_batches(sources.evaluation, config)
    by_number = {int(image[0, 0, 0]): list(label) for image, label in zip(batch["image"], batch["label"], strict=True)}
    assert by_number == {0: [0, -1, -1, -1], 1: [0, 1, -1, -1], 2: [0, 1, 2, -1]}
    config.data.max_labels = 2
    with pytest.raises(UserError, match=r"has 3 labels, and config\.data\.max_labels is 2"):
        list(evaluation_batches(sources.evaluation, config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "imagnet2012"}, r"TFDS has no data set 'imagnet2012' .*did you mean 'imagenet2012'"),
        ({"name": "mnist"}, r"'mnist' is not prepared in .*data_dir=.*effv2 data prepare mnist --out="),
        ({"evaluation_split": "test"}, r"no split 'test' \(config\.data\.evaluation_split\); it has train, validation"),
        ({"train_split": "train[8:]"}, r"split 'train\[8:\]'.* \(config\.data\.train_split\)"),
    ],
)
def test_invalid_data_sets_of_tfds(tfds_dir, fields, message):
    with pytest.raises(UserError, match=message):
        make_sources(config_of(**({"source": "tfds", "name": "ten_photos", "data_dir": tfds_dir} | fields)))


def test_a_folder_where_a_tfds_name_belongs(folder):
    with pytest.raises(UserError, match=r"is a folder, .*--config.data.source=folder reads the images below it"):
        make_sources(config_of(source="tfds", name=str(folder)))


def test_sources_go_to_worker_processes(folder, tfds_dir):
    for fields in (
        {"source": "digits"},
        {"source": "folder", "name": str(folder)},
        {"source": "tfds", "name": "ten_photos", "data_dir": tfds_dir},
    ):
        source = make_sources(config_of(**fields)).train
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again.load(1)[0].pixels(), source.load(1)[0].pixels())
        assert again.describe(1) == source.describe(1)


def test_the_input_never_imports_tensorflow(tfds_dir):
    program = f"""
import sys
from effv2_jax.config import defaults
from effv2_jax.curriculum import make_curriculum
from effv2_jax.data.pipeline import train_batches
from effv2_jax.data.sources import make_sources
import tensorflow_datasets as tfds
config = defaults()
config.global_batch_size = 4
config.data.update(source="tfds", name="ten_photos", data_dir={tfds_dir!r}, num_examples=0)
tfds.builder = lambda name, data_dir, **_: tfds.builder_from_directory(data_dir + "/ten_photos/1.0.0")
sources = make_sources(config)
curriculum = make_curriculum(config, len(sources.train))
print(next(train_batches(sources.train, config, curriculum, 0))["image"].shape, "tensorflow" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "(4, 128, 128, 3) False\n", run.stderr
