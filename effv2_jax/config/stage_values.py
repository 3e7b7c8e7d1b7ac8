"""The values of the curriculum's fields at every stage, and how a batch is divided.

Two recipes differ in how a range (first, last) becomes the value of stage i of M:

- 'paper' (arXiv 2104.00298, Algorithm 1): first + (last - first) * i / (M - 1), for every field.
- 'automl' (google/automl `efficientnetv2/main.py` at 6a54c87): the image size is int(first + (last - first) * (i + 1) /
  M), so no stage trains at the first size. RandAugment, mixup and cutmix are as in the paper. Dropout and survival
  probability have their last value in every stage.

With one stage every field has its last value; the released code's np.linspace would give the first one. Image sizes are
rounded to the nearest multiple of `image_size_multiple`, halves upwards. Listed values are taken as they are.
Everything here takes a config that `validate` accepts.
"""

import math
from fractions import Fraction
from typing import Any

from ml_collections import ConfigDict

from effv2_jax.config.durations import exact

RANGES = (
    "image_size",
    "randaugment_magnitude",
    "mixup_alpha",
    "cutmix_alpha",
    "dropout_rate",
    "survival_probability",
)
CONSTANTS = ("accumulation_steps", "remat")  # one value for all stages, unless they are listed
_TYPES = {"image_size": int, "accumulation_steps": int, "remat": bool}  # every other field is a float


def stage_values(curriculum: ConfigDict, field: str) -> list[Any]:
    """The value of a field of RANGES or CONSTANTS at every stage."""
    listed = curriculum.listed[field]
    if field in RANGES and not listed:
        return _interpolate(curriculum, field)
    convert = _TYPES.get(field, float)
    return [convert(value) for value in listed or [curriculum[field]] * curriculum.num_stages]


def _interpolate(curriculum: ConfigDict, field: str) -> list[Any]:
    count, (first, last) = curriculum.num_stages, map(exact, curriculum[field])
    automl = curriculum.recipe == "automl"
    if field == "image_size" and automl:
        values = [Fraction(int(first + (last - first) * (i + 1) / count)) for i in range(count)]
    elif count == 1 or (automl and field in ("dropout_rate", "survival_probability")):
        values = [last] * count
    else:
        values = [first + (last - first) * i / (count - 1) for i in range(count)]
    if field == "image_size":
        multiple = curriculum.image_size_multiple
        return [math.floor(value / multiple + Fraction(1, 2)) * multiple for value in values]
    return [float(value) for value in values]


def split_unit(config: ConfigDict) -> int:
    """Consecutive examples that stay in one micro-batch: whole batch-norm groups, and quadruples for `mixing.mix`."""
    return math.lcm(4, config.batch_norm.group_size or 4)
