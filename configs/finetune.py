"""Fine-tuning from published or own weights, on a folder of images or as the paper does.

    effv2 train --config=configs/finetune.py --config.init_from=WEIGHTS --config.data.name=PHOTOS --workdir=runs/tuned
    effv2 train --config=configs/finetune.py:s,data=cifar10 --config.init_from=WEIGHTS --workdir=runs/cifar10

WEIGHTS is any file that `effv2 convert` reads, or the workdir of a run. The argument is
`VARIANT[,size=224][,data=...][,recipe=paper|automl]`, a network that `effv2 models` prints without 'efficientnetv2-',
and the largest image size.

`data=folder` (the default) is PHOTOS, a folder as in configs/folder.py, or with `--config.data.source=tfds` a data set
of TFDS. It is for sets of hundreds of images on a CPU: small batches, few epochs, two sizes, no cutout.

`data=cifar10`, `cifar100`, `flowers` and `cars` are the paper's (section 5.3, Table 9), from TFDS: batch 512, 10,000
steps, one size, cutout. `recipe=paper` has a cosine schedule and no weight decay; `recipe=automl` is the released code,
a constant one and 1e-5. Published top-1 (paper, Table 8, from ImageNet-1k weights, mean of 5 runs):

    variant   cifar10   cifar100   flowers   cars
    s         98.7      91.5       97.9      93.8
    m         99.0      92.2       98.5      94.6
    l         99.1      92.3       98.8      95.1
"""

from effv2_jax.architecture import get_architecture
from effv2_jax.config import defaults, duration, parse_argument
from effv2_jax.errors import UserError, check_known

# data=: TFDS name, training and evaluation split, training examples (paper, Table 9).
PAPER = {
    "cifar10": ("cifar10", "train", "test", 50_000),
    "cifar100": ("cifar100", "train", "test", 50_000),
    "flowers": ("oxford_flowers102", "train+validation", "test", 2_040),
    "cars": ("cars196", "train", "test", 8_144),
}


def get_config(argument=None):
    args = parse_argument(argument, variant="b0", size=0, data="folder", recipe="paper")
    check_known("data", args["data"], ("folder", *PAPER))
    check_known("recipe", args["recipe"], ("paper", "automl"))
    config = defaults()
    config.model.variant = f"efficientnetv2-{args['variant']}"
    config.init_from = "WEIGHTS"
    config.data.evaluation_crop = "squash"
    architecture = get_architecture(config.model.variant)
    if args["size"] and args["size"] < 32:
        raise UserError(f"configs/finetune.py: size={args['size']} is too small; the network halves it five times")
    if args["data"] == "folder":
        folder(config, args["size"] or 192)
    else:
        paper(config, args["data"], args["size"] or architecture.evaluation_size, args["recipe"])
    return config


def folder(config, size):
    architecture = get_architecture(config.model.variant)
    config.global_batch_size = 32
    duration(config, "total", epochs=8.0)
    duration(config, "log", steps=10)
    duration(config, "evaluate", epochs=4.0)
    duration(config, "checkpoint", epochs=2.0)

    config.curriculum.num_stages = 2
    config.curriculum.image_size = (min(128, size), size)
    config.curriculum.image_size_multiple = 16
    config.curriculum.dropout_rate = (architecture.dropout_rate, architecture.dropout_rate)

    config.data.source = "folder"
    config.data.name = "PHOTOS"
    config.data.crop_area = (0.25, 1.0)
    config.data.augmentation = "none"
    config.data.normalization = architecture.normalization
    config.data.interpolation = architecture.interpolation

    config.optimizer.learning_rate_per_256 = 0.008
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "cosine"
    duration(config.schedule, "warmup", epochs=1.0)
    config.ema.decay = 0.95  # a hundred steps, where ImageNet's 0.9999 is for 100,000
    config.evaluation.image_size = architecture.evaluation_size
    config.evaluation.batch_size = 32


def paper(config, data, size, recipe):
    """google/automl datasets.py `ImagenetFt`, preprocessing.py `preprocess_for_finetune`."""
    size = size // 16 * 16
    config.global_batch_size = 512
    duration(config, "total", steps=10_000)
    duration(config, "evaluate", steps=1_000)
    duration(config, "checkpoint", steps=500)

    config.curriculum.num_stages = 1
    config.curriculum.image_size = (size, size)
    config.curriculum.dropout_rate = (0.0, 0.0)  # the released 1e-6 is nothing
    config.evaluation.image_size = size

    config.data.source = "tfds"
    config.data.name, config.data.train_split, config.data.evaluation_split, config.data.num_examples = PAPER[data]
    config.data.crop_area = (1.0, 1.0)
    config.data.augmentation = "cutout"
    config.data.normalization = "unit"

    config.optimizer.learning_rate_per_256 = 0.0005
    config.optimizer.weight_decay = 0.0 if recipe == "paper" else 1e-5
    config.schedule.name = "cosine" if recipe == "paper" else "constant"
    duration(config.schedule, "warmup", epochs=1.0)
    config.ema.decay = 0.9996
