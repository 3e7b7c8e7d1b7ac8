"""The default config with another length, batch and curriculum."""

from typing import Any

from ml_collections import ConfigDict

from effv2_jax.config import defaults


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
