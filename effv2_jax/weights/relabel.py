"""A source with the labels that given weights use for its classes."""

import dataclasses

from effv2_jax.data.images.decode import Picture
from effv2_jax.data.source import Label, Source
from effv2_jax.errors import UserError
from effv2_jax.weights.bundle import Bundle


@dataclasses.dataclass
class Relabelled:
    """A source with other labels: `labels[old]` is the new one."""

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
        return picture, tuple(self.labels[one] for one in label) if isinstance(label, tuple) else self.labels[label]

    def describe(self, index: int) -> str:
        return self.source.describe(index)


def with_labels_of(source: Source, bundle: Bundle) -> Source:
    """The source with the labels that weights give its classes: by name where they know the names, else by number.

    Raises:
      UserError: weights without a classifier, or for other classes.
    """
    names, known = source.class_names, bundle.class_names
    if not bundle.num_classes:
        raise UserError("these weights have no classifier to evaluate")
    if set(names) <= set(known):
        return Relabelled(source, tuple(known.index(name) for name in names), known)
    by_number = names == tuple(map(str, range(len(names)))) and len(names) <= bundle.num_classes
    strange = [name for name in names if name not in known]
    # Where no name is shared they are other words for the same: synset numbers, for example.
    if not by_number and (len(names) != bundle.num_classes or (known and len(strange) < len(names))):
        raise UserError(
            f"the data have {len(names)} classes, the weights {bundle.num_classes}, and the weights do not know "
            f"{', '.join(strange[:5])}{' and others' if len(strange) > 5 else ''}; a folder's classes bear the "
            "weights' names, in CSV files their numbers do as well"
        )
    return source
