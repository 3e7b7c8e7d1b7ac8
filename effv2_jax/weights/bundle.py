"""Weights with all that is needed to use them: the network, its classes and its preprocessing."""

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
# More than any network has: a description beyond is damaged or hostile.
MAX_BLOCKS, MAX_FILTERS, MAX_CLASSES, MAX_IMAGE_SIZE = 1000, 2**16, 2**20, 4096
Variables = dict[str, Any]  # {'params', 'batch_stats'} as `EfficientNet` takes them


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A network with weights.

    sets: {'raw': variables}, and 'ema', the moving averages, where both are there; or {'ema'} alone.
    class_names: by label; () where they are not known.
    padding, batch_norm_epsilon: as the fields of `EfficientNet`, which no array tells.
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
        """The averages where there are any."""
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
        """The same without a classifier."""
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
    """What the released weights of a variant were evaluated with (google/automl `preprocessing.py`)."""
    crop = "v1" if architecture.interpolation == "bicubic" else "v2"
    return Preprocess(architecture.evaluation_size, crop, architecture.interpolation, architecture.normalization)


def torchvision_preprocess(architecture: Architecture) -> Preprocess:
    """torchvision's transforms of a variant, but for its antialiasing."""
    released = released_preprocess(architecture)
    if architecture.family == "efficientnet":
        return released
    if architecture.name == "efficientnetv2-l":
        return Preprocess(released.image_size, "center", "bicubic", "unit")
    return Preprocess(released.image_size, "center", "bilinear", "imagenet")


def foreign_bundle(format: str, architecture: Architecture, num_classes: int, sets: dict[str, Variables]) -> Bundle:
    """Weights with what their arrays do not tell, as the other library has it; `format` is one of `mapping.FORMATS`."""
    torchvision = format == "torchvision"
    # torchvision's V1 has PyTorch's epsilon but for B5 to B7 (its `efficientnet.py`).
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
    """Everything but the arrays, as JSON."""
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
    """The inverse, with no arrays yet; raises ValueError where something is missing, strange or of another type."""
    try:
        values = json.loads(text)
        if values["format"] != FORMAT_VERSION:
            raise ValueError(f"it is of format {values['format']}, this version reads {FORMAT_VERSION}")
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
        raise ValueError(f"its description lacks or garbles {error}") from None
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
            raise ValueError(f"'{value}' in its description is none of {', '.join(map(str, known))}")
    if bundle.class_names and len(bundle.class_names) != bundle.num_classes:
        raise ValueError(f"it names {len(bundle.class_names)} of {bundle.num_classes} classes")
    if not all(name.isprintable() for name in bundle.class_names):  # they go to terminals
        raise ValueError("its class names hold control characters")
    return bundle


def _check_numbers(bundle: Bundle) -> None:
    network, blocks = bundle.architecture, bundle.architecture.blocks
    widths = [network.stem_filters, network.head_filters]
    for block in blocks:
        widths += [block.kernel_size, block.expand_ratio, block.input_filters, block.output_filters]
    sizes = (bundle.preprocess.image_size, network.train_size, network.evaluation_size)
    good = (
        0 < len(blocks) <= MAX_BLOCKS
        and all(0 < width <= MAX_FILTERS for width in widths)
        and all(0 < size <= MAX_IMAGE_SIZE for size in sizes)
        and all(0 <= block.se_ratio <= 1 for block in blocks)
        and 0 <= bundle.num_classes <= MAX_CLASSES
        and 0 < bundle.batch_norm_epsilon < 1
    )
    if not good:
        raise ValueError("its description has numbers that no network has")


def _typed(kind: Any, values: dict[str, Any]) -> Any:
    """A dataclass from JSON: every field there, and of the type that is written beside it."""
    for field in dataclasses.fields(kind):
        value = values[field.name]
        known: dict[Any, Any] = {str: str, int: int, float: (int, float)}
        if not isinstance(value, known.get(field.type, object)) or isinstance(value, bool):
            raise ValueError(f"its description has {field.name} = {value!r}")
    return kind(**values)


def unflatten(arrays: dict[str, np.ndarray]) -> Variables:
    """{'params/stem_conv/kernel': array} as nested dictionaries."""
    tree: Variables = {}
    for path, array in arrays.items():
        *parents, leaf = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = array
    return tree


def flatten(variables: Variables) -> dict[str, Any]:
    """The inverse of `unflatten`."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}
