"""A trace of some training steps, for XProf."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from effv2_jax.errors import UserError
from effv2_jax.files import is_remote, write_atomically
from effv2_jax.monitoring.progress import log

PROFILE_FOLDER = "profile"  # in a workdir


class Profiler:
    """Traces `num_steps` training steps with jax.profiler.

    Args:
      folder: of the trace, local or remote.
      first_step: number of optimizer steps done before the trace begins.
      num_steps: number of steps to trace; 0 traces nothing.
    """

    def __init__(self, folder: epath.Path, first_step: int, num_steps: int):
        self._folder = folder
        self._start, self._end = first_step, first_step + num_steps
        self._waiting = num_steps > 0
        self._traces: contextlib.ExitStack | None = None

    def before_step(self, step: int) -> None:
        """Begins the trace if the next step, after `step` steps, is the first to trace."""
        if not self._waiting or step < self._start:
            return
        self._waiting = False
        if step > self._start:
            log(f"WARNING: no profile: this run resumed at step {step}, after the first step to trace")
            return
        self._traces = contextlib.ExitStack()
        self._traces.enter_context(_trace(self._folder))

    def after_step(self, step: int, outputs: Any) -> None:
        """Waits for the outputs and ends the trace if the last step, number `step`, was the last to trace."""
        if self._traces is not None and step == self._end:
            jax.block_until_ready(outputs)
            self.close()
            log(f"profile of steps {self._start + 1} to {self._end} in {self._folder}")

    def close(self) -> None:
        """Ends the trace, if one is running."""
        if self._traces is not None:
            self._traces.close()
            self._traces = None


def make_profiler(workdir: epath.Path, profile: tuple[int, int] | None, total_steps: int) -> Profiler:
    """The profiler of (first step, number of steps); None traces nothing.

    Raises:
      UserError: steps that the run does not have.
    """
    if profile is None:
        return Profiler(workdir, 0, 0)
    first_step, num_steps = profile
    if first_step < 0 or num_steps < 1 or first_step + num_steps > total_steps:
        raise UserError(
            f"--profile={first_step},{num_steps} is not within the {total_steps} steps of the run; pass the number of "
            "steps before the trace (at least 0) and the number of steps to trace (at least 1)"
        )
    return Profiler(workdir / PROFILE_FOLDER, first_step, num_steps)


@contextlib.contextmanager
def _trace(folder: epath.Path) -> Iterator[None]:
    if not is_remote(folder):
        with jax.profiler.trace(str(folder)):
            yield
        return
    with tempfile.TemporaryDirectory() as temporary:
        with jax.profiler.trace(temporary):
            yield
        for path in Path(temporary).rglob("*"):
            if path.is_file():
                write_atomically(folder / path.relative_to(temporary).as_posix(), path.read_bytes())
