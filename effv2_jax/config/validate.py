"""What the numbers of a config may be: with a negative learning rate, or NaN, a run would train, and save the harm.

Durations, the batch and the values of the stages are checked where `curriculum` reads them.
"""

import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from effv2_jax.config import flatten
from effv2_jax.errors import UserError

# What is allowed, in words and as a test, and the fields; a field that holds several numbers is tested as a whole.
_RANGES: list[tuple[str, Callable[[Any], bool], tuple[str, ...]]] = [
    (
        "at least 1",
        lambda value: value >= 1,
        (
            "data.max_labels",
            "data.prefetch_batches",
            "evaluation.image_size",
            "evaluation.batch_size",
            "checkpoint.keep_last",
        ),
    ),
    (
        "0 or more",
        lambda value: value >= 0,
        (
            "model.width",
            "model.depth",
            "batch_norm.group_size",
            "data.num_examples",
            "data.randaugment_layers",
            "data.num_workers",
            "data.num_threads",
            "optimizer.learning_rate_per_256",
            "optimizer.epsilon",
            "optimizer.weight_decay",
            "optimizer.clip_norm",
            "checkpoint.keep_best",
        ),
    ),
    ("from 0 to below 2^63", lambda value: 0 <= value < 2**63, ("seed",)),
    ("more than 0", lambda value: value > 0, ("batch_norm.epsilon", "schedule.decay_rate")),
    (
        "from 0 to below 1",
        lambda value: 0 <= value < 1,
        (
            "batch_norm.momentum",
            "optimizer.momentum",
            "optimizer.decay",
            "optimizer.beta1",
            "optimizer.beta2",
            "ema.decay",
            "loss.label_smoothing",
        ),
    ),
    (
        "(least, most), above 0 and at most 1",
        lambda area: len(area) == 2 and 0 < area[0] <= area[1] <= 1,
        ("data.crop_area",),
    ),
    ("(least, most), above 0", lambda ratio: len(ratio) == 2 and 0 < ratio[0] <= ratio[1], ("data.crop_aspect_ratio",)),
]


def check_ranges(config: ConfigDict) -> None:
    """Raises UserError for the first field whose number is outside its range, infinite, not a number or missing."""
    values = flatten(config.to_dict())
    for allowed, test, fields in _RANGES:
        for field in fields:
            if field not in values:
                raise UserError(f"config has no field '{field}'; a config starts from effv2_jax.config.defaults()")
            value = values[field]
            numbers = value if isinstance(value, tuple | list) else (value,)
            if not (all(isinstance(n, int | float) and math.isfinite(n) for n in numbers) and test(value)):
                raise UserError(f"config.{field} has the value {value!r}; it must be {allowed}")
