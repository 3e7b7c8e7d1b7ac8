"""A source made of numbers, in a module of its own so that worker processes can import it."""

import dataclasses

import numpy as np

from effv2_jax.data.images.decode import BrokenImage, Picture


@dataclasses.dataclass(frozen=True)
class Squares:
    """Example i is a square of colour i with label i; those in `broken` cannot be read."""

    count: int
    broken: frozenset = frozenset()
    class_names: tuple = ("one",)

    @property
    def fingerprint(self):
        return f"{self.count} squares"

    def __len__(self):
        return self.count

    def load(self, index):
        if index in self.broken:
            raise BrokenImage("it is torn")
        rng = np.random.default_rng(index)
        return Picture(rng.integers(0, 256, (9, 12, 3), np.uint8)), index

    def describe(self, index):
        return f"square {index}"
