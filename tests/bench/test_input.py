"""`effv2 bench input`: all sides run, and the peers make the crops, flips and operations that ours makes."""

import json

import cv2
import numpy as np
import pytest
from needs import needs, tensorflow

from effv2_jax.bench import input as bench
from effv2_jax.data.images import ops
from effv2_jax.errors import UserError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        small = np.random.default_rng(number).integers(0, 256, (5, 7, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number}.jpg"), cv2.resize(small, (90, 70)))
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.mark.slow
def test_every_side_runs(effv2, photos):
    tensorflow()
    needs("torchvision")
    command = ("bench", "input", f"--folder={photos}", "--image_size=32", "--batch=4", "--batches=2", "--rounds=1")
    code, out, err = effv2(*command, "--workers=0", "--scaled", "--json")
    assert code == 0, err
    results = json.loads(out)
    [parts] = results["parts"]
    assert parts.pop("image_size") == 32 and all(value > 0 for value in parts.values())
    assert [row["randaugment"] for row in results["rates"]] == [False, True]
    for row in results["rates"]:
        assert set(row) == {"image_size", "randaugment", "ours, threads", "tf.data", "torchvision"}
    assert "6 images" in err


def test_the_crops_and_flips_of_tf_data_are_ours(photos):
    """Each side's images are equal up to the rounding of two decoders and two resizings."""
    tensorflow()
    from effv2_jax.bench import tf_input

    source = bench.Folder(str(photos), [f"{number}.jpg" for number in range(6)], [0] * 6, ("image",))
    config = bench.Setting(32, None, batch_size=2, batches=3, scaled=False).config()
    curriculum = bench.make_curriculum(config, 6)
    ours = [batch["image"] for batch in bench.train_batches(source, config, curriculum, 0)]
    draws = [bench._draw(source, config, position) for position in range(6)]
    paths, boxes, flips = zip(*draws, strict=True)
    theirs = tf_input.batches(paths, np.array(boxes, np.int32), np.array(flips), 32, 6, None)
    # tf.data gives them in any order.
    ours, theirs = np.concatenate(ours).astype(int), next(theirs).astype(int)
    for image in ours:
        assert min(np.abs(image - other).mean() for other in theirs) < 4


@pytest.mark.parametrize(
    ("number", "ours"),
    [
        (0, ops.autocontrast),
        (1, ops.equalize),
        (2, ops.invert),
        (4, lambda image: ops.posterize(image, 4)),
        (5, lambda image: ops.solarize(image, 256)),
        (6, lambda image: ops.solarize_add(image, 110)),
        (7, lambda image: ops.color(image, 1.9)),
        (8, lambda image: ops.contrast(image, 1.9)),
        (9, lambda image: ops.brightness(image, 1.9)),
        (10, lambda image: ops.sharpness(image, 1.9)),
    ],
)
def test_the_operations_of_tf_data_are_ours(number, ours):
    tf = tensorflow()
    from effv2_jax.bench import tf_input

    image = np.random.default_rng(0).integers(20, 230, (40, 50, 3), np.uint8)
    theirs = tf_input._operations(1.0)[number](tf.constant(image)).numpy()
    assert np.abs(theirs.astype(int) - ours(image)).max() <= 1


def test_invalid_input(photos, tmp_path):
    options = {"workers": [0], "batch_size": 4, "batches": 1, "rounds": 1, "scaled": False, "log": print}
    with pytest.raises(UserError, match="no readable image"):
        bench.bench_input(str(tmp_path), [32], peers=[], **options)
    with pytest.raises(UserError, match="--peer"):
        bench.bench_input(str(photos), [32], peers=["dali"], **options)
