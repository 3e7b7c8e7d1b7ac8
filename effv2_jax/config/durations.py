"""Durations: their units, and where a run and its stages end, in optimizer steps.

A duration NAME stands in the four fields NAME_steps, NAME_epochs, NAME_examples and NAME_percent (of the whole run), of
which exactly one is set. Everything here takes a config that `validate` accepts.
"""

import itertools
from fractions import Fraction
from typing import Any

from ml_collections import ConfigDict, config_dict

UNITS = {"steps": int, "epochs": float, "examples": int, "percent": float}
# Every duration by its path; the fields of 'schedule.warmup' are config.schedule.warmup_steps and so on.
DURATIONS = ("total", "log", "evaluate", "checkpoint", "schedule.warmup", "schedule.decay")


def duration(section: ConfigDict, name: str, **given: float) -> None:
    """Sets a duration in one unit and unsets the others: `duration(config, "total", epochs=350.0)`."""
    for unit, kind in UNITS.items():
        field = f"{name}_{unit}"
        if field not in section:
            section[field] = config_dict.placeholder(kind)
        section[field] = given.get(unit)


def given_units(section: ConfigDict, name: str) -> dict[str, Any]:
    """The units in which a duration is set, with their values."""
    values = {unit: section.get(f"{name}_{unit}") for unit in UNITS}
    return {unit: value for unit, value in values.items() if value is not None}


def listed_units(config: ConfigDict) -> dict[str, Any]:
    """The units in which the durations of the stages are listed, with their values."""
    values = {unit: config.curriculum.listed[f"duration_{unit}"] for unit in UNITS}
    return {unit: value for unit, value in values.items() if value}


def exact(value: Any) -> Fraction:
    """The decimal number that the user wrote: 0.29 epochs of 100 examples are 29 examples, not 28.999999999999996."""
    return Fraction(str(value))


def steps_per_unit(unit: str, *, batch_size: int, num_examples: int, total_steps: Fraction | int | None) -> Fraction:
    """The exact number of optimizer steps in one step, epoch, example or percent."""
    if unit == "steps":
        return Fraction(1)
    if unit == "epochs":
        return Fraction(num_examples, batch_size)
    if unit == "examples":
        return Fraction(1, batch_size)
    if total_steps is None:
        raise ValueError("a percentage needs the length of the run")
    return Fraction(total_steps) / 100


def exact_steps_of(
    section: ConfigDict, name: str, *, batch_size: int, num_examples: int, total_steps: int | None = None
) -> Fraction:
    """`steps_of` before its result is rounded to a float."""
    given = given_units(section, name)
    if len(given) != 1:
        raise ValueError(f"the duration '{name}' is given in {len(given)} units instead of one")
    unit, value = given.popitem()
    one = steps_per_unit(unit, batch_size=batch_size, num_examples=num_examples, total_steps=total_steps)
    return exact(value) * one


def steps_of(
    section: ConfigDict, name: str, *, batch_size: int, num_examples: int, total_steps: int | None = None
) -> float:
    """A duration in optimizer steps, whatever its unit.

    The result may be fractional (a stair of 2.4 epochs); it is exact before it is rounded to a float.

    Args:
      section: the section of the config that holds the fields.
      name: 'total', 'warmup', ...
      batch_size: examples in an optimizer step.
      num_examples: training examples in an epoch.
      total_steps: the length of the run, which a percentage refers to.
    """
    return float(
        exact_steps_of(section, name, batch_size=batch_size, num_examples=num_examples, total_steps=total_steps)
    )


def exact_total_steps(config: ConfigDict, num_examples: int) -> Fraction:
    """The length of the run in steps; a fraction of a last step is not trained."""
    return exact_steps_of(config, "total", batch_size=config.global_batch_size, num_examples=num_examples)


def listed_end_steps(config: ConfigDict, num_examples: int) -> list[Fraction]:
    """The exact end of every stage by the listed durations; [] if none are listed."""
    listed = listed_units(config)
    if not listed:
        return []
    unit, values = listed.popitem()
    total = exact_total_steps(config, num_examples)
    one = steps_per_unit(unit, batch_size=config.global_batch_size, num_examples=num_examples, total_steps=total)
    return list(itertools.accumulate(exact(value) * one for value in values))


def end_steps(config: ConfigDict, num_examples: int) -> list[int]:
    """The step at which each stage ends; the last one is the length of the run.

    Stage i of M ends at (i + 1) * total_steps // M, or where the listed durations say. Fractions of a step are dropped
    from the end of a stage, not from its length, so they do not add up.
    """
    count, total_steps = config.curriculum.num_stages, int(exact_total_steps(config, num_examples))
    listed = listed_end_steps(config, num_examples)
    if listed:
        return [int(end) for end in listed[:-1]] + [total_steps]
    return [(i + 1) * total_steps // count for i in range(count)]
