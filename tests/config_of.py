"""The default config with changes, and what is wrong with it."""

from typing import Any

import pytest
from ml_collections import ConfigDict

from effv2_jax.config import defaults
from effv2_jax.config.validate import validate
from effv2_jax.errors import UserError


def config_of(total: dict[str, Any] | None = None, batch_size: int = 4096, **fields: Any) -> ConfigDict:
    """`defaults` with total={'steps': 8}, fields of the curriculum, and listed={'image_size': (...)}."""
    config = defaults()
    config.global_batch_size = batch_size
    if total:
        config.total_epochs = None
        for unit, value in total.items():
            config[f"total_{unit}"] = value
    listed = fields.pop("listed", {})
    config.curriculum.update(fields)
    config.curriculum.listed.update(listed)
    return config


def with_values(**values: Any) -> ConfigDict:
    """The default config with fields, given as `schedule__name="cosine"`, of any type."""
    config = defaults()
    with config.ignore_type():
        config.update_from_flattened_dict({path.replace("__", "."): value for path, value in values.items()})
    return config


def fault_of(config: ConfigDict, **surroundings: int) -> str:
    """The sentence of the error that `validate` raises."""
    with pytest.raises(UserError) as error:
        validate(config, **surroundings)
    assert "\n" not in str(error.value)
    return str(error.value)
