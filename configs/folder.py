"""EfficientNetV2 from scratch on a folder of your own images.

    effv2 train --config=configs/folder.py --config.data.name=PHOTOS --workdir=runs/photos

PHOTOS holds `train/CLASS/*.jpg` and `validation/CLASS/*.jpg` (`--config.data.evaluation_split=test` takes another
name), or the classes themselves, of which `--config.data.holdout_percent=20` sets a share aside. The argument is
`VARIANT[,size=224][,runlocal]`, a network that `effv2 models` prints without 'efficientnetv2-', and the largest image
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
    # RandAugment's translations and cutouts are in pixels, made for 200 px and more; there 'randaugment' is worth a
    # try.
    config.data.augmentation = "none"

    # Of 0.0015, 0.004 and 0.016, the best after 12 epochs at 64 px on 720 photos of flowers (36 %, 54 %, 27 %).
    config.optimizer.learning_rate_per_256 = 0.004
    config.schedule.name = "cosine"
    config.ema.decay = 0.99  # hundreds of steps, where ImageNet's 0.9999 is for 100,000
    config.evaluation.image_size = size
    config.evaluation.batch_size = 32
    return shrink(config) if args["runlocal"] else config
