"""Decoding against Pillow and TensorFlow, and files that are truncated, damaged or too large."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import tensorflow
from PIL import Image

from effv2_jax.data.images.crop import random_crop_box, resize
from effv2_jax.data.images.decode import MAX_PIXELS, BrokenImage, Picture, decode

HEIGHT, WIDTH = 45, 70


def picture(channels=3):
    """A smooth picture with an odd height: JPEG codes it well, and its chroma blocks do not divide it."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 9, channels), dtype=np.uint8)
    return cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR).reshape(HEIGHT, WIDTH, channels)


def encode(image, file_format, **options):
    data = io.BytesIO()
    image.save(data, file_format, **options)
    return data.getvalue()


def check_equal_to_tensorflow(data, most=0):
    ours, theirs = decode(data), tf_decode(data)
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= most


def tf_decode(data):
    tf = tensorflow()
    if data[:2] == b"\xff\xd8":
        return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    return tf.io.decode_image(data, channels=3, expand_animations=False).numpy()


@pytest.mark.parametrize("options", [{"subsampling": s, "quality": q} for s in (0, 1, 2) for q in (50, 95)])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg(options, progressive):
    check_equal_to_tensorflow(encode(Image.fromarray(picture()), "JPEG", progressive=progressive, **options), most=1)


def test_grey_jpeg_becomes_three_equal_channels():
    data = encode(Image.fromarray(picture()).convert("L"), "JPEG")
    check_equal_to_tensorflow(data, most=1)
    assert (np.ptp(decode(data), axis=2) == 0).all()


def test_cmyk_jpeg_with_adobe_inverted_values():
    data = encode(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    check_equal_to_tensorflow(data, most=1)
    assert abs(decode(data).mean() - tf_decode(data).mean()) < 0.1
    assert np.abs(decode(data).astype(int) - picture()).mean() < 3  # not the negative


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    data = encode(Image.fromarray(picture()), "JPEG", exif=exif)
    assert decode(data).shape == (HEIGHT, WIDTH, 3)
    check_equal_to_tensorflow(data, most=1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "I;16"])
def test_png_of_every_colour_type(mode):
    if mode == "I;16":
        image = Image.fromarray((np.arange(HEIGHT * WIDTH) * 20).reshape(HEIGHT, WIDTH).astype(np.uint16))
    elif mode == "P":
        image = Image.fromarray(picture()).quantize(32)
    else:
        image = Image.fromarray(picture(4)).convert(mode)
    check_equal_to_tensorflow(encode(image, "PNG"))


def test_alpha_is_dropped_and_not_blended():
    image = picture(4)
    for file_format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        np.testing.assert_array_equal(decode(encode(Image.fromarray(image), file_format, **options)), image[..., :3])
    palette = Image.fromarray(image[..., :3]).quantize(32)
    np.testing.assert_array_equal(decode(encode(palette, "PNG", transparency=3)), np.asarray(palette.convert("RGB")))


def test_16_bit_colour_png_keeps_the_upper_8_bits():
    image = np.random.default_rng(1).integers(0, 2**16, (20, 30, 3), dtype=np.uint16)
    data = cv2.imencode(".png", image)[1].tobytes()
    np.testing.assert_array_equal(decode(data), (image >> 8)[..., ::-1])


def test_webp():
    image = Image.fromarray(picture())
    np.testing.assert_array_equal(decode(encode(image, "WEBP", lossless=True)), picture())
    data = encode(image, "WEBP", quality=80)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(decode(data).astype(int) - pillow).max() <= 1


def test_gif_and_bmp():
    check_equal_to_tensorflow(encode(Image.fromarray(picture()).quantize(32), "GIF"))
    check_equal_to_tensorflow(encode(Image.fromarray(picture()), "BMP"))


def test_16_bit_tiff_and_32_bit_tiff():
    image = (np.arange(600) * 100).reshape(20, 30).astype(np.uint16)
    decoded = decode(encode(Image.fromarray(image), "TIFF"))
    np.testing.assert_array_equal(decoded, np.dstack([image >> 8] * 3))
    with pytest.raises(BrokenImage, match="32 bits"):
        decode(encode(Image.fromarray(image.astype(np.float32) / 65535), "TIFF"))


def test_photos_as_tensorflow_decodes_them(shared_data):
    photos = sorted((shared_data / "photos").rglob("*.[jJ]*"))[:12]
    assert photos
    for photo in photos:
        check_equal_to_tensorflow(photo.read_bytes(), most=2)


# A JPEG's end marker within its header must not pass for the end of the file.
CUT_JPEG = {"baseline": {}, "progressive": {"progressive": True}, "comment": {"comment": b"\xff\xd8\xff\xd9" * 3}}


@pytest.mark.parametrize("kind", CUT_JPEG)
def test_every_cut_of_a_jpeg_is_broken(kind):
    data = encode(Image.fromarray(picture()), "JPEG", **CUT_JPEG[kind])
    decode(data)
    for length in range(len(data)):
        with pytest.raises(BrokenImage):
            decode(data[:length])


def test_cut_cmyk_jpeg_is_broken():
    data = encode(Image.fromarray(picture()).convert("CMYK"), "JPEG")
    for length in range(0, len(data), 9):
        with pytest.raises(BrokenImage):
            decode(data[:length])


@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})])
def test_every_cut_of_a_png_or_webp_is_broken(file_format, options):
    data = encode(Image.fromarray(picture()), file_format, **options)
    decode(data)
    checksum = 4 if file_format == "PNG" else 0  # of the empty end chunk: all pixels are there without it
    for length in range(len(data) - checksum):
        with pytest.raises(BrokenImage):
            decode(data[:length])


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_zeros_in_place_of_the_second_half_are_broken(file_format):
    data = encode(Image.fromarray(picture()), file_format)
    with pytest.raises(BrokenImage):
        decode(data[: len(data) // 2] + bytes(len(data) // 2))


def test_bytes_after_the_end_do_not_matter():
    for file_format in ("JPEG", "PNG", "WEBP"):
        data = encode(Image.fromarray(picture()), file_format)
        for padding in (bytes(20), bytes(500)):
            np.testing.assert_array_equal(decode(data + padding), decode(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty file"), (b"<html>404 Not Found</html>", "not an image"), (bytes(1000), "not an image")],
)
def test_what_is_no_image(data, reason):
    with pytest.raises(BrokenImage, match=reason):
        decode(data)


def png(width, height):
    """A small PNG file that claims to be of this size."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(2**14, 2**14 + 1), (2**15, 2**15), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_by_their_header(width, height):
    assert width * height > MAX_PIXELS
    with pytest.raises(BrokenImage, match=r"pixels are more than|exceeds limit"):
        decode(png(width, height))


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "CMYK", "PNG", "WEBP", "GIF", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_files_give_a_picture_or_are_broken(kind, changes):
    image = Image.fromarray(picture()[:16, :20])
    data = bytearray(encode(image.convert("CMYK"), "JPEG") if kind == "CMYK" else encode(image, kind))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        decoded = decode(bytes(data))
    except BrokenImage as error:
        assert str(error)
    else:
        assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3


def test_opencv_starts_no_threads_of_its_own():
    assert cv2.getNumThreads() == 1


def draw_box(data, sides, least):
    """(height, width, box) of an image with sides in a range and a box with sides of at least `least`."""
    height, width = data.draw(st.integers(*sides)), data.draw(st.integers(*sides))
    box_height, box_width = data.draw(st.integers(least, height)), data.draw(st.integers(least, width))
    top, left = data.draw(st.integers(0, height - box_height)), data.draw(st.integers(0, width - box_width))
    return height, width, (top, left, box_height, box_width)


def smooth_jpeg(height, width):
    small = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return encode(Image.fromarray(image), "JPEG", quality=95)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_crop_is_that_of_the_whole_image(data):
    height, width, box = draw_box(data, (1, 90), 1)
    top, left, box_height, box_width = box
    picture = Picture(smooth_jpeg(height, width))
    assert (picture.height, picture.width) == (height, width)
    crop = picture.crop(box, min_side=0)
    inside = picture.pixels()[top : top + box_height, left : left + box_width]
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, inside)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_large_crop_is_divided_and_stays_large_enough(data):
    height, width, box = draw_box(data, (60, 200), 40)
    top, left, box_height, box_width = box
    least = data.draw(st.integers(3, 60))
    picture = Picture(smooth_jpeg(height, width))
    crop = picture.crop(box, least)
    scale = max(scale for scale in (1, 2, 4, 8) if scale == 1 or min(box_height, box_width) >= scale * least)
    assert abs(crop.shape[0] - box_height / scale) <= 1 and abs(crop.shape[1] - box_width / scale) <= 1
    assert scale == 1 or min(crop.shape[:2]) >= least - 1
    # The transform's own division is close to the mean of squares, where the box has moved to whole ones.
    rows, columns = -(-height // scale), -(-width // scale)
    padding = ((0, rows * scale - height), (0, columns * scale - width), (0, 0))
    squares = np.pad(picture.pixels(), padding, "edge").reshape(rows, scale, columns, scale, 3).mean((1, 3))
    top, left = round(top / scale), round(left / scale)
    assert np.abs(squares[top : top + crop.shape[0], left : left + crop.shape[1]] - crop).mean() < 5


def test_the_scaled_crops_of_photos_are_near_those_of_full_decoding(shared_data):
    """At 128 px. Bilinear resizing skips pixels; scaled decoding is nearest to what averages all of them."""
    rng, to_full, to_averages = np.random.default_rng(0), [], []
    for file in sorted((shared_data / "photos").iterdir()):
        picture = Picture(file.read_bytes())
        box = random_crop_box(picture.height, picture.width, rng, (0.05, 1.0), (3 / 4, 4 / 3))
        scale = next((scale for scale in (8, 4, 2) if min(box[2:]) >= scale * 128), 1)
        if scale > 1:
            crop = picture.crop(box, 128)
            top, left = (scale * round(value / scale) for value in box[:2])
            whole = picture.pixels()[top : top + scale * crop.shape[0], left : left + scale * crop.shape[1]]
            scaled = resize(crop, 128, "bilinear").astype(int)
            to_full.append(np.abs(scaled - resize(whole, 128, "bilinear")).mean())
            averages = cv2.resize(whole, (128, 128), interpolation=cv2.INTER_AREA)
            to_averages.append(np.abs(scaled - averages).mean())
    assert len(to_full) > 50
    assert np.mean(to_full) < 6.5 and np.mean(to_averages) < 3, (np.mean(to_full), np.mean(to_averages))


def test_a_crop_of_anything_else_is_cut_out():
    image = picture()
    for given_as in (image, encode(Image.fromarray(image), "PNG")):
        np.testing.assert_array_equal(Picture(given_as).crop((3, 5, 20, 30), min_side=4), image[3:23, 5:35])


def test_a_crop_of_a_grey_jpeg_has_three_equal_channels():
    crop = Picture(encode(Image.fromarray(picture()).convert("L"), "JPEG")).crop((3, 5, 20, 30), min_side=0)
    assert crop.shape == (20, 30, 3) and (np.ptp(crop, axis=2) == 0).all()


def test_a_crop_of_a_jpeg_cut_short_is_broken():
    data = encode(Image.fromarray(picture()), "JPEG")
    with pytest.raises(BrokenImage):
        Picture(data[: len(data) // 2]).crop((0, 0, HEIGHT, WIDTH), min_side=0)
    with pytest.raises(BrokenImage):
        Picture(b"no image")
