"""The one validation of a config: every field, and every combination of fields.

Code that takes a config relies on it and does not check again. Three things are checked elsewhere, where they are
known: the network's name and blocks (`network.architecture`), whether the patterns of the optimizer match parameters
(`learning.optimizer`), and the data (`data.sources`).
"""

import itertools

from ml_collections import ConfigDict

from effv2_jax.config.durations import (
    DURATIONS,
    UNITS,
    end_steps,
    exact_total_steps,
    given_units,
    listed_end_steps,
    listed_units,
    steps_of,
    steps_per_unit,
)
from effv2_jax.config.fields import flatten
from effv2_jax.config.rules import RULES
from effv2_jax.config.stage_values import split_unit, stage_values
from effv2_jax.errors import UserError


class _Faults:
    """The faults found so far, and the fields that they are about."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self._fields: set[str] = set()

    def add(self, *sentences: str, field: str | None = None) -> None:
        """Adds faults of a field, or of a combination on which no other check depends."""
        self.sentences += (sentence for sentence in dict.fromkeys(sentences) if sentence not in self.sentences)
        if sentences and field:
            self._fields.add(field)

    def none_in(self, *prefixes: str) -> bool:
        """Whether no fault is about a field that begins with one of `prefixes`."""
        return not any(field.startswith(prefixes) for field in self._fields)

    def raise_all(self) -> None:
        if len(self.sentences) == 1:
            raise UserError(self.sentences[0])
        if self.sentences:
            raise UserError(f"the config has {len(self.sentences)} faults: {'; '.join(self.sentences)}")


def validate(
    config: ConfigDict,
    *,
    num_examples: int | None = None,
    num_devices: int | None = None,
    num_processes: int | None = None,
) -> None:
    """Checks a config as far as its surroundings are known.

    Args:
      config: of an experiment.
      num_examples: training examples in an epoch; None leaves the steps of the stages unchecked.
      num_devices: over which batches are split, in all processes; None leaves the division unchecked.
      num_processes: over which batches are split; None leaves the division unchecked.

    Raises:
      UserError: one or several faults; the message lists all of them.
    """
    faults = _Faults()
    values = flatten(config.to_dict())
    missing = [f"'{field}'" for field in RULES if field not in values]
    if missing:
        raise UserError(f"config has no field {', '.join(missing)}; a config starts from effv2_jax.config.defaults()")
    for field, rule in RULES.items():
        faults.add(*rule(field, values[field]), field=field)
    # A combination is checked if the fields that it reads are valid.
    _check_durations(config, faults)
    _check_lists(config, faults)
    _check_image_sizes(config, faults)
    _check_batch(config, faults)
    surroundings = {"num_devices": num_devices, "num_processes": num_processes}
    _check_division("global_batch_size", config.global_batch_size, faults, **surroundings)
    _check_division("evaluation.batch_size", config.evaluation.batch_size, faults, **surroundings)
    if num_examples is not None:
        _check_stage_ends(config, num_examples, faults)
    faults.raise_all()


def validate_evaluation(config: ConfigDict, *, num_devices: int, num_processes: int) -> None:
    """Checks that an evaluation batch can be divided, whatever the training batch is; raises UserError if not."""
    faults = _Faults()
    _check_division(
        "evaluation.batch_size",
        config.evaluation.batch_size,
        faults,
        num_devices=num_devices,
        num_processes=num_processes,
    )
    faults.raise_all()


def warnings(config: ConfigDict, num_examples: int, total_steps: int) -> list[str]:
    """What is valid but rarely meant, one sentence each; `total_steps` is the length of the run."""
    batch, sentences = config.global_batch_size, []
    warmup = steps_of(config.schedule, "warmup", batch_size=batch, num_examples=num_examples, total_steps=total_steps)
    if warmup >= total_steps:
        sentences.append(
            f"the warm-up of {warmup:g} steps (config.schedule.warmup_*) is at least as long as the run of "
            f"{total_steps}, which never reaches the peak of the learning rate"
        )
    if batch > num_examples:
        sentences.append(
            f"a batch of config.global_batch_size={batch} is more than the {num_examples:,} training examples: some "
            "are in it more than once"
        )
    return sentences


def _check_durations(config: ConfigDict, faults: _Faults) -> None:
    """Each duration is given in exactly one unit."""
    for path in DURATIONS:
        section, _, name = path.rpartition(".")
        given = given_units(config[section] if section else config, name)
        if len(given) > 1:
            fields = " and ".join(f"config.{path}_{unit}={value}" for unit, value in given.items())
            faults.add(f"{fields} give the same duration; keep one of them", field=f"{path}_")
        elif not given:
            units = [unit for unit in UNITS if unit != "percent" or name != "total"]
            fields = ", ".join(f"config.{path}_{unit}" for unit in units)
            faults.add(f"the duration '{name}' is not given; set one of {fields}", field=f"{path}_")
        elif name == "total" and "percent" in given:
            faults.add(
                "config.total_percent has no whole to be a share of; give the duration 'total' in another unit",
                field=f"{path}_",
            )


def _check_lists(config: ConfigDict, faults: _Faults) -> None:
    """Lists have one value per stage, and durations are listed in at most one unit."""
    count = config.curriculum.num_stages
    for name, values in config.curriculum.listed.items():
        field = f"curriculum.listed.{name}"
        if faults.none_in(field, "curriculum.num_stages") and len(values) not in (0, count):
            faults.add(
                f"config.{field} has {len(values)} values, but config.curriculum.num_stages is {count}; "
                "it needs one value per stage, or ()",
                field=field,
            )
    if len(listed := listed_units(config)) > 1:
        fields = " and ".join(f"config.curriculum.listed.duration_{unit}" for unit in listed)
        faults.add(
            f"{fields} are both given; keep one of them and set the rest to ()", field="curriculum.listed.duration_"
        )


def _check_image_sizes(config: ConfigDict, faults: _Faults) -> None:
    """No image size is rounded to 0."""
    curriculum = config.curriculum
    fields = ("curriculum.recipe", "curriculum.num_stages", "curriculum.image_size", "curriculum.listed.image_size")
    if not faults.none_in(*fields) or curriculum.listed.image_size:
        return
    for stage, size in enumerate(stage_values(curriculum, "image_size"), 1):
        if size < 1:
            faults.add(
                f"config.curriculum.image_size gives {size} in stage {stage} at "
                f"image_size_multiple={curriculum.image_size_multiple}; it must be a whole number of pixels from 1",
            )
            return


def _check_batch(config: ConfigDict, faults: _Faults) -> None:
    """Micro-batches, batch-norm groups and mixing divide the batch of every stage.

    A fault that several stages have is reported for the first one.
    """
    curriculum, batch, group = config.curriculum, config.global_batch_size, config.batch_norm.group_size
    accumulation = ("curriculum.accumulation_steps", "curriculum.listed.accumulation_steps")
    if not faults.none_in("global_batch_size", "batch_norm.group_size", "curriculum.num_stages", *accumulation):
        return
    mixings = [0] * curriculum.num_stages  # how many kinds of mixing each stage uses
    for field in ("mixup_alpha", "cutmix_alpha"):
        if faults.none_in("curriculum.recipe", f"curriculum.{field}", f"curriculum.listed.{field}"):
            mixings = [
                kinds + (alpha > 0) for kinds, alpha in zip(mixings, stage_values(curriculum, field), strict=True)
            ]
    unit = split_unit(config)
    reasons: dict[tuple, str] = {}
    parts_of_stages = stage_values(curriculum, "accumulation_steps")
    for stage, (parts, kinds) in enumerate(zip(parts_of_stages, mixings, strict=True), 1):
        where = f"config.global_batch_size={batch} does not fit: stage {stage}: "
        micro, rest = divmod(batch, parts)
        if rest:
            reasons.setdefault(
                ("parts", parts),
                f"accumulation_steps is {parts} in stage {stage}, which does not divide "
                f"config.global_batch_size={batch}; use a divisor",
            )
            continue
        if parts > 1 and micro % unit:
            reasons.setdefault(("unit", micro), f"{where}micro-batches of {micro} are not multiples of {unit}")
            continue
        if group and micro % group:
            reasons.setdefault(
                ("group", micro), f"{where}batch_norm.group_size={group} does not divide a (micro-)batch of {micro}"
            )
        if kinds and micro % (2 * kinds):
            reasons.setdefault(
                ("mixing", micro, kinds),
                f"{where}mixing needs a (micro-)batch of a multiple of {2 * kinds}, not {micro}",
            )
    faults.add(*reasons.values())


def _check_division(
    field: str, batch: int, faults: _Faults, *, num_devices: int | None, num_processes: int | None
) -> None:
    """Processes and devices divide a batch."""
    if not faults.none_in(field):
        return
    if num_processes is not None and batch % num_processes:
        faults.add(f"config.{field}={batch} is not a multiple of the {num_processes} processes")
    elif num_devices is not None and batch % num_devices:
        faults.add(f"config.{field}={batch} does not fit: the {num_devices} devices do not divide it")


def _check_stage_ends(config: ConfigDict, num_examples: int, faults: _Faults) -> None:
    """Listed durations add up to the run, and every stage has a step."""
    fields = ("total_", "global_batch_size", "curriculum.num_stages", "curriculum.listed.duration_")
    if not faults.none_in(*fields):
        return
    total, listed = exact_total_steps(config, num_examples), listed_end_steps(config, num_examples)
    if listed and abs(listed[-1] - total) >= 1:
        [unit] = listed_units(config)
        one = steps_per_unit(unit, batch_size=config.global_batch_size, num_examples=num_examples, total_steps=total)
        faults.add(
            f"config.curriculum.listed.duration_{unit} adds up to {float(listed[-1] / one):.10g} {unit}, but the run "
            f"has {float(total / one):.10g}",
        )
        return
    ends = end_steps(config, num_examples)
    for stage, (start, end) in enumerate(itertools.pairwise([0, *ends]), 1):
        if end <= start:
            faults.add(
                f"stage {stage} has no step: the run has {ends[-1]} steps for "
                f"config.curriculum.num_stages={len(ends)}; lengthen the run or this stage, or use fewer stages",
            )
            return
