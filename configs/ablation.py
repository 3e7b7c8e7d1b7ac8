"""Two ablations of the paper on ImageNet-1k: where fused blocks help, and which regularization suits an image size.

    effv2 train --config=configs/ablation.py:fused,placement=1-3 --config.dtype=bfloat16 \
        --workdir=gs://BUCKET/fused-1-3 --distributed
    effv2 train --config=configs/ablation.py:size,image_size=192,magnitude=10 --config.dtype=bfloat16 \
        --workdir=gs://BUCKET/192-10 --distributed

The argument is `fused[,placement=none|1-3|1-5|1-7]` or `size[,image_size=128][,magnitude=5]`, and `,runlocal`. Both are
the recipe of configs/imagenet.py at one image size. The paper gives neither their schedules nor their hours.

`fused` (Table 3) puts Fused-MBConv into stages of EfficientNet-B4 at 380 px, its evaluation size. Published top-1 and
training images per second and TPUv3 core:

    placement   none   1-3    1-5    1-7
    top-1       82.8   83.1   83.1   81.7
    images/s    262    362    327    254

`size` (Table 5) crosses image size and RandAugment's magnitude. The paper's network comes from its search and is not
published; here it is EfficientNetV2-S. Published top-1, means of three runs:

    size        128    192    300
    magnitude 5   78.3   81.2   82.5
    magnitude 10  78.0   81.6   82.7
    magnitude 15  77.7   81.5   83.2

`runlocal` runs the same code for 8 steps on the digits with a thin network.
"""

from effv2_jax.config import parse_argument
from effv2_jax.errors import check_known
from effv2_jax.presets import imagenet, shrink

PLACEMENTS = ("none", "1-3", "1-5", "1-7")


def get_config(argument=None):
    args = parse_argument(argument, ablation="fused", placement="none", image_size=128, magnitude=5.0, runlocal=False)
    check_known("ablation", args["ablation"], ("fused", "size"))
    check_known("placement", args["placement"], PLACEMENTS)
    if args["ablation"] == "fused":
        config = imagenet(f"efficientnet-b4-fused-{args['placement']}")
        size, magnitude = config.evaluation.image_size, 5.0
    else:
        config = imagenet("efficientnetv2-s")
        size, magnitude = args["image_size"], args["magnitude"]
    config.curriculum.num_stages = 1
    config.curriculum.image_size = (size, size)
    config.curriculum.randaugment_magnitude = (magnitude, magnitude)
    config.curriculum.dropout_rate = (0.1, 0.1)
    return shrink(config) if args["runlocal"] else config
