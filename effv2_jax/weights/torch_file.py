"""PyTorch files (.pth and .pt) of timm and torchvision, unpickled with `weights_only=True`, which runs no code."""

import argparse
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from effv2_jax.errors import UserError, require
from effv2_jax.weights.safetensors_file import without_counters
from effv2_jax.weights.tensors import Tensors, damaged, zip_members

# Keys under which training scripts store weights in a larger dictionary; moving averages first.
_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model")


def is_torch(start: bytes, path: Path) -> bool:
    """Whether a file starts as a pickle, or is a zip archive with PyTorch's records."""
    pickled = start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    return pickled or any(name.endswith("data.pkl") for name in zip_members(start, path))


def open_torch(path: Path) -> Tensors:
    """Opens the state dictionary of a file.

    Raises:
      UserError: PyTorch is not installed, or the file is damaged, contains more than tensors, or is compressed.
    """
    require("torch", "convert", f"'{path}' is a PyTorch file, and reading it")
    import torch

    try:
        _refuse_bombs(path)
        # Training scripts store their arguments beside the weights; a Namespace runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' contains more than arrays, which could run code, so it was not loaded ({_reason(error)}); save "
            "the state dictionary alone"
        ) from error
    except Exception as error:  # the unpickler raises RuntimeError, EOFError, ... on damage
        raise damaged(str(path), error) from error
    tensors = {
        name.removeprefix("module."): value.detach()
        for name, value in _state_dict(state, path).items()
        if name != "n_averaged"  # the counter of PyTorch's AveragedModel
    }
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        return (tensor.to(torch.float32) if tensor.is_floating_point() else tensor).numpy()

    return Tensors(str(path), ("timm", "torchvision"), without_counters(shapes), read)


def _state_dict(state: Any, path: Path) -> dict[str, Any]:
    import torch

    for name in _INSIDE:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
            break
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"'{path}' contains a {type(state).__name__} instead of a dictionary of tensors")
    return state


def _refuse_bombs(path: Path) -> None:
    """Raises UserError for compressed or overlapping records: PyTorch writes none, and they could fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"'{path}' is not a PyTorch file: its record {member.filename} is compressed")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise UserError(f"'{path}' is not a PyTorch file: its records are larger than the file")


def _reason(error: BaseException) -> str:
    """The line of PyTorch's message that names the refused type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "global" in line.lower()), lines[-1])[:200]
