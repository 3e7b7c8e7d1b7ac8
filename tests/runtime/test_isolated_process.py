"""A function in a process of its own."""

import os

import pytest
from isolated_work import die, fail, mark, work

from effv2_jax.errors import Unavailable, UserError
from effv2_jax.runtime.isolated_process import run_isolated


def test_results_errors_and_death_come_back():
    pid, marked, number = run_isolated("it", work, 3, initializer=mark)
    assert pid != os.getpid() and (marked, number) == ("set", 3) and "EFFV2_MARK" not in os.environ
    with pytest.raises(UserError, match="a mistake"):
        run_isolated("it", fail)
    with pytest.raises(Unavailable, match="the process that worked on it was killed"):
        run_isolated("it", die)
