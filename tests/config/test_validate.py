"""A number outside its range is a sentence before anything is written, whichever field holds it."""

import math

import pytest
from ml_collections import ConfigDict

from effv2_jax.cli.load_config import load_config
from effv2_jax.config import UNITS, defaults, flatten
from effv2_jax.config.validate import check_ranges
from effv2_jax.errors import UserError
from effv2_jax.monitoring.progress import warnings_of
from effv2_jax.train import train

# Checked by `curriculum`, and by the room that reads a folder.
ELSEWHERE = {"global_batch_size", "data.holdout_percent"}


def with_value(field, value):
    config = defaults()
    config.update_from_flattened_dict({field: value})
    return config


def numbers():
    for field, value in flatten(defaults().to_dict()).items():
        duration = any(field.endswith(f"_{unit}") for unit in UNITS)
        if duration or field.startswith("curriculum.") or field in ELSEWHERE:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield field, type(value)(-1)
            if isinstance(value, float):
                yield field, math.nan
                yield field, math.inf
        elif isinstance(value, tuple) and value and isinstance(value[0], float):
            yield from ((field, wrong) for wrong in [(0.0, 1.0), (1.0, 0.5), (math.nan, 1.0), (0.5,), (0.5, math.inf)])


@pytest.mark.parametrize(("field", "value"), list(numbers()))
def test_each_number_of_a_config_has_a_range(field, value):
    with pytest.raises(UserError, match=rf"^config\.{field} has the value .*; it must be ") as error:
        check_ranges(with_value(field, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("ema.decay", 1.0, r"config\.ema\.decay has the value 1\.0; it must be from 0 to below 1"),
        (
            "loss.label_smoothing",
            1.5,
            r"config\.loss\.label_smoothing has the value 1\.5; it must be from 0 to below 1",
        ),
        ("checkpoint.keep_last", 0, r"config\.checkpoint\.keep_last has the value 0; it must be at least 1"),
        ("batch_norm.epsilon", 0.0, r"config\.batch_norm\.epsilon has the value 0\.0; it must be more than 0"),
        (
            "data.crop_area",
            (0.5, 1.5),
            r"config\.data\.crop_area has the value \(0\.5, 1\.5\); it must be \(least, most\)",
        ),
    ],
)
def test_what_is_allowed_is_said(field, value, says):
    with pytest.raises(UserError, match=says):
        check_ranges(with_value(field, value))


def test_a_config_of_its_own_that_lacks_a_field_is_told():
    with pytest.raises(UserError, match=r"^config has no field 'data\.max_labels'; a config starts from "):
        check_ranges(ConfigDict({"seed": 1}))


def test_a_misspelt_override_is_told_before_what_another_one_mends(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from effv2_jax.config import defaults\n"
        "def get_config(argument=None):\n    config = defaults()\n    config.ema.decay = 1.5\n    return config\n"
    )
    assert load_config(str(file), ["--config.ema.decay=0.9"]).ema.decay == 0.9
    with pytest.raises(UserError, match=r"did you mean optimizer\.momentum\?"):
        load_config(str(file), ["--config.ema.decay=0.9", "--config.optimizer.momentun=0.4"])


def test_nothing_is_written_before(tmp_path):
    with pytest.raises(UserError, match="learning_rate_per_256"):
        train(with_value("optimizer.learning_rate_per_256", math.nan), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_zero_turns_off_what_it_says():
    for field in ("ema.decay", "optimizer.clip_norm", "loss.label_smoothing", "batch_norm.group_size", "model.width"):
        check_ranges(with_value(field, type(flatten(defaults().to_dict())[field])(0)))


def test_what_is_rarely_meant_is_a_warning():
    config = defaults()
    config.global_batch_size = 16
    assert warnings_of(config, 1000, 160) == []
    [warmup] = warnings_of(config, 50, 160)  # 5 epochs of 10 steps
    assert "the warm-up of 50 steps (config.schedule.warmup_*) is at least as long as the run of 50" in warmup
    config.global_batch_size = 320
    assert any("is more than the 160 training examples" in warning for warning in warnings_of(config, 1000, 160))
