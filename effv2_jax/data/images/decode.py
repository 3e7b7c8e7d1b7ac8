"""Decoding of image files to uint8 RGB, at reduced scale if the crop allows it."""

import io

import cv2
import numpy as np
from PIL import Image

# Grain decodes images in parallel threads; OpenCV's own threads would compete with them for cores.
cv2.setNumThreads(1)

MAX_PIXELS = 2**28  # 16,384 x 16,384, 0.8 GB decoded: a larger claim is treated as a decompression bomb
# Pillow's default limit is a third of this. It warns above its limit and raises above twice its limit.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

Box = tuple[int, int, int, int]  # top, left, height, width
# Factors by which a JPEG decoder can divide both sides, with OpenCV's flags.
SCALES = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


class BrokenImage(ValueError):
    """The bytes are not a readable image."""


class Picture:
    """An image whose pixels are decoded on demand, whole or only for a crop.

    Args:
      data: the bytes of an image file, or pixels uint8 [H, W, 3].

    Raises:
      BrokenImage: the bytes are not an image.
    """

    def __init__(self, data: bytes | np.ndarray):
        self.data = data
        self.format, self.mode = "", "RGB"  # Pillow's names, such as 'JPEG' and 'CMYK'
        if isinstance(data, bytes):
            self._header = _header(data)
            self.width, self.height = self._header.size
            self.format, self.mode = self._header.format or "", self._header.mode
        else:
            self.height, self.width, _ = data.shape

    def pixels(self) -> np.ndarray:
        """All pixels, uint8 [H, W, 3]; see `decode`."""
        if not isinstance(self.data, bytes):
            return self.data
        image = _decode_with_opencv(self.data, self._header)
        return decode_with_pillow(self._header) if image is None else image

    def crop(self, box: Box, min_side: int) -> np.ndarray:
        """The pixels of a box, uint8 [height, width, 3] or, for a large box of a JPEG, fewer by a whole factor.

        If both sides of the box are at least 2, 4 or 8 times `min_side`, the JPEG decoder divides them by that factor,
        which averages pixels; the box is then rounded to whole pixels of the smaller image. `min_side` 0 disables this.

        Raises:
          BrokenImage: with the reason.
        """
        top, left, height, width = box
        scale = next((scale for scale in SCALES if min_side and min(height, width) >= scale * min_side), 1)
        image = None
        if scale > 1 and isinstance(self.data, bytes) and self.format == "JPEG":
            image = _decode_with_opencv(self.data, self._header, SCALES[scale])
            image = image if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if image is None:
            return self.pixels()[top : top + height, left : left + width]
        top, left, height, width = (round(value / scale) for value in box)
        return image[top : top + height, left : left + width]


def decode(data: bytes) -> np.ndarray:
    """Decodes JPEG, PNG, WebP, GIF or BMP of any colour type to uint8 [H, W, 3] in RGB.

    As in TensorFlow's `decode_image` with 3 channels, grey becomes three equal channels, an alpha channel is dropped,
    the upper 8 of 16 bits are kept and the EXIF orientation is ignored. An animation gives its first frame. OpenCV
    decodes most files. Pillow decodes formats that OpenCV cannot read, CMYK (OpenCV's result is a level too bright)
    and truncated files, for which OpenCV 4 would return a partly grey image. Damage inside a file is detected only if
    the format has checksums.

    Raises:
      BrokenImage: with the reason.
    """
    return Picture(data).pixels()


def _decode_with_opencv(data: bytes, header: Image.Image, kind: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray | None:
    """Pixels [H, W, 3], in BGR if `kind` is one of SCALES, else in RGB; None if Pillow must decode the file."""
    if header.mode == "CMYK" or not _is_complete(data, header.format):
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), kind | cv2.IMREAD_IGNORE_ORIENTATION)


def _header(data: bytes) -> Image.Image:
    """Reads size and mode; no pixel is decoded."""
    try:
        header = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BrokenImage(str(error)) from None
    except Exception:
        raise BrokenImage("empty file" if not data else "not an image, or a damaged header") from None
    if header.width * header.height > MAX_PIXELS:
        raise BrokenImage(f"{header.width} x {header.height} pixels are more than {MAX_PIXELS}")
    return header


def _is_complete(data: bytes, format: str | None) -> bool:
    """Whether OpenCV decodes the format and the file is complete. Cameras may pad a JPEG after its end marker."""
    if format == "JPEG":
        return b"\xff\xd9" in data[-64:]
    if format == "PNG":
        # Pillow would read zeros in place of the second half as pixels.
        if b"IEND" not in data:
            raise BrokenImage("truncated: the PNG has no end marker")
        return True
    return format == "WEBP"  # Pillow has checked the length in the header


def decode_with_pillow(image: Image.Image) -> np.ndarray:
    """Decodes with Pillow to uint8 [H, W, 3]; a truncated file is an error."""
    if image.mode in ("I", "F"):
        raise BrokenImage(f"pixels of 32 bits (mode {image.mode}) have no known range")
    try:
        if image.mode.startswith("I;16"):
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise BrokenImage(str(error) or type(error).__name__) from None
