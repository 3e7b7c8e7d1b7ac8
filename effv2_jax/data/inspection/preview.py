"""What the network sees of the same photos in each stage of a curriculum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from effv2_jax.curriculum import Curriculum, Stage
from effv2_jax.data.images.decode import BrokenImage
from effv2_jax.data.pipeline import TrainExamples, place_in_epoch
from effv2_jax.data.source import Source
from effv2_jax.errors import UserError
from effv2_jax.learning.mixing import mix
from effv2_jax.learning.step import random_stream
from effv2_jax.network.model import NORMALIZATIONS, normalize


@dataclasses.dataclass(frozen=True)
class Row:
    """Photos as a stage trains on them: uint8 [N, S, S, 3]."""

    stage: Stage
    title: str
    images: np.ndarray


def stage_rows(config: ConfigDict, curriculum: Curriculum, source: Source, count: int) -> list[Row]:
    """A row a stage, each of the same first `count` readable photos of the order of epoch 0.

    They go through the input pipeline of training, with the draws of epoch 0, and then through the mixing of the
    device, neighbours with each other; what is shown is the network's input, its normalisation undone.

    Raises:
      UserError: a number of photos that cannot be mixed (one kind wants a multiple of 2, two of 4), or fewer readable
        ones.
    """
    unit = max(2 * ((stage.mixup_alpha > 0) + (stage.cutmix_alpha > 0)) for stage in curriculum.stages)
    if count < 1 or (unit and count % unit):
        raise UserError(f"--photos={count} must be a multiple of {unit or 1}, as these stages mix")
    indices = _readable(config, source, count)
    rows = []
    for stage in curriculum.stages:
        examples = TrainExamples(source, config, curriculum, stage.start_step, 0, 1)
        photos = np.stack([examples.augment(source.load(index)[0], 0, index, stage) for index in indices])
        rows.append(Row(stage, _title(config, stage), _mixed(config, stage, photos)))
    return rows


def _readable(config: ConfigDict, source: Source, count: int) -> list[int]:
    indices: list[int] = []
    for place in range(len(source)):
        _, index = place_in_epoch(place, len(source), config.seed)
        try:
            source.load(index)[0].pixels()
        except BrokenImage:
            continue
        indices.append(index)
        if len(indices) == count:
            return indices
    raise UserError(f"the training split has {len(indices)} readable photos, fewer than --photos={count}")


def _mixed(config: ConfigDict, stage: Stage, photos: np.ndarray) -> np.ndarray:
    """uint8 [N, S, S, 3] after what `step.make_train_step` does before the network."""
    key = jax.random.fold_in(random_stream(config.seed, "mixing", stage.start_step), 0)
    images = normalize(jnp.asarray(photos), config.data.normalization, jnp.float32)
    images, _ = mix(key, images, jnp.zeros((len(photos), 1)), stage.mixup_alpha, stage.cutmix_alpha)
    offset, scale = (np.array(values, np.float32) for values in NORMALIZATIONS[config.data.normalization])
    return np.clip(np.rint(np.asarray(images) * scale + offset), 0, 255).astype(np.uint8)


def _title(config: ConfigDict, stage: Stage) -> str:
    data = config.data
    used = f"RandAugment {stage.randaugment_magnitude:.3g}" if data.augmentation == "randaugment" else "no RandAugment"
    if data.augmentation in ("autoaugment", "cutout"):
        used += f" ({data.augmentation})"
    return (
        f"stage {stage.index + 1}: {stage.image_size} px, {used}, mixup {stage.mixup_alpha:.3g}, "
        f"cutmix {stage.cutmix_alpha:.3g}"
    )
