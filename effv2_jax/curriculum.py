"""Progressive learning: what changes from stage to stage, and when.

`config.stage_values` computes the values of the stages by the two recipes, `config.durations` their ends.
"""

import bisect
import dataclasses
import itertools

from ml_collections import ConfigDict

from effv2_jax.config.durations import end_steps
from effv2_jax.config.stage_values import CONSTANTS, RANGES, stage_values


@dataclasses.dataclass(frozen=True)
class Stage:
    """Everything that changes from stage to stage, for the steps start_step to end_step - 1."""

    index: int
    start_step: int
    end_step: int
    image_size: int  # pixels
    randaugment_magnitude: float
    mixup_alpha: float
    cutmix_alpha: float
    dropout_rate: float
    survival_probability: float  # p: block i of n keeps its residual branch with probability 1 - (1 - p) * i / n
    accumulation_steps: int  # micro-batches in one optimizer step
    remat: bool

    @property
    def num_steps(self) -> int:
        return self.end_step - self.start_step


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """The stages in order, which cover the steps 0 to total_steps - 1 without gap or overlap."""

    stages: tuple[Stage, ...]
    total_steps: int

    def stage_at(self, step: int) -> Stage:
        """The stage of step `step` (from 0); raises ValueError unless 0 <= step < total_steps."""
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} is outside the run of {self.total_steps} steps")
        return self.stages[bisect.bisect_right(self.stages, step, key=lambda stage: stage.end_step)]


@dataclasses.dataclass(frozen=True)
class RelativeCost:
    """Compute relative to the same number of steps at the largest image size; `method` names the estimate."""

    stages: tuple[float, ...]
    overall: float
    method: str

    @property
    def saving(self) -> float:
        return 1 - self.overall


def relative_cost(curriculum: Curriculum) -> RelativeCost:
    """Compute of each stage and of the run, estimated as proportional to the number of pixels, `image_size`^2.

    The paper's run of S costs 0.55 of a run at 300 px, the released run 0.64.
    """
    largest = max(stage.image_size for stage in curriculum.stages)
    stages = tuple((stage.image_size / largest) ** 2 for stage in curriculum.stages)
    overall = sum(cost * stage.num_steps for cost, stage in zip(stages, curriculum.stages, strict=True))
    return RelativeCost(stages, overall / curriculum.total_steps, method="image_size^2")


def make_curriculum(config: ConfigDict, num_examples: int) -> Curriculum:
    """The stages of a run.

    Args:
      config: of the whole experiment, valid for `num_examples` (see `config.validate`).
      num_examples: training examples in an epoch.
    """
    ends = end_steps(config, num_examples)
    values = {field: stage_values(config.curriculum, field) for field in RANGES + CONSTANTS}
    stages = tuple(
        Stage(index, start, end, **{field: by_stage[index] for field, by_stage in values.items()})
        for index, (start, end) in enumerate(itertools.pairwise([0, *ends]))
    )
    return Curriculum(stages, total_steps=ends[-1])
