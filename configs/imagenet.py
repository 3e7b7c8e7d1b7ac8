"""EfficientNetV2 on ImageNet-1k, from scratch, with progressive learning.

    effv2 train --config=configs/imagenet.py:s --config.dtype=bfloat16 --workdir=gs://BUCKET/imagenet-s --distributed

The argument is `VARIANT[,recipe=paper|automl][,resizing=...][,regularization=...][,augmentation=...][,runlocal]`.
Hardware: 32 TPUv3 cores (v3:4x4) in the paper; `effv2 plan` estimates the hours on other slices. Published
top-1 (paper, Table 7, and the released README) and hours on those cores (paper, Table 7):

    variant   s      m      l      b0     b1     b2     b3
    top-1     83.9   85.1   85.7   78.7   79.8   80.5   82.1
    hours     7.1    13     24     -      -      -      -

`recipe=paper` (the default) is Algorithm 1 with Table 6. `recipe=automl` is the released code, which differs in sizes,
RandAugment, mixing and dropout; its users report 83.46 for S and 84.46 for M (google/automl issue 1024). The paper
trains B0-B3 at one size ("without progressive learning", section 5.4), the released code trains them progressively,
both with AutoAugment. `augmentation=randaugment` replaces it by RandAugment with the released magnitudes of S, for
which no accuracy is published. XL has no published accuracy from scratch on ImageNet-1k; it uses L's regularization.
The data are `imagenet2012` of TFDS without the first 25,021 training examples, which the paper holds out for choices:
`--config.data.evaluation_split='train[:25021]'` evaluates on them.

EfficientNets (V1) are `efficientnet-b0` to `efficientnet-b7`, at one size with AutoAugment. With
`resizing=progressive` they use RandAugment, and their images grow from 128 px to the evaluation size. Published top-1
and hours (paper, Tables 7, 10 and 12):

    variant       efficientnet-b4   efficientnet-b5   efficientnet-b7
    baseline      82.9    20.8      83.7    42.9      84.7    139
    progressive   83.1    9.4       84.0    15.2      85.0    54

The strength of their regularization is not published; here it is that of S up to B4 and that of M above.

`resizing=progressive|random|none` and `regularization=adaptive|vanilla` are the arms of Table 13. `random` draws one of
eight sizes for every 8 epochs, the same sizes in every run. `adaptive` regularization follows the size, `vanilla` is
that of the last stage throughout.
Published top-1, means of three runs (by its accuracy the network is M), and 83.6 for S at one size (section 5.4):

    m             vanilla   adaptive
    progressive   84.3      85.1
    random        83.5      84.2

`runlocal` runs the same code for 8 steps on the digits with a thin network.
"""

import random

from effv2_jax.config import parse_argument
from effv2_jax.errors import UserError, check_known
from effv2_jax.network.architecture import get_architecture
from effv2_jax.presets import imagenet, shrink

# Last value of the ranges: image size, RandAugment magnitude, mixup alpha, cutmix alpha, dropout. Paper: Table 6.
PAPER = {
    "s": (300, 15.0, 0.0, 0.0, 0.3),
    "m": (380, 20.0, 0.2, 0.0, 0.4),
    "l": (380, 25.0, 0.4, 0.0, 0.5),
    "xl": (380, 25.0, 0.4, 0.0, 0.5),
}
# google/automl effnetv2_configs.py: the size is the architecture's, so is dropout.
AUTOML = {"s": (10.0, 0.0), "m": (15.0, 0.2), "l": (20.0, 0.5), "xl": (20.0, 0.5)}
SMALL = ("b0", "b1", "b2", "b3")
V1 = tuple(f"efficientnet-b{number}" for number in range(8))
REGULARIZATION = ("randaugment_magnitude", "mixup_alpha", "cutmix_alpha", "dropout_rate")
EPOCHS_OF_A_SIZE = 8  # of random resizing (paper, section 5.4: a TPU recompiles for every size)
NUM_SIZES = 8  # to draw from; the paper does not give their number


def get_config(argument=None):
    args = parse_argument(
        argument, variant="s", recipe="paper", resizing="", regularization="adaptive", augmentation="", runlocal=False
    )
    variant, recipe = args["variant"], args["recipe"]
    if variant not in (*PAPER, *SMALL, *V1) or recipe not in ("paper", "automl"):
        raise UserError(
            f"configs/imagenet.py:{argument} is unknown; it takes {', '.join((*PAPER, *SMALL, *V1))} "
            "and recipe=paper or recipe=automl"
        )
    # Images grow for the large variants of V2, and in the released code for the small ones.
    grow = variant in PAPER or (variant in SMALL and recipe == "automl")
    resizing = args["resizing"] or ("progressive" if grow else "none")
    as_v1 = variant in SMALL or (variant in V1 and resizing == "none")
    augmentation = args["augmentation"] or ("autoaugment" if as_v1 else "randaugment")
    check_known("resizing", resizing, ("progressive", "random", "none"))
    check_known("regularization", args["regularization"], ("adaptive", "vanilla"))
    check_known("augmentation", augmentation, ("randaugment", "autoaugment"))

    config = imagenet(variant if variant in V1 else f"efficientnetv2-{variant}")
    config.curriculum.recipe = recipe
    if variant in PAPER and recipe == "paper":
        large(config, *PAPER[variant])
    elif variant in PAPER:
        released(config, *AUTOML[variant])
    elif not as_v1:
        _, *regularization = PAPER["s" if variant <= "efficientnet-b4" else "m"]
        preprocess_as_v1(config)
        large(config, get_architecture(config.model.variant).evaluation_size, *regularization)
    else:
        preprocess_as_v1(config)
        small(config, augmentation)
    config.data.augmentation = augmentation
    if args["runlocal"]:
        shrink(config)
    resize(config, resizing, args["regularization"], num_stages=4 if args["runlocal"] else 0)
    return config


def large(config, size, magnitude, mixup, cutmix, dropout):
    """Paper, Table 6."""
    curriculum = config.curriculum
    curriculum.image_size = (128, size)
    curriculum.randaugment_magnitude = (5.0, magnitude)
    curriculum.mixup_alpha = (0.0, mixup)
    curriculum.cutmix_alpha = (0.0, cutmix)
    curriculum.dropout_rate = (0.1, dropout)


def released(config, magnitude, alpha):
    architecture = get_architecture(config.model.variant)
    large(config, architecture.train_size, magnitude, alpha, alpha, architecture.dropout_rate)
    config.curriculum.dropout_rate = (architecture.dropout_rate, architecture.dropout_rate)


def small(config, augmentation):
    """B0-B3 and V1."""
    architecture = get_architecture(config.model.variant)
    curriculum = config.curriculum
    curriculum.image_size = (128, architecture.train_size)
    curriculum.dropout_rate = (architecture.dropout_rate, architecture.dropout_rate)
    curriculum.randaugment_magnitude = (5.0, AUTOML["s"][0]) if augmentation == "randaugment" else (0.0, 0.0)


def preprocess_as_v1(config):
    """google/automl preprocess_legacy.py."""
    architecture = get_architecture(config.model.variant)
    config.data.crop_area = (0.08, 1.0)
    config.data.interpolation = architecture.interpolation
    config.data.evaluation_crop = "v1"
    config.data.normalization = architecture.normalization


def resize(config, resizing, regularization, num_stages):
    """Sets the image sizes over time and the regularization with them; num_stages=0 is one per EPOCHS_OF_A_SIZE."""
    curriculum = config.curriculum
    first, last = curriculum.image_size
    if regularization == "vanilla":
        for field in REGULARIZATION:
            curriculum[field] = (curriculum[field][1],) * 2
    if resizing == "none":
        curriculum.num_stages = 1
        curriculum.image_size = (last, last)
    elif resizing == "random":
        curriculum.num_stages = num_stages or round(config.total_epochs / EPOCHS_OF_A_SIZE)
        shares = [number / (NUM_SIZES - 1) for number in range(NUM_SIZES)]
        drawn = random.Random(0).choices(shares, k=curriculum.num_stages)
        curriculum.listed.image_size = tuple(round(first + (last - first) * share) for share in drawn)
        for field in REGULARIZATION:
            low, high = curriculum[field]
            curriculum.listed[field] = tuple(low + (high - low) * share for share in drawn)
