"""Encoded images to uint8 RGB, at the scale that is needed."""

import io

import cv2
import numpy as np
from PIL import Image

# Grain's threads run images in parallel; OpenCV's own would fight with them.
cv2.setNumThreads(1)

MAX_PIXELS = 2**28  # 16,384 x 16,384, 0.8 GB decoded: a picture that claims more is taken for a decompression bomb
# Pillow's own limit is a third of it. Above it warns, above the double it raises.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

Box = tuple[int, int, int, int]  # top, left, height, width
# What a JPEG's transform can divide both sides by, and how OpenCV calls it.
SCALES = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


class BrokenImage(ValueError):
    """Bytes that are no readable image."""


class Picture:
    """An image of which pixels are made once it is known which.

    Args:
      data: the bytes of a file, or uint8 [H, W, 3].

    Raises:
      BrokenImage: these bytes are no image.
    """

    def __init__(self, data: bytes | np.ndarray):
        self.data = data
        self.format, self.mode = "", "RGB"  # as Pillow calls them: 'JPEG', 'CMYK'
        if isinstance(data, bytes):
            self._header = _header(data)
            self.width, self.height = self._header.size
            self.format, self.mode = self._header.format or "", self._header.mode
        else:
            self.height, self.width, _ = data.shape

    def pixels(self) -> np.ndarray:
        """All of them, uint8 [H, W, 3]; see `decode`."""
        if not isinstance(self.data, bytes):
            return self.data
        image = _decode_with_opencv(self.data, self._header)
        return decode_with_pillow(self._header) if image is None else image

    def crop(self, box: Box, least: int) -> np.ndarray:
        """Those of a box, uint8 [height, width, 3], for a picture of `least` pixels a side.

        Where both sides of a JPEG's box are at least 2, 4 or 8 times `least` (0: never), the JPEG's own transform
        divides them by that, which averages pixels; the box then moves to whole pixels of the smaller image.

        Raises:
          BrokenImage: with the reason.
        """
        top, left, height, width = box
        scale = next((scale for scale in SCALES if least and min(height, width) >= scale * least), 1)
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

    Grey becomes three equal channels; an alpha channel is dropped and of 16 bits the upper 8 are kept, as TensorFlow's
    `decode_image` with 3 channels does; the EXIF orientation is ignored, as there. Of an animation it is the first
    frame. OpenCV does most; Pillow does what OpenCV cannot read, CMYK, where OpenCV is a level too bright, and files
    without their end, of which OpenCV 4 would return a partly grey picture. Damage inside a file shows only where the
    format has checks.

    Raises:
      BrokenImage: with the reason.
    """
    return Picture(data).pixels()


def _decode_with_opencv(data: bytes, header: Image.Image, kind: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray | None:
    """None where that is Pillow's to do; those of SCALES are in BGR."""
    if header.mode == "CMYK" or not _ends(data, header.format):
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), kind | cv2.IMREAD_IGNORE_ORIENTATION)


def _header(data: bytes) -> Image.Image:
    """The image with its size and mode known and no pixel decoded."""
    try:
        header = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BrokenImage(str(error)) from None
    except Exception:
        raise BrokenImage("empty file" if not data else "not an image, or a damaged header") from None
    if header.width * header.height > MAX_PIXELS:
        raise BrokenImage(f"{header.width} x {header.height} pixels are more than {MAX_PIXELS}")
    return header


def _ends(data: bytes, format: str | None) -> bool:
    """Whether OpenCV decodes the format and the bytes end as it does; cameras may pad a JPEG after its end marker."""
    if format == "JPEG":
        return b"\xff\xd9" in data[-64:]
    if format == "PNG":
        # Pillow takes zeros in place of the second half for pixels.
        if b"IEND" not in data:
            raise BrokenImage("cut short: a PNG without its end")
        return True
    return format == "WEBP"  # Pillow has compared the length with the header's


def decode_with_pillow(image: Image.Image) -> np.ndarray:
    """Pillow's strict decoding to uint8 [H, W, 3]: a file cut short is an error."""
    if image.mode in ("I", "F"):
        raise BrokenImage(f"pixels of 32 bits (mode {image.mode}) have no known range")
    try:
        if image.mode.startswith("I;16"):
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise BrokenImage(str(error) or type(error).__name__) from None
