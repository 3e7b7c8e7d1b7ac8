"""One validation: a single fault is a sentence, several are one error that lists all of them."""

import math
import re

import pytest
from config_of import fault_of, with_values
from hypothesis import given, settings
from hypothesis import strategies as st

from effv2_jax.cli.load_config import load_config
from effv2_jax.config import UNITS, defaults, flatten
from effv2_jax.config.rules import CHOICES, RULES
from effv2_jax.config.validate import validate, warnings
from effv2_jax.errors import UserError
from effv2_jax.train import train

IMAGENET = 1_256_144  # automl's training split, 350 epochs of which are 107,336 steps of 4096
DEFAULTS = flatten(defaults().to_dict())
DURATION = re.compile(rf".*_({'|'.join(UNITS)})$")


def test_every_field_has_a_rule():
    assert RULES.keys() == DEFAULTS.keys()


def test_the_defaults_are_valid():
    validate(defaults(), num_examples=IMAGENET, num_devices=1024, num_processes=256)


# One field.


def numbers():
    for field, value in DEFAULTS.items():
        if DURATION.match(field) or field.startswith("curriculum."):
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
    sentence = fault_of(with_values(**{field: value}))
    assert re.match(rf"config\.{field} (has the value|is) .*; it must be ", sentence)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("ema.decay", 1.0, "config.ema.decay has the value 1.0; it must be from 0 to below 1"),
        ("loss.label_smoothing", 1.5, "config.loss.label_smoothing has the value 1.5; it must be from 0 to below 1"),
        ("checkpoint.keep_last", 0, "config.checkpoint.keep_last has the value 0; it must be at least 1"),
        ("batch_norm.epsilon", 0.0, "config.batch_norm.epsilon has the value 0.0; it must be more than 0"),
        ("seed", 2**63, f"config.seed has the value {2**63}; it must be from 0 to below 2^63"),
        ("data.holdout_percent", 100.0, "config.data.holdout_percent is 100.0; it must be between 0 and 100"),
        (
            "data.crop_area",
            (0.5, 1.5),
            "config.data.crop_area has the value (0.5, 1.5); it must be (least, most), above 0 and at most 1",
        ),
        ("init_pattern", "(", "config.init_pattern: '(' is not a regular expression: "),
        ("model.blocks", "r1", "config.model.blocks has the value 'r1'; it must be a tuple of block strings"),
        # Types.
        ("seed", 0.5, "config.seed has the value 0.5; it must be a whole number"),
        ("seed", True, "config.seed has the value True; it must be a whole number"),
        ("seed", None, "config.seed has the value None; it must be a whole number"),
        ("ema.decay", "0.9", "config.ema.decay has the value '0.9'; it must be a number"),
        ("data.flip", 1, "config.data.flip has the value 1; it must be True or False"),
        ("data.name", 7, "config.data.name has the value 7; it must be text"),
        ("curriculum.listed.image_size", 7, "config.curriculum.listed.image_size is 7; it needs one value per stage"),
        # Names.
        ("dtype", "float16", "config.dtype 'float16' is unknown; did you mean 'bfloat16'?"),
        ("dtype", 16, "config.dtype '16' is unknown; known: float32, bfloat16"),
        ("model.padding", "simmetric", "config.model.padding 'simmetric' is unknown; did you mean 'symmetric'?"),
        ("model.lowering", "fast", "config.model.lowering 'fast' is unknown; known: auto, native, decomposed"),
        ("curriculum.recipe", "papers", "config.curriculum.recipe 'papers' is unknown; did you mean 'paper'?"),
        ("data.source", "foldr", "config.data.source 'foldr' is unknown; did you mean 'folder'?"),
        ("data.augmentation", "randaug", "config.data.augmentation 'randaug' is unknown; did you mean 'randaugment'?"),
        ("data.interpolation", "nearest", "config.data.interpolation 'nearest' is unknown; known: bilinear, bicubic"),
        ("data.evaluation_crop", "v3", "config.data.evaluation_crop 'v3' is unknown; "),
        ("data.normalization", "v3", "config.data.normalization 'v3' is unknown; "),
        ("schedule.name", "cosin", "config.schedule.name 'cosin' is unknown; did you mean 'cosine'?"),
        ("schedule.name", "zigzag", "config.schedule.name 'zigzag' is unknown; known: exponential, cosine, linear, "),
        ("optimizer.name", "rmsprob", "config.optimizer.name 'rmsprob' is unknown; did you mean 'rmsprop'?"),
        (
            "optimizer.weight_decay_mode",
            "decoupld",
            "config.optimizer.weight_decay_mode 'decoupld' is unknown; did you mean 'decoupled'?",
        ),
        ("loss.name", "sigmod", "config.loss.name 'sigmod' is unknown; did you mean 'sigmoid'?"),
        ("loss.name", "focal", "config.loss.name 'focal' is unknown; known: softmax, sigmoid"),
    ],
)
def test_a_single_fault_is_a_sentence(field, value, sentence):
    assert fault_of(with_values(**{field: value})).startswith(sentence)


@pytest.mark.parametrize("field", ["weight_decay_mask", "learning_rate_multipliers"])
@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("(bias", 0.0),), "'(bias' is not a regular expression"),
        (("kernel", 1.0), " needs pairs ('pattern', factor), not 'kernel'"),
        ((("kernel", "much"),), " needs pairs ('pattern', factor), not ('kernel', 'much')"),
        (((".*", 1.0), ("kernel", -0.5)), "the factor of 'kernel' is -0.5; it must be finite and not negative"),
        ((("kernel", math.inf),), "the factor of 'kernel' is inf; it must be finite"),
        ((("kernel", math.nan),), "the factor of 'kernel' is nan; it must be finite"),
        (0.5, " needs pairs ('pattern', factor), not 0.5"),
    ],
)
def test_malformed_factors_of_parameters(field, rules, message):
    sentence = fault_of(with_values(**{f"optimizer.{field}": rules}))
    assert f"config.optimizer.{field}" in sentence and message in sentence


def test_zero_turns_off_what_it_says():
    for field in ("ema.decay", "optimizer.clip_norm", "loss.label_smoothing", "batch_norm.group_size", "model.width"):
        validate(with_values(**{field: type(DEFAULTS[field])(0)}))


def test_whole_numbers_are_numbers():
    validate(with_values(ema__decay=0, curriculum__dropout_rate=(0, 0), curriculum__image_size=(128.0, 256.0)))


def test_a_config_that_lacks_fields():
    config = defaults()
    with config.unlocked():
        del config.data.max_labels
        assert fault_of(config) == (
            "config has no field 'data.max_labels'; a config starts from effv2_jax.config.defaults()"
        )
        del config.seed
        assert re.match(r"config has no field '[a-z_.]+', '[a-z_.]+'; a config starts from", fault_of(config))


# Several faults.


def test_several_faults_are_listed():
    config = with_values(ema__decay=2.0, loss__name="focal", schedule__warmup_steps=3, curriculum__num_stages=0)
    assert fault_of(config, num_examples=IMAGENET) == (
        "the config has 4 faults: config.loss.name 'focal' is unknown; known: softmax, sigmoid; "
        "config.curriculum.num_stages is 0; it must be a whole number from 1; "
        "config.ema.decay has the value 2.0; it must be from 0 to below 1; "
        "config.schedule.warmup_steps=3 and config.schedule.warmup_epochs=5.0 give the same duration; keep one of them"
    )


def wrong_values(field):
    if field in CHOICES:
        return ["no such name", 3, None]
    default = DEFAULTS[field]
    if isinstance(default, bool):
        return [0, "yes", None]
    if isinstance(default, str):
        return [3, None, ("text",)] + (["("] if field == "init_pattern" else [])
    is_duration = DURATION.match(field) and not field.startswith("curriculum.")
    if isinstance(default, tuple):
        return [7, None, ("text", math.nan), "text"]
    # ConfigDict itself converts a whole number or a bool for a float field.
    is_whole = isinstance(default, int) or (is_duration and field.endswith(("steps", "examples")))
    wrong = ["many", -1, math.nan] + ([True, 1.5] if is_whole else [])
    return wrong if is_duration else [*wrong, None]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_wrong_field_is_named(data):
    fields = data.draw(st.lists(st.sampled_from(sorted(RULES)), min_size=1, max_size=6, unique=True))
    values = {field: data.draw(st.sampled_from(wrong_values(field)), label=field) for field in fields}
    surroundings = data.draw(st.sampled_from([{}, {"num_examples": 10_000, "num_devices": 8, "num_processes": 2}]))
    sentence = fault_of(with_values(**values), **surroundings)
    for field in fields:
        assert re.search(rf"config\.{field}\b", sentence), (field, sentence)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_wrong_values_are_wrong_alone(data):
    field = data.draw(st.sampled_from(sorted(RULES)))
    for value in wrong_values(field):
        assert f"config.{field}" in fault_of(with_values(**{field: value})), value


# Where it is called.


def test_a_misspelt_override_is_reported_before_a_value_that_another_override_corrects(tmp_path):
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
        train(with_values(optimizer__learning_rate_per_256=math.nan), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_rarely_meant_is_a_warning():
    config = defaults()
    config.global_batch_size = 16
    assert warnings(config, num_examples=160, total_steps=1000) == []
    [warmup] = warnings(config, num_examples=160, total_steps=50)  # 5 epochs of 10 steps
    assert "the warm-up of 50 steps (config.schedule.warmup_*) is at least as long as the run of 50" in warmup
    config.global_batch_size = 320
    [batch] = [sentence for sentence in warnings(config, num_examples=160, total_steps=1000) if "batch" in sentence]
    assert "is more than the 160 training examples" in batch
