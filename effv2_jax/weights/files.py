"""Reading of weights in any known format, recognised by content, and writing of weights."""

import dataclasses
import os
import tempfile
from pathlib import Path

import numpy as np
from etils import epath

from effv2_jax.errors import UserError, check_known, one_line
from effv2_jax.files import check_place, is_remote
from effv2_jax.network import architecture as architectures
from effv2_jax.network.architecture import get_architecture
from effv2_jax.weights.automl_checkpoint import checkpoint_prefix, open_automl
from effv2_jax.weights.bundle import (
    Bundle,
    Variables,
    flatten_arrays,
    foreign_bundle,
    from_metadata,
    to_metadata,
    unflatten_arrays,
)
from effv2_jax.weights.keras_file import is_keras, open_keras, write_keras
from effv2_jax.weights.mapping import FOREIGN_FAMILIES, OWN, Entry, entries
from effv2_jax.weights.recognize import check_complete, recognize
from effv2_jax.weights.run import is_run, read_run
from effv2_jax.weights.safetensors_file import METADATA_KEY, is_safetensors, open_safetensors, write_safetensors
from effv2_jax.weights.tensors import Tensors, damaged
from effv2_jax.weights.torch_file import is_torch, open_torch

READABLE = (
    ".safetensors (our own or timm's), .pth (timm's or torchvision's), .weights.h5, .keras and .h5 (Keras's), "
    "a TensorFlow checkpoint of google/automl, and the workdir of a training run"
)
WRITABLE = (OWN, "timm", "keras")


def read_weights(path: str | os.PathLike, architecture: str = "auto") -> Bundle:
    """Reads weights with their architecture, class names and preprocessing.

    Args:
      path: a file of any format in READABLE, recognised by its content; the folder, the prefix or a file of a
        TensorFlow checkpoint; or the workdir of a run, from which the best checkpoint is read, else the newest. A file
        or run may be in a bucket, gs://...
      architecture: the variant of a foreign file; 'auto' recognises it by names and shapes.

    Raises:
      UserError: the file does not exist, is damaged, or has no known format or network. The message lists all arrays
        that are missing, unexpected or of another shape.
    """
    if architecture != "auto":
        check_known("--architecture", architecture, architectures.names())
    if is_remote(path):
        return _read_remote(path, architecture)
    if is_run(path):
        return _checked(read_run(path), architecture, path)
    tensors = open_tensors(path).check_size()
    if tensors.formats == (OWN,):
        return _checked(_read_own(tensors), architecture, path)
    match = recognize(tensors, architecture)
    return foreign_bundle(match.format, match.architecture, match.num_classes, _read_sets(tensors, match.entries))


def _checked(bundle: Bundle, architecture: str, path: str | os.PathLike) -> Bundle:
    """The bundle; raises UserError if the caller asked for another architecture."""
    if architecture not in ("auto", bundle.architecture.name):
        raise UserError(f"'{path}' holds weights of {bundle.architecture.name}, not of {architecture}")
    return bundle


def _read_remote(path: str | os.PathLike, architecture: str) -> Bundle:
    """Reads a run in a bucket, or a local copy of a file, because the libraries for weights read local files only."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            remote = epath.Path(path)
            local = Path(folder, remote.name)
            run = is_run(remote)
            if not run:
                remote.copy(local)
        except Exception as error:  # of the library that accesses the bucket
            raise UserError(
                f"weights '{os.fspath(path)}' cannot be read: {one_line(error)}; a remote path must be a file or a run "
                "in gs:// or s3://"
            ) from None
        if run:
            return _checked(read_run(remote), architecture, path)
        try:
            return read_weights(local, architecture)
        except UserError as error:
            raise UserError(str(error).replace(str(local), str(path))) from None


def open_tensors(path: str | os.PathLike) -> Tensors:
    """Opens a file without reading its arrays; raises UserError as `read_weights` does."""
    path = Path(path)
    if prefix := checkpoint_prefix(path):
        return open_automl(prefix)
    if path.is_dir():
        raise UserError(f"the folder '{path}' contains neither a training run nor a TensorFlow checkpoint")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UserError(f"weights '{path}' cannot be read: {error.strerror}; supported are {READABLE}") from None
    if is_keras(start, path):
        return open_keras(path)
    if is_safetensors(start):  # before is_torch: the header's length may look like a pickle
        return open_safetensors(path)
    if is_torch(start, path):
        return open_torch(path)
    is_packed = start[:2] == b"\x1f\x8b" or path.suffix in (".tgz", ".tar")
    reason = "unknown content" if start else "empty"
    hint = "unpack it first" if is_packed else f"supported are {READABLE}"
    raise UserError(f"'{path}' is not a file of weights ({reason}); {hint}")


def _read_own(tensors: Tensors) -> Bundle:
    try:
        bundle = from_metadata(tensors.metadata[METADATA_KEY])
    except ValueError as error:
        raise damaged(tensors.path, error) from error
    expected = entries(bundle.architecture, bundle.num_classes, OWN)
    check_complete(tensors, expected, "complete")
    return dataclasses.replace(bundle, sets=_read_sets(tensors, expected))


def _read_sets(tensors: Tensors, expected: list[Entry]) -> dict[str, Variables]:
    raw = _read(tensors, {entry: entry.name for entry in expected})
    if not tensors.averaged:
        return {"raw": raw}
    # Arrays without an average (statistics, in some checkpoints) are used as they are.
    return {
        "raw": raw,
        "ema": _read(tensors, {entry: tensors.averaged.get(entry.name, entry.name) for entry in expected}),
    }


def _read(tensors: Tensors, names: dict[Entry, str]) -> Variables:
    arrays = {}
    for entry, name in names.items():
        array = tensors.load(name)
        if array.shape != entry.foreign_shape:
            raise damaged(tensors.path, ValueError(f"{name} has shape {list(array.shape)}"))
        arrays[entry.path] = entry.to_ours(array)
    return unflatten_arrays(arrays)


def format_of(path: str | os.PathLike) -> str:
    """The format to write, by the ending of a file's name; raises UserError for an unknown ending."""
    name = Path(path).name
    if name.endswith(".weights.h5"):
        return "keras"
    if name.endswith(".safetensors"):
        return OWN
    raise UserError(f"'{path}' must end in .safetensors or .weights.h5")


def write_weights(bundle: Bundle, path: str | os.PathLike, format: str = "auto") -> None:
    """Writes the moving averages if the bundle has them, else the raw weights.

    Args:
      bundle: network and weights.
      path: the file to create or replace.
      format: 'effv2' (our own, with architecture, class names and preprocessing in the metadata), 'timm' (safetensors)
        or 'keras' (.weights.h5); 'auto' chooses by the ending and writes 'effv2' to .safetensors.

    Raises:
      UserError: the ending does not match the format, the other library does not have the network, or the file cannot
        be written.
    """
    path = Path(path)
    check_known("--format", format, ("auto", *WRITABLE))
    by_ending = format_of(path)
    format = by_ending if format == "auto" else format
    if (format == "keras") != (by_ending == "keras"):
        ending = ".weights.h5" if format == "keras" else ".safetensors"
        raise UserError(f"format '{format}' needs a name that ends in {ending}, not '{path}'")
    _check_representable(bundle, format)
    check_place(f"'{path}'", path)
    flat = flatten_arrays(bundle.variables)
    arrays = [
        (entry, entry.to_foreign(np.asarray(flat[entry.path], np.float32)))
        for entry in entries(bundle.architecture, bundle.num_classes, format)
    ]
    try:
        if format == "keras":
            write_keras(path, arrays)
        else:
            metadata = {METADATA_KEY: to_metadata(bundle)} if format == OWN else {"format": "pt"}
            write_safetensors(path, {entry.name: array for entry, array in arrays}, metadata)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror or error}") from None


def lost_metadata(bundle: Bundle, format: str) -> str:
    """The metadata that a file of a foreign format loses: preprocessing that differs from the default; '' if none."""
    if format == OWN or bundle.preprocess == foreign_bundle(format, bundle.architecture, 0, {}).preprocess:
        return ""
    preprocess = dataclasses.asdict(bundle.preprocess)
    return "its preprocessing (" + ", ".join(f"{name} {value}" for name, value in preprocess.items()) + ")"


_PARTS = ("blocks", "stem_filters", "head_filters")


def _check_representable(bundle: Bundle, format: str) -> None:
    """Raises UserError if the other library does not define the network; a foreign format holds arrays only."""
    if format == OWN:
        return
    reasons = []
    published = get_architecture(bundle.architecture.name)
    is_custom = any(getattr(bundle.architecture, part) != getattr(published, part) for part in _PARTS)
    if bundle.architecture.family not in FOREIGN_FAMILIES:
        reasons.append(f"a network of family '{bundle.architecture.family}'")
    elif is_custom:
        reasons.append("custom blocks or widths")
    if bundle.padding != "same":
        reasons.append("symmetric padding")
    if bundle.batch_norm_epsilon != 1e-3:
        reasons.append(f"a batch-norm epsilon of {bundle.batch_norm_epsilon:g}")
    if format == "keras" and bundle.architecture.name == "efficientnetv2-xl":
        reasons.append("XL")
    if reasons:
        raise UserError(
            f"{format} has no network with {' and '.join(reasons)}; use format '{OWN}', which can hold any network"
        )
