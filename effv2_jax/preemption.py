"""Being asked to leave: SIGTERM, which is also how Cloud TPU announces maintenance and the end of a spot machine."""

import signal
import types

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Listens for the request while it is entered; in the main thread of a process.

    With several processes JAX' distributed runtime listens, and has all of them agree on a step.
    """

    def __init__(self) -> None:
        self._asked = False

    def __enter__(self) -> "Preemption":
        self._alone = not jax.distributed.is_initialized()
        if self._alone:
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to save after this step and leave; every process calls it after every step."""
        return self._asked if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def _ask(self, signum: int, frame: types.FrameType | None) -> None:
        self._asked = True
