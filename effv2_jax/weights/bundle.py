"""A bundle of weights and everything needed to use them: architecture, class names and preprocessing."""

import dataclasses
import functools
import json
from importlib import resources
from typing import Any

import jax
import numpy as np

from effv2_jax.data.images.crop import EVALUATION_CROPS, INTERPOLATIONS
from effv2_jax.network.architecture import Architecture, Block
from effv2_jax.network.model import NORMALIZATIONS, EfficientNet, fast_lowering
from effv2_jax.weights.preprocess import Preprocess

FORMAT_VERSION = 1
# Larger than any real network: metadata beyond these limits is damaged or hostile.
MAX_BLOCKS, MAX_FILTERS, MAX_CLASSES, MAX_IMAGE_SIZE = 1000, 2**16, 2**20, 4096
Variables = dict[str, Any]  # {'params', 'batch_stats'}, the input of `EfficientNet.apply`


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A network with weights.

    sets: {'raw': variables, 'ema': their moving averages}, or one of the two.
    class_names: by label; () if unknown.
    padding, batch_norm_epsilon: fields of `EfficientNet`, which the arrays do not determine.
    """

    architecture: Architecture
    num_classes: int
    sets: dict[str, Variables]
    preprocess: Preprocess
    class_names: tuple[str, ...] = ()
    padding: str = "same"
    batch_norm_epsilon: float = 1e-3

    @property
    def variables(self) -> Variables:
        """The moving averages if present, else the raw variables."""
        return self.sets.get("ema") or self.sets["raw"]

    @property
    def model(self) -> EfficientNet:
        """The network for evaluation, lowered for the default device."""
        return EfficientNet(
            self.architecture,
            self.num_classes,
            padding=self.padding,
            batch_norm_epsilon=self.batch_norm_epsilon,
            lowering=fast_lowering(jax.default_backend()),
        )

    def name_of(self, label: int) -> str:
        return self.class_names[label] if self.class_names else f"class {label}"

    def without_head(self) -> "Bundle":
        """The bundle without its classifier."""
        sets = {
            name: variables | {"params": {k: v for k, v in variables["params"].items() if k != "classifier"}}
            for name, variables in self.sets.items()
        }
        return dataclasses.replace(self, num_classes=0, sets=sets, class_names=())


@functools.cache
def imagenet_class_names() -> tuple[str, ...]:
    """The names of ImageNet-1k's 1000 classes by label, as torchvision writes them."""
    lines = resources.files("effv2_jax.data").joinpath("imagenet_classes.txt").read_text().splitlines()
    return tuple(line.partition(" ")[2] for line in lines)


def released_preprocess(architecture: Architecture) -> Preprocess:
    """The preprocessing with which a variant's released weights were evaluated (google/automl `preprocessing.py`)."""
    crop = "v1" if architecture.interpolation == "bicubic" else "v2"
    return Preprocess(architecture.evaluation_size, crop, architecture.interpolation, architecture.normalization)


def torchvision_preprocess(architecture: Architecture) -> Preprocess:
    """torchvision's transforms of a variant, without their antialiasing."""
    released = released_preprocess(architecture)
    if architecture.family == "efficientnet":
        return released
    if architecture.name == "efficientnetv2-l":
        return Preprocess(released.image_size, "center", "bicubic", "unit")
    return Preprocess(released.image_size, "center", "bilinear", "imagenet")


def foreign_bundle(format: str, architecture: Architecture, num_classes: int, sets: dict[str, Variables]) -> Bundle:
    """A bundle of another library's weights with that library's defaults; `format` is one of `mapping.FORMATS`."""
    torchvision = format == "torchvision"
    # torchvision's V1 uses PyTorch's epsilon except for B5 to B7 (its `efficientnet.py`).
    own_epsilon = architecture.family == "efficientnetv2" or architecture.name[-2:] in ("b5", "b6", "b7")
    return Bundle(
        architecture,
        num_classes,
        sets,
        preprocess=(torchvision_preprocess if torchvision else released_preprocess)(architecture),
        class_names=imagenet_class_names() if num_classes == len(imagenet_class_names()) else (),
        padding="symmetric" if torchvision else "same",
        batch_norm_epsilon=1e-5 if torchvision and not own_epsilon else 1e-3,
    )


def to_metadata(bundle: Bundle) -> str:
    """Everything except the arrays, as JSON."""
    return json.dumps(
        {
            "format": FORMAT_VERSION,
            "architecture": dataclasses.asdict(bundle.architecture),
            "num_classes": bundle.num_classes,
            "class_names": bundle.class_names,
            "preprocess": dataclasses.asdict(bundle.preprocess),
            "padding": bundle.padding,
            "batch_norm_epsilon": bundle.batch_norm_epsilon,
        }
    )


def from_metadata(text: str) -> Bundle:
    """The inverse, without arrays; raises ValueError if a value is missing, invalid or of a wrong type."""
    try:
        values = json.loads(text)
        if values["format"] != FORMAT_VERSION:
            raise ValueError(
                f"its format version is {values['format']}, and this release reads version {FORMAT_VERSION}"
            )
        fields = values["architecture"]
        blocks = tuple(_typed(Block, block) for block in fields["blocks"])
        bundle = Bundle(
            architecture=_typed(Architecture, fields | {"blocks": blocks}),
            num_classes=int(values["num_classes"]),
            sets={},
            preprocess=_typed(Preprocess, values["preprocess"]),
            class_names=tuple(map(str, values["class_names"])),
            padding=values["padding"],
            batch_norm_epsilon=float(values["batch_norm_epsilon"]),
        )
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its metadata lacks a field or holds an invalid one: {error}") from None
    preprocess = bundle.preprocess
    _check_numbers(bundle)
    for value, known in (
        *((block.kind, ("mbconv", "fused")) for block in blocks),
        *((block.stride, (1, 2)) for block in blocks),
        (bundle.padding, ("same", "symmetric")),
        (preprocess.crop, EVALUATION_CROPS),
        (preprocess.interpolation, INTERPOLATIONS),
        (preprocess.normalization, NORMALIZATIONS),
    ):
        if value not in known:
            raise ValueError(f"its metadata holds '{value}' instead of one of {', '.join(map(str, known))}")
    if bundle.class_names and len(bundle.class_names) != bundle.num_classes:
        raise ValueError(f"its metadata names {len(bundle.class_names)} of {bundle.num_classes} classes")
    if not all(name.isprintable() for name in bundle.class_names):  # they are printed to terminals
        raise ValueError("its class names contain control characters")
    return bundle


def _check_numbers(bundle: Bundle) -> None:
    network, blocks = bundle.architecture, bundle.architecture.blocks
    widths = [network.stem_filters, network.head_filters]
    for block in blocks:
        widths += [block.kernel_size, block.expand_ratio, block.input_filters, block.output_filters]
    sizes = (bundle.preprocess.image_size, network.train_size, network.evaluation_size)
    is_valid = (
        0 < len(blocks) <= MAX_BLOCKS
        and all(0 < width <= MAX_FILTERS for width in widths)
        and all(0 < size <= MAX_IMAGE_SIZE for size in sizes)
        and all(0 <= block.se_ratio <= 1 for block in blocks)
        and 0 <= bundle.num_classes <= MAX_CLASSES
        and 0 < bundle.batch_norm_epsilon < 1
    )
    if not is_valid:
        raise ValueError("its metadata holds numbers that are out of range")


def _typed(kind: Any, values: dict[str, Any]) -> Any:
    """A dataclass from JSON; every field must be present and of its annotated type."""
    for field in dataclasses.fields(kind):
        value = values[field.name]
        types: dict[Any, Any] = {str: str, int: int, float: (int, float)}
        if not isinstance(value, types.get(field.type, object)) or isinstance(value, bool):
            raise ValueError(f"its metadata holds {field.name} = {value!r}")
    return kind(**values)


def unflatten_arrays(arrays: dict[str, np.ndarray]) -> Variables:
    """{'params/stem_conv/kernel': array} as nested dictionaries."""
    tree: Variables = {}
    for path, array in arrays.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def flatten_arrays(variables: Variables) -> dict[str, Any]:
    """The inverse of `unflatten_arrays`."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}
