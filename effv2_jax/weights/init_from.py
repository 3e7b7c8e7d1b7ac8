"""A run that starts from other weights: what is loaded, what keeps its fresh value, and what is left aside."""

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
from effv2_jax.weights.bundle import flatten, unflatten

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
    """The arrays of `config.init_from` whose paths match `config.init_pattern`, statistics included.

    A classifier for other classes is left aside: another number of them, or some of the same names in another order.

    Args:
      config: the experiment's.
      fresh: a state, or its shapes.
      class_names: of the data.
      log: is told what is loaded, what stays fresh and what is left aside.

    Raises:
      UserError: unreadable weights; another network (lists all that differs); a pattern that matches nothing.
    """
    path, pattern = config.init_from, config.init_pattern
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UserError(f"config.init_pattern: '{pattern}' is no regular expression: {error}") from None
    try:
        bundle = read_weights(path)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from None
    shapes = {name: leaf.shape for name, leaf in flatten(fresh.variables).items()}
    chosen = {name: value for name, value in flatten(bundle.variables).items() if wanted.search(name)}
    if not chosen:
        raise UserError(f"config.init_pattern '{pattern}' matches no array of '{path}'")
    aside = {name for name, value in chosen.items() if value.shape != shapes.get(name)}
    if any(name.startswith(CLASSIFIER) for name in aside) or _other_classes(bundle.class_names, class_names):
        aside |= {name for name in chosen if name.startswith(CLASSIFIER)}
    kept = [name for name in shapes if name not in chosen or name in aside]
    body = [name for name in shapes if not name.startswith(CLASSIFIER)]
    missing = [] if pattern else [name for name in body if name not in chosen]
    _check_network(
        config, bundle, [name for name in sorted(aside) if name in body or name not in shapes], shapes, chosen, missing
    )
    if len(kept) == len(shapes):
        raise UserError(f"config.init_pattern '{pattern}' leaves nothing of '{path}' to load: its classes are others")
    log(
        f"weights of {bundle.architecture.name} from {path}: {len(shapes) - len(kept)} of {len(shapes)} arrays loaded; "
        f"with fresh values: {', '.join(kept) or 'none'}; "
        f"of the weights left aside: {', '.join(sorted(aside)) or 'none'}"
    )
    if bundle.preprocess.normalization != config.data.normalization:
        log(
            f"WARNING: these weights were trained with normalization '{bundle.preprocess.normalization}'; "
            f"--config.data.normalization={bundle.preprocess.normalization} sets it"
        )
    return {name: np.asarray(value) for name, value in chosen.items() if name not in aside}


def _other_classes(theirs: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    """Whether names tell it: some are shared, but not all in their places."""
    return bool(set(theirs) & set(ours)) and theirs != ours


def start_from(state: TrainState, arrays: Arrays) -> TrainState:
    """The state with these arrays in place of its own, in the averages (EMA) too."""

    def placed(variables: Any) -> Any:
        # Never an alias: the state is donated, and a buffer cannot be donated twice.
        return unflatten(
            {
                name: jax.device_put(arrays[name], leaf.sharding, may_alias=False) if name in arrays else leaf
                for name, leaf in flatten(variables).items()
            }
        )

    variables = placed(state.variables)
    averages = placed(state.ema) if state.ema else {}
    return dataclasses.replace(state, params=variables["params"], batch_stats=variables["batch_stats"], ema=averages)


def _check_network(
    config: ConfigDict,
    bundle: Bundle,
    aside: list[str],
    shapes: dict[str, tuple[int, ...]],
    given: dict[str, Any],
    missing: list[str],
) -> None:
    """Raises UserError, with every reason, where the weights are another network's."""
    faults = [
        f"{name} {list(given[name].shape)} instead of {list(shapes.get(name, ())) or 'nothing'}" for name in aside
    ]
    faults += [f"{name} is not there" for name in missing]
    ours = make_model(config, 0, "cpu").architecture.blocks
    if not faults and not config.init_pattern and bundle.architecture.blocks != ours:
        faults.append("its blocks have other strides, kernels or squeeze-excites")
    if faults and bundle.architecture.name != config.model.variant and not config.init_pattern:
        raise UserError(
            f"'{config.init_from}' is of {bundle.architecture.name}, the config of {config.model.variant}: "
            f"--config.model.variant={bundle.architecture.name} sets it, if the config's argument does not"
        )
    if config.model.padding != bundle.padding:
        faults.append(f"padding '{bundle.padding}': --config.model.padding={bundle.padding} sets it")
    if config.batch_norm.epsilon != bundle.batch_norm_epsilon:
        epsilon = bundle.batch_norm_epsilon
        faults.append(f"a batch-norm epsilon of {epsilon:g}: --config.batch_norm.epsilon={epsilon:g} sets it")
    if faults:
        raise UserError(
            f"'{config.init_from}' ({bundle.architecture.name}) does not fit {config.model.variant}: "
            f"{'; '.join(faults)}"
        )
