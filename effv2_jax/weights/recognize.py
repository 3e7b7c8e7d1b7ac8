"""Recognition of the format and network of a file by the names and shapes of its arrays."""

import dataclasses
from collections.abc import Sequence

from effv2_jax.errors import UserError, join_limited
from effv2_jax.network import architecture as architectures
from effv2_jax.network.architecture import Architecture, get_architecture
from effv2_jax.weights.mapping import FOREIGN_FAMILIES, Entry, entries
from effv2_jax.weights.tensors import Tensors

_HEAD = "params/classifier/"


@dataclasses.dataclass(frozen=True)
class Match:
    """A file's format and network, and its arrays by our paths."""

    format: str
    architecture: Architecture
    num_classes: int  # 0 if there is no classifier
    entries: list[Entry]


def recognize(tensors: Tensors, architecture: str = "auto") -> Match:
    """The network whose arrays match those of the file, with any number of classes.

    Args:
      tensors: the arrays of the file.
      architecture: the name of a variant, or 'auto' to try all variants.

    Raises:
      UserError: no variant matches; the message lists all arrays that are missing, unexpected or of another shape for
        the nearest one.
    """
    names = architectures.names() if architecture == "auto" else (architecture,)
    candidates = [
        match
        for format in tensors.formats
        for name in names
        if (match := _candidate(tensors, format, get_architecture(name))) is not None
    ]
    best = max(candidates, key=lambda match: _agreement(tensors, match), default=None)
    if best is None:
        raise UserError(f"'{tensors.path}' cannot be '{architecture}', which exists in our own format only")
    if not _agreement(tensors, best):
        names_in_file = join_limited(sorted(tensors.shapes)) or "no arrays"
        raise UserError(
            f"'{tensors.path}' matches no known network: none of its {len(tensors.shapes)} arrays has a name and shape "
            f"of {' or '.join(tensors.formats)} ({names_in_file})"
        )
    if architecture == "auto" and _agreement(tensors, best) < 0.5:
        raise UserError(
            f"'{tensors.path}' matches no known network: the nearest is {best.architecture.name} as {best.format} "
            f"writes it, with {sum(entry.name in tensors.shapes for entry in best.entries)} of its "
            f"{len(best.entries)} arrays"
        )
    check_complete(tensors, best.entries, f"{best.architecture.name} as {best.format} writes it")
    return best


def check_complete(tensors: Tensors, expected: Sequence[Entry], description: str) -> None:
    """Raises UserError if arrays are missing, unexpected or of another shape.

    The message says that the file is not `description`, and lists all such arrays.
    """
    shapes, names = tensors.shapes, {entry.name for entry in expected}
    missing = [entry.name for entry in expected if entry.name not in shapes]
    unexpected = sorted(shapes.keys() - names)
    other = [
        f"{entry.name} {list(shapes[entry.name])} instead of {list(entry.foreign_shape)}"
        for entry in expected
        if entry.name in shapes and shapes[entry.name] != entry.foreign_shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": other}
    if listed := [f"{len(items)} {kind} ({', '.join(items)})" for kind, items in faults.items() if items]:
        raise UserError(f"'{tensors.path}' is not {description}: {'; '.join(listed)}")


def _candidate(tensors: Tensors, format: str, architecture: Architecture) -> Match | None:
    if architecture.family not in FOREIGN_FAMILIES:
        return None
    with_head = entries(architecture, 1, format)
    bias = next(entry.name for entry in with_head if entry.path == f"{_HEAD}bias")
    shape = tensors.shapes.get(bias, (0,))
    num_classes = shape[0] if len(shape) == 1 else 0
    return Match(format, architecture, num_classes, entries(architecture, num_classes, format))


def _agreement(tensors: Tensors, match: Match) -> float:
    """Intersection over union of the arrays of the file and of the network, in [0, 1]."""
    common = sum(tensors.shapes.get(entry.name) == entry.foreign_shape for entry in match.entries)
    return common / (len(match.entries) + len(tensors.shapes) - common) if common else 0.0
