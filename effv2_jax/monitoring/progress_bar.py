"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere; both on standard error."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich import progress
from rich.console import Console
from rich.text import Text

EVERY = 30.0  # seconds between two lines where there is no terminal


@contextlib.contextmanager
def bar(what: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how many more of `total` are done; a `unit` of 'bytes' is shown in GB."""
    if not sys.stderr.isatty():
        yield _lines(what, total, unit)
        return
    counts = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    if unit != "bytes":
        counts = [progress.MofNCompleteColumn(), _Speed()]
    columns = [progress.TextColumn("{task.description}"), progress.BarColumn(), *counts, progress.TimeRemainingColumn()]
    with progress.Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(what, total=total)
        yield lambda count: shown.advance(task, count)


class _Speed(progress.ProgressColumn):
    def render(self, task: progress.Task) -> Text:
        return Text(f"{task.speed or 0:.0f}/s")


def _lines(what: str, total: int, unit: str) -> Callable[[int], None]:
    start = said = time.perf_counter()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        now = time.perf_counter()
        if now - said > EVERY:
            said = now
            to_go = (total - done) * (now - start) / done
            print(f"{what}: {done / total:.1%} of {total:,} {unit}, {to_go:.0f} s to go", file=sys.stderr, flush=True)

    return advance
