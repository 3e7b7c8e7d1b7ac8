"""Safetensors files: our own format and timm's. The library checks header and offsets before it reads arrays."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from effv2_jax.files import AtomicFile
from effv2_jax.weights.mapping import OWN
from effv2_jax.weights.tensors import Tensors, damaged

METADATA_KEY = "effv2_jax"


def is_safetensors(start: bytes) -> bool:
    """Whether the start of a file is that of safetensors: the header's length in 8 bytes, then JSON."""
    return start[8:9] == b"{"


def open_safetensors(path: Path) -> Tensors:
    """Opens a file; its format is our own if the metadata say so, else timm's or torchvision's."""
    try:
        file = safe_open(path, framework="numpy")
        metadata = file.metadata() or {}
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(str(path), error) from error
    formats = (OWN,) if METADATA_KEY in metadata else ("timm", "torchvision")
    return Tensors(str(path), formats, without_counters(shapes), file.get_tensor, metadata)


def without_counters(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes without PyTorch's batch counters, which only its cumulative averages use."""
    return {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes the file completely or not at all."""
    with AtomicFile(path) as temporary:
        try:
            save_file(arrays, temporary, metadata)
        except SafetensorError as error:  # the library's own error for a failed write
            raise OSError(str(error)) from error
