"""A small EfficientNetV2 on scikit-learn's 1,797 handwritten digits, in four progressive stages: the demonstration.

    effv2 train --config=configs/digits.py --workdir=runs/digits

Needs no download.
"""

from effv2_jax.config import defaults, duration, parse_argument


def get_config(argument=None):
    parse_argument(argument)
    config = defaults()
    config.global_batch_size = 64
    duration(config, "total", steps=900)
    duration(config, "log", steps=50)
    duration(config, "evaluate", percent=25.0)
    duration(config, "checkpoint", percent=25.0)

    config.model.blocks = (
        "r1_k3_s1_e1_i16_o16_c1",
        "r2_k3_s2_e4_i16_o24_c1",
        "r2_k3_s2_e4_i24_o48_se0.25",
        "r2_k3_s1_e4_i48_o64_se0.25",
    )

    config.curriculum.image_size = (16, 32)
    config.curriculum.randaugment_magnitude = (0.0, 1.0)
    config.curriculum.mixup_alpha = (0.0, 0.2)
    config.curriculum.dropout_rate = (0.0, 0.2)

    config.data.source = "digits"
    config.data.name = ""
    config.data.crop_area = (0.6, 1.0)
    config.data.flip = False  # a mirrored 2 is not a 2
    config.data.augmentation = "none"
    config.data.evaluation_crop = "squash"

    config.optimizer.learning_rate_per_256 = 0.016
    config.schedule.name = "cosine"
    config.ema.decay = 0.99
    config.evaluation.image_size = 32
    config.evaluation.batch_size = 128
    return config
