"""Sources of examples: one module per kind of source, and `make_sources`, which selects one by the config."""

from ml_collections import ConfigDict

from effv2_jax.data.source import Sources
from effv2_jax.errors import UserError

__all__ = ["make_sources"]


def make_sources(config: ConfigDict) -> Sources:
    """The sources of `config.data`.

    Raises:
      UserError: any fault in the data that would stop training later: the data or a split do not exist, a class is
        empty, the splits have different classes, or `config.data.num_examples` differs from the number of examples.
    """
    # Imported only if used: TFDS and scikit-learn are slow to import.
    match config.data.source:
        case "tfds":
            from effv2_jax.data.sources.tfds import tfds_sources as open_sources
        case "folder":
            from effv2_jax.data.sources.folder import folder_sources as open_sources
        case "csv":
            from effv2_jax.data.sources.csv_list import csv_sources as open_sources
        case "digits":
            from effv2_jax.data.sources.digits import digits_sources as open_sources
    sources = open_sources(config)
    expected, actual = config.data.num_examples, len(sources.train)
    if expected and expected != actual:
        raise UserError(
            f"config.data.num_examples is {expected}, but the training split has {actual}: "
            f"set --config.data.num_examples={actual} if the data is complete"
        )
    return sources
