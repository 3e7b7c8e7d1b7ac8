"""Durations in every unit, in steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from effv2_jax.config import duration, steps_of

IMAGENET = 1_256_144  # automl's training split, 350 epochs of which are 107,336 steps of 4096

sizes = {"batch_size": st.integers(1, 10**5), "num_examples": st.integers(1, 10**8)}


def one_duration(name: str, **given: float) -> ConfigDict:
    section = ConfigDict()
    duration(section, name, **given)
    return section


@given(steps=st.integers(1, 10**7), total_steps=st.integers(1, 10**7), **sizes)
def test_the_units_agree(steps: int, total_steps: int, batch_size: int, num_examples: int) -> None:
    run = {"batch_size": batch_size, "num_examples": num_examples, "total_steps": total_steps}
    same = {
        "steps": steps,
        "examples": steps * batch_size,
        "epochs": steps * batch_size / num_examples,
        "percent": 100 * steps / total_steps,
    }
    for unit, value in same.items():
        assert steps_of(one_duration("log", **{unit: value}), "log", **run) == pytest.approx(steps, rel=1e-12)


def test_durations_by_hand() -> None:
    run = {"batch_size": 4096, "num_examples": IMAGENET, "total_steps": 107336}
    assert steps_of(one_duration("decay", epochs=2.4), "decay", **run) == pytest.approx(736.0219, abs=1e-4)
    assert int(steps_of(one_duration("warmup", epochs=5.0), "warmup", **run)) == 1533
    assert steps_of(one_duration("log", percent=25.0), "log", **run) == 26834
    assert steps_of(one_duration("log", examples=2048), "log", **run) == 0.5
    # In floats 0.29 * 100 is 28.999999999999996, which would lose a step.
    assert steps_of(one_duration("log", epochs=0.29), "log", batch_size=1, num_examples=100) == 29


@pytest.mark.parametrize("values", [{}, {"steps": 3, "epochs": 4.0}])
def test_a_duration_that_validate_would_refuse_is_an_error(values):
    with pytest.raises(ValueError, match=f"the duration 'log' is given in {len(values)} units instead of one"):
        steps_of(one_duration("log", **values), "log", batch_size=2, num_examples=4)


def test_a_percentage_needs_the_length_of_the_run():
    with pytest.raises(ValueError, match="a percentage needs the length of the run"):
        steps_of(one_duration("log", percent=5.0), "log", batch_size=2, num_examples=4)
