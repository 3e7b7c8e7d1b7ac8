"""Which format and which network a file is of, by the names and shapes in it."""

import dataclasses
from collections.abc import Sequence

from effv2_jax.errors import UserError
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
    num_classes: int  # 0 where it has no classifier
    entries: list[Entry]


def recognize(tensors: Tensors, architecture: str = "auto") -> Match:
    """The one network whose arrays are those of the file, the number of classes left open.

    Args:
      tensors: of the file.
      architecture: a variant's name, or 'auto' to try them all.

    Raises:
      UserError: no variant fits; lists all that is missing, unexpected or of another shape for the nearest one.
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
        raise UserError(f"'{tensors.path}' can be of no network here named '{architecture}'")
    if not _agreement(tensors, best):
        some = ", ".join(sorted(tensors.shapes)[:5]) or "nothing"
        raise UserError(
            f"'{tensors.path}' is of no network that is known here: none of its {len(tensors.shapes)} arrays has a "
            f"name and shape of {' or '.join(tensors.formats)} ({some}, ...)"
        )
    if architecture == "auto" and _agreement(tensors, best) < 0.5:
        raise UserError(
            f"'{tensors.path}' is of no network that is known here: the nearest is {best.architecture.name} as "
            f"{best.format} writes it, with {sum(entry.name in tensors.shapes for entry in best.entries)} of its "
            f"{len(best.entries)} arrays"
        )
    check_complete(tensors, best.entries, f"{best.architecture.name} as {best.format} writes it")
    return best


def check_complete(tensors: Tensors, expected: Sequence[Entry], what: str) -> None:
    """Raises UserError, with a list of all, where arrays are missing, unexpected or of another shape."""
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
        raise UserError(f"'{tensors.path}' is not {what}: {'; '.join(listed)}")


def _candidate(tensors: Tensors, format: str, architecture: Architecture) -> Match | None:
    if architecture.family not in FOREIGN_FAMILIES:
        return None
    with_head = entries(architecture, 1, format)
    bias = next(entry.name for entry in with_head if entry.path == f"{_HEAD}bias")
    shape = tensors.shapes.get(bias, (0,))
    num_classes = shape[0] if len(shape) == 1 else 0
    return Match(format, architecture, num_classes, entries(architecture, num_classes, format))


def _agreement(tensors: Tensors, match: Match) -> float:
    """Arrays in common, less what is on one side only."""
    common = sum(tensors.shapes.get(entry.name) == entry.foreign_shape for entry in match.entries)
    return common / (len(match.entries) + len(tensors.shapes) - common) if common else 0.0
