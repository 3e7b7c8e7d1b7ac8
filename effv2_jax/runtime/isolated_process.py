"""A function in a process of its own, which frees all memory, libraries and settings of the function when it ends."""

import concurrent.futures.process
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

from effv2_jax.errors import Unavailable

WAITING_INTERVAL = 30.0  # seconds between two calls of `waiting`


def run_isolated(
    task: str,
    function: Callable[..., Any],
    *arguments: Any,
    initializer: Any = None,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> Any:
    """Returns `function(*arguments)`, called in another process after `initializer()`.

    Args:
      task: what the function does, for messages.
      function: picklable, as are its arguments and its result.
      *arguments: of the function.
      initializer: picklable; called first in the other process.
      waiting: called in this process every WAITING_INTERVAL seconds, with the seconds since the start.

    Raises:
      Unavailable: the process was killed; and any exception of the function.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=initializer) as pool:
        try:
            future, start = pool.submit(function, *arguments), time.perf_counter()
            while not concurrent.futures.wait([future], WAITING_INTERVAL).done:
                waiting(time.perf_counter() - start)
            return future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise Unavailable(f"the process that worked on {task} was killed; memory may be short") from None
