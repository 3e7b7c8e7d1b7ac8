"""EfficientNetV2 from scratch on a folder of your own images.

    effv2 train --config=configs/folder.py --config.data.name=PHOTOS --workdir=runs/photos

PHOTOS holds `train/CLASS/*.jpg` and `validation/CLASS/*.jpg` (`--config.data.evaluation_split=test` for another name),
or the classes themselves, a share of which `--config.data.holdout_percent=20` holds out for evaluation. The argument is
`VARIANT[,size=224][,runlocal]`: a network that `effv2 models` prints, without 'efficientnetv2-', and the largest image
size; the first stage has half of it. `runlocal` runs the same code for 8 steps on the digits with a thin network.
"""

from effv2_jax.config import defaults, duration, parse_argument
from effv2_jax.network.architecture import get_architecture
from effv2_jax.presets import check_size, shrink


def get_config(argument=None):
    args = parse_argument(argument, variant="b0", size=128, runlocal=False)
    size = args["size"]
    check_size("folder.py", size)
    config = defaults()
    config.model.variant = f"efficientnetv2-{args['variant']}"
    dropout = get_architecture(config.model.variant).dropout_rate
    config.global_batch_size = 32
    duration(config, "total", epochs=48.0)
    duration(config, "log", steps=20)
    duration(config, "evaluate", epochs=12.0)
    duration(config, "checkpoint", epochs=6.0)

    config.curriculum.image_size = (size // 2, size)
    config.curriculum.image_size_multiple = 16
    config.curriculum.mixup_alpha = (0.0, 0.2)
    config.curriculum.dropout_rate = (0.1, dropout)

    config.data.source = "folder"
    config.data.name = "PHOTOS"
    config.data.crop_area = (0.25, 1.0)
    # RandAugment's translations and cutouts are in pixels and meant for images of 200 px or more; try 'randaugment' at
    # such sizes.
    config.data.augmentation = "none"

    # The best of 0.0015, 0.004 and 0.016 after 12 epochs at 64 px on 720 photos of flowers (36 %, 54 %, 27 %).
    config.optimizer.learning_rate_per_256 = 0.004
    config.schedule.name = "cosine"
    config.ema.decay = 0.99  # for hundreds of steps; ImageNet's 0.9999 is for 100,000
    config.evaluation.image_size = size
    config.evaluation.batch_size = 32
    return shrink(config) if args["runlocal"] else config
