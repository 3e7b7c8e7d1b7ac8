"""What a file of weights holds, before any of it is read: names, shapes, and the formats it may be of."""

import dataclasses
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from effv2_jax.errors import UserError, one_line

# XL with 21,843 classes has 234 million values in all; a file that claims much more is not one of ours.
MAX_VALUES = 2**30
MAX_ARRAYS = 100_000


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The arrays of a file; only those that are asked for are read.

    path: of the file, for messages.
    formats: of `mapping.FORMATS`, that such names may be of.
    shapes: by name, as stored.
    read: name -> array; raises OSError, ValueError or RuntimeError where the file is damaged.
    metadata: of our own format, else empty.
    averaged: names of the moving averages where a file holds both, by the name of what they average.
    """

    path: str
    formats: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    averaged: dict[str, str] = dataclasses.field(default_factory=dict)

    def check_size(self) -> "Tensors":
        """Raises UserError where the shapes are beyond any network's."""
        values = sum(math.prod(shape) for shape in self.shapes.values())
        if values > MAX_VALUES or len(self.shapes) > MAX_ARRAYS:
            raise UserError(
                f"'{self.path}' claims {len(self.shapes):,} arrays of {values:,} values, more than any network here has"
            )
        return self

    def load(self, name: str) -> np.ndarray:
        """One array as float32; raises UserError where the file is damaged."""
        try:
            array = self.read(name)
        except UserError:
            raise
        except Exception as error:  # of whichever library reads the format
            raise damaged(self.path, error) from error
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise UserError(f"'{self.path}': {name} is {array.dtype}, not floating-point")
        return np.asarray(array, np.float32)


def zip_members(start: bytes, path: Path) -> list[str]:
    """Names in a zip archive that begins with `start`; [] for any other file; raises UserError where it is damaged."""
    if start[:4] != b"PK\x03\x04":
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception as error:  # zipfile raises many kinds on damage
        raise damaged(str(path), error) from error


def damaged(path: str, error: BaseException) -> UserError:
    """The sentence on a file that cannot be read."""
    return UserError(f"'{path}' cannot be read as weights, it is damaged or cut short: {one_line(error)}")
