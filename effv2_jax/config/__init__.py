"""Every field of an experiment with its default, meaning and range; one validation of all of them."""

from effv2_jax.config.durations import UNITS, duration, steps_of
from effv2_jax.config.fields import defaults, flat_lines, flatten, from_dict, parse_argument, to_dict

__all__ = [
    "UNITS",
    "defaults",
    "duration",
    "flat_lines",
    "flatten",
    "from_dict",
    "parse_argument",
    "steps_of",
    "to_dict",
]
