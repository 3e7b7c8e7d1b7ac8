"""Requests to exit: Ctrl-C, and SIGTERM, which Cloud TPU sends before maintenance and before it stops a spot VM."""

import signal
import sys
import types

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Listens for requests to exit while it is entered. Enter it in the main thread.

    With several processes JAX's distributed runtime listens, and makes all of them agree on the step to exit at.
    """

    def __init__(self) -> None:
        self._requested = False
        self._num_calls = 0

    def __enter__(self) -> "Preemption":
        self._single_process = jax.process_count() == 1
        if self._single_process:
            # SIGINT too: Python's KeyboardInterrupt may come in the middle of a callback that swallows it.
            self._previous = {name: signal.signal(name, self._handle) for name in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        if self._single_process:
            for name, handler in self._previous.items():
                signal.signal(name, handler)

    def reached(self) -> bool:
        """Whether to save and exit now. All processes call it at the same places, at least once per step."""
        # JAX picks the number after the highest one that any process has reported, starting from 0. If these were the
        # steps of a run resumed at step 5,000, a request before the first call would wait forever for number 1.
        self._num_calls += 1
        if self._single_process:
            return self._requested
        return multihost_utils.reached_preemption_sync_point(self._num_calls)

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        if signum == signal.SIGINT and self._requested:
            raise KeyboardInterrupt
        if signum == signal.SIGINT:
            print("saving and exiting after this step; Ctrl-C again exits at once", file=sys.stderr, flush=True)
        self._requested = True
