"""Stages against the published tables, and stages with listed values and durations."""

import dataclasses
import itertools

import pytest
from config_of import config_of
from hypothesis import assume, given
from hypothesis import strategies as st

from effv2_jax.config import UNITS
from effv2_jax.curriculum import Curriculum, make_curriculum, relative_cost

IMAGENET = 1_256_144  # automl's training split, 350 epochs of which are 107,336 steps of 4096


def column(curriculum: Curriculum, field: str) -> list[float]:
    return [round(getattr(stage, field), 3) for stage in curriculum.stages]


PAPER = {  # Table 6
    "s": {
        "image_size": (128, 300),
        "randaugment_magnitude": (5, 15),
        "mixup_alpha": (0, 0),
        "dropout_rate": (0.1, 0.3),
    },
    "m": {
        "image_size": (128, 380),
        "randaugment_magnitude": (5, 20),
        "mixup_alpha": (0, 0.2),
        "dropout_rate": (0.1, 0.4),
    },
    "l": {
        "image_size": (128, 380),
        "randaugment_magnitude": (5, 25),
        "mixup_alpha": (0, 0.4),
        "dropout_rate": (0.1, 0.5),
    },
}
PAPER_STAGES = {  # Algorithm 1 by hand; sizes 185.33 and 242.67 rounded
    "s": ([128, 185, 243, 300], [5, 8.333, 11.667, 15], [0, 0, 0, 0], [0.1, 0.167, 0.233, 0.3]),
    "m": ([128, 212, 296, 380], [5, 10, 15, 20], [0, 0.067, 0.133, 0.2], [0.1, 0.2, 0.3, 0.4]),
    "l": ([128, 212, 296, 380], [5, 11.667, 18.333, 25], [0, 0.133, 0.267, 0.4], [0.1, 0.233, 0.367, 0.5]),
}
AUTOML = {  # effnetv2_configs.py: last size, magnitude, mixup and cutmix alpha, dropout
    "s": (300, 10, 0.0, 0.2),
    "m": (384, 15, 0.2, 0.3),
    "l": (384, 20, 0.5, 0.4),
    "b0": (192, 0, 0.0, 0.2),
    "b2": (208, 0, 0.0, 0.3),
    "b3": (240, 0, 0.0, 0.3),
}
AUTOML_STAGES = {  # sizes, magnitudes, alphas as main.py computes them
    "s": ([171, 214, 257, 300], [5, 6.667, 8.333, 10], [0, 0, 0, 0]),
    "m": ([192, 256, 320, 384], [5, 8.333, 11.667, 15], [0, 0.067, 0.133, 0.2]),
    "l": ([192, 256, 320, 384], [5, 10, 15, 20], [0, 0.167, 0.333, 0.5]),
    "b0": ([144, 160, 176, 192], [5, 3.333, 1.667, 0], [0, 0, 0, 0]),
    "b2": ([148, 168, 188, 208], [5, 3.333, 1.667, 0], [0, 0, 0, 0]),
    "b3": ([156, 184, 212, 240], [5, 3.333, 1.667, 0], [0, 0, 0, 0]),
}


@pytest.mark.parametrize("size", PAPER)
def test_the_papers_stages(size: str) -> None:
    curriculum = make_curriculum(config_of(recipe="paper", **PAPER[size]), IMAGENET)
    sizes, magnitudes, alphas, dropouts = PAPER_STAGES[size]
    assert column(curriculum, "image_size") == sizes
    assert column(curriculum, "randaugment_magnitude") == magnitudes
    assert column(curriculum, "mixup_alpha") == alphas
    assert column(curriculum, "cutmix_alpha") == [0, 0, 0, 0]
    assert column(curriculum, "dropout_rate") == dropouts
    assert column(curriculum, "survival_probability") == [0.8] * 4


@pytest.mark.parametrize("size", AUTOML)
def test_the_released_stages(size: str) -> None:
    last, magnitude, alpha, dropout = AUTOML[size]
    config = config_of(
        recipe="automl",
        image_size=(128, last),
        randaugment_magnitude=(5, magnitude),
        mixup_alpha=(0, alpha),
        cutmix_alpha=(0, alpha),
        dropout_rate=(0.1, dropout),
        survival_probability=(1.0, 0.8),
    )
    curriculum = make_curriculum(config, IMAGENET)
    sizes, magnitudes, alphas = AUTOML_STAGES[size]
    assert column(curriculum, "image_size") == sizes
    assert column(curriculum, "randaugment_magnitude") == magnitudes
    assert column(curriculum, "mixup_alpha") == column(curriculum, "cutmix_alpha") == alphas
    assert column(curriculum, "dropout_rate") == [dropout] * 4
    assert column(curriculum, "survival_probability") == [0.8] * 4
    assert [stage.end_step for stage in curriculum.stages] == [26834, 53668, 80502, 107336]


@pytest.mark.parametrize("recipe", ["paper", "automl"])
def test_one_stage_has_the_last_values(recipe: str) -> None:
    config = config_of(recipe=recipe, num_stages=1, mixup_alpha=(0.0, 0.5), survival_probability=(1.0, 0.7))
    [stage] = make_curriculum(config, IMAGENET).stages
    assert dataclasses.astuple(stage) == (0, 0, 107336, 300, 15.0, 0.5, 0.0, 0.3, 0.7, 1, False)
    assert stage.num_steps == 107336


@pytest.mark.parametrize(
    ("sizes", "multiple", "expected"),
    [((128, 300), 32, [128, 192, 256, 288]), ((128, 300), 1, [128, 185, 243, 300]), ((1, 4), 2, [2, 2, 4, 4])],
)
def test_sizes_are_rounded_to_the_nearest_multiple(sizes: tuple[int, int], multiple: int, expected: list[int]) -> None:
    """185.3 / 32 = 5.8, 242.7 / 32 = 7.6, 300 / 32 = 9.4; a half (1 and 3 of 2) goes up."""
    curriculum = make_curriculum(config_of(image_size=sizes, image_size_multiple=multiple), IMAGENET)
    assert column(curriculum, "image_size") == expected


def test_relative_cost() -> None:
    released = make_curriculum(config_of(recipe="automl", image_size=(128, 300)), IMAGENET)
    large = make_curriculum(config_of(recipe="automl", image_size=(128, 384)), IMAGENET)
    paper = make_curriculum(config_of(), IMAGENET)
    by_hand = (171**2 + 214**2 + 257**2 + 300**2) / 4 / 300**2
    assert relative_cost(released).overall == pytest.approx(by_hand, rel=1e-12)
    assert [round(relative_cost(x).overall, 3) for x in (released, large)] == [0.642, 0.597]
    assert relative_cost(paper).overall == pytest.approx(0.554, abs=1e-3)
    assert relative_cost(paper).saving == 1 - relative_cost(paper).overall
    # One of two steps at half the size: (1/4 + 1) / 2; with three of four steps there: (3/4 + 1) / 4
    uneven = config_of({"steps": 4}, num_stages=2, image_size=(64, 128), listed={"duration_steps": (3, 1)})
    assert relative_cost(make_curriculum(uneven, 10)).overall == pytest.approx(0.4375)
    assert relative_cost(make_curriculum(uneven, 10)).stages == (0.25, 1.0)


@given(total_steps=st.integers(1, 10**7), num_stages=st.integers(1, 40), batch_size=st.integers(1, 10**5))
def test_stages_tile_the_run(total_steps: int, num_stages: int, batch_size: int) -> None:
    assume(total_steps >= num_stages)
    config = config_of({"steps": total_steps}, batch_size, num_stages=num_stages)
    curriculum = make_curriculum(config, 1000)
    assert_tiles(curriculum, total_steps, num_stages)
    steps = [stage.num_steps for stage in curriculum.stages]
    assert max(steps) - min(steps) <= 1


@given(shares=st.lists(st.integers(1, 1000), min_size=1, max_size=8), unit=st.sampled_from(list(UNITS)), data=st.data())
def test_listed_durations_tile_the_run(shares: list[int], unit: str, data: st.DataObject) -> None:
    """Whatever the unit, stage ends are within a step of the exact ones."""
    batch_size = data.draw(st.integers(1, 50))
    num_examples = data.draw(st.integers(2 * batch_size, 100 * batch_size))
    if unit == "percent":
        total = {"steps": 100 * sum(shares)}
        listed = [100 * share / sum(shares) for share in shares]
    elif unit == "examples":
        listed = [share * batch_size * 2 for share in shares]
        total = {"examples": sum(listed)}
    else:
        listed, total = list(shares), {unit: sum(shares)}
    config = config_of(total, batch_size, num_stages=len(shares), listed={f"duration_{unit}": tuple(listed)})
    curriculum = make_curriculum(config, num_examples)
    assert_tiles(curriculum, curriculum.total_steps, len(shares))
    exact = [sum(shares[: i + 1]) / sum(shares) * curriculum.total_steps for i in range(len(shares))]
    for stage, end in zip(curriculum.stages, exact, strict=True):
        assert abs(stage.end_step - end) <= 1 + 1e-6


def assert_tiles(curriculum: Curriculum, total_steps: int, num_stages: int) -> None:
    stages = curriculum.stages
    assert curriculum.total_steps == total_steps
    assert [stage.index for stage in stages] == list(range(num_stages))
    assert stages[0].start_step == 0 and stages[-1].end_step == total_steps
    for one, other in itertools.pairwise(stages):
        assert one.start_step < one.end_step == other.start_step < other.end_step
        assert one.image_size <= other.image_size
    for stage in stages:
        assert curriculum.stage_at(stage.start_step) is stage
        assert curriculum.stage_at(stage.end_step - 1) is stage
    for outside in (-1, total_steps):
        with pytest.raises(ValueError, match=f"step {outside} is outside the run of {total_steps} steps"):
            curriculum.stage_at(outside)


@given(
    first=st.integers(1, 500),
    last=st.integers(1, 500),
    num_stages=st.integers(1, 10),
    multiple=st.integers(1, 8),
    recipe=st.sampled_from(["paper", "automl"]),
)
def test_sizes_are_monotone_and_end_at_the_last(
    first: int, last: int, num_stages: int, multiple: int, recipe: str
) -> None:
    assume(min(first, last) >= multiple)
    config = config_of(image_size=(first, last), num_stages=num_stages, image_size_multiple=multiple, recipe=recipe)
    sizes = column(make_curriculum(config, IMAGENET), "image_size")
    assert sizes == sorted(sizes, reverse=last < first)
    assert all(size % multiple == 0 for size in sizes)
    assert abs(sizes[-1] - last) <= multiple / 2
    if multiple == 1:
        assert sizes[-1] == last


# Listed values


def test_listed_values_are_taken_as_they_are() -> None:
    config = config_of(
        {"steps": 10},
        num_stages=2,
        image_size_multiple=32,
        recipe="automl",
        listed={
            "image_size": (33, 100),
            "randaugment_magnitude": (1, 2.5),
            "mixup_alpha": (0.1, 0.2),
            "cutmix_alpha": (0, 1),
            "dropout_rate": (0.5, 0.0),
            "survival_probability": (1, 0.6),
            "accumulation_steps": (1, 4),
            "remat": (False, True),
            "duration_percent": (33.0, 67.0),
        },
    )
    first, second = make_curriculum(config, 1000).stages
    assert dataclasses.astuple(first) == (0, 0, 3, 33, 1.0, 0.1, 0.0, 0.5, 1.0, 1, False)
    assert dataclasses.astuple(second) == (1, 3, 10, 100, 2.5, 0.2, 1.0, 0.0, 0.6, 4, True)


def test_listed_epochs_of_a_run_in_epochs() -> None:
    """10 epochs of 7 examples in batches of 4 are 17.5 steps: ends at 1.75, 7 and 17.5, cut off."""
    config = config_of({"epochs": 10.0}, 4, num_stages=3, listed={"duration_epochs": (1, 3, 6)})
    assert [stage.end_step for stage in make_curriculum(config, 7).stages] == [1, 7, 17]
