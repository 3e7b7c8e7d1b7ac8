"""Progress on a terminal and elsewhere."""

import re
import sys

import pytest

from effv2_jax.monitoring import progress_bar as bars


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    with bars.bar("looking", 4) as advance:
        advance(1)
    assert not capsys.readouterr().err  # not before half a minute
    monkeypatch.setattr(bars, "LOG_INTERVAL", -1.0)
    with bars.bar("looking", 4) as advance:
        advance(1)
        advance(3)
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\d+ s", "N s", line) for line in lines] == [
        "looking: 25.0% of 4 images, N s to go",
        "looking: 100.0% of 4 images, N s to go",
    ]


@pytest.mark.parametrize(("unit", "shown"), [("images", "2000/4000"), ("bytes", "2.0/4.0 kB")])
def test_a_bar_on_a_terminal(capsys, monkeypatch, unit, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with bars.bar("looking", 4000, unit) as advance:
        advance(1500)
        advance(500)
    assert "looking" in (err := capsys.readouterr().err) and shown in err
