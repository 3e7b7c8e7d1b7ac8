"""Every field of an experiment's configuration, with its default and its meaning.

An experiment is a file `configs/NAME.py` whose `get_config(arg)` starts from `defaults()` and changes what differs. A
field that names a duration has four spellings, of which exactly one is set (see `durations`). `rules` says what each
field may hold. Sources: google/automl `efficientnetv2/hparams.py`, `datasets.py` and `effnetv2_configs.py` at 6a54c87;
paper: arXiv 2104.00298.
"""

from typing import Any

from absl import logging
from ml_collections import ConfigDict

from effv2_jax.config.durations import DURATIONS, UNITS, duration
from effv2_jax.errors import UserError


def defaults() -> ConfigDict:
    """EfficientNetV2-S on ImageNet with the paper's recipe."""
    config = ConfigDict()
    config.seed = 0  # of initialisation, order, augmentation, dropout and mixing, each with its own random stream
    config.global_batch_size = 4096  # examples in one optimizer step, over all devices and accumulation steps
    # 'float32' or 'bfloat16': the type of activations and convolutions (squeeze-excite included), forward and backward.
    # Always float32: parameters, their gradients (those of convolutions are computed in dtype, then converted), running
    # statistics, batch norm's arithmetic (on inputs of dtype), average pooling, classifier, logits, loss, optimizer
    # state and EMA.
    config.dtype = "float32"
    duration(config, "total", epochs=350.0)  # length of the run
    duration(config, "log", steps=100)  # between two log lines of training metrics
    duration(config, "evaluate", epochs=5.0)  # between two evaluations; there is one more at the end
    duration(config, "checkpoint", epochs=1.0)  # between two checkpoints; there is one more at the end

    # Initial weights: a file of any format that `effv2 convert` reads, or the workdir of a run; '' draws random ones.
    config.init_from = ""
    config.init_pattern = ""  # regular expression; only arrays whose path it matches somewhere are loaded; '' is all

    config.model = model = ConfigDict()
    model.variant = "efficientnetv2-s"  # a name that `effv2 models` prints
    model.blocks = ()  # block table in the released notation, ('r1_k3_s1_e1_i32_o16_c1', ...); () is the variant's
    model.width = 0.0  # width multiplier; 0 is the variant's
    model.depth = 0.0  # depth multiplier; 0 is the variant's
    # Of convolutions: 'native', 'decomposed' (fast on XLA's CPU backend), or 'auto', by platform.
    model.lowering = "auto"
    model.padding = "same"  # of convolutions: 'same' as in TensorFlow, or 'symmetric', which torchvision's weights need

    config.batch_norm = batch_norm = ConfigDict()
    batch_norm.group_size = 0  # examples that share statistics, on any number of devices; 0 is the whole (micro-)batch
    batch_norm.momentum = 0.9  # running = momentum * running + (1 - momentum) * batch; the paper's text says 0.99
    batch_norm.epsilon = 1e-3
    batch_norm.frozen = False  # True: training normalizes by the running statistics and does not update them

    # A range is (first, last) over the stages. recipe='paper' interpolates every field by i / (M - 1) (Algorithm 1).
    # 'automl' follows the released main.py: sizes by (i + 1) / M, dropout and survival probability constant at their
    # last value, the rest as in the paper.
    config.curriculum = curriculum = ConfigDict()
    curriculum.recipe = "paper"
    curriculum.num_stages = 4
    curriculum.image_size = (128, 300)  # pixels; automl starts above the first value
    curriculum.image_size_multiple = 1  # sizes are rounded to the nearest multiple
    curriculum.randaugment_magnitude = (5.0, 15.0)  # ignored unless data.augmentation is 'randaugment'
    curriculum.mixup_alpha = (0.0, 0.0)  # Beta(alpha, alpha); 0 is off
    curriculum.cutmix_alpha = (0.0, 0.0)
    curriculum.dropout_rate = (0.1, 0.3)  # before the classifier
    # Stochastic depth: block i of n (from 0) keeps its residual branch with probability 1 - (1 - p) * i / n. The last
    # block's is therefore above p: 0.805 for the 40 blocks of S and p = 0.8.
    curriculum.survival_probability = (0.8, 0.8)
    curriculum.accumulation_steps = 1  # micro-batches in one optimizer step
    curriculum.remat = False  # recompute each block in the backward pass: less memory, more time
    # One value per stage; () takes the value or range above. Durations are listed in at most one of the four units.
    curriculum.listed = listed = ConfigDict()
    listed.image_size = ()
    listed.randaugment_magnitude = ()
    listed.mixup_alpha = ()
    listed.cutmix_alpha = ()
    listed.dropout_rate = ()
    listed.survival_probability = ()
    listed.accumulation_steps = ()
    listed.remat = ()
    listed.duration_steps = ()
    listed.duration_epochs = ()
    listed.duration_examples = ()
    listed.duration_percent = ()

    config.data = data = ConfigDict()
    data.source = "tfds"  # 'tfds', 'folder', 'csv' (DIR/SPLIT.csv with columns file,label) or 'digits'
    data.name = "imagenet2012"  # TFDS name, or the path of the folder; unused by 'digits'
    data.data_dir = ""  # where TFDS keeps its data sets; '' is TFDS's default
    data.train_split = "train"  # TFDS split, a folder's subfolder, or a CSV file without its ending
    data.evaluation_split = "validation"
    # Examples in the training split; 0 is unknown. It must agree with the data; with it, `effv2 plan` needs no data.
    data.num_examples = 0
    data.max_labels = 1  # most labels of an example (TFDS: a sequence of class labels); they share its target
    data.holdout_percent = 0.0  # folder without an evaluation subfolder: share of the images held out for evaluation
    # Random resized crop: share of the image's area. V1 and B0-B3 use (0.08, 1.0). (1.0, 1.0) squashes the whole image.
    data.crop_area = (0.05, 1.0)
    data.crop_aspect_ratio = (3 / 4, 4 / 3)  # width / height
    data.interpolation = "bilinear"  # or 'bicubic' (V1 and B0-B3)
    data.scaled_decoding = False  # decode large crops of JPEGs at 1/2, 1/4 or 1/8 of their size: faster, smoother
    data.flip = True  # horizontally, with probability 0.5
    # 'randaugment', 'autoaugment' (policy v0), 'cutout' (noise in a square of half the size, for fine-tuning) or 'none'
    data.augmentation = "randaugment"
    data.randaugment_layers = 2  # operations per image
    # 'v2': centre crop below 320 px, else squash; 'v1': centre crop; 'center': the largest centre square; 'squash': the
    # whole image, squashed
    data.evaluation_crop = "v2"
    data.normalization = "v2"  # 'v2': (x-128)/128; 'unit': x/127.5-1; 'imagenet': mean and deviation (V1, B0-B3)
    data.num_workers = 0  # processes that load and augment images; 0 uses threads of the main process
    data.num_threads = 0  # threads that do so in each process; 0 is one per core, or two in each worker
    data.prefetch_batches = 2  # training batches prepared ahead
    data.reuse_batch = False  # True: each stage repeats its first batch, which times training without the input
    data.skip_broken = True  # replace an unreadable image by another and count it; False stops the run

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "rmsprop"  # TensorFlow's RMSProp; or 'sgd' (momentum), 'adamw', 'lamb'
    optimizer.learning_rate_per_256 = 0.016  # peak learning rate for 256 examples; scales with global_batch_size
    optimizer.momentum = 0.9  # rmsprop, sgd
    optimizer.decay = 0.9  # rmsprop: of the mean square
    optimizer.epsilon = 1e-3  # rmsprop (inside the root), adamw, lamb
    optimizer.beta1 = 0.9  # adamw, lamb
    optimizer.beta2 = 0.999  # adamw, lamb
    optimizer.weight_decay = 1e-5
    optimizer.weight_decay_mode = "l2"  # 'l2': 0.5 * weight_decay * |w|^2 in the loss; 'decoupled': after the optimizer
    # Ordered (pattern, factor): the first pattern that matches somewhere in a parameter's path gives its factor. Every
    # parameter must match.
    optimizer.weight_decay_mask = (("(bias|scale)$", 0.0), (".*", 1.0))
    # Likewise. The factor multiplies the finished update of a parameter, weight decay included. 0 freezes it: such a
    # parameter has no optimizer state and costs nothing in the backward pass.
    optimizer.learning_rate_multipliers = ((".*", 1.0),)
    optimizer.clip_norm = 0.0  # largest global norm of the gradients, to which they are clipped; 0 is off

    config.schedule = schedule = ConfigDict()
    schedule.name = "exponential"  # a staircase; or 'cosine', 'linear', 'constant'
    duration(schedule, "warmup", epochs=5.0)  # linear from 0; the decay counts from step 0
    duration(schedule, "decay", epochs=2.4)  # exponential: the length of a stair
    schedule.decay_rate = 0.97  # exponential: the factor of a stair

    config.ema = ema = ConfigDict()
    ema.decay = 0.9999  # of parameters and batch-norm statistics; 0 is off
    ema.warmup = True  # the decay after n steps is min(decay, (1 + n) / (10 + n)), as in TensorFlow

    config.loss = loss = ConfigDict()
    loss.name = "softmax"  # cross-entropy; or 'sigmoid': one binary problem per class
    loss.label_smoothing = 0.1

    config.compilation = compilation = ConfigDict()
    compilation.background = True  # compile the next stage's step while a stage trains; False: when it starts
    # Folder for compiled programs, local or gs://. 'auto' is JAX_COMPILATION_CACHE_DIR if set, else compilation_cache/
    # in the workdir. 'off' keeps none.
    compilation.cache = "auto"

    config.evaluation = evaluation = ConfigDict()
    evaluation.image_size = 384
    evaluation.batch_size = 1024  # over all devices

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.keep_last = 2  # number of newest checkpoints to keep
    checkpoint.keep_best = 1  # number of best checkpoints to keep, by top-1 of the averaged weights (raw if EMA is off)
    return config


def parse_argument(argument: str | None, **fields: Any) -> dict[str, Any]:
    """Parses the argument of a config file, as in `configs/imagenet.py:s,recipe=automl,runlocal`.

    Args:
      argument: comma-separated `key=value` or `flag`; the first item may be a value of the first key alone.
      **fields: the allowed keys with their defaults; a value is converted to its default's type.

    Raises:
      UserError: an unknown key, or a value of the wrong type.
    """
    values = dict(fields)
    for position, item in enumerate((argument or "").split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not key:
            continue
        if not equals and key not in fields and position == 0 and fields:
            key, equals, value = next(iter(fields)), "=", key
        if key not in fields:
            raise UserError(f"config argument '{item}' is unknown; known: {', '.join(fields) or 'none'}")
        default = fields[key]
        try:
            if isinstance(default, bool):
                values[key] = {"": True, "true": True, "false": False}[value.lower()]
            else:
                values[key] = type(default)(value)
        except (KeyError, ValueError):
            raise UserError(f"config argument '{item}' needs a value of type {type(default).__name__}") from None
    return values


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A plain nested dictionary that JSON can hold."""
    return config.to_dict()


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """The inverse of `to_dict`, also after a round trip through JSON, which turns tuples into lists.

    A field that an older version did not save has its default; a warning in the log names it.

    Raises:
      UserError: a field that `defaults` does not have.
    """
    config, given = defaults(), flatten(values)
    fields = flatten(config.to_dict())
    if unknown := sorted(given.keys() - fields.keys()):
        raise UserError(f"the saved config is another version's: unknown fields [{', '.join(unknown)}]")
    # A duration is given in one unit: the default's unit is none that the saved config lacks.
    for path in DURATIONS:
        if units := {f"{path}_{unit}" for unit in UNITS} & given.keys():
            given |= {f"{path}_{unit}": None for unit in UNITS if f"{path}_{unit}" not in units}
    if missing := sorted(fields.keys() - given.keys()):
        logging.warning("the saved config is an older version's: defaults are taken for %s", ", ".join(missing))
    with config.unlocked():
        for path, value in given.items():
            *parents, name = path.split(".")
            section = config
            for parent in parents:
                section = section[parent]
            section[name] = _to_tuples(value)
    return config


def flat_lines(config: ConfigDict) -> list[str]:
    """One line per field, such as `optimizer.momentum = 0.9`, in alphabetical order."""
    return [f"{path} = {value!r}" for path, value in sorted(flatten(config.to_dict()).items())]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns {'optimizer': {'momentum': 0.9}} into {'optimizer.momentum': 0.9}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
