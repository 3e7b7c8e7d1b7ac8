"""Faults of several fields together: durations, stages, batches."""

import itertools
import math

import pytest
from config_of import config_of, fault_of, with_values
from tiny import tiny_config

from effv2_jax.config import UNITS, defaults, duration
from effv2_jax.config.validate import validate, validate_evaluation
from effv2_jax.errors import UserError

IMAGENET = 1_256_144  # automl's training split, 350 epochs of which are 107,336 steps of 4096

# Durations.


def test_only_the_warmup_may_be_zero():
    validate(with_values(schedule__warmup_epochs=0.0))
    assert fault_of(with_values(schedule__warmup_epochs=-1.0)) == (
        "config.schedule.warmup_epochs is -1.0; it must be 0 or more"
    )
    config = defaults()
    duration(config, "log", steps=0)
    assert fault_of(config) == "config.log_steps is 0; it must be more than 0"


@pytest.mark.parametrize("value", [-5.0, 0.0, math.nan, math.inf])
def test_a_length_is_positive(value):
    assert fault_of(config_of({"epochs": value})) == f"config.total_epochs is {value}; it must be more than 0"


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(UNITS, 2)))
def test_two_units_are_one_too_many(one, other):
    sentence = fault_of(config_of({one: 3, other: 4}))
    kinds = UNITS[one], UNITS[other]
    assert sentence == (
        f"config.total_{one}={kinds[0](3)} and config.total_{other}={kinds[1](4)} give the same duration; "
        "keep one of them"
    )


def test_a_section_is_part_of_the_sentence():
    sentence = fault_of(with_values(schedule__warmup_steps=7))
    assert sentence.startswith("config.schedule.warmup_steps=7 and config.schedule.warmup_epochs=5.0 give the same")


def test_no_unit_is_one_too_few():
    config = defaults()
    duration(config, "log")
    assert fault_of(config) == (
        "the duration 'log' is not given; set one of config.log_steps, config.log_epochs, config.log_examples, "
        "config.log_percent"
    )
    assert fault_of(config_of({"epochs": None})).endswith(
        "set one of config.total_steps, config.total_epochs, config.total_examples"
    )


def test_the_run_is_no_percentage():
    assert fault_of(config_of({"percent": 50.0})) == (
        "config.total_percent has no whole to be a share of; give the duration 'total' in another unit"
    )


# Stages.


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
def test_durations_that_do_not_fit(total, listed, message):
    with pytest.raises(UserError, match=message) as error:
        validate(config_of(total, listed=listed), num_examples=IMAGENET)
    assert "faults" not in str(error.value)


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
        ({"listed": {"remat": (0, True, True, True)}}, r"listed\.remat has the value 0; it must be True or False"),
        ({"mixup_alpha": (0.0, 0.1, 0.2)}, r"mixup_alpha is \(0\.0, 0\.1, 0\.2\); it needs a range \(first, last\)"),
        ({"batch_size": 0}, r"config\.global_batch_size is 0; it must be a whole number from 1"),
        ({"num_stages": 0}, r"num_stages is 0; it must be a whole number from 1"),
        ({"recipe": "papers"}, r"recipe 'papers' is unknown; did you mean 'paper'\?"),
        ({"recipe": "torch"}, r"recipe 'torch' is unknown; known: paper, automl"),
    ],
)
def test_values_of_stages_out_of_range(fields, message):
    with pytest.raises(UserError, match=message) as error:
        validate(config_of(**fields), num_examples=IMAGENET)
    assert "faults" not in str(error.value)


def test_sizes_of_the_last_stage_alone_do_not_make_the_first_one_wrong():
    validate(config_of(image_size=(15, 300), image_size_multiple=32, num_stages=1), num_examples=IMAGENET)
    validate(config_of(image_size=(15, 300), image_size_multiple=32, recipe="automl"), num_examples=IMAGENET)


def test_steps_are_checked_where_the_number_of_examples_is_known():
    validate(config_of({"steps": 3}))
    assert fault_of(config_of({"steps": 3}), num_examples=9).startswith("stage 1 has no step: the run has 3 steps")


# Batches.


def test_a_batch_that_cannot_be_divided_is_one_error_with_every_reason():
    config = tiny_config(curriculum__accumulation_steps=2, global_batch_size=20, evaluation__batch_size=100)
    assert fault_of(config, num_devices=16) == (
        "the config has 3 faults: config.global_batch_size=20 does not fit: stage 1: micro-batches of 10 are not "
        "multiples of 4; config.global_batch_size=20 does not fit: the 16 devices do not divide it; "
        "config.evaluation.batch_size=100 does not fit: the 16 devices do not divide it"
    )
    validate(tiny_config(), num_devices=8)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"curriculum__accumulation_steps": 3},
            "accumulation_steps is 3 in stage 1, which does not divide config.global_batch_size=16; use a divisor",
        ),
        (
            {"curriculum__listed__accumulation_steps": (1, 2, 8, 8)},
            "config.global_batch_size=16 does not fit: stage 3: micro-batches of 2 are not multiples of 4",
        ),
        (
            {"batch_norm__group_size": 3},
            "config.global_batch_size=16 does not fit: stage 1: batch_norm.group_size=3 does not divide a "
            "(micro-)batch of 16",
        ),
        (
            {"global_batch_size": 18},
            "config.global_batch_size=18 does not fit: stage 2: mixing needs a (micro-)batch of a multiple of 4, "
            "not 18",
        ),
        (
            {"global_batch_size": 18, "curriculum__listed__mixup_alpha": (0.1, 0.1, 0.0, 0.0)},
            "config.global_batch_size=18 does not fit: stage 2: mixing needs a (micro-)batch of a multiple of 4, "
            "not 18",
        ),
    ],
)
def test_batches_of_stages(changes, sentence):
    assert fault_of(tiny_config(**changes)) == sentence


def test_mixing_counts_by_stage():
    """Mixup in two stages and cutmix in the other two: pairs are enough."""
    changes = {"curriculum__cutmix_alpha": (0.0, 0.0), "curriculum__listed__cutmix_alpha": (0.1, 0.1, 0.0, 0.0)}
    validate(tiny_config(global_batch_size=18, curriculum__listed__mixup_alpha=(0.0, 0.0, 0.1, 0.1), **changes))


def test_processes_must_divide_the_batches():
    config = tiny_config(global_batch_size=4, evaluation__batch_size=3)
    assert fault_of(config, num_processes=3) == "config.global_batch_size=4 is not a multiple of the 3 processes"
    assert fault_of(config, num_processes=2) == "config.evaluation.batch_size=3 is not a multiple of the 2 processes"


def test_an_evaluation_needs_no_training_batch():
    config = tiny_config(global_batch_size=4, evaluation__batch_size=6)
    validate_evaluation(config, num_devices=3, num_processes=3)
    with pytest.raises(UserError, match=r"^config\.evaluation\.batch_size=6 does not fit: the 4 devices do not divide"):
        validate_evaluation(config, num_devices=4, num_processes=1)
