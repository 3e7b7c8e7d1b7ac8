"""What each field of a config may hold: RULES has a check for every field of `defaults()`."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from effv2_jax.config.durations import DURATIONS, UNITS
from effv2_jax.errors import UserError, check_known

Rule = Callable[[str, Any], list[str]]  # (path of a field, its value) -> faults, one sentence each

# The fields that name one of several implementations. Each name is implemented by the module that reads the field.
CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("float32", "bfloat16"),
    "model.lowering": ("auto", "native", "decomposed"),
    "model.padding": ("same", "symmetric"),
    "curriculum.recipe": ("paper", "automl"),
    "data.source": ("tfds", "folder", "csv", "digits"),
    "data.interpolation": ("bilinear", "bicubic"),
    "data.augmentation": ("randaugment", "autoaugment", "cutout", "none"),
    "data.evaluation_crop": ("v2", "v1", "center", "squash"),
    "data.normalization": ("v2", "unit", "imagenet"),
    "optimizer.name": ("rmsprop", "sgd", "adamw", "lamb"),
    "optimizer.weight_decay_mode": ("l2", "decoupled"),
    "schedule.name": ("exponential", "cosine", "linear", "constant"),
    "loss.name": ("softmax", "sigmoid"),
}

_TYPES = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


@dataclass(frozen=True)
class Value:
    """A rule for a single value: its type, and which values are allowed, in words and as a test.

    A number must also be finite. An int is accepted where a float is expected, a bool is not a number.
    """

    type: type
    allowed: str = ""
    test: Callable[[Any], bool] = lambda value: True
    verb: str = "has the value"

    def __call__(self, path: str, value: Any) -> list[str]:
        if not self._has_type(value):
            return [f"config.{path} {self.verb} {value!r}; it must be {_TYPES[self.type]}"]
        if (isinstance(value, float) and not math.isfinite(value)) or not self.test(value):
            return [f"config.{path} {self.verb} {value!r}; it must be {self.allowed}"]
        return []

    def _has_type(self, value: Any) -> bool:
        if self.type in (int, float):
            return isinstance(value, int | self.type) and not isinstance(value, bool)
        return isinstance(value, self.type)


def _choice(names: tuple[str, ...]) -> Rule:
    def rule(path: str, value: Any) -> list[str]:
        try:
            check_known(f"config.{path}", value, names)
        except UserError as error:
            return [str(error)]
        return []

    return rule


def _optional(rule: Rule) -> Rule:
    return lambda path, value: [] if value is None else rule(path, value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _range_over_stages(rule: Rule) -> Rule:
    """(first, last), each by `rule`."""

    def check(path: str, value: Any) -> list[str]:
        if not _is_sequence(value) or len(value) != 2:
            return [f"config.{path} is {value!r}; it needs a range (first, last)"]
        return [fault for item in value for fault in rule(path, item)]

    return check


def _list_over_stages(rule: Rule) -> Rule:
    """One value per stage by `rule`, or (); the number of values is checked where the number of stages is known."""

    def check(path: str, value: Any) -> list[str]:
        if not _is_sequence(value):
            return [f"config.{path} is {value!r}; it needs one value per stage, or ()"]
        return [fault for item in value for fault in rule(path, item)]

    return check


def _interval(allowed: str, largest: float) -> Rule:
    """(least, most) with 0 < least <= most <= largest."""
    number = Value(float)

    def check(path: str, value: Any) -> list[str]:
        is_pair = _is_sequence(value) and len(value) == 2 and not any(number(path, item) for item in value)
        if is_pair and 0 < value[0] <= value[1] <= largest and math.isfinite(value[1]):
            return []
        return [f"config.{path} has the value {value!r}; it must be {allowed}"]

    return check


def _blocks(path: str, value: Any) -> list[str]:
    if _is_sequence(value) and all(isinstance(text, str) for text in value):
        return []
    return [f"config.{path} has the value {value!r}; it must be a tuple of block strings, one per stage"]


def _pattern(path: str, value: Any) -> list[str]:
    if not isinstance(value, str):
        return [f"config.{path} has the value {value!r}; it must be text"]
    try:
        re.compile(value)
    except re.error as error:
        return [f"config.{path}: '{value}' is not a regular expression: {error}"]
    return []


def _parameter_factors(path: str, value: Any) -> list[str]:
    """Pairs (pattern, factor). Whether the patterns match is checked by `optimizer`, which knows the parameters."""
    is_number = Value(float)._has_type
    faults = []
    for pair in value if _is_sequence(value) else [value]:
        if not (_is_sequence(pair) and len(pair) == 2 and isinstance(pair[0], str) and is_number(pair[1])):
            faults.append(f"config.{path} needs pairs ('pattern', factor), not {pair!r}")
            continue
        pattern, factor = pair
        faults += _pattern(path, pattern)
        if not 0 <= factor < math.inf:
            faults.append(f"config.{path}: the factor of '{pattern}' is {factor:g}; it must be finite and not negative")
    return faults


def _same_rule(rule: Rule, fields: str) -> dict[str, Rule]:
    return dict.fromkeys(fields.split(), rule)


_COUNT = Value(int, "a whole number from 1", lambda value: value >= 1, verb="is")
_POSITIVE = Value(float, "more than 0", lambda value: value > 0)
_NOT_NEGATIVE = Value(float, "0 or more", lambda value: value >= 0)
_BELOW_ONE = Value(float, "from 0 to below 1", lambda value: 0 <= value < 1)
_FLAG, _TEXT = Value(bool), Value(str)

# The fields that have a value at every stage: a range (or one constant), or a list.
_RANGES: dict[str, Value] = {
    "image_size": Value(float, "a whole number of pixels from 1", lambda value: value >= 1 and value == int(value)),
    "randaugment_magnitude": _NOT_NEGATIVE,
    "mixup_alpha": Value(float, "0 (off) or more", lambda value: value >= 0),
    "cutmix_alpha": Value(float, "0 (off) or more", lambda value: value >= 0),
    "dropout_rate": _BELOW_ONE,
    "survival_probability": Value(float, "above 0 and at most 1", lambda value: 0 < value <= 1),
}
_CONSTANTS: dict[str, Value] = {
    "accumulation_steps": Value(int, "a whole number from 1", lambda value: value >= 1),
    "remat": _FLAG,
}


def _duration_rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for unit, kind in UNITS.items():
        for path in DURATIONS:
            # A run may have no warm-up; every other duration is a length or a period.
            rule = _NOT_NEGATIVE if path == "schedule.warmup" else _POSITIVE
            rules[f"{path}_{unit}"] = _optional(replace(rule, type=kind, verb="is"))
        rules[f"curriculum.listed.duration_{unit}"] = _list_over_stages(_POSITIVE)
    return rules


RULES: dict[str, Rule] = {
    **{path: _choice(names) for path, names in CHOICES.items()},
    **_duration_rules(),
    **_same_rule(_COUNT, "global_batch_size curriculum.num_stages curriculum.image_size_multiple"),
    **{f"curriculum.{field}": _range_over_stages(rule) for field, rule in _RANGES.items()},
    **{f"curriculum.{field}": rule for field, rule in _CONSTANTS.items()},
    **{f"curriculum.listed.{field}": _list_over_stages(rule) for field, rule in (_RANGES | _CONSTANTS).items()},
    "seed": Value(int, "from 0 to below 2^63", lambda value: 0 <= value < 2**63),
    **_same_rule(
        Value(int, "at least 1", lambda value: value >= 1),
        """data.max_labels data.prefetch_batches evaluation.image_size evaluation.batch_size checkpoint.keep_last""",
    ),
    **_same_rule(
        replace(_NOT_NEGATIVE, type=int),
        """batch_norm.group_size data.num_examples data.randaugment_layers data.num_workers data.num_threads
        checkpoint.keep_best""",
    ),
    **_same_rule(
        _NOT_NEGATIVE,
        """model.width model.depth optimizer.learning_rate_per_256 optimizer.epsilon optimizer.weight_decay
        optimizer.clip_norm""",
    ),
    **_same_rule(_POSITIVE, "batch_norm.epsilon schedule.decay_rate"),
    **_same_rule(
        _BELOW_ONE,
        """batch_norm.momentum optimizer.momentum optimizer.decay optimizer.beta1 optimizer.beta2 ema.decay
        loss.label_smoothing""",
    ),
    "data.holdout_percent": Value(float, "between 0 and 100", lambda value: 0 <= value < 100, verb="is"),
    "data.crop_area": _interval("(least, most), above 0 and at most 1", 1),
    "data.crop_aspect_ratio": _interval("(least, most), above 0", math.inf),
    **_same_rule(
        _FLAG,
        """batch_norm.frozen data.scaled_decoding data.flip data.reuse_batch data.skip_broken ema.warmup
        compilation.background""",
    ),
    **_same_rule(
        _TEXT,
        """init_from model.variant data.name data.data_dir data.train_split data.evaluation_split
        compilation.cache""",
    ),
    "init_pattern": _pattern,
    "model.blocks": _blocks,
    "optimizer.weight_decay_mask": _parameter_factors,
    "optimizer.learning_rate_multipliers": _parameter_factors,
}
