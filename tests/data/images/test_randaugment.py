"""What RandAugment and AutoAugment draw, and the arguments that magnitudes stand for."""

import collections

import numpy as np
import pytest
from scipy import stats

from effv2_jax.data.images import ops, randaugment
from effv2_jax.data.images.randaugment import auto_augment, rand_augment

NAMES = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
    "Rotate": "rotate",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "Color": "color",
    "Contrast": "contrast",
    "Brightness": "brightness",
    "Sharpness": "sharpness",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Cutout": "cutout",
    "SolarizeAdd": "solarize_add",
}
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
BLENDS = ("Color", "Contrast", "Brightness", "Sharpness")


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def calls(monkeypatch):
    """Operations that do nothing but note (name, argument or None)."""
    calls = []
    for name, function in NAMES.items():

        def note(image, argument=None, rng=None, name=name):
            calls.append((name, argument))
            return image

        monkeypatch.setattr(ops, function, note)
    return calls


# By hand from google/automl efficientnetv2/autoaugment.py; signs of the geometric ones are drawn. Posterize stops at
# 8 bits and Solarize at the threshold 256.
MAGNITUDES = (0, 5, 10, 15, 20, 25)
ARGUMENTS = {
    "Rotate": (0, 15, 30, 45, 60, 75),
    "ShearX": (0, 0.15, 0.3, 0.45, 0.6, 0.75),
    "ShearY": (0, 0.15, 0.3, 0.45, 0.6, 0.75),
    "TranslateX": (0, 50, 100, 150, 200, 250),
    "TranslateY": (0, 50, 100, 150, 200, 250),
    "Color": (0.1, 1, 1.9, 2.8, 3.7, 4.6),
    "Contrast": (0.1, 1, 1.9, 2.8, 3.7, 4.6),
    "Brightness": (0.1, 1, 1.9, 2.8, 3.7, 4.6),
    "Sharpness": (0.1, 1, 1.9, 2.8, 3.7, 4.6),
    "Posterize": (0, 2, 4, 6, 8, 8),
    "Solarize": (0, 128, 256, 256, 256, 256),
    "SolarizeAdd": (0, 55, 110, 165, 220, 275),
    "Cutout": (0, 20, 40, 60, 80, 100),
}


@pytest.mark.parametrize("column", range(len(MAGNITUDES)), ids=MAGNITUDES)
def test_magnitudes_by_hand(calls, column):
    rand_augment(noise(4, 4), MAGNITUDES[column], np.random.default_rng(0), num_layers=400)
    arguments = collections.defaultdict(set)
    for name, argument in calls:
        arguments[name].add(argument)
    assert arguments.keys() == NAMES.keys()
    for name, row in ARGUMENTS.items():
        expected = {row[column], -row[column]} if name in GEOMETRIC else {row[column]}
        assert sorted(arguments[name]) == pytest.approx(sorted(expected)), name


def test_fractions_of_whole_arguments_are_cut_off(calls):
    rand_augment(noise(4, 4), 20 / 3, np.random.default_rng(0), num_layers=400)
    arguments = dict(calls)
    assert [arguments[name] for name in ("Posterize", "Solarize", "SolarizeAdd", "Cutout")] == [2, 170, 73, 26]
    assert all(isinstance(arguments[name], int) for name in ("Posterize", "Solarize", "SolarizeAdd", "Cutout"))
    assert abs(arguments["Rotate"]) == pytest.approx(20)


def test_operations_are_drawn_evenly_and_signs_are_fair(calls):
    rng = np.random.default_rng(0)
    for _ in range(4000):
        rand_augment(noise(2, 2), 9, rng)
    assert len(calls) == 8000  # two an image, always applied
    counts = collections.Counter(name for name, _ in calls)
    assert len(counts) == 16
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    pairs = collections.Counter(zip(*[iter(name for name, _ in calls)] * 2, strict=True))
    assert len(pairs) == 256  # the layers are independent
    for name in GEOMETRIC:
        positive = sum(argument > 0 for other, argument in calls if other == name)
        assert stats.binomtest(positive, counts[name]).pvalue > 1e-3


def test_number_of_layers(calls):
    rand_augment(noise(2, 2), 9, np.random.default_rng(0), num_layers=5)
    assert len(calls) == 5
    image = noise(3, 3)
    np.testing.assert_array_equal(rand_augment(image, 9, np.random.default_rng(0), num_layers=0), image)


def test_magnitude_five_is_the_identity_of_the_blends():
    image = noise(20, 20)
    for name in BLENDS:
        operation = randaugment.OPERATIONS[name]
        constants = randaugment.RANDAUGMENT
        np.testing.assert_array_equal(operation(image, 0.5, np.random.default_rng(0), constants), image)
        assert not np.array_equal(operation(image, 1.0, np.random.default_rng(0), constants), image)


@pytest.mark.parametrize("augment", [auto_augment, lambda image, rng: rand_augment(image, 13.0, rng)])
def test_result_is_a_function_of_the_generator(augment):
    image = noise(33, 47)
    first, again = ([augment(image, rng) for _ in range(40)] for rng in map(np.random.default_rng, (5, 5)))
    np.testing.assert_array_equal(first, again)
    assert len({result.tobytes() for result in first}) > 20
    np.testing.assert_array_equal(image, noise(33, 47))


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (2, 9), (37, 61), (128, 75)])
def test_any_size(size):
    image, rng = noise(*size), np.random.default_rng(0)
    for magnitude in (0.0, 6.67, 10.0, 25.0):
        for _ in range(40):
            result = rand_augment(image, magnitude, rng)
            assert result.shape == image.shape and result.dtype == np.uint8
    for _ in range(100):
        result = auto_augment(image, rng)
        assert result.shape == image.shape and result.dtype == np.uint8
    np.testing.assert_array_equal(image, noise(*size))


# name: (number, sum of probabilities, sum of magnitudes)
POLICY_V0_SUMS = {
    "AutoContrast": (2, 1.0, 9),
    "Color": (9, 5.0, 37),
    "Equalize": (12, 8.0, 55),
    "Invert": (1, 0.4, 9),
    "Posterize": (2, 1.2, 8),
    "Rotate": (7, 4.6, 39),
    "ShearX": (2, 0.2, 9),
    "ShearY": (4, 2.6, 14),
    "Solarize": (8, 4.6, 41),
    "SolarizeAdd": (2, 1.4, 10),
    "TranslateY": (1, 0.8, 9),
}


def test_policy_v0_has_the_sums_of_the_released_table():
    """Facts of `policy_v0` in google/automl efficientnetv2/autoaugment.py: 25 pairs, and sums for each operation."""
    assert len(randaugment.POLICY_V0) == 25
    sums = collections.defaultdict(lambda: (0, 0.0, 0))
    for pair in randaugment.POLICY_V0:
        assert len(pair) == 2
        for name, probability, magnitude in pair:
            number, probabilities, magnitudes = sums[name]
            sums[name] = number + 1, round(probabilities + probability, 6), magnitudes + magnitude
    assert sums == POLICY_V0_SUMS


def test_auto_augment_applies_pairs_with_their_probabilities(calls):
    rng, image, draws = np.random.default_rng(0), noise(2, 2), 10_000
    pairs = collections.Counter()
    for _ in range(draws):
        calls.clear()
        auto_augment(image, rng)
        pairs[tuple((name, abs(argument or 0)) for name, argument in calls)] += 1
    # By hand: pairs that no other pair looks like, with the chance of each outcome, 1/25 of the pair's.
    expected = {
        (("Rotate", 21.0), ("TranslateY", 225.0)): 1.0 * 0.8,
        (("Rotate", 21.0),): 1.0 * 0.2,
        (("Posterize", 2), ("AutoContrast", 0)): 0.4 * 0.4,
        (("Posterize", 2),): 0.4 * 0.6,
        (("Equalize", 0), ("SolarizeAdd", 33)): 0.4 * 0.8,
        (("SolarizeAdd", 33),): 0.6 * 0.8,
        (("Posterize", 0), ("Solarize", 256)): 0.8 * 0.6,
    }
    for outcome, chance in expected.items():
        assert stats.binomtest(pairs[outcome], draws, chance / 25).pvalue > 1e-3, outcome
    assert not any(name == "ShearX" and argument == 0 for outcome in pairs for name, argument in outcome)


def test_auto_augment_cuts_larger_squares(monkeypatch):
    sides = []
    monkeypatch.setattr(ops, "cutout", lambda image, half_side, rng: sides.append(half_side) or image)
    randaugment.OPERATIONS["Cutout"](noise(2, 2), 0.5, np.random.default_rng(0), randaugment.AUTOAUGMENT)
    assert sides == [50]
