"""Keras files: `.weights.h5` and `.keras` of Keras 3, and `.h5` of Keras 2, the format of the published weights.

Arrays are named 'LAYER/NUMBER'; NUMBER is the position among the layer's weights.
"""

import collections
import io
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from effv2_jax.errors import UserError
from effv2_jax.files import AtomicFile
from effv2_jax.weights.mapping import Entry
from effv2_jax.weights.tensors import MAX_ARRAYS, MAX_VALUES, Tensors, damaged, zip_members

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_IN_ARCHIVE = "model.weights.h5"
_CLASSES = {"conv": "conv2d", "depthwise": "depthwise_conv2d", "dense": "dense", "vector": "batch_normalization"}


def is_keras(start: bytes, path: Path) -> bool:
    """Whether a file is HDF5, or a zip archive that contains Keras weights."""
    return start.startswith(_SIGNATURE) or _IN_ARCHIVE in zip_members(start, path)


def open_keras(path: Path) -> Tensors:
    """Opens the weights of all layers; raises UserError if the file is damaged or not a Keras model."""
    try:
        with open(path, "rb") as stream:
            zipped = stream.read(4) == b"PK\x03\x04"
        file = h5py.File(_unpacked(path) if zipped else path, "r")
        if name := file.visititems_links(_external):
            raise ValueError(f"{name} is stored in another file")
        datasets = _keras2(file) if "layer_names" in file.attrs or "model_weights" in file else _keras3(file)
        shapes = {name: _checked(path, dataset).shape for name, dataset in datasets.items()}
    except UserError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ... on damage
        raise damaged(str(path), error) from error
    # Keras's preprocessing layers: those of V1 hold a count, a mean and a variance, which are not weights.
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("normalization")}
    if not shapes:
        raise UserError(f"'{path}' is HDF5, but it contains no Keras layers with named weights")
    return Tensors(str(path), ("keras",), shapes, lambda name: datasets[name][()])


def _external(name: str, link: Any) -> str | None:
    """The name of an external link, which a hostile file could use to read any other file of the user."""
    return name if isinstance(link, h5py.ExternalLink) else None


def _checked(path: Path, dataset: h5py.Dataset) -> h5py.Dataset:
    """The dataset; raises UserError if its values are not numbers, ValueError if they are stored in another file."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} is stored in another file")
    if dataset.dtype.kind not in "fiub" or dataset.dtype.itemsize > 8:
        raise UserError(f"'{path}': {dataset.name} is {dataset.dtype}, not floating-point")
    return dataset


def _keras3(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Groups 'layers/CLASS_N/vars' with the layer's name as attribute and datasets '0', '1', ..."""
    datasets: dict[str, h5py.Dataset] = {}
    for group in file.get("layers", {}).values():
        variables = group.get("vars", {})
        name = variables.attrs.get("name", "") if variables else ""
        datasets |= {f"{name}/{number}": dataset for number, dataset in variables.items()}
        if len(datasets) > MAX_ARRAYS:
            break
    return datasets


def _keras2(file: h5py.File) -> dict[str, h5py.Dataset]:
    """One group per layer, with an attribute that lists its weights in order."""
    root = file.get("model_weights", file)
    return {
        f"{_text(layer)}/{number}": root[_text(layer)][_text(weight)]
        for layer in root.attrs["layer_names"]
        for number, weight in enumerate(root[_text(layer)].attrs["weight_names"])
    }


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _unpacked(path: Path) -> io.BytesIO:
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(_IN_ARCHIVE).file_size
        # Weights hardly compress: a file that grows tenfold does not hold weights.
        if size > min(4 * MAX_VALUES, 10 * path.stat().st_size):
            raise UserError(f"'{path}' would unpack to {size:,} bytes, too many for weights; it is not read")
        return io.BytesIO(archive.read(_IN_ARCHIVE))


def write_keras(path: Path, arrays: list[tuple[Entry, np.ndarray]]) -> None:
    """Writes `.weights.h5` as Keras 3 does, completely or not at all.

    Args:
      path: the file to write.
      arrays: in the order of `mapping.entries` and in Keras's layout.
    """
    counts: collections.Counter[str] = collections.Counter()
    groups: dict[str, str] = {}
    with AtomicFile(path) as temporary, h5py.File(temporary, "w") as file:
        for entry, array in arrays:
            layer, _, number = entry.name.partition("/")
            if layer not in groups:
                kind = _CLASSES[entry.kind]
                groups[layer] = f"layers/{kind}" + (f"_{counts[kind]}" if counts[kind] else "")
                counts[kind] += 1
                file.create_group(f"{groups[layer]}/vars").attrs["name"] = layer
            file[f"{groups[layer]}/vars/{number}"] = array
