"""Checkpoints of google/automl: TensorFlow 1 names, each variable followed by its moving average."""

import os
import re
from pathlib import Path

from effv2_jax.errors import UserError, require
from effv2_jax.weights.tensors import Tensors, damaged

_AVERAGE = "/ExponentialMovingAverage"
# Of the optimizers; and 'global_step', which has no scope.
_SLOT = re.compile(r"/(RMSProp|RMSProp_1|Momentum|Adam|Adam_1)$")


def checkpoint_prefix(path: Path) -> str | None:
    """The name of a checkpoint in TensorFlow: of a folder the newest, of one of its files the prefix they share."""
    if path.is_dir():
        state = path / "checkpoint"
        text = state.read_text(errors="replace") if state.is_file() else ""
        named = re.search(r'model_checkpoint_path: "([^"]+)"', text)
        prefixes = [path / Path(named[1]).name] if named else []
        prefixes += sorted((index.with_suffix("") for index in path.glob("*.index")), key=_step, reverse=True)
        return next((str(prefix) for prefix in prefixes if Path(f"{prefix}.index").exists()), None)
    prefix = re.sub(r"\.(index|data-\d+-of-\d+)$", "", str(path))
    return prefix if Path(f"{prefix}.index").exists() else None


def _step(prefix: Path) -> int:
    number = re.search(r"(\d+)$", prefix.name)
    return int(number[1]) if number else -1


def open_automl(prefix: str) -> Tensors:
    """The variables of a network; raises UserError if it is damaged or of TensorFlow 2, or TensorFlow is missing."""
    require("tensorflow", "tensorflow", f"'{prefix}' is a checkpoint of TensorFlow, and reading it")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it prints a long notice otherwise
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(prefix)
        stored = reader.get_variable_to_shape_map()
    except Exception as error:  # TensorFlow's own types
        raise damaged(prefix, error) from error
    if "_CHECKPOINTABLE_OBJECT_GRAPH" in stored:
        raise UserError(f"'{prefix}' is an object checkpoint of TensorFlow 2; automl released TensorFlow 1 checkpoints")
    full_names, shapes, averages = {}, {}, {}
    for full in stored:
        if "/" not in full or _SLOT.search(full.removesuffix(_AVERAGE)) or _SLOT.search(full):
            continue
        name = full.partition("/")[2]  # without the model's name
        if full.endswith(_AVERAGE):
            averages[name.removesuffix(_AVERAGE)] = name
        else:
            shapes[name] = tuple(stored[full])
        full_names[name] = full
    for name in averages.keys() - shapes.keys():  # an export of the averages alone
        shapes[name] = tuple(stored[full_names[averages[name]]])
    return Tensors(prefix, ("automl",), shapes, lambda name: reader.get_tensor(full_names[name]), averaged=averages)
