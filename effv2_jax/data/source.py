"""What a source of examples is: random access to images and labels."""

import dataclasses
from typing import Protocol

from effv2_jax.data.images.decode import Picture

Label = int | tuple[int, ...]  # a tuple where examples may have several


class Source(Protocol):
    """Random access to the examples of one split; it can be pickled for worker processes."""

    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Tells these examples in this order from any others; wherever they are stored."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Picture, Label]:
        """The image and the label; raises `decode.BrokenImage` where it cannot be read."""
        ...

    def describe(self, index: int) -> str:
        """The file or record of an example, for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class Sources:
    """The two splits of a data set, with the same classes."""

    train: Source
    evaluation: Source

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        return len(self.train.class_names)
