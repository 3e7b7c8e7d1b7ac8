"""Where examples come from: one module per kind of source, and `make_sources`, which chooses."""

from ml_collections import ConfigDict

from effv2_jax.data.source import Sources
from effv2_jax.errors import UserError


def make_sources(config: ConfigDict) -> Sources:
    """The sources of `config.data`.

    Raises:
      UserError: what would stop training later: no such data, an empty class, a missing split, other classes in
        evaluation, another number of examples than `config.data.num_examples`.
    """
    if config.data.source == "folder":
        from effv2_jax.data.sources.folder import folder_sources as make
    elif config.data.source == "tfds":
        from effv2_jax.data.sources.tfds import tfds_sources as make
    elif config.data.source == "csv":
        from effv2_jax.data.sources.csv_list import csv_sources as make
    else:
        from effv2_jax.data.sources.digits import digits_sources as make
    sources = make(config)
    expected, found = config.data.num_examples, len(sources.train)
    if expected and expected != found:
        raise UserError(
            f"config.data.num_examples is {expected}, but the training split holds {found}: "
            f"set --config.data.num_examples={found} if the data is complete"
        )
    return sources
