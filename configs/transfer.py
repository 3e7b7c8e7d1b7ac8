"""Fine-tuning on CIFAR-10, CIFAR-100, Flowers and Cars as the paper does (section 5.3).

    effv2 train --config=configs/transfer.py:cifar10,variant=s --config.init_from=WEIGHTS --workdir=runs/cifar10

WEIGHTS is any file that `effv2 convert` reads, or the workdir of a run. The argument is
`DATA[,variant=s][,size=384][,recipe=paper|automl][,runlocal]`; the default `size` is the variant's evaluation size. The
data are those of TFDS (Table 9). 10,000 steps of 512 images at one size, with cutout; `recipe=paper` has a cosine
schedule and no weight decay, `recipe=automl` follows the released code: a constant schedule and 1e-5. Published top-1
(Table 8, from ImageNet-1k weights, mean of 5 runs; hours are not published):

    variant   cifar10   cifar100   flowers   cars
    s         98.7      91.5       97.9      93.8
    m         99.0      92.2       98.5      94.6
    l         99.1      92.3       98.8      95.1

`runlocal` runs the same code for 8 steps on the digits with a thin network, from fresh weights.
"""

from effv2_jax.config import duration, parse_argument
from effv2_jax.errors import check_known
from effv2_jax.presets import check_size, finetune, shrink

# TFDS name, training and evaluation split, training examples (paper, Table 9).
DATA = {
    "cifar10": ("cifar10", "train", "test", 50_000),
    "cifar100": ("cifar100", "train", "test", 50_000),
    "flowers": ("oxford_flowers102", "train+validation", "test", 2_040),
    "cars": ("cars196", "train", "test", 8_144),
}


def get_config(argument=None):
    args = parse_argument(argument, data="cifar10", variant="s", size=0, recipe="paper", runlocal=False)
    check_known("data", args["data"], DATA)
    check_known("recipe", args["recipe"], ("paper", "automl"))
    if args["size"]:
        check_size("transfer.py", args["size"])
    config = finetune(f"efficientnetv2-{args['variant']}", args["size"], args["recipe"])
    duration(config, "total", steps=10_000)
    duration(config, "evaluate", steps=1_000)
    duration(config, "checkpoint", steps=500)
    config.data.name, config.data.train_split, config.data.evaluation_split, config.data.num_examples = DATA[
        args["data"]
    ]
    config.optimizer.weight_decay = 0.0 if args["recipe"] == "paper" else 1e-5
    return shrink(config) if args["runlocal"] else config
