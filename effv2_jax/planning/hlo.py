"""Figures out of the text of a compiled program: what the compiler expects to take how long, and what chips exchange.

Only instructions that run on their own are counted: those of the entry computation, and of loops as often as these run;
what a fusion holds inside is part of the fusion.
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
class Figures:
    """Of one run of a program on each device.

    cycles: the compiler's estimates, summed over instructions.
    collectives: how many exchanges there are.
    collective_bytes: that they give to each device.
    """

    cycles: int
    collectives: int
    collective_bytes: int


def figures(text: str) -> Figures:
    """Figures of a program's text, `jax.stages.Compiled.as_text()`; loops of unknown length count once."""
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
        raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
    cycles = count = size = 0
    for line, times in _run(computations, entry, 1):
        if match := _CYCLES.search(line):
            cycles += times * int(match[1])
        instruction = _INSTRUCTION.match(line)
        if instruction and instruction[2].removesuffix("-start") in COLLECTIVES:
            count += times
            size += times * _bytes(instruction[1], started=instruction[2].endswith("-start"))
    return Figures(cycles, count, size)


def _run(computations: dict[str, list[str]], name: str, times: int) -> Iterator[tuple[str, int]]:
    """The instructions that run when a computation does, each with how often."""
    for line in computations[name]:
        yield line, times
        if " while(" in line and (body := _BODY.search(line)):
            trips = _TRIPS.search(line)
            yield from _run(computations, body[1], times * (int(trips[1]) if trips else 1))


def _bytes(shapes: str, started: bool) -> int:
    """Of the result of a collective; one that is only started gives its operands, too."""
    sizes = [
        math.prod(map(int, filter(None, dims.split(",")))) * _BITS[kind] // 8
        for kind, dims in _SHAPE.findall(shapes)
        if kind in _BITS
    ]
    return sum(sizes) // 2 if started else sum(sizes)
