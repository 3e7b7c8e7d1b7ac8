"""Predict the most probable classes of images."""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from effv2_jax.data.images.decode import BrokenImage
from effv2_jax.data.sources.folder import EXTENSIONS
from effv2_jax.errors import UserError
from effv2_jax.network.cpu_kernels import compiler_options
from effv2_jax.network.model import normalize
from effv2_jax.weights import Bundle
from effv2_jax.weights.bundle import Variables
from effv2_jax.weights.preprocess import Image


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The classes of one image, most probable first, or the error that prevented them."""

    file: str
    labels: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


def find_images(arguments: Sequence[str]) -> dict[str, Image]:
    """Name -> path or bytes of the images: files, all images below folders, and for '-' standard input.

    Standard input is one image, or the paths of images, one per line.

    Raises:
      UserError: a file or folder that does not exist, a folder without images, or empty standard input. `predict`
        reports a path from standard input that does not exist.
    """
    images: dict[str, Image] = {}
    for argument in arguments:
        path = Path(argument)
        if argument == "-":
            images |= _from_standard_input(sys.stdin.buffer.read())
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            if not files:
                raise UserError(f"no images ({', '.join(EXTENSIONS)}) in '{path}'")
            images |= {str(file): file for file in files}
        elif path.exists():
            images[argument] = path
        else:
            raise UserError(f"there is no image or folder '{argument}'")
    return images


def _from_standard_input(data: bytes) -> dict[str, Image]:
    if b"\0" in data[:4096] or data[:4] in (b"GIF8",):  # other headers have a zero byte, paths never
        return {"-": data}
    paths = [os.fsdecode(line) for line in data.splitlines() if line.strip()]
    if not paths:
        raise UserError("standard input is empty; '-' reads an image or the paths of images, one per line")
    return {path: Path(path) for path in paths}


def predict(bundle: Bundle, images: dict[str, Image], top: int = 5, batch_size: int = 32) -> Iterator[Prediction]:
    """Predictions in the order of `images`; that of an unreadable image has an `error`.

    Args:
      bundle: weights with a classifier.
      images: by name.
      top: the number of classes per image.
      batch_size: images per batch; the last batch is padded, so that one compiled program serves all.

    Raises:
      UserError: weights without a classifier, or a `top` or `batch_size` below 1.
    """
    if not bundle.num_classes:
        raise UserError("these weights have no classifier: `effv2 convert` dropped it, or the source had none")
    for option, value in (("--top", top), ("--batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{option}={value} must be at least 1")
    top = min(top, bundle.num_classes)
    batch_size = min(batch_size, max(len(images), 1))
    model, size = bundle.model, bundle.preprocess.image_size

    @functools.partial(jax.jit, compiler_options=compiler_options(jax.default_backend()))
    def classify(variables: Variables, pixels_BxSxSx3: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits: Any = model.apply(variables, normalize(pixels_BxSxSx3, bundle.preprocess.normalization))
        return jax.lax.top_k(jax.nn.softmax(logits), top)

    def read(image: Image) -> np.ndarray | str:
        try:
            return bundle.preprocess.pixels(image)
        except (BrokenImage, OSError) as error:
            return (getattr(error, "strerror", None) or str(error)).removeprefix(f"{image}: ")

    variables = jax.device_put(bundle.variables)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for names in _batches(images, batch_size):
            results = list(pool.map(read, [images[name] for name in names]))
            batch = np.zeros((batch_size, size, size, 3), np.uint8)
            for index, result in enumerate(results):
                if isinstance(result, np.ndarray):
                    batch[index] = result
            probabilities, labels = jax.device_get(classify(variables, batch))
            for index, (name, result) in enumerate(zip(names, results, strict=True)):
                if isinstance(result, str):
                    yield Prediction(name, error=result)
                else:
                    top_labels = tuple(labels[index].tolist())
                    class_names = tuple(map(bundle.name_of, top_labels))
                    yield Prediction(name, top_labels, class_names, tuple(probabilities[index].tolist()))


def _batches(names: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    names = list(names)
    return (tuple(names[start : start + size]) for start in range(0, len(names), size))
