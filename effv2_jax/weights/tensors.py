"""The contents of a file of weights before its arrays are read: names, shapes and possible formats."""

import dataclasses
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from effv2_jax.errors import UserError, one_line

# XL with 21,843 classes has 234 million values; a file with far more does not hold a known network.
MAX_VALUES = 2**30
MAX_ARRAYS = 100_000


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The arrays of a file, read on demand.

    path: the file, used in messages.
    formats: those of `mapping.FORMATS` that the file may have.
    shapes: name -> shape as stored.
    read: name -> array; raises OSError, ValueError or RuntimeError if the file is damaged.
    metadata: the metadata of our own format, else empty.
    averaged: name -> name of its moving average, if the file has both.
    """

    path: str
    formats: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    averaged: dict[str, str] = dataclasses.field(default_factory=dict)

    def check_size(self) -> "Tensors":
        """Returns self; raises UserError if the shapes exceed those of any network."""
        values = sum(math.prod(shape) for shape in self.shapes.values())
        if values > MAX_VALUES or len(self.shapes) > MAX_ARRAYS:
            raise UserError(
                f"'{self.path}' claims {len(self.shapes):,} arrays of {values:,} values, more than any known network"
            )
        return self

    def load(self, name: str) -> np.ndarray:
        """Reads one array as float32; raises UserError if the file is damaged."""
        try:
            array = self.read(name)
        except UserError:
            raise
        except Exception as error:  # of the library that reads the format
            raise damaged(self.path, error) from error
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise UserError(f"'{self.path}': {name} is {array.dtype}, not floating-point")
        return np.asarray(array, np.float32)


def zip_members(start: bytes, path: Path) -> list[str]:
    """The names in a zip archive; [] if `start` is not that of one; raises UserError if the archive is damaged."""
    if start[:4] != b"PK\x03\x04":
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception as error:  # zipfile raises many kinds on damage
        raise damaged(str(path), error) from error


def damaged(path: str, error: BaseException) -> UserError:
    """The error for a file that cannot be read."""
    return UserError(f"'{path}' cannot be read as weights, it is damaged or truncated: {one_line(error)}")
