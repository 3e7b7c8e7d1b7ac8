"""A configuration small enough to train in seconds, with every part of the recipe in it."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from effv2_jax.config import defaults, duration
from effv2_jax.curriculum import make_curriculum
from effv2_jax.runtime.compiler import Compiler
from effv2_jax.runtime.mesh import make_mesh

NUM_CLASSES = 10
NUM_EXAMPLES = 1442
# Overrides that make a run of any shipped config small.
SMALL = [
    "--config.total_steps=8",
    "--config.global_batch_size=16",
    "--config.log_steps=2",
    "--config.evaluate_steps=4",
    "--config.checkpoint_steps=2",
    "--config.schedule.warmup_steps=1",
    "--config.evaluation.batch_size=32",
    "--config.model.blocks=('r1_k3_s1_e1_i8_o8_c1','r2_k3_s2_e2_i8_o16_se0.25')",
    "--config.model.width=0.25",
]


def tiny_config(**changes: Any) -> ConfigDict:
    """Four stages of two steps on the digits, 16 to 32 px; changes are given as `curriculum__num_stages=2`."""
    config = defaults()
    config.global_batch_size = 16
    duration(config, "total", steps=8)
    duration(config, "log", steps=1)
    duration(config, "evaluate", steps=4)
    duration(config, "checkpoint", steps=2)
    config.model.blocks = ("r1_k3_s1_e1_i8_o8_c1", "r2_k3_s2_e2_i8_o16_c1", "r2_k3_s2_e2_i16_o16_se0.25")
    config.model.width = 0.25
    config.batch_norm.group_size = 2
    config.curriculum.image_size = (16, 32)
    config.curriculum.image_size_multiple = 16
    config.curriculum.mixup_alpha = (0.0, 0.2)
    config.curriculum.cutmix_alpha = (0.0, 0.2)
    config.curriculum.randaugment_magnitude = (0.0, 1.0)
    config.data.source = "digits"
    config.data.name = ""
    config.data.num_threads = 2
    config.data.evaluation_crop = "squash"
    duration(config.schedule, "warmup", steps=2)
    duration(config.schedule, "decay", steps=2)
    config.evaluation.image_size = 32
    config.evaluation.batch_size = 128
    for path, value in changes.items():
        *parents, name = path.split("__")
        section = config
        for parent in parents:
            section = section[parent]
        section[name] = value
    return config


def compiler_of(config: ConfigDict, devices: Any = None) -> tuple[Compiler, Any]:
    """The compiler of a config on `devices` (all by default), and its curriculum."""
    curriculum = make_curriculum(config, NUM_EXAMPLES)
    mesh = make_mesh(devices)
    return Compiler(config, curriculum, NUM_CLASSES, NUM_EXAMPLES, mesh), curriculum


def random_batch(seed: int, batch_size: int, image_size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8),
        "label": rng.integers(0, NUM_CLASSES, batch_size, np.int32),
    }


def to_host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, jax.device_get(tree))
