"""Crops and resizing against TensorFlow, and by hand."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from needs import tensorflow
from scipy import stats

from effv2_jax.data.images.crop import evaluation_crop, random_crop_box, random_flip, random_resized_crop, resize
from effv2_jax.data.images.decode import Picture
from effv2_jax.errors import UserError

ASPECT_RATIO = (3 / 4, 4 / 3)
DRAWS = 3000


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tf_boxes(height, width, area):
    """(height, width) of TensorFlow's crops, [DRAWS, 2]."""

    tf = tensorflow()

    @tf.function
    def draw(number):
        _, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            [height, width, 3],
            tf.zeros([1, 0, 4]),
            seed=tf.stack([number, 1]),
            min_object_covered=0.0,
            aspect_ratio_range=ASPECT_RATIO,
            area_range=area,
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        return size[:2]

    return tf.map_fn(draw, tf.range(DRAWS), fn_output_signature=tf.int32).numpy()


# Small images are where whole numbers matter: the area is corrected by a row, or no ratio fits.
@pytest.mark.parametrize(
    ("height", "width", "area"),
    [
        (375, 500, (0.05, 1.0)),
        (60, 200, (0.08, 1.0)),
        (8, 8, (0.05, 1.0)),
        (5, 9, (0.05, 1.0)),
        (7, 30, (0.3, 0.6)),
        (6, 7, (0.1, 0.2)),
    ],
)
def test_sizes_are_distributed_as_tensorflows(height, width, area):
    rng = np.random.default_rng(0)
    ours = np.array([random_crop_box(height, width, rng, area, ASPECT_RATIO) for _ in range(DRAWS)])[:, 2:]
    theirs = tf_boxes(height, width, area)
    for measure in (lambda sizes: sizes[:, 0], lambda sizes: sizes[:, 1], lambda sizes: sizes[:, 1] / sizes[:, 0]):
        assert stats.ks_2samp(measure(ours), measure(theirs), method="asymp").pvalue > 1e-3
    whole = [(sizes == (height, width)).all(1).mean() for sizes in (ours, theirs)]
    assert whole[0] == pytest.approx(whole[1], abs=4 * 0.5 / DRAWS**0.5)


def test_places_are_uniform_up_to_the_edges():
    rng = np.random.default_rng(0)
    boxes = [random_crop_box(4, 5, rng, (0.2, 0.2), (1.0, 1.0)) for _ in range(1200)]
    assert {box[2:] for box in boxes} == {(2, 2)}
    _, counts = np.unique([box[:2] for box in boxes], axis=0, return_counts=True)
    assert len(counts) == 3 * 4
    assert stats.chisquare(counts).pvalue > 1e-3


def test_whole_image_where_no_crop_fits():
    box = random_crop_box(10, 400, np.random.default_rng(0), (0.5, 1.0), ASPECT_RATIO)
    assert box == (0, 0, 10, 400)


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    smallest=st.floats(0.01, 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
@example(height=1, width=1, smallest=0.01, share=0.0, seed=0)
def test_box_lies_inside_and_has_the_area(height, width, smallest, share, seed):
    area = (smallest, smallest + share * (1 - smallest))
    box = random_crop_box(height, width, np.random.default_rng(seed), area, ASPECT_RATIO)
    top, left, box_height, box_width = box
    assert top >= 0 and left >= 0 and box_height > 0 and box_width > 0
    assert top + box_height <= height and left + box_width <= width
    covered = box_height * box_width / (height * width)
    assert box == (0, 0, height, width) or area[0] - 1e-9 <= covered <= area[1] + 1e-9


@pytest.mark.parametrize(("height", "width", "size"), [(375, 500, 128), (375, 500, 300), (61, 37, 96), (256, 256, 128)])
def test_bilinear_is_tensorflows(height, width, size):
    tf = tensorflow()
    image = noise(height, width)
    expected = tf.image.resize(image, (size, size), method="bilinear", antialias=False).numpy()
    assert np.abs(resize(image, size, "bilinear") - expected).max() <= 1


def cubic_matrix(old, new):
    """[new, old]: the cubic kernel with a = -0.75 at half-pixel centres; edge pixels repeat."""
    a = -0.75
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for column in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t = abs(centre - column)
            near = (a + 2) * t**3 - (a + 3) * t**2 + 1
            far = a * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[row, min(max(column, 0), old - 1)] += near if t <= 1 else far
    return matrix


@pytest.mark.parametrize(("height", "width", "size"), [(100, 130, 64), (37, 61, 96)])
def test_bicubic_is_the_kernel_of_tensorflow_1(height, width, size):
    image = noise(height, width)
    exact = np.einsum("ij,jkc,lk->ilc", cubic_matrix(height, size), image.astype(float), cubic_matrix(width, size))
    assert np.abs(resize(image, size, "bicubic") - exact.clip(0, 255)).max() <= 1


def test_random_resized_crop_resizes_its_box():
    tf = tensorflow()
    image = noise(90, 70)
    box = random_crop_box(90, 70, np.random.default_rng(3), (0.1, 1.0), ASPECT_RATIO)
    assert box != (0, 0, 90, 70)
    top, left, height, width = box
    inside = image[top : top + height, left : left + width]
    crop = random_resized_crop(Picture(image), 48, np.random.default_rng(3), (0.1, 1.0), ASPECT_RATIO, "bilinear", True)
    assert crop.dtype == np.uint8
    assert np.abs(crop - tf.image.resize(inside, (48, 48)).numpy()).max() <= 1
    np.testing.assert_array_equal(image, noise(90, 70))


# At 224 pixels a short side of 256 or 257 gives a crop of 224, which needs no resizing.
@pytest.mark.parametrize(
    ("rule", "height", "top", "left"),
    [("v2", 256, 16, 88), ("v1", 256, 16, 88), ("v2", 257, 16, 88), ("v1", 257, 17, 88)],
)
def test_evaluation_crop_by_hand(rule, height, top, left):
    image = noise(height, 400)
    crop = evaluation_crop(image, 224, rule, "bilinear")
    np.testing.assert_array_equal(crop, image[top : top + 224, left : left + 224])


@pytest.mark.parametrize(
    ("rule", "size", "cropped"),
    [("v2", 319, True), ("v2", 320, False), ("v2", 384, False), ("v1", 384, True), ("squash", 224, False)],
)
def test_evaluation_rules(rule, size, cropped):
    tf = tensorflow()
    image = noise(400, 500)
    if cropped:
        side = int(size / (size + 32) * 400)
        shift = 1 if rule == "v1" else 0
        top, left = (400 - side + shift) // 2, (500 - side + shift) // 2
        expected = tf.image.resize(image[top : top + side, left : left + side], (size, size))
    else:
        expected = tf.image.resize(image, (size, size))
    crop = evaluation_crop(image, size, rule, "bilinear")
    assert crop.dtype == np.uint8
    assert np.abs(crop - expected.numpy()).max() <= 1


def test_evaluation_crop_of_tiny_images():
    for height, width in ((1, 1), (1, 50), (8, 8)):
        assert evaluation_crop(noise(height, width), 16, "v2", "bicubic").shape == (16, 16, 3)


def test_unknown_names_are_user_errors():
    with pytest.raises(UserError, match=r"evaluation_crop 'v3' is unknown; .*v2"):
        evaluation_crop(noise(8, 8), 16, "v3", "bilinear")
    with pytest.raises(UserError, match=r"interpolation 'bicubicc' is unknown; did you mean 'bicubic'"):
        evaluation_crop(noise(8, 8), 16, "v2", "bicubicc")


def test_random_flip_mirrors_half_of_the_images():
    image, rng = noise(5, 6), np.random.default_rng(0)
    flips = 0
    for _ in range(400):
        flipped = random_flip(image, rng)
        mirrored = not np.array_equal(flipped, image)
        np.testing.assert_array_equal(flipped, image[:, ::-1] if mirrored else image)
        flips += mirrored
    assert stats.binomtest(flips, 400).pvalue > 1e-3
    np.testing.assert_array_equal(image, noise(5, 6))
