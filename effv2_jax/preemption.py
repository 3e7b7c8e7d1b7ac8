"""Being asked to leave: SIGTERM, which is also how Cloud TPU announces maintenance and the end of a spot machine."""

import signal
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
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self) -> bool:
        """Whether to save and leave now; all processes call it at the same places, in every step at least."""
        # JAX takes the number after the highest that a process has told it of, from 0: a request that comes before the
        # first call would wait for ever for number 1 if these were steps of a run that goes on from step 5,000.
        self._times += 1
        return self._asked if self._alone else multihost_utils.reached_preemption_sync_point(self._times)

    def _ask(self, signum: int, frame: types.FrameType | None) -> None:
        self._asked = True
