"""Conversion of a source's labels to those of a set of weights."""

import dataclasses

from effv2_jax.data.images.decode import Picture
from effv2_jax.data.source import Label, Source
from effv2_jax.errors import UserError, join_limited
from effv2_jax.weights.bundle import Bundle


@dataclasses.dataclass
class Relabelled:
    """A source with new labels: `labels[old]` is the new label."""

    source: Source
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> tuple[Picture, Label]:
        picture, label = self.source.load(index)
        return picture, tuple(self.labels[old] for old in label) if isinstance(label, tuple) else self.labels[label]

    def describe(self, index: int) -> str:
        return self.source.describe(index)


def with_labels_of(source: Source, bundle: Bundle) -> Source:
    """The source with the labels that the weights use for its classes, matched by name if possible, else by number.

    Raises:
      UserError: the weights have no classifier, or one for other classes.
    """
    names, known = source.class_names, bundle.class_names
    if not bundle.num_classes:
        raise UserError("these weights have no classifier to evaluate")
    if set(names) <= set(known):
        return Relabelled(source, tuple(known.index(name) for name in names), known)
    by_number = names == tuple(map(str, range(len(names)))) and len(names) <= bundle.num_classes
    unknown = [name for name in names if name not in known]
    # If no name is shared, the names may be other words for the same classes, such as synset numbers.
    if not by_number and (len(names) != bundle.num_classes or (known and len(unknown) < len(names))):
        raise UserError(
            f"the data have {len(names)} classes, the weights {bundle.num_classes}, and the weights do not know "
            f"{join_limited(unknown)}; give the classes of the data the names that the weights use, or in CSV files "
            "their numbers"
        )
    return source
