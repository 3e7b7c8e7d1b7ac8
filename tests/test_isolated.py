"""A function in a process of its own."""

import os

import pytest
from isolated_work import die, fail, mark, work

from effv2_jax.errors import Unavailable, UserError
from effv2_jax.isolated import in_a_process


def test_results_errors_and_death_come_back():
    pid, marked, number = in_a_process("it", work, 3, initializer=mark)
    assert pid != os.getpid() and (marked, number) == ("set", 3) and "EFFV2_MARK" not in os.environ
    with pytest.raises(UserError, match="a mistake"):
        in_a_process("it", fail)
    with pytest.raises(Unavailable, match="the process that worked on it was killed"):
        in_a_process("it", die)
