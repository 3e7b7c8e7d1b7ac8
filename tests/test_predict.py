"""`effv2 predict`, and `effv2 evaluate --weights`."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import types

import cv2
import numpy as np
import pytest
from pictures_folder import write_photos
from PIL import Image

from effv2_jax.errors import UserError
from effv2_jax.evaluate import confidence_interval
from effv2_jax.network.architecture import get_architecture
from effv2_jax.weights import Bundle, read_weights, write_weights
from effv2_jax.weights.bundle import unflatten_arrays
from effv2_jax.weights.mapping import entries
from effv2_jax.weights.preprocess import Preprocess
from effv2_jax.weights.relabel import with_labels_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A thin network of three classes whose classifier has only a bias, so that predictions are known."""
    network = get_architecture("efficientnetv2-b0", width=0.25, depth=0.1)
    rng = np.random.default_rng(0)
    arrays = {e.path: rng.uniform(0.5, 1, e.shape).astype(np.float32) for e in entries(network, 3, "effv2")}
    arrays["params/classifier/kernel"][:] = 0
    arrays["params/classifier/bias"][:] = np.log([0.2, 0.7, 0.1])
    bundle = Bundle(
        network,
        3,
        {"raw": unflatten_arrays(arrays)},
        Preprocess(32, "squash", "bilinear", "unit"),
        ("ant", "bee", "cat"),
    )
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    write_weights(bundle, path)
    return path


@pytest.fixture
def photos(tmp_path):
    write_photos(tmp_path / "photos")
    return tmp_path / "photos"


def test_a_folder_in_three_forms(effv2, weights, photos):
    count = sum(path.is_file() for path in photos.rglob("*"))
    code, out, _ = effv2("predict", f"--weights={weights}", photos, "--json", "--batch_size=7", "--top=2")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == count and [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    assert all(row["names"] == ["bee", "ant"] and row["labels"] == [1, 0] for row in rows)
    np.testing.assert_allclose([row["probabilities"] for row in rows], [[0.7, 0.2]] * count, rtol=1e-5)
    _, out, _ = effv2("predict", f"--weights={weights}", photos, "--csv")
    table = list(csv.DictReader(io.StringIO(out)))
    assert len(table) == 3 * count and table[2]["name"] == "cat" and table[2]["rank"] == "3"
    _, out, _ = effv2("predict", f"--weights={weights}", photos)
    assert out.splitlines()[1:3] == ["   70.0% bee", "   20.0% ant"]


def test_evaluation_counts_and_reports_unreadable_images(effv2, weights, photos):
    """Only the evaluation split exists; its classes are those of the weights, in another order."""
    (photos / "validation" / "rose").rename(photos / "validation" / "cat")
    (photos / "validation" / "tulip").rename(photos / "validation" / "bee")
    shutil.rmtree(photos / "train")
    command = ("evaluate", f"--weights={weights}", "--config=configs/folder.py", f"--config.data.name={photos}")
    command += ("--config.evaluation.image_size=32", "--config.evaluation.batch_size=8")
    code, out, err = effv2(*command)
    assert code == 0 and "raw top-1 50.00%" in out and "(12 examples)" in out, err
    first, *others = sorted(photos.rglob("*.jpg"))
    first.write_bytes(b"nothing")
    code, out, err = effv2(*command, "--json")
    results = json.loads(out)
    assert code == 66 and results["raw"]["count"] == 11 and results["raw"]["unreadable"] == 1
    assert "effv2: 1 images could not be read" in err
    for path in others:
        path.write_bytes(b"nothing")
    code, out, err = effv2(*command)
    assert code == 2 and not out and "none of the 12 images can be read, the first is" in err
    assert effv2(*command, "--step=best")[0] == 2


def test_names_of_any_bytes_and_folders_that_look_like_images(weights, photos):
    """In a process whose output is strict UTF-8."""
    (photos / "folder.jpg").mkdir()
    os.rename(next(photos.glob("train/rose/*.jpg")), os.fsencode(photos) + b"/\xff\xfe.jpg")
    command = [sys.executable, "-c", "from effv2_jax.cli.main import entry; entry()", "predict", f"--weights={weights}"]
    result = subprocess.run(
        [*command, photos], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    )
    assert result.returncode == 0, result.stderr
    assert b"/\xff\xfe.jpg" in result.stdout and b"folder.jpg" not in result.stdout


def test_a_name_that_is_too_long(effv2, weights):
    code, _, err = effv2("predict", f"--weights={weights}", "x" * 5000)
    assert code == 2 and "File name too long: xxx" in err and len(err) < 300


def test_a_picture_of_16_bits_is_the_same_from_a_file_and_from_pillow(tmp_path):
    levels = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    cv2.imwrite(str(tmp_path / "grey.png"), levels)
    preprocess = Preprocess(8, "squash", "bilinear", "unit")
    expected = np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(preprocess.pixels(tmp_path / "grey.png"), expected)
    np.testing.assert_array_equal(preprocess.pixels(Image.open(tmp_path / "grey.png")), expected)
    assert preprocess([]).shape == (0, 8, 8, 3)
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken.jpg: not an image"):
        preprocess([tmp_path / "grey.png", tmp_path / "broken.jpg"])
    with pytest.raises(ValueError, match="pass several images as a list"):
        preprocess(np.zeros((2, 8, 8, 3), np.uint8))


def test_unreadable_files_are_reported_skipped_and_in_the_exit_code(effv2, weights, photos):
    (photos / "broken.jpg").write_bytes(b"nothing")
    code, out, err = effv2("predict", f"--weights={weights}", photos, "--json")
    assert code == 66 and "broken.jpg" not in out and len(out.splitlines()) > 3
    assert f"skipped {photos / 'broken.jpg'}: not an image" in err and "1 of " in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such.jpg"], "there is no image or folder 'no/such.jpg'"),
        (["configs"], "no images (.jpg"),
        (["README.md", "--top=0"], "--top=0 must be at least 1"),
    ],
)
def test_invalid_input(effv2, weights, arguments, message):
    code, _, err = effv2("predict", f"--weights={weights}", *arguments)
    assert code == 2 and message in err


def test_standard_input_is_an_image_or_paths(effv2, weights, photos, monkeypatch):
    image = sorted(path for path in photos.rglob("*") if path.is_file())[0]
    for data, name in ((image.read_bytes(), "-"), (f"{image}\n".encode(), str(image))):
        monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
        code, out, _ = effv2("predict", f"--weights={weights}", "-", "--json")
        assert code == 0 and json.loads(out)["file"] == name
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"")))
    code, _, err = effv2("predict", f"--weights={weights}", "-")
    assert code == 2 and "standard input is empty" in err


def csv_arguments(weights, folder):
    return (
        *("evaluate", f"--weights={weights}", "--config=configs/folder.py", "--config.data.source=csv"),
        *(f"--config.data.name={folder}", "--config.data.train_split=labels", "--config.data.evaluation_split=labels"),
        "--config.evaluation.image_size=32",
        "--config.evaluation.batch_size=8",
    )


@pytest.fixture
def listed(photos):
    """A function that writes `labels.csv` for ten photos, and the number of photos."""
    files = sorted(path.relative_to(photos) for path in photos.rglob("*") if path.is_file())[:10]

    def write(labels):
        rows = "".join(f"{file},{label}\n" for file, label in zip(files, labels, strict=False))
        (photos / "labels.csv").write_text("file,label\n" + rows)
        return photos

    return write, len(files)


def test_weights_are_evaluated_on_a_csv_by_name_and_by_number(effv2, weights, listed):
    write, count = listed
    for labels in (["cat", "bee"], ["2", "1"]):  # in another order than the weights have them
        folder = write((labels * count)[:count])
        code, out, err = effv2(*csv_arguments(weights, folder), "--json")
        assert code == 0, err
        results = json.loads(out)
        assert results["raw"]["count"] == count and results["raw"]["top1"] == pytest.approx((count // 2) / count)
        low, high = results["top1_interval_95"]["raw"]
        assert low < results["raw"]["top1"] < high
    code, out, _ = effv2(*csv_arguments(weights, folder))
    assert code == 0 and "raw top-1 " in out and "95 % interval of top-1: raw " in out
    code, _, err = effv2(*csv_arguments(weights, write(["dog", "bee"] * 5)))
    assert code == 2 and "the data have 2 classes, the weights 3, and the weights do not know dog" in err
    code, _, err = effv2(*csv_arguments(weights, write(["dog", "1"] * 5)))
    assert code == 2 and "mix numbers and names, such as 'dog'" in err
    (folder / "labels.csv").write_text("name,label\nx,y\n")
    code, _, err = effv2(*csv_arguments(weights, folder))
    assert code == 2 and "has no column file in its first line" in err
    (folder / "labels.csv").unlink()
    code, _, err = effv2(*csv_arguments(weights, folder))
    assert code == 2 and "there is no '" in err
    code, _, err = effv2("evaluate", f"--weights={weights}")
    assert code == 2 and "--weights and --config go together" in err


def test_labels_by_name_or_number(weights):
    bundle = read_weights(weights)
    source = types.SimpleNamespace(class_names=("cat", "ant"), load=lambda index: (None, index))
    assert [with_labels_of(source, bundle).load(index)[1] for index in range(2)] == [2, 0]
    # As many classes, but only some are the same: labels by number would be wrong.
    mixed = types.SimpleNamespace(class_names=("ant", "bee", "dog"), load=lambda index: (None, index))
    with pytest.raises(UserError, match="the weights do not know dog"):
        with_labels_of(mixed, bundle)
    with pytest.raises(UserError, match="no classifier"):
        with_labels_of(source, bundle.without_head())


def test_confidence_interval_by_hand():
    # Wilson (1927) for 545 of 650 at 95 %: (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n)
    low, high = confidence_interval(545 / 650, 650)
    assert (low, high) == (pytest.approx(0.80820, abs=2e-4), pytest.approx(0.86478, abs=2e-4))
    assert confidence_interval(1.0, 10)[1] == pytest.approx(1.0) and confidence_interval(0.5, 0) == (0.0, 1.0)


def test_published_weights_reach_what_keras_reaches(effv2, shared_data):
    """Keras, with PIL's bicubic resampling: 545 and 630 of 650 (`data/README.md`)."""
    code, out, err = effv2(
        "evaluate",
        f"--weights={shared_data / 'weights' / 'efficientnetv2-b0.weights.h5'}",
        "--config=configs/imagenet.py:b0",
        "--config.data.source=csv",
        f"--config.data.name={shared_data / 'ilsvrc_val'}",
        "--config.data.train_split=labels",
        "--config.data.evaluation_split=labels",
        "--config.data.num_examples=0",
        "--config.data.evaluation_crop=squash",
        "--config.evaluation.batch_size=50",
        "--json",
    )
    assert code == 0, err
    shares = json.loads(out)["raw"]
    assert shares["count"] == 650
    assert abs(shares["top1"] * 650 - 545) <= 2.01 and abs(shares["top5"] * 650 - 630) <= 2.01
