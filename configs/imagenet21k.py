"""Pre-training on ImageNet-21k, for fine-tuning on ImageNet-1k by configs/finetune.py.

    effv2 train --config=configs/imagenet21k.py:l --config.dtype=bfloat16 --workdir=gs://BUCKET/l-21k --distributed
    effv2 train --config=configs/finetune.py:imagenet,variant=l --config.init_from=gs://BUCKET/l-21k \
        --config.dtype=bfloat16 --workdir=gs://BUCKET/l-21k-1k --distributed

The argument is `VARIANT[,loss=softmax|sigmoid][,epochs=60][,runlocal]`; the paper trains for 60 or 30 epochs (section
5.2), in two days or less on 32 TPUv3 cores, at 224 px, without RandAugment, mixing, dropout and stochastic depth. If an
example has several labels, `softmax` shares the target among them, as the paper does; the released weights of July 2021
were trained with `sigmoid` (google/automl efficientnetv2/README.md). Published top-1 on ImageNet-1k after fine-tuning,
and hours on 32 TPUv3 cores (paper, Table 7):

    variant   s      m      l      xl
    top-1     84.9   86.2   86.8   87.3
    hours     9.0    15     26     45

The data are those of `effv2 data prepare imagenet21k`. As in the paper 100,000 random images are held out: the first
ones, because the prepared order is random. The number of the others depends on the release; `effv2 plan` needs it:
`--config.data.num_examples=12720275` is that of the released code. The processed release (11,221 classes) has its own
evaluation split: `--config.data.train_split=train --config.data.evaluation_split=validation`.

`runlocal` runs the same code for 8 steps on the digits with a thin network.
"""

from effv2_jax.config import defaults, duration, parse_argument
from effv2_jax.errors import check_known
from effv2_jax.network.architecture import names
from effv2_jax.presets import shrink

HELD_OUT = 100_000
VARIANTS = tuple(name.partition("-")[2] for name in names() if name.startswith("efficientnetv2-"))


def get_config(argument=None):
    """google/automl datasets.py `ImageNet21k`."""
    args = parse_argument(argument, variant="s", loss="softmax", epochs=60.0, runlocal=False)
    check_known("variant", args["variant"], VARIANTS)
    config = defaults()
    config.model.variant = f"efficientnetv2-{args['variant']}"
    config.batch_norm.group_size = 1024
    duration(config, "total", epochs=args["epochs"])
    duration(config, "evaluate", epochs=1.0)
    duration(config, "checkpoint", epochs=0.25)

    config.curriculum.num_stages = 1
    config.curriculum.image_size = (224, 224)
    config.curriculum.dropout_rate = (0.0, 0.0)  # the released 1e-6 has no effect
    config.curriculum.survival_probability = (1.0, 1.0)

    config.data.source = "tfds"
    config.data.name = "imagenet21k"
    config.data.train_split = f"train[{HELD_OUT}:]"
    config.data.evaluation_split = f"train[:{HELD_OUT}]"
    config.data.max_labels = 16
    config.data.augmentation = "none"

    config.optimizer.learning_rate_per_256 = 0.008
    config.schedule.name = "cosine"
    duration(config.schedule, "warmup", epochs=1.0)
    config.loss.name = args["loss"]
    config.loss.label_smoothing = 0.0
    config.evaluation.image_size = 224
    return shrink(config) if args["runlocal"] else config
