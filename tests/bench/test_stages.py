"""The results of `effv2 bench stages`, from metrics written by hand."""

import pytest
from tiny import tiny_config

from effv2_jax.bench.stages import stages_table, summarize
from effv2_jax.monitoring.tables import to_text


def records(waits):
    """Two stages: steps of 0.2 s and 0.4 s with batches of 16 on 2 devices; `waits` are (compile, input) of each."""
    lines = []
    for number, ((compiling, waiting), step, size) in enumerate(zip(waits, (0.2, 0.4), (16, 32), strict=True)):
        stage = {"stage/number": number + 1, "stage/image_size": size}
        lines.append(stage | {"stage/compile_wait_seconds": compiling, "stage/input_wait_seconds": waiting})
        for noise in (0.5, 1, 1, 3):
            speed = {"train/images_per_second_per_device": 16 / (step * noise) / 2, "train/loss": 1.0}
            lines.append(speed | {"host/devices": 2, "time/start": 1.0, "time/train": 5.0})
    return [*lines, {"time/start": 1.0, "time/train": 10.0, "time/compile": 7.0, "time/input": 2.0}]


def test_stalls_are_those_of_the_boundaries_and_steps_are_medians():
    arm = summarize(records([(5.0, 1.0), (2.0, 0.4)]), tiny_config())
    assert arm["cold_start"] == 7.0 and arm["total"] == 20.0
    first, second = arm["stages"]
    assert first == {"image_size": 16, "step": pytest.approx(0.2), "compile": 5.0, "input": 1.0}
    assert second == {"image_size": 32, "step": pytest.approx(0.4), "compile": 2.0, "input": 0.4}


def test_the_table_has_both_sides():
    in_turn = summarize(records([(5.0, 1.0), (2.0, 0.4)]), tiny_config())
    background = summarize(records([(5.0, 1.0), (0.0, 0.1)]), tiny_config())
    rows = [line.split() for line in to_text(stages_table({"background": background, "in turn": in_turn})).splitlines()]
    assert ["2", "32", "0.400", "0.00", "0.10", "0.2", "0.400", "2.00", "0.40", "6.0"] in rows
    assert ["boundaries", "(s)", "0.10", "2.40"] in rows
    assert ["boundaries'", "share", "0.5%", "12.0%"] in rows
    assert ["start's", "share", "35.0%", "35.0%"] in rows
