"""Statistics from the text of a compiled program: the compiler's estimated cycles, and the collectives.

Only instructions that run on their own count: those of the entry computation, and those of loop bodies multiplied by
the trip count. What a fusion contains is part of the fusion.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "c64": 64} | {
    f"{kind}{bits}": bits for kind in "sufc" for bits in (2, 4, 8, 16, 32, 64)
}
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][a-z0-9-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_BODY = re.compile(r"body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class ProgramStats:
    """One run of a program on each device.

    cycles: the sum of the compiler's estimates over all instructions.
    collectives: the number of collective operations.
    collective_bytes: the bytes that they deliver to each device.
    """

    cycles: int
    collectives: int
    collective_bytes: int


def program_stats(text: str) -> ProgramStats:
    """Statistics of a program's text, `jax.stages.Compiled.as_text()`; loops of unknown length count once.

    Raises:
      ValueError: the text has no ENTRY computation.
    """
    computations: dict[str, list[str]] = {}
    entry = lines = None
    for line in text.splitlines():
        if not line.startswith(" "):
            if match := _COMPUTATION.match(line):
                lines = computations[match[2]] = []
                entry = match[2] if match[1] else entry
        elif lines is not None:
            lines.append(line)
    if entry is None:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    cycles = count = size = 0
    for line, times in _executed(computations, entry, 1):
        if match := _CYCLES.search(line):
            cycles += times * int(match[1])
        instruction = _INSTRUCTION.match(line)
        if instruction and instruction[2].removesuffix("-start") in COLLECTIVES:
            count += times
            size += times * _result_bytes(instruction[1], is_async=instruction[2].endswith("-start"))
    return ProgramStats(cycles, count, size)


def _executed(computations: dict[str, list[str]], name: str, times: int) -> Iterator[tuple[str, int]]:
    """(instruction, number of executions) of a computation that runs `times` times."""
    for line in computations[name]:
        yield line, times
        if " while(" in line and (body := _BODY.search(line)):
            trips = _TRIPS.search(line)
            yield from _executed(computations, body[1], times * (int(trips[1]) if trips else 1))


def _result_bytes(shapes: str, is_async: bool) -> int:
    """Bytes of a collective's result; an asynchronous start also returns its operands, so half of it counts."""
    sizes = [
        math.prod(map(int, filter(None, dims.split(",")))) * _BITS[kind] // 8
        for kind, dims in _SHAPE.findall(shapes)
        if kind in _BITS
    ]
    return sum(sizes) // 2 if is_async else sum(sizes)
