"""The results of `effv2 data check`, and the picture of a curriculum's stages."""

import io
import json
import shutil
import textwrap

import cv2
import ilsvrc
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image as matplotlib_image
from needs import tensorflow
from PIL import Image
from tiny import tiny_config

from effv2_jax.curriculum import make_curriculum
from effv2_jax.data.images.crop import random_flip, random_resized_crop
from effv2_jax.data.inspection.check import check
from effv2_jax.data.inspection.duplicates import difference_hash, equal_pairs, near_pairs
from effv2_jax.data.inspection.preview import stage_rows
from effv2_jax.data.pipeline import example_generator
from effv2_jax.data.preparation.prepare import prepare_folder
from effv2_jax.data.sources import make_sources
from effv2_jax.data.sources.folder import all_splits
from effv2_jax.errors import UserError


def jpeg(image, quality=95):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def large(seed):
    return cv2.resize(ilsvrc.photo(seed), (160, 120), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def photos(tmp_path):
    """Photos in two splits and two classes; the test split has a copy, a paler and smaller copy, and a broken file."""
    files = {
        "train/a/0.jpg": jpeg(large(0)),
        "train/a/1.jpg": jpeg(large(1)),
        "train/a/2.jpg": jpeg(ilsvrc.photo(2)),
        "train/b/3.jpg": jpeg(large(3)),
        "train/b/4.jpg": jpeg(large(4)[:, :100]),
        "test/a/copy.jpg": jpeg(large(1)),
        "test/b/paler.jpg": jpeg((cv2.resize(large(0), (90, 70)) * 0.8 + 40).astype(np.uint8), 70),
        "test/b/new.jpg": jpeg(large(5)),
        "test/b/broken.jpg": b"rubbish",
    }
    for name, data in files.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    return tmp_path / "photos"


def test_counts_sizes_broken_images_and_duplicates(photos):
    results = check(all_splits(photos), small=100)
    train, test = results["splits"]["train"], results["splits"]["test"]
    assert train["images"] == 5 and train["classes"] == {"a": 3, "b": 2} and not train["broken"]
    assert test["images"] == 4 and test["classes"] == {"a": 1, "b": 2}
    assert [(image["file"], image["why"]) for image in test["broken"]] == [
        (f"{photos}/test/b/broken.jpg", "not an image, or a damaged header")
    ]
    assert train["sizes"] == {
        "short_side": {"smallest": 24, "median": 120.0, "largest": 120},
        "long_side": {"smallest": 32, "median": 160.0, "largest": 160},
        "below": 0.2,
    }
    [equal] = results["equal"]
    assert equal == {
        "first": f"{photos}/test/a/copy.jpg", "second": f"{photos}/train/a/1.jpg", "labels": ["a", "a"], "bits": 0,
    }  # fmt: skip
    [near] = results["near"]
    assert near["first"].endswith("test/b/paler.jpg") and near["second"].endswith("train/a/0.jpg")
    assert near["labels"] == ["b", "a"] and 0 < near["bits"] <= 10


@pytest.mark.parametrize("transform", ["smaller", "paler", "lower quality", "larger"])
def test_a_copy_is_near_and_another_photo_is_not(transform):
    for seed in range(20):
        image = large(seed)
        other = {
            "smaller": lambda x: cv2.resize(x, (80, 60), interpolation=cv2.INTER_AREA),
            "larger": lambda x: cv2.resize(x, (300, 250)),
            "paler": lambda x: (x * 0.7 + 60).astype(np.uint8),
            "lower quality": lambda x: np.asarray(Image.open(io.BytesIO(jpeg(x, 40)))),
        }[transform](image)
        first = np.stack([difference_hash(image)])
        assert len(near_pairs(first, np.stack([difference_hash(other)]), 10)) == 1
        assert not near_pairs(first, np.stack([difference_hash(large(seed + 100))]), 10)


def test_the_bits_of_a_hash_are_those_of_neighbours():
    rng = np.random.default_rng(0)
    grey = rng.permutation(72).astype(np.uint8).reshape(8, 9)
    rows = difference_hash(np.repeat(grey[..., None], 3, axis=2))[0]
    expected = [grey[y, x] < grey[y, x + 1] for y in range(8) for x in range(8)]
    assert [bool(byte >> (7 - bit) & 1) for byte in rows.tobytes() for bit in range(8)] == expected


hashes = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=6)


@settings(max_examples=100, deadline=None)
@given(hashes, st.integers(0, 128), st.lists(st.integers(0, 127), max_size=20))
def test_near_pairs_are_all_within_the_distance(first, distance, flips):
    second = list(first[::-1])
    if second:
        for flip in flips:
            a, b = second[0]
            second[0] = (a ^ 1 << flip, b) if flip < 64 else (a, b ^ 1 << flip - 64)
    expected = [
        (i, j, apart)
        for i, one in enumerate(first)
        for j, other in enumerate(second)
        if any(one) and any(other)
        and (apart := sum((x ^ y).bit_count() for x, y in zip(one, other, strict=True))) <= distance
    ]  # fmt: skip
    arrays = [np.array(part, np.uint64).reshape(-1, 2) for part in (first, second)]
    assert near_pairs(*arrays, distance) == expected


def test_broken_images_are_equal_to_nothing():
    assert equal_pairs([b"", b"x", b"y"], [b"", b"y", b"y"]) == [(2, 1), (2, 2)]
    assert not near_pairs(np.zeros((2, 2), np.uint64), np.zeros((2, 2), np.uint64), 128)


def test_the_command_on_a_folder(effv2, photos):
    code, out, err = effv2("data", "check", photos, "--small=100")
    assert code == 66 and "effv2: 1 images could not be read" in err
    lines = [line.split() for line in out.splitlines()]
    assert ["test", "4", "2", "1", "1.5", "2", "70", "120", "120", "90", "160", "160", "33.3%", "1"] in lines
    assert ["train", "5", "2", "2", "2.5", "3", "24", "120", "120", "32", "160", "160", "20.0%", "0"] in lines
    assert ["total", "5"] in lines and ["a", "3"] in lines
    assert f"  {photos}/test/b/broken.jpg: not an image, or a damaged header" in out
    assert "identical bytes in two splits: 1\n" in out and "(b and a: the labels differ; " in out
    code, out, _ = effv2("data", "check", photos, "--json", "--near=0")
    results = json.loads(out)
    assert code == 66 and len(results["equal"]) == 1 and not results["near"]


def test_a_long_list_of_classes_is_cut_in_the_middle(effv2, tmp_path):
    for label in range(20):
        for number in range(label + 1):
            path = tmp_path / "many" / f"class{label:02}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(ilsvrc.photo(100 * label + number)))
    code, out, _ = effv2("data", "check", tmp_path / "many")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0 and " ".join(lines[3]) == "images 210 20 1 10.5 20 24 24 24 32 32 32 100.0% 0"
    assert ["class04", "5"] in lines and ["class05", "6"] not in lines and ["class15", "16"] in lines
    assert ["...", "10", "more"] in lines and ["total", "210"] in lines


def test_a_prepared_data_set_gives_the_same_results(effv2, photos, tmp_path):
    (photos / "test" / "b" / "broken.jpg").unlink()
    prepare_folder(photos, tmp_path / "out")
    code, out, err = effv2("data", "check", "photos", f"--data_dir={tmp_path / 'out'}", "--json")
    assert code == 0, err
    results, expected = json.loads(out), check(all_splits(photos), small=128)
    for split, known in expected["splits"].items():
        assert results["splits"][split] == known
    assert len(results["equal"]) == len(results["near"]) == 1
    assert results["equal"][0]["first"].endswith("of photos/1.0.0 test")


@pytest.mark.parametrize("with_config", [False, True])
def test_data_dir_is_meant_though_a_folder_has_the_name(effv2, photos, tmp_path, monkeypatch, with_config):
    (photos / "test" / "b" / "broken.jpg").unlink()
    prepare_folder(photos, tmp_path / "out")
    config = write_config(tmp_path, photos)
    other = tmp_path / "elsewhere"  # its folder 'photos' holds fewer images
    shutil.copytree(photos, other / "photos")
    (other / "photos" / "train" / "a" / "0.jpg").unlink()
    words = ["photos", f"--data_dir={tmp_path / 'out'}", "--json", *([f"--config={config}"] if with_config else [])]
    monkeypatch.chdir(other)
    code, out, err = effv2("data", "check", *words)
    assert code == 0 and json.loads(out)["splits"]["train"]["images"] == 5, err


def test_two_splits_of_one_name_are_refused(effv2, photos, tmp_path):
    config = write_config(tmp_path, photos)
    code, _, err = effv2("data", "check", f"--config={config}", "--config.data.evaluation_split=train")
    assert code == 2 and "config.data.train_split and config.data.evaluation_split are both 'train'" in err


class HalfLabelled(tfds.core.GeneratorBasedBuilder):
    """Two photos with a class, and two without one, which TFDS marks by -1."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = (("train", 1), ("test", -1))

    def _info(self):
        features = {"image": tfds.features.Image(shape=(24, 32, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(label) for split, label in self.SPLITS}

    def _generate_examples(self, label):
        for number in range(2):
            yield number, {"image": ilsvrc.photo(number), "label": label}


class Unlabelled(HalfLabelled):
    """Photos without classes."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = (("test", -1),)


def test_splits_without_labels_are_reported(effv2, tmp_path, capsys):
    tensorflow()
    for data_set in (HalfLabelled, Unlabelled):
        data_set(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    capsys.readouterr()  # what TFDS printed
    code, out, err = effv2("data", "check", "half_labelled", f"--data_dir={tmp_path}", "--json")
    assert code == 0 and set(json.loads(out)["splits"]) == {"train"}
    assert "effv2: skipped: record 0 of half_labelled/1.0.0 test has label -1" in err
    code, _, err = effv2("data", "check", "unlabelled", f"--data_dir={tmp_path}")
    assert code == 2 and "no split of 'unlabelled' has labels; it has test" in err


def test_a_folder_in_a_bucket(bucket, photos):
    shutil.copytree(photos, bucket / "mine" / "photos")
    here, there = check(all_splits(photos), 128), check(all_splits("gs://mine/photos"), 128)
    assert json.dumps(here).replace(str(photos), "gs://mine/photos") == json.dumps(there)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs the name of a data set, a folder, or --config=FILE"),
        (["mnist", "--picture=x.png"], "--picture shows the stages of a curriculum: --config=FILE has them"),
        (["--config=configs/digits.py", "--picture=x.jpg"], "--picture needs a name that ends in .png, not 'x.jpg'"),
        (["--config=configs/digits.py", "--picture=/nowhere/x.png"], "/x.png cannot be written: there is no folder"),
        (["/nowhere"], "there is no folder '/nowhere'"),
        (["mnist", "--near=129"], "--near=129 must be between 0 and 128"),
        (["mnist", "--data_dir=/nowhere"], "'mnist' is not prepared in /nowhere"),
        (["mnits"], "TFDS has no data set 'mnits'"),
        (["--config=configs/digits.py", "--picture=x.png", "--photos=3"], "--photos=3 must be a multiple of 2"),
    ],
)
def test_invalid_input(effv2, words, message):
    code, _, err = effv2("data", "check", *words)
    assert code == 2 and message in err and "Traceback" not in err


def write_config(folder, photos):
    path = folder / "config.py"
    path.write_text(
        textwrap.dedent(f"""
            from tiny import tiny_config
            def get_config(argument=None):
                config = tiny_config(data__source="folder", data__name={str(photos)!r}, data__evaluation_split="test")
                return config
            """)
    )
    return path


def folder_config(photos, **changes):
    config = tiny_config(data__source="folder", data__name=str(photos), data__evaluation_split="test", **changes)
    config.data.num_examples = 0
    return config


def test_rows_show_what_the_stages_train_on(photos):
    config = folder_config(photos, curriculum__mixup_alpha=(0.0, 5.0), data__augmentation="none")
    config.curriculum.cutmix_alpha = (0.0, 0.0)
    source = make_sources(config).train
    rows = stage_rows(config, make_curriculum(config, len(source)), source, 4)
    assert [row.images.shape for row in rows] == [(4, size, size, 3) for size in (16, 16, 32, 32)]
    assert rows[0].title == "stage 1: 16 px, no RandAugment, mixup 0, cutmix 0"
    assert rows[3].title == "stage 4: 32 px, no RandAugment, mixup 5, cutmix 0"
    # Without mixing and further operations it is the crop and the flip that the example draws.
    expected = set()
    for index in range(len(source)):
        rng = example_generator(config.seed, 0, index)
        picture, _ = source.load(index)
        area, ratio = config.data.crop_area, config.data.crop_aspect_ratio
        crop = random_resized_crop(picture, 16, rng, area, ratio, "bilinear", False)
        expected.add(random_flip(crop, rng).tobytes())
    assert {photo.tobytes() for photo in rows[0].images} < expected
    # Mixup is of neighbours: both together hold what the two photos hold.
    plain = folder_config(photos, curriculum__mixup_alpha=(0.0, 0.0), data__augmentation="none")
    plain.curriculum.cutmix_alpha = (0.0, 0.0)
    unmixed = stage_rows(plain, make_curriculum(plain, len(source)), source, 4)[3].images.astype(np.float64)
    mixed = rows[3].images.astype(np.float64)
    for k in range(4):
        own, partner = unmixed[k] - 128, unmixed[k ^ 1] - 128
        basis = np.stack([own.ravel(), partner.ravel()], axis=1)
        weights, residual, *_ = np.linalg.lstsq(basis, mixed[k].ravel() - 128, rcond=None)
        assert weights.sum() == pytest.approx(1, abs=0.01) and 0.5 <= weights[0] <= 1.001
        assert np.sqrt(residual[0] / own.size) < 0.5  # rounding
    assert any(not np.array_equal(unmixed[k], mixed[k]) for k in range(4))


def test_randaugment_and_cutmix_are_in_the_titles(photos):
    config = folder_config(photos)
    source = make_sources(config).train
    rows = stage_rows(config, make_curriculum(config, len(source)), source, 4)
    assert rows[3].title == "stage 4: 32 px, RandAugment 1, mixup 0.2, cutmix 0.2"
    config.data.augmentation = "autoaugment"
    rows = stage_rows(config, make_curriculum(config, len(source)), source, 4)
    assert rows[0].title == "stage 1: 16 px, no RandAugment (autoaugment), mixup 0, cutmix 0"
    with pytest.raises(UserError, match=r"--photos=6 must be a multiple of 4"):
        stage_rows(config, make_curriculum(config, len(source)), source, 6)
    with pytest.raises(UserError, match=r"has only 5 readable photos; lower --photos=8"):
        stage_rows(config, make_curriculum(config, len(source)), source, 8)


def test_the_command_draws_one_row_per_stage(effv2, photos, tmp_path):
    config = write_config(tmp_path, photos)
    picture = tmp_path / "grid.png"
    words = [f"--config={config}", f"--picture={picture}", "--photos=4", "--json"]
    code, out, err = effv2("data", "check", *words)
    assert code == 66, err
    assert set(json.loads(out)["splits"]) == {"train", "test"}
    drawn = matplotlib_image.imread(picture)
    assert drawn.shape[0] / drawn.shape[1] == pytest.approx(1.8 * 4 / (1.5 * 4), abs=0.05)
    # The same by name, which replaces the config's.
    again = tmp_path / "again.png"
    shutil.move(photos, tmp_path / "moved")
    words = [tmp_path / "moved", f"--config={config}", f"--picture={again}", "--photos=4"]
    assert effv2("data", "check", *words)[0] == 66
    assert again.read_bytes() == picture.read_bytes()


def test_real_photos_of_flowers_have_copies_in_both_splits(shared_data):
    results = check(all_splits(shared_data / "flowers12"), small=224)
    assert {name: split["images"] for name, split in results["splits"].items()} == {"train": 720, "test": 240}
    assert not results["equal"] and len(results["near"]) == 25
    assert all(one == other for one, other in (pair["labels"] for pair in results["near"]))
