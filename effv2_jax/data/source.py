"""The interface of a source of examples: random access to images and labels."""

import dataclasses
from typing import Protocol

from effv2_jax.data.images.decode import Picture

Label = int | tuple[int, ...]  # a tuple if an example can have several labels


class Source(Protocol):
    """Random access to the examples of one split. A source can be pickled and sent to worker processes."""

    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Identifies these examples in this order, independent of where they are stored."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Picture, Label]:
        """The image and the label; raises `decode.BrokenImage` if the image cannot be read."""
        ...

    def describe(self, index: int) -> str:
        """The file or record of an example, used in messages."""
        ...


@dataclasses.dataclass(frozen=True)
class Sources:
    """The two splits of a data set; both have the same classes."""

    train: Source
    evaluation: Source

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        return len(self.train.class_names)
