"""Stages against the published tables, durations in every unit, and what a mistake is told."""

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from effv2_jax.config import UNITS, defaults, duration
from effv2_jax.curriculum import Curriculum, make_curriculum, relative_cost, steps_of
from effv2_jax.errors import UserError

IMAGENET = 1_256_144  # automl's training split, 350 epochs of which are 107,336 steps of 4096


def config_of(total: dict[str, Any] | None = None, batch_size: int = 4096, **fields: Any) -> ConfigDict:
    config = defaults()
    config.global_batch_size = batch_size
    if total:
        config.total_epochs = None
        for unit, value in total.items():
            config[f"total_{unit}"] = value
    listed = fields.pop("listed", {})
    config.curriculum.update(fields)
    config.curriculum.listed.update(listed)
    return config


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


# Durations

sizes = {"batch_size": st.integers(1, 10**5), "num_examples": st.integers(1, 10**8)}


def one_duration(name: str, **given: float) -> ConfigDict:
    section = ConfigDict()
    duration(section, name, **given)
    return section


@given(steps=st.integers(1, 10**7), total_steps=st.integers(1, 10**7), **sizes)
def test_the_units_agree(steps: int, total_steps: int, batch_size: int, num_examples: int) -> None:
    run = {"batch_size": batch_size, "num_examples": num_examples, "total_steps": total_steps}
    same = {
        "steps": steps,
        "examples": steps * batch_size,
        "epochs": steps * batch_size / num_examples,
        "percent": 100 * steps / total_steps,
    }
    for unit, value in same.items():
        assert steps_of(one_duration("log", **{unit: value}), "log", **run) == pytest.approx(steps, rel=1e-12)


def test_durations_by_hand() -> None:
    run = {"batch_size": 4096, "num_examples": IMAGENET, "total_steps": 107336}
    assert steps_of(one_duration("decay", epochs=2.4), "decay", **run) == pytest.approx(736.0219, abs=1e-4)
    assert int(steps_of(one_duration("warmup", epochs=5.0), "warmup", **run)) == 1533
    assert steps_of(one_duration("log", percent=25.0), "log", **run) == 26834
    assert steps_of(one_duration("log", examples=2048), "log", **run) == 0.5
    # In floats 0.29 * 100 is 28.999999999999996, which would lose a step.
    assert steps_of(one_duration("log", epochs=0.29), "log", batch_size=1, num_examples=100) == 29


def test_only_the_warmup_may_be_zero() -> None:
    assert steps_of(one_duration("warmup", steps=0), "warmup", batch_size=1, num_examples=1) == 0
    with pytest.raises(UserError, match=r"config\.log_steps is 0; it must be more than 0"):
        steps_of(one_duration("log", steps=0), "log", batch_size=1, num_examples=1)
    with pytest.raises(UserError, match=r"config\.schedule\.warmup_epochs is -1.0; it must be 0 or more"):
        steps_of(one_duration("warmup", epochs=-1.0), "warmup", batch_size=1, num_examples=1)


@pytest.mark.parametrize("value", [-5.0, 0.0, float("nan"), float("inf")])
def test_a_length_is_positive(value: float) -> None:
    with pytest.raises(UserError, match=rf"config\.total_epochs is {value}; it must be more than 0"):
        make_curriculum(config_of({"epochs": value}), IMAGENET)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(UNITS, 2)))
def test_two_units_are_one_too_many(one: str, other: str) -> None:
    config = one_duration("total", **{one: 3, other: 4})
    with pytest.raises(UserError) as error:
        steps_of(config, "total", batch_size=2, num_examples=4, total_steps=10)
    for words in (f"config.total_{one}=3", f"config.total_{other}=4", "keep one of them"):
        assert words in str(error.value)


def test_a_section_is_part_of_the_hint() -> None:
    config = defaults()
    config.schedule.warmup_steps = 7
    with pytest.raises(UserError, match=r"config\.schedule\.warmup_steps=7 and config\.schedule\.warmup_epochs=5"):
        steps_of(config.schedule, "warmup", batch_size=2, num_examples=4)


def test_no_unit_is_one_too_few() -> None:
    with pytest.raises(UserError, match=r"'log' is not given; set one of config\.log_steps, .*, config\.log_percent"):
        steps_of(one_duration("log"), "log", batch_size=2, num_examples=4)
    with pytest.raises(
        UserError, match=r"set one of config\.total_steps, config\.total_epochs, config\.total_examples$"
    ):
        make_curriculum(config_of({"epochs": None}), IMAGENET)


def test_the_run_is_no_percentage() -> None:
    with pytest.raises(UserError, match=r"config\.total_percent has no whole to be a share of"):
        make_curriculum(config_of({"percent": 50.0}), IMAGENET)


# Values by hand


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


@pytest.mark.parametrize(
    ("total", "listed", "message"),
    [
        (
            {"epochs": 350.0},
            {"duration_epochs": (87, 87, 87, 87)},
            r"listed\.duration_epochs adds up to 348 epochs, but the run has 350",
        ),
        ({"steps": 100}, {"duration_percent": (25, 25, 25, 24)}, r"adds up to 99 percent, but the run has 100"),
        ({"steps": 100}, {"duration_steps": (25, 25, 25, 26)}, r"adds up to 101 steps, but the run has 100"),
        (
            {"steps": 100},
            {"duration_steps": (25,) * 4, "duration_percent": (25,) * 4},
            r"duration_steps and config\.curriculum\.listed\.duration_percent are both given",
        ),
        ({"steps": 100}, {"duration_steps": (50, 50)}, r"duration_steps has 2 values, but .*num_stages is 4"),
        ({"steps": 100}, {"duration_steps": (50, 50, 50, -50)}, r"duration_steps has the value -50; it must be more"),
        ({"steps": 100}, {"duration_percent": (50, 0.5, 0.4, 49.1)}, r"stage 2 has no step: the run has 100 steps"),
        ({"steps": 3}, {}, r"stage 1 has no step: the run has 3 steps for config\.curriculum\.num_stages=4"),
        ({"examples": 5}, {}, r"stage 1 has no step: the run has 0 steps"),
    ],
)
def test_durations_that_do_not_fit(total: dict[str, Any], listed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_curriculum(config_of(total, listed=listed), IMAGENET)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": (0, 300)}, r"image_size has the value 0; it must be a whole number of pixels from 1"),
        (
            {"image_size": (15, 300), "image_size_multiple": 32},
            r"image_size gives 0 in stage 1 at image_size_multiple=32",
        ),
        ({"image_size_multiple": 0}, r"image_size_multiple is 0; it must be a whole number from 1"),
        ({"randaugment_magnitude": (-1.0, 5.0)}, r"randaugment_magnitude has the value -1\.0"),
        ({"mixup_alpha": (0.0, -0.2)}, r"mixup_alpha has the value -0\.2; it must be 0 \(off\) or more"),
        ({"cutmix_alpha": (0.0, float("nan"))}, r"cutmix_alpha has the value nan"),
        ({"dropout_rate": (0.1, 1.0)}, r"dropout_rate has the value 1\.0; it must be from 0 to below 1"),
        ({"survival_probability": (0.0, 0.8)}, r"survival_probability has the value 0\.0; it must be above 0 and at"),
        ({"accumulation_steps": 0}, r"accumulation_steps has the value 0; it must be a whole number from 1"),
        ({"accumulation_steps": 3}, r"accumulation_steps is 3 in stage 1, .* config\.global_batch_size=4096"),
        ({"listed": {"accumulation_steps": (1, 1, 1, 5)}}, r"accumulation_steps is 5 in stage 4"),
        ({"listed": {"image_size": (128, 160)}}, r"listed\.image_size has 2 values, but .*num_stages is 4"),
        ({"listed": {"image_size": (128, 160, 192.5, 224)}}, r"listed\.image_size has the value 192\.5"),
        ({"listed": {"dropout_rate": (0.1, 0.1, 0.1, 2.0)}}, r"listed\.dropout_rate has the value 2\.0"),
        ({"listed": {"remat": (0, 1, 1, 1)}}, r"listed\.remat has the value 0; it must be True or False"),
        ({"mixup_alpha": (0.0, 0.1, 0.2)}, r"mixup_alpha is \(0\.0, 0\.1, 0\.2\); it needs a range \(first, last\)"),
        ({"num_stages": 0}, r"num_stages is 0; it must be a whole number from 1"),
        ({"recipe": "papers"}, r"recipe 'papers' is unknown; did you mean 'paper'\?"),
        ({"recipe": "torch"}, r"recipe 'torch' is unknown; known: paper, automl"),
    ],
)
def test_values_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_curriculum(config_of(**fields), IMAGENET)


def test_the_batch_size_is_positive() -> None:
    with pytest.raises(UserError, match=r"config\.global_batch_size is 0; it must be a whole number from 1"):
        make_curriculum(config_of(batch_size=0), IMAGENET)
