"""The table of array names and layouts in our own format and in those of automl, Keras, timm and torchvision.

It serves both directions: reading foreign files and writing them. Sources: google/automl
`efficientnetv2/effnetv2_model.py` at 6a54c87, keras `applications/efficientnet_v2.py` and `efficientnet.py`, timm
`models/efficientnet.py`, torchvision `models/efficientnet.py`.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from effv2_jax.network.architecture import Architecture, Block

OWN = "effv2"
FORMATS = (OWN, "automl", "keras", "timm", "torchvision")
FOREIGN_FAMILIES = ("efficientnet", "efficientnetv2")  # families of architectures that other libraries define too

# Ours -> automl, Keras, timm, torchvision. {stage} counts from 0, {Stage} from 1, {repeat} and {letter} within a stage.
_STEM = {
    "stem_conv": ("stem/conv2d", "stem_conv", "conv_stem", "features.0.0"),
    "stem_bn": ("stem/tpu_batch_normalization", "stem_bn", "bn1", "features.0.1"),
}
_HEAD = {
    "head_conv": ("head/conv2d", "top_conv", "conv_head", "features.{last}.0"),
    "head_bn": ("head/tpu_batch_normalization", "top_bn", "bn2", "features.{last}.1"),
    "classifier": ("head/dense", "predictions", "classifier", "classifier.1"),
}
_BLOCK = ("blocks_{index}/", "block{Stage}{letter}_", "blocks.{stage}.{repeat}.", "features.{Stage}.{repeat}.block.")
# (kind, has an expansion) -> the modules of a block, in order.
_IN_BLOCK = {
    ("fused", False): {
        "project_conv": ("conv2d", "project_conv", "conv", "0.0"),
        "project_bn": ("tpu_batch_normalization", "project_bn", "bn1", "0.1"),
    },
    ("fused", True): {
        "expand_conv": ("conv2d", "expand_conv", "conv_exp", "0.0"),
        "expand_bn": ("tpu_batch_normalization", "expand_bn", "bn1", "0.1"),
        "project_conv": ("conv2d_1", "project_conv", "conv_pwl", "1.0"),
        "project_bn": ("tpu_batch_normalization_1", "project_bn", "bn2", "1.1"),
    },
    ("mbconv", False): {
        "depthwise_conv": ("depthwise_conv2d", "{dwconv}", "conv_dw", "0.0"),
        "depthwise_bn": ("tpu_batch_normalization", "bn", "bn1", "0.1"),
        "squeeze_excite/reduce": ("se/conv2d", "se_reduce", "se.conv_reduce", "1.fc1"),
        "squeeze_excite/expand": ("se/conv2d_1", "se_expand", "se.conv_expand", "1.fc2"),
        "project_conv": ("conv2d", "project_conv", "conv_pw", "2.0"),
        "project_bn": ("tpu_batch_normalization_1", "project_bn", "bn2", "2.1"),
    },
    ("mbconv", True): {
        "expand_conv": ("conv2d", "expand_conv", "conv_pw", "0.0"),
        "expand_bn": ("tpu_batch_normalization", "expand_bn", "bn1", "0.1"),
        "depthwise_conv": ("depthwise_conv2d", "{dwconv}", "conv_dw", "1.0"),
        "depthwise_bn": ("tpu_batch_normalization_1", "bn", "bn2", "1.1"),
        "squeeze_excite/reduce": ("se/conv2d", "se_reduce", "se.conv_reduce", "2.fc1"),
        "squeeze_excite/expand": ("se/conv2d_1", "se_expand", "se.conv_expand", "2.fc2"),
        "project_conv": ("conv2d_1", "project_conv", "conv_pwl", "3.0"),
        "project_bn": ("tpu_batch_normalization_2", "project_bn", "bn3", "3.1"),
    },
}
# Our leaf -> automl, Keras (the position among a layer's weights), torch. Depthwise kernels differ for automl only.
_LEAVES = {
    "kernel": ("/kernel", "/0", ".weight"),
    "depthwise_kernel": ("/depthwise_kernel", "/0", ".weight"),
    "bias": ("/bias", "/1", ".bias"),
    "scale": ("/gamma", "/0", ".weight"),
    "shift": ("/beta", "/1", ".bias"),  # batch norm's bias
    "mean": ("/moving_mean", "/2", ".running_mean"),
    "var": ("/moving_variance", "/3", ".running_var"),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array.

    path: our name, such as 'params/block_3/expand_conv/kernel' or 'batch_stats/stem_bn/mean'.
    name: its name in the format.
    shape: in our layout.
    kind: 'conv' (k, k, inputs, outputs), 'depthwise' (k, k, 1, channels), 'dense' (inputs, outputs) or 'vector'.
    format: one of FORMATS.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    kind: str
    format: str

    @property
    def foreign_shape(self) -> tuple[int, ...]:
        axes = self._axes_out()
        return tuple(self.shape[axis] for axis in axes) if axes else self.shape

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """The format's array in our layout."""
        axes = self._axes_out()
        return np.ascontiguousarray(array.transpose(np.argsort(axes)) if axes else array)

    def to_foreign(self, array: np.ndarray) -> np.ndarray:
        """Our array in the format's layout."""
        axes = self._axes_out()
        return np.ascontiguousarray(array.transpose(axes) if axes else array)

    def _axes_out(self) -> tuple[int, ...]:
        """Our axes in the format's order; () if the layouts are equal."""
        if self.format in ("timm", "torchvision"):
            # (outputs, inputs, k, k), with a depthwise kernel (channels, 1, k, k), and (outputs, inputs)
            return {"conv": (3, 2, 0, 1), "depthwise": (3, 2, 0, 1), "dense": (1, 0), "vector": ()}[self.kind]
        if self.format in ("automl", "keras") and self.kind == "depthwise":
            return (0, 1, 3, 2)  # (k, k, channels, 1)
        return ()


def entries(architecture: Architecture, num_classes: int, format: str) -> list[Entry]:
    """All arrays of a network in the order of computation; no classifier if `num_classes` is 0.

    Args:
      architecture: its family is one of FOREIGN_FAMILIES; for our own format it may be any.
      num_classes: the number of classes of the classifier.
      format: one of FORMATS.
    """
    column = FORMATS.index(format) - 1
    leaf_column = min(column, 2)
    table = []
    for module, names, fields, leaves in _modules(architecture, num_classes):
        foreign = names[column].format(**fields) if column >= 0 else ""
        for leaf, (shape, kind) in leaves.items():
            collection = "batch_stats" if leaf in ("mean", "var") else "params"
            own_leaf = {"shift": "bias", "depthwise_kernel": "kernel"}.get(leaf, leaf)
            path = f"{collection}/{module}/{own_leaf}"
            name = foreign + _LEAVES[leaf][leaf_column] if column >= 0 else path
            table.append(Entry(path, name, shape, kind, format))
    return table


def _modules(architecture: Architecture, num_classes: int) -> Iterator[tuple[str, tuple[str, ...], dict, dict]]:
    """Yields (our module, its name templates by format, the fields of the templates, {leaf: (shape, kind)})."""
    stem, head = architecture.stem_filters, architecture.head_filters
    stages = block_places(architecture.blocks)
    last = stages[-1][0] + 2
    for module, names in _STEM.items():
        yield module, names, {}, _conv(3, 3, stem) if module == "stem_conv" else _batch_norm(stem)
    for index, (block, (stage, repeat)) in enumerate(zip(architecture.blocks, stages, strict=True)):
        fields = {
            "index": index,
            "stage": stage,
            "Stage": stage + 1,
            "repeat": repeat,
            "letter": chr(ord("a") + repeat),
            "dwconv": "dwconv2" if architecture.family == "efficientnetv2" else "dwconv",
        }
        inside = _IN_BLOCK[block.kind, block.expand_ratio != 1]
        for part, leaves in _parts(block).items():
            # No published network has squeeze-excite in a fused block, so it has a name in our own format only.
            ending = inside.get(part, ("", "", "", ""))
            yield f"block_{index}/{part}", tuple(map("".join, zip(_BLOCK, ending, strict=True))), fields, leaves
    for module, names in _HEAD.items():
        if module == "head_conv":
            leaves = _conv(1, architecture.blocks[-1].output_filters, head)
        elif module == "head_bn":
            leaves = _batch_norm(head)
        elif num_classes:
            leaves = {"kernel": ((head, num_classes), "dense"), "bias": ((num_classes,), "vector")}
        else:
            continue
        yield module, names, {"last": last}, leaves


def _parts(block: Block) -> dict[str, dict]:
    """The modules of a block with their leaves, in the order of computation."""
    inputs, expanded, outputs, size = (
        block.input_filters,
        block.expanded_filters,
        block.output_filters,
        block.kernel_size,
    )
    parts = {}
    if block.expand_ratio != 1:
        parts["expand_conv"] = _conv(size if block.kind == "fused" else 1, inputs, expanded)
        parts["expand_bn"] = _batch_norm(expanded)
    if block.kind == "mbconv":
        parts["depthwise_conv"] = {"depthwise_kernel": ((size, size, 1, expanded), "depthwise")}
        parts["depthwise_bn"] = _batch_norm(expanded)
    if block.se_filters:
        for part, (before, after) in {
            "reduce": (expanded, block.se_filters),
            "expand": (block.se_filters, expanded),
        }.items():
            parts[f"squeeze_excite/{part}"] = _conv(1, before, after) | {"bias": ((after,), "vector")}
    project = size if block.kind == "fused" and block.expand_ratio == 1 else 1
    parts["project_conv"] = _conv(project, expanded, outputs)
    parts["project_bn"] = _batch_norm(outputs)
    return parts


def _conv(size: int, inputs: int, outputs: int) -> dict:
    return {"kernel": ((size, size, inputs, outputs), "conv")}


def _batch_norm(channels: int) -> dict:
    return {leaf: ((channels,), "vector") for leaf in ("scale", "shift", "mean", "var")}


def block_places(blocks: tuple[Block, ...]) -> list[tuple[int, int]]:
    """(stage, index in the stage) of each block; a block that does not repeat the previous one starts a new stage."""
    places = [(0, 0)]
    for before, block in itertools.pairwise(blocks):
        repeats = block == dataclasses.replace(before, stride=1, input_filters=before.output_filters)
        stage, repeat = places[-1]
        places.append((stage, repeat + 1) if repeats else (stage + 1, 0))
    return places
