"""Progress of long work: a bar on a terminal, otherwise a line every LOG_INTERVAL seconds; both on standard error."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich import progress
from rich.console import Console
from rich.text import Text

LOG_INTERVAL = 30.0  # seconds between two lines without a terminal


@contextlib.contextmanager
def bar(title: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Yields a function that takes how many more of `total` are done. The unit 'bytes' is shown in MB, GB, ..."""
    if not sys.stderr.isatty():
        yield _lines(title, total, unit)
        return
    counts = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    if unit != "bytes":
        counts = [progress.MofNCompleteColumn(), _Speed()]
    columns = [progress.TextColumn("{task.description}"), progress.BarColumn(), *counts, progress.TimeRemainingColumn()]
    with progress.Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(title, total=total)
        yield lambda count: display.advance(task, count)


class _Speed(progress.ProgressColumn):
    def render(self, task: progress.Task) -> Text:
        return Text(f"{task.speed or 0:.0f}/s")


def _lines(title: str, total: int, unit: str) -> Callable[[int], None]:
    start = last_line = time.perf_counter()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last_line
        done += count
        now = time.perf_counter()
        if now - last_line > LOG_INTERVAL:
            last_line = now
            remaining = (total - done) * (now - start) / done
            print(
                f"{title}: {done / total:.1%} of {total:,} {unit}, {remaining:.0f} s to go", file=sys.stderr, flush=True
            )

    return advance
