"""Fine-tuning from published weights or your own: on a folder of images, or on ImageNet-1k after ImageNet-21k.

    effv2 train --config=configs/finetune.py --config.init_from=WEIGHTS --config.data.name=PHOTOS --workdir=runs/tuned
    effv2 train --config=configs/finetune.py:imagenet,variant=xl --config.init_from=gs://BUCKET/xl-21k \
        --config.dtype=bfloat16 --workdir=gs://BUCKET/xl-21k-1k --distributed

WEIGHTS is any file that `effv2 convert` reads, or the workdir of a run. The argument is
`[DATA,]VARIANT[,size=224][,recipe=paper|automl][,runlocal]`: DATA is `folder` (the default) or `imagenet`, VARIANT a
network that `effv2 models` prints, without 'efficientnetv2-', and size the largest image size. The paper's CIFAR,
Flowers and Cars are in configs/transfer.py.

`folder` is PHOTOS, a folder as in configs/folder.py, or with `--config.data.source=tfds` a data set of TFDS. It suits
hundreds of images on a CPU: small batches, few epochs, two sizes, no cutout.

`imagenet` is ImageNet-1k (section 5.2): 15 epochs of batches of 512 at the evaluation size, with cutout. `recipe=paper`
has a cosine schedule, `recipe=automl` the released constant one. Published top-1 from ImageNet-21k weights, and hours
on 32 TPUv3 cores (paper, Table 7):

    variant   s      m      l      xl
    top-1     84.9   86.2   86.8   87.3
    hours     9.0    15     26     45

`runlocal` runs the same code for 8 steps on the digits with a thin network, from fresh weights.
"""

from effv2_jax.config import defaults, duration, parse_argument
from effv2_jax.errors import check_known
from effv2_jax.network.architecture import get_architecture
from effv2_jax.presets import check_size, finetune, imagenet_data, shrink

DATA = ("folder", "imagenet")


def get_config(argument=None):
    if argument and argument.partition(",")[0] in DATA:
        argument = f"data={argument}"
    args = parse_argument(argument, variant="b0", data="folder", size=0, recipe="paper", runlocal=False)
    check_known("data", args["data"], DATA)
    check_known("recipe", args["recipe"], ("paper", "automl"))
    if args["size"]:
        check_size("finetune.py", args["size"])
    variant = f"efficientnetv2-{args['variant']}"
    if args["data"] == "folder":
        config = folder(variant, args["size"] or 192)
    else:
        config = imagenet(variant, args["size"], args["recipe"])
    return shrink(config) if args["runlocal"] else config


def folder(variant, size):
    architecture = get_architecture(variant)
    config = defaults()
    config.model.variant = variant
    config.init_from = "WEIGHTS"
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
    config.data.evaluation_crop = "squash"

    config.optimizer.learning_rate_per_256 = 0.008
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "cosine"
    duration(config.schedule, "warmup", epochs=1.0)
    config.ema.decay = 0.95  # for a hundred steps; ImageNet's 0.9999 is for 100,000
    config.evaluation.image_size = architecture.evaluation_size
    config.evaluation.batch_size = 32
    return config


def imagenet(variant, size, recipe):
    config = finetune(variant, size, recipe)
    duration(config, "total", epochs=15.0)
    duration(config, "evaluate", epochs=1.0)
    duration(config, "checkpoint", epochs=0.25)
    imagenet_data(config)
    return config
