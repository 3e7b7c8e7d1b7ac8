"""The workdir of a run: taken by one run at a time, and left in order however the run ends."""

import contextlib
from collections.abc import Callable, Iterator

from etils import epath
from ml_collections import ConfigDict

from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints, quarantine_damaged
from effv2_jax.runtime.compilation_cache import drop_torn_programs, use_compilation_cache
from effv2_jax.runtime.lock import exclusive
from effv2_jax.runtime.preemption import Preemption
from effv2_jax.runtime.processes import on_first_process


@contextlib.contextmanager
def open_workdir(
    workdir: epath.Path, config: ConfigDict, log: Callable[[str], None]
) -> Iterator[tuple[Checkpoints, Preemption]]:
    """Locks a workdir, sets damaged checkpoints aside, and listens for requests to exit.

    Args:
      workdir: local or remote; made where it does not exist.
      config: of the run, for what is kept there.
      log: called with a line for each damaged checkpoint.

    Yields:
      the checkpoints, which are on disk when the block ends, and the requests.

    Raises:
      UserError: another run holds it, it cannot be written, or all its checkpoints are damaged.
      Unavailable: the first process does not answer.
    """
    with contextlib.ExitStack() as stack:

        def take() -> None:
            stack.enter_context(exclusive(workdir))
            quarantine_damaged(workdir / CHECKPOINTS, log)
            drop_torn_programs(workdir)

        on_first_process("take the workdir", take)
        preemption = stack.enter_context(Preemption())
        use_compilation_cache(config, workdir)
        checkpoints = Checkpoints(workdir / CHECKPOINTS, config.checkpoint.keep_last, config.checkpoint.keep_best)
        stack.callback(checkpoints.close)  # a checkpoint saved before an error still reaches the disk
        yield checkpoints, preemption
