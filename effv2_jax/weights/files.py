"""Reading weights of any format, recognised by content, and writing them."""

import dataclasses
import os
import tempfile
from pathlib import Path

import numpy as np
from etils import epath

from effv2_jax.errors import UserError, check_known
from effv2_jax.files import check_place, is_remote
from effv2_jax.network import architecture as architectures
from effv2_jax.network.architecture import get_architecture
from effv2_jax.weights.automl_checkpoint import checkpoint_prefix, open_automl
from effv2_jax.weights.bundle import Bundle, Variables, flatten, foreign_bundle, from_metadata, to_metadata, unflatten
from effv2_jax.weights.keras_file import is_keras, open_keras, write_keras
from effv2_jax.weights.mapping import FOREIGN_FAMILIES, OWN, Entry, entries
from effv2_jax.weights.recognize import check_complete, recognize
from effv2_jax.weights.run import is_run, read_run
from effv2_jax.weights.safetensors_file import METADATA_KEY, is_safetensors, open_safetensors, write_safetensors
from effv2_jax.weights.tensors import Tensors, damaged
from effv2_jax.weights.torch_file import is_torch, open_torch

READABLE = (
    "ours or timm's .safetensors, timm's or torchvision's .pth, Keras' .weights.h5, .keras or .h5, "
    "a TensorFlow checkpoint of automl, or the workdir of a training run"
)
WRITABLE = (OWN, "timm", "keras")


def read_weights(path: str | os.PathLike, architecture: str = "auto") -> Bundle:
    """Weights with network, classes and preprocessing.

    Args:
      path: a file of any format in READABLE, recognised by its content; a TensorFlow checkpoint by its folder, its
        prefix or one of its files; a run by its workdir, of which the best checkpoint is taken, else the newest. A
        file or run may lie in a bucket, gs://...
      architecture: the variant of a foreign file, 'auto' recognises it by names and shapes.

    Raises:
      UserError: no such file; of no known format or network; damaged; what is missing, unexpected and of another shape.
    """
    if architecture != "auto":
        check_known("--architecture", architecture, architectures.names())
    if is_remote(path):
        return _read_remote(path, architecture)
    if is_run(path):
        return _of(architecture, read_run(path), path)
    tensors = open_tensors(path).check_size()
    if tensors.formats == (OWN,):
        return _of(architecture, _read_own(tensors), path)
    match = recognize(tensors, architecture)
    return foreign_bundle(match.format, match.architecture, match.num_classes, _read_sets(tensors, match.entries))


def _of(architecture: str, bundle: Bundle, path: str | os.PathLike) -> Bundle:
    """The bundle, whose network a caller may have named too."""
    if architecture not in ("auto", bundle.architecture.name):
        raise UserError(f"'{path}' is of {bundle.architecture.name}, not of {architecture}")
    return bundle


def _read_remote(path: str | os.PathLike, architecture: str) -> Bundle:
    """A run in a bucket, or a file by a local copy: the libraries that read weights want one."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            remote = epath.Path(path)
            local = Path(folder, remote.name)
            run = is_run(remote)
            if not run:
                remote.copy(local)
        except Exception as error:  # of whichever library speaks to the bucket
            raise UserError(
                f"weights '{os.fspath(path)}' cannot be read: {' '.join(str(error).split())[:300]}; gs:// and s3:// "
                "are known, of one file or a run"
            ) from None
        if run:
            return _of(architecture, read_run(remote), path)
        try:
            return read_weights(local, architecture)
        except UserError as error:
            raise UserError(str(error).replace(str(local), str(path))) from None


def open_tensors(path: str | os.PathLike) -> Tensors:
    """The arrays of a file, not read yet; raises UserError as `read_weights`."""
    path = Path(path)
    if prefix := checkpoint_prefix(path):
        return open_automl(prefix)
    if path.is_dir():
        raise UserError(f"'{path}' holds neither a training run nor a TensorFlow checkpoint")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UserError(f"weights '{path}' cannot be read: {error.strerror}; {READABLE} is wanted") from None
    if is_keras(start, path):
        return open_keras(path)
    if is_safetensors(start):  # before a pickle, which the length of a header may look like
        return open_safetensors(path)
    if is_torch(start, path):
        return open_torch(path)
    packed = start[:2] == b"\x1f\x8b" or path.suffix in (".tgz", ".tar")
    hint = "unpack it first" if packed else f"{READABLE} is wanted"
    raise UserError(f"'{path}' is no file of weights ({(len(start) and 'unknown content') or 'empty'}); {hint}")


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
    # What is not averaged (statistics, in some checkpoints) is as it is.
    return {
        "raw": raw,
        "ema": _read(tensors, {entry: tensors.averaged.get(entry.name, entry.name) for entry in expected}),
    }


def _read(tensors: Tensors, names: dict[Entry, str]) -> Variables:
    arrays = {}
    for entry, name in names.items():
        array = tensors.load(name)
        if array.shape != entry.foreign_shape:
            raise damaged(tensors.path, ValueError(f"{name} is {list(array.shape)}"))
        arrays[entry.path] = entry.to_ours(array)
    return unflatten(arrays)


def format_of(path: str | os.PathLike) -> str:
    """The format to write that a file's name asks for; raises UserError where it asks for none."""
    name = Path(path).name
    if name.endswith(".weights.h5"):
        return "keras"
    if name.endswith(".safetensors"):
        return OWN
    raise UserError(f"'{path}' must end in .safetensors or .weights.h5")


def write_weights(bundle: Bundle, path: str | os.PathLike, format: str = "auto") -> None:
    """Writes the preferred set of weights.

    Args:
      bundle: network and weights.
      path: a new file, or one to replace.
      format: 'effv2' (ours, with architecture, classes and preprocessing in the metadata), 'timm' (safetensors) or
        'keras' (.weights.h5); 'auto' by the ending, .safetensors being ours.

    Raises:
      UserError: an ending that does not fit, a network that the other library does not have, or no place to write.
    """
    path = Path(path)
    check_known("--format", format, ("auto", *WRITABLE))
    by_name = format_of(path)
    format = by_name if format == "auto" else format
    if (format == "keras") != (by_name == "keras"):
        ending = ".weights.h5" if format == "keras" else ".safetensors"
        raise UserError(f"format '{format}' needs a name that ends in {ending}, not '{path}'")
    _check_representable(bundle, format)
    check_place(f"'{path}'", path)
    flat = flatten(bundle.variables)
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
    """What a reader of a foreign format will not guess: preprocessing other than the released; '' where all is told."""
    if format == OWN or bundle.preprocess == foreign_bundle(format, bundle.architecture, 0, {}).preprocess:
        return ""
    preprocess = dataclasses.asdict(bundle.preprocess)
    return "its preprocessing (" + ", ".join(f"{name} {value}" for name, value in preprocess.items()) + ")"


_PARTS = ("blocks", "stem_filters", "head_filters")


def _check_representable(bundle: Bundle, format: str) -> None:
    """Foreign formats hold arrays alone: what those do not tell must be the other library's."""
    if format == OWN:
        return
    reasons = []
    published = get_architecture(bundle.architecture.name)
    own = [getattr(bundle.architecture, part) != getattr(published, part) for part in _PARTS]
    if bundle.architecture.family not in FOREIGN_FAMILIES:
        reasons.append(f"a network of family '{bundle.architecture.family}'")
    elif any(own):
        reasons.append("blocks or widths of your own")
    if bundle.padding != "same":
        reasons.append("symmetric padding")
    if bundle.batch_norm_epsilon != 1e-3:
        reasons.append(f"a batch-norm epsilon of {bundle.batch_norm_epsilon:g}")
    if format == "keras" and bundle.architecture.name == "efficientnetv2-xl":
        reasons.append("XL")
    if reasons:
        raise UserError(
            f"{format} has no network with {' and '.join(reasons)}; .safetensors of our own format holds any"
        )
