"""Progressive learning: what changes from stage to stage, and when.

Two recipes differ in how a range (first, last) becomes the value of stage i of M:

- 'paper' (arXiv 2104.00298, Algorithm 1): first + (last - first) * i / (M - 1), for every field.
- 'automl' (google/automl `efficientnetv2/main.py` at 6a54c87): image size int(first + (last - first) * (i + 1) / M), so
  no stage trains at the first size; RandAugment, mixup and cutmix as in the paper; dropout and survival probability are
  at their last value throughout.

With a single stage every field has its last value (where the released code's np.linspace would give the first).
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from ml_collections import ConfigDict

from effv2_jax.config import UNITS, defaults
from effv2_jax.errors import UserError, check_known

RECIPES = ("paper", "automl")
_MAY_BE_ZERO = ("warmup",)  # a run without warm-up; every other duration is a length or a period


@dataclasses.dataclass(frozen=True)
class Stage:
    """Everything that changes from stage to stage; steps start_step to end_step - 1 belong to it."""

    index: int
    start_step: int
    end_step: int
    image_size: int  # pixels
    randaugment_magnitude: float
    mixup_alpha: float
    cutmix_alpha: float
    dropout_rate: float
    survival_probability: float  # of the last block's branch
    accumulation_steps: int  # micro-batches in one optimizer step
    remat: bool

    @property
    def num_steps(self) -> int:
        return self.end_step - self.start_step


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """The stages in order; they cover the steps 0 to total_steps - 1 without gap or overlap."""

    stages: tuple[Stage, ...]
    total_steps: int

    def stage_at(self, step: int) -> Stage:
        """The stage that step `step` (from 0) trains in; raises ValueError outside 0 <= step < total_steps."""
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} is outside the run of {self.total_steps} steps")
        return self.stages[bisect.bisect_right(self.stages, step, key=lambda stage: stage.end_step)]


@dataclasses.dataclass(frozen=True)
class RelativeCost:
    """Compute relative to the same number of steps at the largest size; `method` names the estimate."""

    stages: tuple[float, ...]
    overall: float
    method: str

    @property
    def saving(self) -> float:
        return 1 - self.overall


def relative_cost(curriculum: Curriculum) -> RelativeCost:
    """Compute of each stage and of the run, taken as proportional to the number of pixels, `image_size`^2.

    The paper's run of S costs 0.55 of a run at 300 px, the released one 0.64.
    """
    largest = max(stage.image_size for stage in curriculum.stages)
    stages = tuple((stage.image_size / largest) ** 2 for stage in curriculum.stages)
    overall = sum(cost * stage.num_steps for cost, stage in zip(stages, curriculum.stages, strict=True))
    return RelativeCost(stages, overall / curriculum.total_steps, method="image_size^2")


def _exact(value: Any) -> Fraction:
    """The decimal that the user wrote: 0.29 epochs of 100 examples are 29 examples, not 28.999999999999996."""
    return Fraction(str(value))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _path(field: str) -> str:
    """`config.total_epochs`, or with its section `config.schedule.warmup_epochs`."""
    sections = [name for name, value in defaults().items() if isinstance(value, ConfigDict) and field in value]
    return ".".join(["config", *sections[:1], field])


def _in_steps(value: Any, unit: str, *, batch_size: int, num_examples: int, total_steps: Fraction) -> Fraction:
    factor = {
        "steps": Fraction(1),
        "epochs": Fraction(num_examples, batch_size),
        "examples": Fraction(1, batch_size),
        "percent": total_steps / 100,
    }
    return _exact(value) * factor[unit]


def _exact_steps_of(
    config: ConfigDict, name: str, *, batch_size: int, num_examples: int, total_steps: int | None = None
) -> Fraction:
    given = {unit: config.get(f"{name}_{unit}") for unit in UNITS}
    given = {unit: value for unit, value in given.items() if value is not None}
    if len(given) > 1:
        fields = " and ".join(f"{_path(f'{name}_{unit}')}={value}" for unit, value in given.items())
        raise UserError(f"{fields} give the same duration; keep one of them")
    if not given:
        fields = ", ".join(f"{_path(f'{name}_{unit}')}" for unit in UNITS if unit != "percent" or name != "total")
        raise UserError(f"the duration '{name}' is not given; set one of {fields}")
    [(unit, value)] = given.items()
    path = _path(f"{name}_{unit}")
    zero = name in _MAY_BE_ZERO
    if not _finite(value) or value < 0 or (value == 0 and not zero):
        raise UserError(f"{path} is {value}; it must be {'0 or more' if zero else 'more than 0'}")
    if unit == "percent" and total_steps is None:
        raise UserError(f"{path} has no whole to be a share of; give the duration '{name}' in another unit")
    return _in_steps(
        value, unit, batch_size=batch_size, num_examples=num_examples, total_steps=Fraction(total_steps or 0)
    )


def steps_of(
    config: ConfigDict, name: str, *, batch_size: int, num_examples: int, total_steps: int | None = None
) -> float:
    """A duration in optimizer steps, from whichever of NAME_steps, _epochs, _examples and _percent is set.

    The result may be fractional (a stair of 2.4 epochs); it is exact before its rounding to float.

    Args:
      config: the section that holds the fields.
      name: of the duration: 'total', 'warmup', ...
      batch_size: examples in an optimizer step.
      num_examples: training examples in an epoch.
      total_steps: the whole that a percentage refers to.

    Raises:
      UserError: none or several of the fields are set, a value is negative, or 0 where only warm-up may be, or a
        percentage has no whole.
    """
    steps = _exact_steps_of(config, name, batch_size=batch_size, num_examples=num_examples, total_steps=total_steps)
    return float(steps)


# Field of Stage: (what is allowed, test)
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "image_size": ("a whole number of pixels from 1", lambda value: value >= 1 and value == int(value)),
    "randaugment_magnitude": ("0 or more", lambda value: value >= 0),
    "mixup_alpha": ("0 (off) or more", lambda value: value >= 0),
    "cutmix_alpha": ("0 (off) or more", lambda value: value >= 0),
    "dropout_rate": ("from 0 to below 1", lambda value: 0 <= value < 1),
    "survival_probability": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "accumulation_steps": ("a whole number from 1", lambda value: value >= 1 and value == int(value)),
}


def _interpolate(field: str, first: Any, last: Any, config: ConfigDict) -> list[Any]:
    """The values of a range at every stage, by the recipe."""
    count, low, high = config.num_stages, _exact(first), _exact(last)
    automl = config.recipe == "automl"
    if field == "image_size" and automl:
        values = [Fraction(int(low + (high - low) * (i + 1) / count)) for i in range(count)]
    elif count == 1 or (automl and field in ("dropout_rate", "survival_probability")):
        values = [high] * count
    else:
        values = [low + (high - low) * i / (count - 1) for i in range(count)]
    if field == "image_size":
        multiple = config.image_size_multiple
        return [math.floor(value / multiple + Fraction(1, 2)) * multiple for value in values]
    return [float(value) for value in values]


def _listed(config: ConfigDict, field: str) -> tuple[Any, ...]:
    """The values by hand of a field, () if there are none; raises UserError when their number is wrong."""
    values = config.listed[field]
    path = f"config.curriculum.listed.{field}"
    if not isinstance(values, tuple | list):
        raise UserError(f"{path} is {values!r}; it needs one value for each of the {config.num_stages} stages, or ()")
    if values and len(values) != config.num_stages:
        raise UserError(
            f"{path} has {len(values)} values, but config.curriculum.num_stages is {config.num_stages}; "
            "it needs one value a stage, or ()"
        )
    return tuple(values)


def _values(config: ConfigDict, field: str) -> list[Any]:
    """A numeric field's value at every stage, checked."""
    path, values = f"config.curriculum.{field}", config[field]
    allowed, test = _RULES[field]
    by_hand = _listed(config, field)
    if by_hand:
        path, values = f"config.curriculum.listed.{field}", by_hand
    elif field == "accumulation_steps":
        values = [values] * config.num_stages
    elif not isinstance(values, tuple | list) or len(values) != 2:
        raise UserError(f"{path} is {values!r}; it needs a range (first, last)")
    for value in values:
        if not (_finite(value) and test(value)):
            raise UserError(f"{path} has the value {value!r}; it must be {allowed}")
    if by_hand or field == "accumulation_steps":
        number = int if field in ("image_size", "accumulation_steps") else float
        return [number(value) for value in values]
    first, last = values
    values = _interpolate(field, first, last, config)
    for stage, value in enumerate(values):
        if not test(value):
            raise UserError(
                f"{path} gives {value} in stage {stage + 1} at image_size_multiple={config.image_size_multiple}; "
                f"it must be {allowed}"
            )
    return values


def _remat(config: ConfigDict) -> list[bool]:
    by_hand = _listed(config, "remat")
    for value in by_hand:
        if not isinstance(value, bool):
            raise UserError(f"config.curriculum.listed.remat has the value {value!r}; it must be True or False")
    return list(by_hand) or [bool(config.remat)] * config.num_stages


def _end_steps(config: ConfigDict, total: Fraction, *, batch_size: int, num_examples: int) -> list[int]:
    """Every stage's end; the last is int(total)."""
    count, total_steps = config.num_stages, int(total)
    listed = {unit: _listed(config, f"duration_{unit}") for unit in UNITS}
    listed = {unit: values for unit, values in listed.items() if values}
    if len(listed) > 1:
        fields = " and ".join(f"config.curriculum.listed.duration_{unit}" for unit in listed)
        raise UserError(f"{fields} are both given; keep one of them and set the rest to ()")
    if listed:
        [(unit, values)] = listed.items()
        path = f"config.curriculum.listed.duration_{unit}"
        for value in values:
            if not _finite(value) or value <= 0:
                raise UserError(f"{path} has the value {value!r}; it must be more than 0")
        one = _in_steps(1, unit, batch_size=batch_size, num_examples=num_examples, total_steps=total)
        exact = list(itertools.accumulate(_exact(value) * one for value in values))
        if abs(exact[-1] - total) >= 1:
            raise UserError(
                f"{path} adds up to {float(exact[-1] / one):.10g} {unit}, but the run has {float(total / one):.10g}"
            )
        ends = [int(end) for end in exact[:-1]] + [total_steps]
    else:
        ends = [(i + 1) * total_steps // count for i in range(count)]
    for stage, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        if end <= start:
            raise UserError(
                f"stage {stage + 1} has no step: the run has {total_steps} steps for "
                f"config.curriculum.num_stages={count}; lengthen the run or this stage, or use fewer stages"
            )
    return ends


def _check_whole(path: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{path} is {value!r}; it must be a whole number from 1")


def make_curriculum(config: ConfigDict, num_examples: int) -> Curriculum:
    """The stages of a run.

    Stage i of M ends at step (i + 1) * total_steps // M, or where the listed durations say; fractions of a step are
    cut off from the sum, not from each stage. Sizes are rounded to the nearest multiple, half a multiple up; values
    listed by hand are taken as they are.

    Args:
      config: the whole experiment's.
      num_examples: training examples in an epoch.

    Raises:
      UserError: a value outside its range, a list of the wrong length, durations that do not add up to the run's, a
        stage without a step, or an unknown recipe.
    """
    curriculum, batch_size = config.curriculum, config.global_batch_size
    check_known("config.curriculum.recipe", curriculum.recipe, RECIPES)
    _check_whole("config.global_batch_size", batch_size)
    _check_whole("config.curriculum.num_stages", curriculum.num_stages)
    _check_whole("config.curriculum.image_size_multiple", curriculum.image_size_multiple)
    total = _exact_steps_of(config, "total", batch_size=batch_size, num_examples=num_examples)
    ends = _end_steps(curriculum, total, batch_size=batch_size, num_examples=num_examples)
    fields: dict[str, Sequence[Any]] = {field: _values(curriculum, field) for field in _RULES}
    fields["remat"] = _remat(curriculum)
    for stage, parts in enumerate(fields["accumulation_steps"]):
        if batch_size % parts:
            raise UserError(
                f"accumulation_steps is {parts} in stage {stage + 1}, which does not divide "
                f"config.global_batch_size={batch_size}; use a divisor"
            )
    stages = tuple(
        Stage(index, start, end, **{field: values[index] for field, values in fields.items()})
        for index, (start, end) in enumerate(itertools.pairwise([0, *ends]))
    )
    return Curriculum(stages, total_steps=ends[-1])
