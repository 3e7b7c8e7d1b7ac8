"""Being asked to leave: Ctrl-C, and SIGTERM, by which Cloud TPU announces maintenance and the end of a spot machine."""

import signal
import sys
import types

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Listens for the request while it is entered; in the main thread of a process.

    With several processes JAX' distributed runtime listens, and has all of them agree on when to leave.
    """

    def __init__(self) -> None:
        self._asked = False
        self._times = 0

    def __enter__(self) -> "Preemption":
        self._alone = jax.process_count() == 1
        if self._alone:
            # SIGINT, too: an exception out of a signal handler may come while a callback runs that swallows it.
            self._previous = {name: signal.signal(name, self._ask) for name in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        if self._alone:
            for name, handler in self._previous.items():
                signal.signal(name, handler)

    def reached(self) -> bool:
        """Whether to save and leave now; all processes call it at the same places, in every step at least."""
        # JAX takes the number after the highest that a process has told it of, from 0: a request that comes before the
        # first call would wait for ever for number 1 if these were steps of a run that goes on from step 5,000.
        self._times += 1
        return self._asked if self._alone else multihost_utils.reached_preemption_sync_point(self._times)

    def _ask(self, signum: int, frame: types.FrameType | None) -> None:
        if signum == signal.SIGINT and self._asked:
            raise KeyboardInterrupt
        if signum == signal.SIGINT:
            print("saving and leaving after this step; Ctrl-C once more leaves at once", file=sys.stderr, flush=True)
        self._asked = True
