"""The workdir of a run: locked by one run at a time, and left in order however the run ends."""

import contextlib
from collections.abc import Callable, Iterator

from etils import epath
from ml_collections import ConfigDict

from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints, quarantine_damaged
from effv2_jax.runtime.compilation_cache import delete_damaged_programs, use_compilation_cache
from effv2_jax.runtime.lock import exclusive
from effv2_jax.runtime.preemption import Preemption
from effv2_jax.runtime.processes import on_first_process


@contextlib.contextmanager
def open_workdir(
    workdir: epath.Path, config: ConfigDict, log: Callable[[str], None]
) -> Iterator[tuple[Checkpoints, Preemption]]:
    """Locks a workdir, quarantines damaged checkpoints, and listens for requests to exit.

    Args:
      workdir: local or remote; created if needed.
      config: of the run; decides which checkpoints are kept, and where compiled programs are cached.
      log: called with a line for each damaged checkpoint.

    Yields:
      the checkpoints, all of them on disk when the block ends, and the listener for requests to exit.

    Raises:
      UserError: it cannot be written, or all its checkpoints are damaged.
      Unavailable: another run holds it, or the first process does not answer.
    """
    with contextlib.ExitStack() as stack:

        def acquire() -> None:
            stack.enter_context(exclusive(workdir))
            quarantine_damaged(workdir / CHECKPOINTS, log)
            delete_damaged_programs(workdir)

        on_first_process("lock the workdir", acquire)
        preemption = stack.enter_context(Preemption())
        use_compilation_cache(config, workdir)
        checkpoints = Checkpoints(workdir / CHECKPOINTS, config.checkpoint.keep_last, config.checkpoint.keep_best)
        stack.callback(checkpoints.close)  # a checkpoint saved before an error still reaches the disk
        yield checkpoints, preemption
