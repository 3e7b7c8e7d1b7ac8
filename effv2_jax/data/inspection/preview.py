"""Previews: the network's input for the same photos in each stage of a curriculum."""

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
    """Photos as one stage trains on them; `images` is uint8 [N, S, S, 3]."""

    stage: Stage
    title: str
    images: np.ndarray


def stage_rows(config: ConfigDict, curriculum: Curriculum, source: Source, count: int) -> list[Row]:
    """One row per stage, each with the first `count` readable photos in the order of epoch 0.

    The photos pass through the input pipeline of training with the random draws of epoch 0, and then through mixup and
    cutmix, which mix neighbours. A row shows the network's input with its normalization undone.

    Raises:
      UserError: `count` cannot be mixed (mixup or cutmix needs a multiple of 2, both need a multiple of 4), or the
        source has fewer readable photos.
    """
    unit = max(2 * sum(alpha > 0 for alpha in (stage.mixup_alpha, stage.cutmix_alpha)) for stage in curriculum.stages)
    if count < 1 or (unit and count % unit):
        raise UserError(f"--photos={count} must be a multiple of {unit or 1}, because these stages mix photos")
    indices = _readable_indices(config, source, count)
    rows = []
    for stage in curriculum.stages:
        examples = TrainExamples(source, config, curriculum, stage.start_step, 0, 1)
        photos = np.stack([examples.augment(source.load(index)[0], 0, index, stage) for index in indices])
        rows.append(Row(stage, _title(config, stage), _mix(config, stage, photos)))
    return rows


def _readable_indices(config: ConfigDict, source: Source, count: int) -> list[int]:
    indices: list[int] = []
    for position in range(len(source)):
        _, index = place_in_epoch(position, len(source), config.seed)
        try:
            source.load(index)[0].pixels()
        except BrokenImage:
            continue
        indices.append(index)
        if len(indices) == count:
            return indices
    raise UserError(f"the training split has only {len(indices)} readable photos; lower --photos={count}")


def _mix(config: ConfigDict, stage: Stage, photos: np.ndarray) -> np.ndarray:
    """uint8 [N, S, S, 3] after normalization and mixing as in `step.make_train_step`, with the normalization undone."""
    key = jax.random.fold_in(random_stream(config.seed, "mixing", stage.start_step), 0)
    images = normalize(jnp.asarray(photos), config.data.normalization, jnp.float32)
    images, _ = mix(key, images, jnp.zeros((len(photos), 1)), stage.mixup_alpha, stage.cutmix_alpha)
    offset, scale = (np.array(values, np.float32) for values in NORMALIZATIONS[config.data.normalization])
    return np.clip(np.rint(np.asarray(images) * scale + offset), 0, 255).astype(np.uint8)


def _title(config: ConfigDict, stage: Stage) -> str:
    data = config.data
    augmentation = "no RandAugment"
    if data.augmentation == "randaugment":
        augmentation = f"RandAugment {stage.randaugment_magnitude:.3g}"
    elif data.augmentation in ("autoaugment", "cutout"):
        augmentation += f" ({data.augmentation})"
    return (
        f"stage {stage.index + 1}: {stage.image_size} px, {augmentation}, mixup {stage.mixup_alpha:.3g}, "
        f"cutmix {stage.cutmix_alpha:.3g}"
    )
