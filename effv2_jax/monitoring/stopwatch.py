"""Where the time of a run goes: seconds by cause, across restarts."""

import collections
import contextlib
import time
from collections.abc import Iterator
from typing import Any


def clock(seconds: float) -> str:
    """'1:02:03' or '2:03'."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Stopwatch:
    """Seconds by cause, counted from its creation."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self._mark = time.perf_counter()

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def restore(self, seconds: dict[str, float], lost: float) -> None:
        """Continues from the seconds of a checkpoint; `lost` seconds of work after it are charged to 'restart'."""
        self.seconds = collections.defaultdict(float, seconds)
        self.seconds["restart"] += lost

    def since(self, before: dict[str, float]) -> dict[str, float]:
        """The seconds added since `before`, an earlier copy of `seconds`."""
        return collections.defaultdict(float, {name: now - before.get(name, 0) for name, now in self.seconds.items()})

    def charge(self, cause: str) -> None:
        """Charges the time since the last charge to a cause."""
        now = time.perf_counter()
        self.seconds[cause] += now - self._mark
        self._mark = now

    @contextlib.contextmanager
    def measure(self, cause: str, otherwise: str = "train") -> Iterator[None]:
        """Charges the time before the block to `otherwise`, and the block to `cause`."""
        self.charge(otherwise)
        try:
            yield
        finally:
            self.charge(cause)

    def summary(self) -> str:
        parts = (f"{cause} {clock(spent)}" for cause, spent in sorted(self.seconds.items(), key=lambda item: -item[1]))
        return f"{clock(self.total)} in all: " + ", ".join(parts)

    def scalars(self) -> dict[str, float]:
        """The seconds as metrics: {'time/train': seconds, ...}."""
        return {f"time/{cause}": spent for cause, spent in self.seconds.items()}


def lost_seconds(records: list[dict[str, Any]], step: int, saved: dict[str, float]) -> float:
    """Seconds of lost work: those after the checkpoint of `step`, as far as the metrics show.

    Args:
      records: of the metrics file.
      step: of the checkpoint.
      saved: the stopwatch's seconds in the checkpoint.
    """
    later = [record for record in records if record["step"] > step]
    totals = [sum(value for name, value in record.items() if name.startswith("time/")) for record in later]
    return max(max(totals, default=0.0) - sum(saved.values()), 0.0)
