"""scikit-learn's 1,797 handwritten digits, real data without a download (UCI, Alpaydin and Kaynak, 1998)."""

import numpy as np
from ml_collections import ConfigDict

from effv2_jax.data.images.decode import Picture
from effv2_jax.data.source import Sources

EVALUATE_EVERY = 5  # every fifth digit of a class is held out


class Digits:
    """Some of the digits: grey images [8, 8, 3] with values 0 to 255."""

    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray):
        self._images, self._labels, self._numbers = images, labels, numbers

    @property
    def fingerprint(self) -> str:
        return f"{len(self)} digits"

    def __len__(self) -> int:
        return len(self._labels)

    def load(self, index: int) -> tuple[Picture, int]:
        return Picture(np.repeat(self._images[index][..., None], 3, axis=2)), int(self._labels[index])

    def describe(self, index: int) -> str:
        return f"digit {self._numbers[index]}"


def digits_sources(config: ConfigDict) -> Sources:
    """A fixed split with the same share of each class: 1,442 digits for training and 355 for evaluation."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    labels = data.target
    rank = np.empty(len(labels), int)  # position of a digit within its class
    for digit in range(10):
        rank[labels == digit] = np.arange((labels == digit).sum())
    held_out = rank % EVALUATE_EVERY == EVALUATE_EVERY - 1

    def part(selected: np.ndarray) -> Digits:
        return Digits(images[selected], labels[selected], np.flatnonzero(selected))

    return Sources(part(~held_out), part(held_out))
