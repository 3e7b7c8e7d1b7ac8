"""The parts that several experiments of `configs/` share."""

from ml_collections import ConfigDict

from effv2_jax.config import defaults, duration
from effv2_jax.errors import UserError
from effv2_jax.network.architecture import get_architecture

MINIVAL = 25_021  # the first training examples of ImageNet-1k, held out for choices (paper, section 4.1)


def imagenet(variant: str) -> ConfigDict:
    """ImageNet-1k from scratch: `defaults` with a variant and the data; the curriculum is unchanged."""
    config = defaults()
    config.model.variant = variant
    imagenet_data(config)
    config.batch_norm.group_size = 1024  # the released TPU batch norm: groups of 8 cores with 128 images each
    config.evaluation.image_size = get_architecture(variant).evaluation_size
    return config


def imagenet_data(config: ConfigDict) -> None:
    """Sets the data to ImageNet-1k without the images that are held out for choices."""
    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.train_split = f"train[{MINIVAL}:]"
    config.data.evaluation_split = "validation"
    config.data.num_examples = 1_281_167 - MINIVAL


def check_size(file: str, size: int) -> None:
    """Raises UserError if the argument `size` of a config file is too small for a network."""
    if size < 32:
        raise UserError(f"configs/{file}: size={size} is too small; the network halves it five times")


def finetune(variant: str, size: int, recipe: str) -> ConfigDict:
    """The paper's fine-tuning, without data and length: one size, cutout, squashed images.

    google/automl datasets.py `ImagenetFt`, preprocessing.py `preprocess_for_finetune`; paper, section 5.3.

    Args:
      variant: a name that `effv2 models` prints.
      size: pixels, rounded down to a multiple of 16; 0 is the variant's evaluation size.
      recipe: 'paper' (a cosine schedule) or 'automl' (a constant one).
    """
    config = defaults()
    config.model.variant = variant
    config.init_from = "WEIGHTS"
    size = (size or get_architecture(variant).evaluation_size) // 16 * 16
    config.global_batch_size = 512
    config.curriculum.num_stages = 1
    config.curriculum.image_size = (size, size)
    config.curriculum.dropout_rate = (0.0, 0.0)  # the released 1e-6 has no effect
    config.evaluation.image_size = size
    config.data.source = "tfds"
    config.data.crop_area = (1.0, 1.0)
    config.data.augmentation = "cutout"
    config.data.normalization = "unit"
    config.data.evaluation_crop = "squash"
    config.optimizer.learning_rate_per_256 = 0.0005
    config.schedule.name = "cosine" if recipe == "paper" else "constant"
    duration(config.schedule, "warmup", epochs=1.0)
    config.ema.decay = 0.9996
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """Changes a config in place to run on a laptop: 8 steps of the same recipe on the digits, with a thin network."""
    config.global_batch_size = 16
    duration(config, "total", steps=8)
    duration(config, "log", steps=2)
    duration(config, "evaluate", steps=8)
    duration(config, "checkpoint", steps=4)
    duration(config.schedule, "warmup", steps=2)
    duration(config.schedule, "decay", steps=2)
    config.model.width, config.model.depth = 0.25, 0.25
    config.batch_norm.group_size = min(config.batch_norm.group_size, 8)
    config.curriculum.image_size = tuple(size // 4 for size in config.curriculum.image_size)
    config.data.source, config.data.name, config.data.num_examples = "digits", "", 0
    config.init_from = ""  # weights of the full network do not fit
    config.evaluation.image_size = 64
    config.evaluation.batch_size = 128
    return config
