"""Reading of weights from the checkpoints of a training run."""

import os

import jax
from etils import epath

from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints
from effv2_jax.config import from_dict
from effv2_jax.curriculum import Curriculum, Stage
from effv2_jax.errors import UserError
from effv2_jax.network.model import make_model
from effv2_jax.runtime.compiler import Compiler
from effv2_jax.runtime.mesh import make_mesh
from effv2_jax.weights.bundle import Bundle
from effv2_jax.weights.preprocess import Preprocess


def is_run(path: str | os.PathLike) -> bool:
    """Whether a folder is the workdir of a run."""
    return (epath.Path(path) / CHECKPOINTS).exists()


def read_run(path: str | os.PathLike, which: str = "") -> Bundle:
    """Reads the raw and averaged weights of a checkpoint with the run's classes and evaluation preprocessing.

    Args:
      path: the workdir.
      which: 'best', 'latest' or a step; '' is the best checkpoint if one was evaluated, else the latest.

    Raises:
      UserError: the checkpoint does not exist or is damaged.
    """
    checkpoints = Checkpoints(epath.Path(path) / CHECKPOINTS, read_only=True)
    step = checkpoints.find(which or ("latest" if checkpoints.best() is None else "best"))
    run = checkpoints.restore_run(step)
    if "class_names" not in run:
        raise UserError(
            f"checkpoint {step} of '{path}' was saved by an older release, which did not store the class names"
        )
    config, class_names = from_dict(run["config"]), tuple(run["class_names"])
    stages = tuple(Stage(**stage) for stage in run["stages"])
    curriculum = Curriculum(stages, stages[-1].end_step)
    compiler = Compiler(config, curriculum, len(class_names), 1, make_mesh())
    state, _ = checkpoints.restore(step, compiler.abstract_state)
    checkpoints.close()
    model = make_model(config, len(class_names), jax.default_backend())
    return Bundle(
        architecture=model.architecture,
        num_classes=model.num_classes,
        sets=jax.device_get(state.sets),
        preprocess=Preprocess(
            config.evaluation.image_size,
            config.data.evaluation_crop,
            config.data.interpolation,
            config.data.normalization,
        ),
        class_names=class_names,
        padding=model.padding,
        batch_norm_epsilon=model.batch_norm_epsilon,
    )
