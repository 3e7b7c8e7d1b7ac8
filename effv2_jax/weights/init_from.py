"""Initialization of a run from existing weights: which arrays are loaded, and which keep their initial values."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from effv2_jax.errors import UserError
from effv2_jax.experiment import Experiment
from effv2_jax.learning.step import TrainState
from effv2_jax.network.model import make_model
from effv2_jax.weights import Bundle, read_weights
from effv2_jax.weights.bundle import Variables, flatten_arrays, unflatten_arrays

CLASSIFIER = "params/classifier/"
Arrays = dict[str, np.ndarray]  # by path, such as 'batch_stats/stem_bn/mean'


def read_initial_weights(experiment: Experiment, log: Callable[[str], None]) -> Arrays:
    """`arrays_to_start_from` of an experiment; {} where its config names no weights."""
    if not experiment.config.init_from:
        return {}
    shapes, class_names = experiment.compiler.abstract_state, experiment.sources.class_names
    return arrays_to_start_from(experiment.config, shapes, class_names, log)


def arrays_to_start_from(
    config: ConfigDict, fresh: TrainState, class_names: tuple[str, ...], log: Callable[[str], None]
) -> Arrays:
    """The arrays of `config.init_from` whose paths match `config.init_pattern`, including batch-norm statistics.

    A classifier for other classes is not loaded: a different number of classes, or shared names in a different order.

    Args:
      config: the config of the experiment.
      fresh: the initial state, or its shapes.
      class_names: the classes of the data.
      log: receives a line with the arrays that are loaded, that keep their initial values, and that are ignored.

    Raises:
      UserError: the weights are unreadable or of another network (the message lists all differences), or the pattern
        matches nothing.
    """
    path, pattern = config.init_from, config.init_pattern
    regex = re.compile(pattern)
    try:
        bundle = read_weights(path)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from None
    shapes = {name: leaf.shape for name, leaf in flatten_arrays(fresh.variables).items()}
    chosen = {name: value for name, value in flatten_arrays(bundle.variables).items() if regex.search(name)}
    if not chosen:
        raise UserError(f"config.init_pattern '{pattern}' matches no array of '{path}'")
    ignored = {name for name, value in chosen.items() if value.shape != shapes.get(name)}
    if any(name.startswith(CLASSIFIER) for name in ignored) or _classes_differ(bundle.class_names, class_names):
        ignored |= {name for name in chosen if name.startswith(CLASSIFIER)}
    kept = [name for name in shapes if name not in chosen or name in ignored]
    body = [name for name in shapes if not name.startswith(CLASSIFIER)]
    missing = [] if pattern else [name for name in body if name not in chosen]
    mismatched = [name for name in sorted(ignored) if name in body or name not in shapes]
    _check_network(config, bundle, mismatched, shapes, chosen, missing)
    if len(kept) == len(shapes):
        raise UserError(
            f"config.init_pattern '{pattern}' leaves nothing of '{path}' to load, because its classes differ"
        )
    log(
        f"weights of {bundle.architecture.name} from {path}: {len(shapes) - len(kept)} of {len(shapes)} arrays loaded; "
        f"with initial values: {', '.join(kept) or 'none'}; "
        f"ignored in the file: {', '.join(sorted(ignored)) or 'none'}"
    )
    if bundle.preprocess.normalization != config.data.normalization:
        log(
            f"WARNING: these weights were trained with normalization '{bundle.preprocess.normalization}'; "
            f"set --config.data.normalization={bundle.preprocess.normalization}"
        )
    return {name: np.asarray(value) for name, value in chosen.items() if name not in ignored}


def _classes_differ(theirs: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    """Whether the names prove it: some are shared, but the lists are not equal."""
    return bool(set(theirs) & set(ours)) and theirs != ours


def start_from(state: TrainState, arrays: Arrays) -> TrainState:
    """The state with its arrays replaced by these, in the moving averages (EMA) too."""

    def replaced(variables: Variables) -> Variables:
        # may_alias=False: the state is donated, and a buffer cannot be donated twice.
        return unflatten_arrays(
            {
                name: jax.device_put(arrays[name], leaf.sharding, may_alias=False) if name in arrays else leaf
                for name, leaf in flatten_arrays(variables).items()
            }
        )

    variables = replaced(state.variables)
    averages = replaced(state.ema) if state.ema else {}
    return dataclasses.replace(state, params=variables["params"], batch_stats=variables["batch_stats"], ema=averages)


def _check_network(
    config: ConfigDict,
    bundle: Bundle,
    mismatched: list[str],
    shapes: dict[str, tuple[int, ...]],
    given: dict[str, Any],
    missing: list[str],
) -> None:
    """Raises UserError, with every reason, if the weights belong to another network."""
    faults = [
        f"{name} {list(given[name].shape)} instead of {list(shapes.get(name, ())) or 'nothing'}" for name in mismatched
    ]
    faults += [f"{name} is missing" for name in missing]
    ours = make_model(config, 0, "cpu").architecture.blocks
    if not faults and not config.init_pattern and bundle.architecture.blocks != ours:
        faults.append("its blocks have different strides, kernels or squeeze-excites")
    if faults and bundle.architecture.name != config.model.variant and not config.init_pattern:
        raise UserError(
            f"'{config.init_from}' holds {bundle.architecture.name}, but config.model.variant is "
            f"{config.model.variant}; set --config.model.variant={bundle.architecture.name}, if the config's argument "
            "does not"
        )
    if config.model.padding != bundle.padding:
        faults.append(f"its padding is '{bundle.padding}': set --config.model.padding={bundle.padding}")
    if config.batch_norm.epsilon != bundle.batch_norm_epsilon:
        epsilon = bundle.batch_norm_epsilon
        faults.append(f"its batch-norm epsilon is {epsilon:g}: set --config.batch_norm.epsilon={epsilon:g}")
    if faults:
        raise UserError(
            f"'{config.init_from}' ({bundle.architecture.name}) does not fit {config.model.variant}: "
            f"{'; '.join(faults)}"
        )
