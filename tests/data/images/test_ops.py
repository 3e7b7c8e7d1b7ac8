"""The 16 operations against Pillow and TensorFlow's kernels, and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import tensorflow
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from effv2_jax.data.images import ops

SIZES = ((37, 61), (64, 48))


def noise(height, width, low=0, high=256):
    return np.random.default_rng(height).integers(low, high, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    """Few levels, unevenly spread, and different in each channel."""
    rows, columns = np.mgrid[:height, :width]
    wave = np.sin(rows / 9) + np.cos(columns / 7)
    return np.dstack([110 + 30 * wave, 60 + 20 * wave, 200 + 25 * wave]).astype(np.uint8)


def pillow(function, image, *args):
    return np.asarray(function(Image.fromarray(image), *args))


def check_close(ours, theirs, most):
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= most


@pytest.mark.parametrize(
    "image", [noise(37, 61), noise(40, 40, 90, 130), smooth(50, 70)], ids=["noise", "low", "smooth"]
)
class TestAgainstPillow:
    def test_equalize(self, image):
        np.testing.assert_array_equal(ops.equalize(image), pillow(ImageOps.equalize, image))

    def test_autocontrast(self, image):
        check_close(ops.autocontrast(image), pillow(ImageOps.autocontrast, image), most=1)
        assert (ops.autocontrast(image).min((0, 1)) == 0).all()

    def test_invert(self, image):
        np.testing.assert_array_equal(ops.invert(image), pillow(ImageOps.invert, image))

    @pytest.mark.parametrize("bits", range(1, 9))
    def test_posterize(self, image, bits):
        np.testing.assert_array_equal(ops.posterize(image, bits), pillow(ImageOps.posterize, image, bits))

    @pytest.mark.parametrize("threshold", [0, 1, 85, 128, 255, 256])
    def test_solarize(self, image, threshold):
        np.testing.assert_array_equal(ops.solarize(image, threshold), pillow(ImageOps.solarize, image, threshold))

    @pytest.mark.parametrize("factor", [0.0, 0.1, 0.7, 1.0, 1.9, 2.8])
    def test_brightness(self, image, factor):
        theirs = pillow(lambda picture: ImageEnhance.Brightness(picture).enhance(factor), image)
        check_close(ops.brightness(image, factor), theirs, most=1)

    @pytest.mark.parametrize("factor", [0.0, 0.1, 0.7, 1.0, 1.9, 2.8])
    def test_color(self, image, factor):
        # Pillow rounds its grey, TensorFlow cuts fractions off: a grey level of difference, times its share.
        theirs = pillow(lambda picture: ImageEnhance.Color(picture).enhance(factor), image)
        check_close(ops.color(image, factor), theirs, most=1 + math.ceil(abs(1 - factor)))

    @pytest.mark.parametrize("factor", [0.0, 0.1, 0.7, 1.0, 1.9, 2.8])
    def test_sharpness(self, image, factor):
        theirs = pillow(lambda picture: ImageEnhance.Sharpness(picture).enhance(factor), image)
        check_close(ops.sharpness(image, factor), theirs, most=1 + math.ceil(abs(1 - factor)))


def test_equalize_and_autocontrast_leave_one_colour():
    image = np.full((9, 8, 3), (7, 0, 255), np.uint8)
    np.testing.assert_array_equal(ops.equalize(image), image)
    np.testing.assert_array_equal(ops.autocontrast(image), image)


def test_autocontrast_by_hand():
    image = np.array([[[50, 0, 10], [100, 255, 20], [150, 3, 20]]], np.uint8)
    expected = [[[0, 0, 0], [127, 255, 255], [255, 3, 255]]]  # 127.5 is cut off
    np.testing.assert_array_equal(ops.autocontrast(image), expected)


@pytest.mark.parametrize("bits", range(9))
def test_posterize_shifts_as_tensorflow(bits):
    tf = tensorflow()
    levels = np.arange(256, dtype=np.uint8)
    shift = 8 - bits
    expected = tf.bitwise.left_shift(tf.bitwise.right_shift(levels, shift), shift).numpy()
    np.testing.assert_array_equal(ops.posterize(levels, bits), expected)


def test_solarize_add_by_hand():
    image = np.array([[[0, 20, 127], [128, 200, 255]]], np.uint8)
    np.testing.assert_array_equal(ops.solarize_add(image, 110), [[[110, 130, 237], [128, 200, 255]]])
    np.testing.assert_array_equal(ops.solarize_add(image, 275), [[[255, 255, 255], [128, 200, 255]]])
    np.testing.assert_array_equal(ops.solarize_add(image, 10, threshold=20), [[[10, 20, 127], [128, 200, 255]]])


def test_color_at_zero_is_tensorflows_grey():
    tf = tensorflow()
    image = noise(100, 120)
    expected = np.repeat(tf.image.rgb_to_grayscale(image).numpy(), 3, axis=2)
    ours = ops.color(image, 0.0)
    check_close(ours, expected, most=1)
    assert (ours != expected).mean() < 1e-3  # float sums in another order, next to a whole number


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((64, 64), 1.9, (0, 175, 255)),  # grey 16: 16 + 1.9 * (0, 100, 200 - 16)
        ((250, 250), 1.9, (0, 0, 160)),  # grey 244: 244 + 1.9 * (... - 244)
        ((32, 64), 0.1, (7, 17, 27)),  # grey 8: 7.2, 17.2, 27.2
        ((256, 256), 1.9, (0, 0, 150)),  # grey 256, at most 255: 255 + 1.9 * (... - 255)
        ((400, 300), 0.1, (229, 239, 249)),
        ((400, 300), 1.0, (0, 100, 200)),
    ],
)
def test_contrast_blends_with_the_count_of_pixels(size, factor, expected):
    image = np.full((*size, 3), (0, 100, 200), np.uint8)
    np.testing.assert_array_equal(ops.contrast(image, factor), np.full((*size, 3), expected, np.uint8))


def test_blend_cuts_fractions_off_and_clips():
    degenerate, image = np.array([10, 10, 10], np.uint8), np.array([15, 200, 0], np.uint8)
    np.testing.assert_array_equal(ops.blend(degenerate, image, 0.5), [12, 105, 5])
    np.testing.assert_array_equal(ops.blend(degenerate, image, 1.9), [19, 255, 0])
    np.testing.assert_array_equal(ops.blend(degenerate, image, 0.0), degenerate)
    np.testing.assert_array_equal(ops.blend(degenerate, image, 1.0), image)


def test_sharpness_by_hand():
    image = np.zeros((5, 5, 3), np.uint8)
    image[2, 2] = 130
    expected = np.zeros((5, 5), np.uint8)
    expected[1:4, 1:4] = 10
    expected[2, 2] = 50
    np.testing.assert_array_equal(ops.sharpness(image, 0.0), np.dstack([expected] * 3))
    doubled = np.zeros((5, 5), np.uint8)
    doubled[2, 2] = 210  # 50 + 2 * 80; the ring falls below 0
    np.testing.assert_array_equal(ops.sharpness(image, 2.0), np.dstack([doubled] * 3))


@pytest.mark.parametrize("factor", [0.0, 0.1, 1.9, 2.8])
def test_sharpness_against_tensorflow(factor):
    tf = tensorflow()
    image = noise(50, 70)
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32)[..., None, None].repeat(3, axis=2) / 13
    inner = tf.nn.depthwise_conv2d(image[None].astype(np.float32), kernel, [1, 1, 1, 1], "VALID")[0].numpy()
    degenerate = image.astype(np.float32)
    degenerate[1:-1, 1:-1] = np.floor(inner)
    expected = np.floor(np.clip(degenerate + factor * (image - degenerate), 0, 255))
    ours = ops.sharpness(image, factor)
    # TensorFlow's sums of thirteenths fall short of whole numbers now and then, which is cut off to the one below.
    check_close(ours, expected, most=1 + math.ceil(abs(1 - factor)))
    assert (ours != expected).mean() < 0.02
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        np.testing.assert_array_equal(ours[edge], image[edge])


def transform(image, output_to_input):
    """TensorFlow's kernel on the image with a channel of ones; where that comes out as 0, the pixel is grey."""
    tf = tensorflow()
    height, width, _ = image.shape
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=np.dstack([image, np.ones((height, width), np.uint8)])[None],
        transforms=np.array([[*output_to_input, 0, 0]], np.float32),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    ).numpy()[0]
    return np.where(moved[..., 3:] == 0, np.uint8(128), moved[..., :3])


def check_same_pixels(ours, theirs):
    """Equal on x86; elsewhere fused multiply-adds may move single pixels that lie half-way."""
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    assert (ours != theirs).any(-1).mean() <= 1e-3


@pytest.mark.parametrize("size", SIZES)
class TestGeometryAgainstTensorFlow:
    @pytest.mark.parametrize("level", [0.0, 0.1, 0.15, -0.2, 0.3, -0.3, 0.45, -0.75])
    def test_shear(self, size, level):
        image = noise(*size)
        check_same_pixels(ops.shear_x(image, level), transform(image, (1, level, 0, 0, 1, 0)))
        check_same_pixels(ops.shear_y(image, level), transform(image, (1, 0, 0, level, 1, 0)))

    @pytest.mark.parametrize("pixels", [0, 10, -10, 0.5, -0.5, 1.5, -2.5, 16.6667, -33.3, 500])
    def test_translate(self, size, pixels):
        image = noise(*size)
        check_same_pixels(ops.translate_x(image, pixels), transform(image, (1, 0, pixels, 0, 1, 0)))
        check_same_pixels(ops.translate_y(image, pixels), transform(image, (1, 0, 0, 0, 1, pixels)))

    @pytest.mark.parametrize("degrees", [0, 1, 15, -21.3, 30, -30, 45, 75, 180])
    def test_rotate(self, size, degrees):
        image = noise(*size)
        angle = np.float32(math.radians(degrees))
        cosine, sine = np.cos(angle), np.sin(angle)
        # The offsets that leave the centre, ((width - 1) / 2, (height - 1) / 2), where it is.
        x, y = np.float32((size[1] - 1) / 2), np.float32((size[0] - 1) / 2)
        offsets = x - (cosine * x - sine * y), y - (sine * x + cosine * y)
        theirs = transform(image, (cosine, -sine, offsets[0], sine, cosine, offsets[1]))
        check_same_pixels(ops.rotate(image, degrees), theirs)


def test_directions():
    image = noise(31, 31, 0, 128)
    np.testing.assert_array_equal(ops.rotate(image, 90), np.rot90(image))  # counter-clockwise
    left = ops.translate_x(image, 4)
    np.testing.assert_array_equal(left[:, :-4], image[:, 4:])
    assert (left[:, -4:] == 128).all()
    down = ops.translate_y(image, -4)
    np.testing.assert_array_equal(down[4:], image[:-4])
    assert (down[:4] == 128).all()
    sheared = ops.shear_x(image, 1.0)
    for row in range(31):
        np.testing.assert_array_equal(sheared[row, : 31 - row], image[row, row:])
        assert (sheared[row, 31 - row :] == 128).all()


def test_cutout_fills_a_square_about_a_pixel():
    image, rng = noise(40, 50, 0, 128), np.random.default_rng(0)
    for _ in range(100):
        filled = (ops.cutout(image, 5, rng) == 128).all(-1)
        rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
        np.testing.assert_array_equal(filled, np.outer(filled.any(1), filled.any(0)))
        # Half of it is left at the edge: 5 rows before the pixel, and 5 with it.
        row, column = (rows[-1] - 4, columns[-1] - 4)
        assert len(rows) == 10 or rows[0] == 0 or rows[-1] == 39
        assert len(columns) == 10 or columns[0] == 0 or columns[-1] == 49
        assert len(rows) >= 5 and len(columns) >= 5 and row <= 39 and column <= 49


def test_noise_cutout_fills_the_same_square_with_bright_noise():
    image = np.zeros((40, 40, 3), np.uint8)
    for seed in range(20):
        noisy = ops.noise_cutout(image, 10, np.random.default_rng(seed))
        square = ops.cutout(image, 10, np.random.default_rng(seed)) == 128
        assert (noisy[square] >= 128).all() and not noisy[~square].any()
        assert noisy[square].max() > 250 and abs(noisy[square].mean() - 191.5) < 5
    assert not image.any()


def test_cutout_is_centred_uniformly():
    rng, image = np.random.default_rng(0), np.zeros((4, 5, 3), np.uint8)
    # Of a square of side 2 the last row and column are the pixel's own.
    corners = [np.argwhere(ops.cutout(image, 1, rng)[..., 0]).max(0) for _ in range(2000)]
    _, counts = np.unique(corners, axis=0, return_counts=True)
    assert len(counts) == 20
    assert stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(image, 0)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), flipped=st.booleans(), seed=st.integers(0, 99))
def test_any_size_in_and_the_same_out(height, width, flipped, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = image[:, ::-1] if flipped else image  # not contiguous
    before = image.copy()
    outputs = [ops.autocontrast(image), ops.equalize(image), ops.invert(image), ops.posterize(image, 3)]
    outputs += [ops.solarize(image, 90), ops.solarize_add(image, 55), ops.color(image, 1.9), ops.contrast(image, 0.3)]
    outputs += [ops.brightness(image, 1.9), ops.sharpness(image, 1.9), ops.rotate(image, 21.0)]
    outputs += [ops.shear_x(image, 0.3), ops.shear_y(image, -0.3), ops.translate_x(image, 9.5)]
    rng = np.random.default_rng(0)
    outputs += [ops.translate_y(image, -9.5), ops.cutout(image, 8, rng), ops.noise_cutout(image, 8, rng)]
    for output in outputs:
        assert output.shape == (height, width, 3) and output.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
