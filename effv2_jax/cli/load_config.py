"""The config of a file with overrides of the command line."""

import difflib
import os
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from effv2_jax.config import UNITS, flatten
from effv2_jax.config.validate import validate
from effv2_jax.errors import UserError, one_line


def load_config(file_and_argument: str, overrides: list[str]) -> ConfigDict:
    """The config of a file with overrides.

    Args:
      file_and_argument: such as 'configs/imagenet.py:s'; the argument goes to the file's `get_config`.
      overrides: such as ['--config.seed=1'].

    Raises:
      UserError: no such file, an unknown field, or a value that it cannot have.
    """
    config = _read_config(file_and_argument, overrides)
    validate(config)
    return config


def _read_config(file_and_argument: str, overrides: list[str]) -> ConfigDict:
    path = file_and_argument.partition(":")[0]
    if not os.path.exists(path):
        raise UserError(f"config file '{path}' does not exist; the shipped ones are in configs/")
    arguments = ["effv2", f"--config={file_and_argument}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        rest = values(arguments)
    except UserError:
        raise
    except Exception as error:  # the file is any Python, and the parsers of overrides raise several types
        # Without overrides the file itself is at fault.
        known = sorted(flatten(_read_config(file_and_argument, []).to_dict())) if overrides else []
        for field in map(_field, overrides):
            if field not in known and not any(name.startswith(f"{field}.") for name in known):
                raise UserError(f"config has no field '{field}'{_suggest(field, known)}") from None
        raise UserError(f"config cannot be read: {one_line(error)}") from error
    if len(rest) > 1:
        raise UserError(f"'{rest[1]}' is not an argument; overrides are written --config.FIELD=VALUE")
    _replace_durations(values.config, [_field(override) for override in overrides])
    return values.config


def _field(override: str) -> str:
    """'--config.ema.decay=0.5' as 'ema.decay'."""
    return override.partition("=")[0].partition(".")[2]


def _replace_durations(config: ConfigDict, overridden: list[str]) -> None:
    """Unsets the other units of an overridden duration: --config.total_steps=100 replaces the file's total_epochs."""
    for path in overridden:
        *parents, field = path.split(".")
        name, _, unit = field.rpartition("_")
        if unit not in UNITS or not name:
            continue
        section = config
        for parent in parents:
            section = section[parent]
        for other in UNITS:
            sibling = ".".join([*parents, f"{name}_{other}"])
            if sibling not in overridden and f"{name}_{other}" in section and section is not config.curriculum.listed:
                section[f"{name}_{other}"] = None


def _suggest(word: str, known: Sequence[str]) -> str:
    """'; did you mean ...?', or a pointer to the list of fields."""
    by_last_part = [name for name in known if name.rpartition(".")[2].endswith(word.rpartition(".")[2])]
    close = (
        difflib.get_close_matches(word, by_last_part, n=1, cutoff=0.8)
        or by_last_part
        or difflib.get_close_matches(word, known, n=1)
    )
    return f"; did you mean {' or '.join(close)}?" if close else "; `effv2 config` prints all fields"
