"""Fine-tuning from published or own weights on a folder of images or a TFDS data set.

    effv2 train --config=configs/finetune.py --config.init_from=WEIGHTS --config.data.name=PHOTOS --workdir=runs/tuned

WEIGHTS is any file that `effv2 convert` reads, or the workdir of a run. PHOTOS is a folder as in configs/folder.py; for
a TFDS data set add `--config.data.source=tfds` and its name. The argument is `VARIANT[,size=224]`, a network that
`effv2 models` prints without 'efficientnetv2-', and the largest image size.

Otherwise than the paper (section 5.3: batch 512, 10,000 steps, cosine, no weight decay, cutout), for sets of hundreds
of images on a CPU: small batches, few epochs, two sizes, no cutout.
"""

from effv2_jax.architecture import get_architecture
from effv2_jax.config import defaults, duration, parse_argument


def get_config(argument=None):
    args = parse_argument(argument, variant="b0", size=192)
    size = args["size"]
    config = defaults()
    config.model.variant = f"efficientnetv2-{args['variant']}"
    architecture = get_architecture(config.model.variant)
    config.global_batch_size = 32
    duration(config, "total", epochs=8.0)
    duration(config, "log", steps=10)
    duration(config, "evaluate", epochs=4.0)
    duration(config, "checkpoint", epochs=2.0)
    config.init_from = "WEIGHTS"

    config.curriculum.num_stages = 2
    config.curriculum.image_size = (128, size)
    config.curriculum.image_size_multiple = 16
    config.curriculum.dropout_rate = (architecture.dropout_rate, architecture.dropout_rate)

    config.data.source = "folder"
    config.data.name = "PHOTOS"
    config.data.crop_area = (0.25, 1.0)
    config.data.augmentation = "none"
    config.data.normalization = architecture.normalization
    config.data.interpolation = architecture.interpolation
    config.data.evaluation_crop = "squash"

    config.optimizer.learning_rate_per_256 = 0.008
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "cosine"
    duration(config.schedule, "warmup", epochs=1.0)
    config.ema.decay = 0.95  # a hundred steps, where ImageNet's 0.9999 is for 100,000
    config.evaluation.image_size = architecture.evaluation_size
    config.evaluation.batch_size = 32
    return config
