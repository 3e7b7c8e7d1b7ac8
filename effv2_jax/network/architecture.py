"""The networks as data: block tables of all variants, scaling, and counts of parameters and MACs. Imports no JAX.

Block strings, multipliers, sizes and dropout rates: google/automl `efficientnetv2/effnetv2_configs.py` at 6a54c87. The
placement ablation: paper (arXiv 2104.00298), Table 3. In the notation `r2_k3_s2_e4_i24_o48_se0.25_c1`, r is the number
of repeats, k the kernel size, s the stride of the first repeat, e the expand ratio, i and o the input and output
filters, se the squeeze-excite ratio (of the block's input filters), and c1 selects Fused-MBConv.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from effv2_jax.errors import UserError, check_known


@dataclasses.dataclass(frozen=True)
class Block:
    """One MBConv or Fused-MBConv block; filters are channels after scaling.

    mbconv: 1x1 expand (none at expand_ratio 1), depthwise, squeeze-excite, 1x1 project.
    fused: k x k expand, squeeze-excite, 1x1 project; at expand_ratio 1 squeeze-excite and one k x k convolution.
    """

    kind: str  # 'mbconv' or 'fused'
    kernel_size: int
    stride: int
    expand_ratio: int
    input_filters: int
    output_filters: int
    se_ratio: float = 0.0  # 0: no squeeze-excite

    @property
    def has_residual(self) -> bool:
        return self.stride == 1 and self.input_filters == self.output_filters

    @property
    def expanded_filters(self) -> int:
        return self.input_filters * self.expand_ratio

    @property
    def se_filters(self) -> int:
        """Channels between the two squeeze-excite convolutions, a fraction of the block's input; 0 without them."""
        return max(1, int(self.input_filters * self.se_ratio)) if self.se_ratio else 0


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A scaled network: stem, every block in order (repeats expanded), head, and its released settings."""

    name: str
    family: str  # 'efficientnetv2', 'efficientnet' (V1) or 'fused-placement' (paper, Table 3)
    stem_filters: int
    head_filters: int
    blocks: tuple[Block, ...]
    train_size: int  # pixels; the largest size of the released progressive schedule
    evaluation_size: int  # pixels
    dropout_rate: float  # before the classifier, as released
    normalization: str  # of the released weights: 'v2' or 'imagenet', as config.data.normalization
    interpolation: str  # of the released input pipeline: 'bilinear' or 'bicubic'
    published_top1: float | None  # ImageNet validation, percent; None for custom blocks or multipliers
    published_source: str


_V1 = (
    "r1_k3_s1_e1_i32_o16_se0.25",
    "r2_k3_s2_e6_i16_o24_se0.25",
    "r2_k5_s2_e6_i24_o40_se0.25",
    "r3_k3_s2_e6_i40_o80_se0.25",
    "r3_k5_s1_e6_i80_o112_se0.25",
    "r4_k5_s2_e6_i112_o192_se0.25",
    "r1_k3_s1_e6_i192_o320_se0.25",
)
_V2_BASE = (
    "r1_k3_s1_e1_i32_o16_c1",
    "r2_k3_s2_e4_i16_o32_c1",
    "r2_k3_s2_e4_i32_o48_c1",
    "r3_k3_s2_e4_i48_o96_se0.25",
    "r5_k3_s1_e6_i96_o112_se0.25",
    "r8_k3_s2_e6_i112_o192_se0.25",
)
_V2_S = (
    "r2_k3_s1_e1_i24_o24_c1",
    "r4_k3_s2_e4_i24_o48_c1",
    "r4_k3_s2_e4_i48_o64_c1",
    "r6_k3_s2_e4_i64_o128_se0.25",
    "r9_k3_s1_e6_i128_o160_se0.25",
    "r15_k3_s2_e6_i160_o256_se0.25",
)
_V2_M = (
    "r3_k3_s1_e1_i24_o24_c1",
    "r5_k3_s2_e4_i24_o48_c1",
    "r5_k3_s2_e4_i48_o80_c1",
    "r7_k3_s2_e4_i80_o160_se0.25",
    "r14_k3_s1_e6_i160_o176_se0.25",
    "r18_k3_s2_e6_i176_o304_se0.25",
    "r5_k3_s1_e6_i304_o512_se0.25",
)
_V2_L = (
    "r4_k3_s1_e1_i32_o32_c1",
    "r7_k3_s2_e4_i32_o64_c1",
    "r7_k3_s2_e4_i64_o96_c1",
    "r10_k3_s2_e4_i96_o192_se0.25",
    "r19_k3_s1_e6_i192_o224_se0.25",
    "r25_k3_s2_e6_i224_o384_se0.25",
    "r7_k3_s1_e6_i384_o640_se0.25",
)
_V2_XL = (
    "r4_k3_s1_e1_i32_o32_c1",
    "r8_k3_s2_e4_i32_o64_c1",
    "r8_k3_s2_e4_i64_o96_c1",
    "r16_k3_s2_e4_i96_o192_se0.25",
    "r24_k3_s1_e6_i192_o256_se0.25",
    "r32_k3_s2_e6_i256_o512_se0.25",
    "r8_k3_s1_e6_i512_o640_se0.25",
)


@dataclasses.dataclass(frozen=True)
class _Variant:
    family: str
    blocks: tuple[str, ...]
    width: float
    depth: float
    train_size: int
    evaluation_size: int
    dropout_rate: float
    published_top1: float | None
    published_source: str
    preprocessing: tuple[str, str]  # normalization, interpolation


_AUTOML = "automl README"
_V2_PREPROCESSING = ("v2", "bilinear")
_V1_PREPROCESSING = ("imagenet", "bicubic")


def _fused(first: int, last: int, *, kernel_size: int = 0, squeeze_excite: bool = False) -> tuple[str, ...]:
    """V1's table with Fused-MBConv in stages first to last, counted from 1; kernel_size 0 keeps each stage's own."""
    stages = list(_V1)
    for index in range(first - 1, last):
        stage = re.sub(r"_k\d", f"_k{kernel_size}", stages[index]) if kernel_size else stages[index]
        stages[index] = (stage if squeeze_excite else stage.replace("_se0.25", "")) + "_c1"
    return tuple(stages)


def _variants() -> dict[str, _Variant]:
    # blocks, width, depth, train size, evaluation size, dropout rate, top-1, source
    v2 = {
        "b0": (_V2_BASE, 1.0, 1.0, 192, 224, 0.2, 78.7, _AUTOML),
        "b1": (_V2_BASE, 1.0, 1.1, 192, 240, 0.2, 79.8, _AUTOML),
        "b2": (_V2_BASE, 1.1, 1.2, 208, 260, 0.3, 80.5, _AUTOML),
        "b3": (_V2_BASE, 1.2, 1.4, 240, 300, 0.3, 82.1, _AUTOML),
        "s": (_V2_S, 1.0, 1.0, 300, 384, 0.2, 83.9, _AUTOML),
        "m": (_V2_M, 1.0, 1.0, 384, 480, 0.3, 85.2, _AUTOML),
        "l": (_V2_L, 1.0, 1.0, 384, 480, 0.4, 85.7, _AUTOML),
        "xl": (_V2_XL, 1.0, 1.0, 384, 512, 0.4, 87.2, "automl README, pretrained on ImageNet-21k"),
    }
    # width, depth, evaluation size, dropout rate, top-1, source
    v1 = {
        "b0": (1.0, 1.0, 224, 0.2, None, ""),
        "b1": (1.0, 1.1, 240, 0.2, 79.0, "paper, scaling-down table"),
        "b2": (1.1, 1.2, 260, 0.3, 79.8, "paper, scaling-down table"),
        "b3": (1.2, 1.4, 300, 0.3, 81.5, "paper, Table 7"),
        "b4": (1.4, 1.8, 380, 0.4, 82.9, "paper, Table 7"),
        "b5": (1.6, 2.2, 456, 0.4, 83.7, "paper, Table 7"),
        "b6": (1.8, 2.6, 528, 0.5, 84.3, "paper, Table 7"),
        "b7": (2.0, 3.1, 600, 0.5, 84.7, "paper, Table 7"),
    }
    # Table 3 prints labels and counts, no block tables. These reproduce its parameters (19.3, 20.0, 43.4 and 132.0
    # million) to the printed digit and its FLOPs (4.5, 7.5, 21.3 and 34.4 billion) within 3 %. Fusing every stage that
    # a label names, each with its own kernel, matches neither.
    placement = {
        "none": (_V1, 82.8),
        "1-3": (_fused(1, 3, kernel_size=3, squeeze_excite=True), 83.1),
        "1-5": (_fused(3, 5), 83.1),
        "1-7": (_fused(3, 7), 81.7),
    }

    table = {
        f"efficientnetv2-{size}": _Variant(
            "efficientnetv2", *row, preprocessing=_V1_PREPROCESSING if size.startswith("b") else _V2_PREPROCESSING
        )
        for size, row in v2.items()
    }
    for size, (width, depth, evaluation_size, dropout_rate, top1, source) in v1.items():
        train_size = int(evaluation_size * 0.8) // 16 * 16  # as released for V1
        sizes = (train_size, evaluation_size)
        table[f"efficientnet-{size}"] = _Variant(
            "efficientnet", _V1, width, depth, *sizes, dropout_rate, top1, source, _V1_PREPROCESSING
        )
    # The published weights of V1-B3 have 24 filters after stage 1: the first release did not round down by more than
    # 10 %. automl's rule gives 16. No other variant differs.
    table["efficientnet-b3-original"] = dataclasses.replace(
        table["efficientnet-b3"], blocks=(_V1[0].replace("o16", "o20"), _V1[1].replace("i16", "i20"), *_V1[2:])
    )
    for label, (blocks, top1) in placement.items():
        table[f"efficientnet-b4-fused-{label}"] = dataclasses.replace(
            table["efficientnet-b4"],
            family="fused-placement",
            blocks=blocks,
            published_top1=top1,
            published_source="paper, Table 3",
        )
    return table


_VARIANTS = _variants()


def names() -> tuple[str, ...]:
    """The names of all variants, V2 first."""
    return tuple(_VARIANTS)


# Field of a block string: (conversion, allowed values, test)
_FIELDS: dict[str, tuple[Callable[[str], float], str, Callable[[float], bool]]] = {
    "r": (int, "a whole number from 1 (repeats)", lambda value: value >= 1),
    "k": (int, "a whole number from 1 (kernel size)", lambda value: value >= 1),
    "s": (int, "1 or 2 (stride)", lambda value: value in (1, 2)),
    "e": (int, "a whole number from 1 (expand ratio)", lambda value: value >= 1),
    "i": (int, "a whole number from 1 (input filters)", lambda value: value >= 1),
    "o": (int, "a whole number from 1 (output filters)", lambda value: value >= 1),
    "c": (int, "0 (MBConv) or 1 (Fused-MBConv)", lambda value: value in (0, 1)),
    "se": (float, "a number from 0 to 1 (squeeze-excite ratio)", lambda value: 0 <= value <= 1),
}
_REQUIRED = ("r", "k", "s", "e", "i", "o")


def _parse(text: str) -> dict[str, float]:
    """The fields of one block string; raises UserError that lists all its faults."""
    fields: dict[str, float] = {"c": 0, "se": 0.0}
    seen: set[str] = set()
    problems = []
    for part in text.split("_"):
        match = re.fullmatch(r"([a-z]+)(.*)", part)
        key = match.group(1) if match else ""
        if not match or key not in _FIELDS:
            problems.append(f"'{part}' is not a field; fields are {', '.join(_FIELDS)}")
            continue
        if key in seen:
            problems.append(f"'{key}' is given twice")
        seen.add(key)
        convert, allowed, test = _FIELDS[key]
        try:
            fields[key] = convert(match.group(2))
            valid = test(fields[key])
        except ValueError:
            valid = False
        if not valid:
            problems.append(f"'{part}' needs {allowed}")
    problems += [f"'{key}' is missing: {_FIELDS[key][1]}" for key in _REQUIRED if key not in seen]
    if problems:
        raise UserError(
            f"block string '{text}': {'; '.join(problems)}. Valid ones are 'r2_k3_s2_e4_i24_o48_c1' and 'r6_..._se0.25'"
        )
    return fields


def _round_filters(filters: float, width: float) -> int:
    """Scales, then rounds to the nearest multiple of 8, at least 8 (as automl: no limit on rounding down)."""
    return max(8, int(filters * width + 4) // 8 * 8)


def _unroll(strings: Sequence[str], width: float, depth: float) -> tuple[Block, ...]:
    blocks: list[Block] = []
    output = None
    for text in strings:
        fields = _parse(text)
        if output is not None and fields["i"] != output:
            raise UserError(f"block string '{text}' takes {fields['i']} filters, but the one before it gives {output}")
        output = fields["o"]
        first = Block(
            kind="fused" if fields["c"] else "mbconv",
            kernel_size=int(fields["k"]),
            stride=int(fields["s"]),
            expand_ratio=int(fields["e"]),
            input_filters=_round_filters(fields["i"], width),
            output_filters=_round_filters(output, width),
            se_ratio=fields["se"],
        )
        repeat = dataclasses.replace(first, stride=1, input_filters=first.output_filters)
        blocks += [first] + [repeat] * (math.ceil(fields["r"] * depth) - 1)
    return tuple(blocks)


def get_architecture(name: str, *, blocks: Sequence[str] = (), width: float = 0.0, depth: float = 0.0) -> Architecture:
    """The variant `name`, or its stem, head and settings with custom blocks or multipliers.

    `width` scales filters, custom ones too, rounded to multiples of 8; `depth` scales repeats, rounded up. Before
    scaling the head has 1280 filters, and the stem has the first block's input filters.

    Args:
      name: one of `names()`.
      blocks: block strings in the released notation, one per stage; () selects the variant's table.
      width: multiplies filters; 0 selects the variant's multiplier.
      depth: multiplies repeats; 0 selects the variant's multiplier.

    Raises:
      UserError: an unknown name, a malformed block string, or a negative multiplier.
    """
    check_known("config.model.variant", name, _VARIANTS)
    if isinstance(blocks, str) or not all(isinstance(text, str) for text in blocks):
        raise UserError(f"model.blocks needs a tuple of block strings, one per stage, not {blocks!r}")
    for field, value in (("width", width), ("depth", depth)):
        if not (0 <= value < math.inf):
            raise UserError(f"model.{field} is {value}; it needs a positive multiplier, or 0 for the variant's")
    variant = _VARIANTS[name]
    strings = tuple(blocks) or variant.blocks
    customized = strings != variant.blocks or width not in (0, variant.width) or depth not in (0, variant.depth)
    width = width or variant.width
    unrolled = _unroll(strings, width, depth or variant.depth)
    return Architecture(
        name=name,
        family=variant.family,
        stem_filters=unrolled[0].input_filters,
        head_filters=_round_filters(1280, width),
        blocks=unrolled,
        train_size=variant.train_size,
        evaluation_size=variant.evaluation_size,
        dropout_rate=variant.dropout_rate,
        normalization=variant.preprocessing[0],
        interpolation=variant.preprocessing[1],
        published_top1=None if customized else variant.published_top1,
        published_source="" if customized else variant.published_source,
    )


@dataclasses.dataclass(frozen=True)
class _Convolution:
    kernel_size: int
    stride: int
    input_filters: int
    output_filters: int
    depthwise: bool = False
    on_pooled: bool = False  # squeeze-excite: on one pixel, with bias and without batch norm

    @property
    def weights(self) -> int:
        inputs = 1 if self.depthwise else self.input_filters
        return self.kernel_size**2 * inputs * self.output_filters


def _convolutions(block: Block) -> list[_Convolution]:
    """The block's convolutions in order; each is followed by batch norm unless `on_pooled`."""
    kernel, stride = block.kernel_size, block.stride
    inputs, expanded, outputs = block.input_filters, block.expanded_filters, block.output_filters
    squeeze = []
    if block.se_filters:
        squeeze = [
            _Convolution(1, 1, expanded, block.se_filters, on_pooled=True),
            _Convolution(1, 1, block.se_filters, expanded, on_pooled=True),
        ]
    expand = [_Convolution(1, 1, inputs, expanded)]
    project = [_Convolution(1, 1, expanded, outputs)]
    if block.kind == "fused":
        if block.expand_ratio == 1:
            return squeeze + [_Convolution(kernel, stride, inputs, outputs)]
        return [_Convolution(kernel, stride, inputs, expanded)] + squeeze + project
    depthwise = [_Convolution(kernel, stride, expanded, expanded, depthwise=True)]
    return (expand if block.expand_ratio != 1 else []) + depthwise + squeeze + project


def _all_convolutions(arch: Architecture) -> list[_Convolution]:
    stem = _Convolution(3, 2, 3, arch.stem_filters)
    head = _Convolution(1, 1, arch.blocks[-1].output_filters, arch.head_filters)
    return [stem] + [conv for block in arch.blocks for conv in _convolutions(block)] + [head]


def count_parameters(arch: Architecture, num_classes: int = 1000) -> int:
    """Trainable parameters: kernels, biases of squeeze-excite and classifier, scale and bias of batch norm."""
    convolutions = _all_convolutions(arch)
    kernels = sum(conv.weights for conv in convolutions)
    per_channel = sum(conv.output_filters * (1 if conv.on_pooled else 2) for conv in convolutions)
    return kernels + per_channel + (arch.head_filters + 1) * num_classes


def count_variables(arch: Architecture, num_classes: int = 1000) -> int:
    """Trainable parameters and batch norm's running mean and variance, as Keras's `count_params()`."""
    normalized = sum(conv.output_filters for conv in _all_convolutions(arch) if not conv.on_pooled)
    return count_parameters(arch, num_classes) + 2 * normalized


def count_macs(arch: Architecture, image_size: int, num_classes: int = 1000) -> int:
    """Multiply-accumulates of convolutions and classifier for one square image of `image_size` pixels.

    Convolutions use SAME padding, so a stride of 2 halves a size, rounded up. Norm, activation and pooling are not
    counted.
    """
    macs = arch.head_filters * num_classes
    size = image_size
    for conv in _all_convolutions(arch):
        if conv.on_pooled:
            macs += conv.weights
        else:
            size = -(-size // conv.stride)
            macs += size**2 * conv.weights
    return macs
