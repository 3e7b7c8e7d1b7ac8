"""A function in a process of its own, which takes its memory, its libraries and its settings with it."""

import concurrent.futures.process
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

from effv2_jax.errors import Unavailable

EVERY = 30.0  # seconds between two calls of `waiting`


def run_isolated(
    what: str,
    function: Callable[..., Any],
    *arguments: Any,
    initializer: Any = None,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> Any:
    """The result of `function(*arguments)`, after `initializer()`; both and all they take and give can be pickled.

    Meanwhile `waiting` is called, in this process, with the seconds that it has taken.

    Raises:
      Unavailable: the process was killed while it worked on `what`; and whatever the function raises.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=initializer) as pool:
        try:
            future, start = pool.submit(function, *arguments), time.perf_counter()
            while not concurrent.futures.wait([future], EVERY).done:
                waiting(time.perf_counter() - start)
            return future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise Unavailable(f"the process that worked on {what} was killed; memory may be short") from None
