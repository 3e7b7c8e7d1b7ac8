"""Where examples come from: random access to images and labels, checked before training starts."""

import dataclasses
from typing import Protocol

from ml_collections import ConfigDict

from effv2_jax.data.decode import Picture
from effv2_jax.errors import UserError, check_known

Label = int | tuple[int, ...]  # a tuple where examples may have several
SOURCES = ("tfds", "folder", "csv", "digits")


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


def make_sources(config: ConfigDict) -> Sources:
    """The sources of `config.data`.

    Raises:
      UserError: what would stop training later: no such data, an empty class, a missing split, other classes in
        evaluation, another number of examples than `config.data.num_examples`.
    """
    check_known("config.data.source", config.data.source, SOURCES)
    if config.data.source == "folder":
        from effv2_jax.data.folder import folder_sources as make
    elif config.data.source == "tfds":
        from effv2_jax.data.tfds_source import tfds_sources as make
    elif config.data.source == "csv":
        from effv2_jax.data.csv_source import csv_sources as make
    else:
        from effv2_jax.data.digits import digits_sources as make
    sources = make(config)
    expected, found = config.data.num_examples, len(sources.train)
    if expected and expected != found:
        raise UserError(
            f"config.data.num_examples is {expected}, but the training split holds {found}: "
            f"set --config.data.num_examples={found} if the data is complete"
        )
    return sources
