"""RandAugment (arXiv 1909.13719) and AutoAugment's ImageNet policy v0 (arXiv 1805.09501), as in google/automl."""

import dataclasses
from collections.abc import Callable

import numpy as np

from effv2_jax.data.images import ops

MAX_LEVEL = 10  # the magnitude at which arguments reach their nominal maximum; larger magnitudes exceed it


@dataclasses.dataclass(frozen=True)
class Constants:
    """Pixels at magnitude 10 for the two operations whose strength does not scale with the image."""

    cutout: float
    translate: float


RANDAUGMENT = Constants(cutout=40, translate=100)
AUTOAUGMENT = Constants(cutout=100, translate=250)


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() < 0.5 else value


def _enhance(level: float) -> float:
    """The blend factor: 1, the identity, at magnitude 5; larger above and smaller below."""
    return 1.8 * level + 0.1


# name -> (image, magnitude / MAX_LEVEL, generator, constants) -> image. Integer arguments are truncated. Arguments keep
# growing beyond magnitude 10, except for two that stop at the identity: Posterize's bits at 8 (magnitude 20) and
# Solarize's threshold at 256 (magnitude 10). In the released code TensorFlow wraps these two to a byte: its Solarize
# inverts the whole image at magnitudes 10 and 20 and has the threshold 128 at 15 and 25, and its Posterize keeps one
# bit at 25.
Operation = Callable[[np.ndarray, float, np.random.Generator, Constants], np.ndarray]
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, level, rng, constants: ops.autocontrast(image),
    "Equalize": lambda image, level, rng, constants: ops.equalize(image),
    "Invert": lambda image, level, rng, constants: ops.invert(image),
    "Rotate": lambda image, level, rng, constants: ops.rotate(image, _signed(30 * level, rng)),
    "Posterize": lambda image, level, rng, constants: ops.posterize(image, min(int(4 * level), 8)),
    "Solarize": lambda image, level, rng, constants: ops.solarize(image, min(int(256 * level), 256)),
    "SolarizeAdd": lambda image, level, rng, constants: ops.solarize_add(image, int(110 * level)),
    "Color": lambda image, level, rng, constants: ops.color(image, _enhance(level)),
    "Contrast": lambda image, level, rng, constants: ops.contrast(image, _enhance(level)),
    "Brightness": lambda image, level, rng, constants: ops.brightness(image, _enhance(level)),
    "Sharpness": lambda image, level, rng, constants: ops.sharpness(image, _enhance(level)),
    "ShearX": lambda image, level, rng, constants: ops.shear_x(image, _signed(0.3 * level, rng)),
    "ShearY": lambda image, level, rng, constants: ops.shear_y(image, _signed(0.3 * level, rng)),
    "TranslateX": lambda image, level, rng, constants: ops.translate_x(
        image, _signed(constants.translate * level, rng)
    ),
    "TranslateY": lambda image, level, rng, constants: ops.translate_y(
        image, _signed(constants.translate * level, rng)
    ),
    "Cutout": lambda image, level, rng, constants: ops.cutout(image, int(constants.cutout * level), rng),
}
_NAMES = tuple(OPERATIONS)

# Pairs of (operation, probability, magnitude); one pair is drawn per image.
POLICY_V0 = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)


def rand_augment(image: np.ndarray, magnitude: float, rng: np.random.Generator, num_layers: int = 2) -> np.ndarray:
    """Applies `num_layers` operations, each drawn uniformly from 16, at one magnitude.

    Args:
      image: uint8 [H, W, 3]; it is not modified.
      magnitude: 10 is the operations' nominal maximum; fractions and values above 10 are allowed.
      rng: the source of all random draws.
      num_layers: the number of operations.
    """
    for number in rng.integers(len(_NAMES), size=num_layers):
        image = OPERATIONS[_NAMES[number]](image, magnitude / MAX_LEVEL, rng, RANDAUGMENT)
    return image


def auto_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies one pair of POLICY_V0 to uint8 [H, W, 3], each operation with its probability; the input stays."""
    for name, probability, magnitude in POLICY_V0[rng.integers(len(POLICY_V0))]:
        if rng.random() < probability:
            image = OPERATIONS[name](image, magnitude / MAX_LEVEL, rng, AUTOAUGMENT)
    return image
