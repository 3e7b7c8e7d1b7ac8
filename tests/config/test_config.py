"""The configs as they resolve, and the arguments and overrides that make them."""

import json
import os
import re

import pytest
from launching import ROOT
from ml_collections import ConfigDict

from effv2_jax.cli.load_config import load_config
from effv2_jax.config import defaults, duration, flat_lines, from_dict, parse_argument, to_dict
from effv2_jax.config.validate import validate
from effv2_jax.curriculum import make_curriculum
from effv2_jax.errors import UserError
from effv2_jax.runtime.compiler import Compiler
from effv2_jax.runtime.mesh import make_mesh

GOLDEN = ROOT / "tests" / "golden"
RUNLOCAL = [
    "imagenet.py:s,runlocal",
    "imagenet.py:m,resizing=random,runlocal",
    "imagenet.py:efficientnet-b5,resizing=progressive,runlocal",
    "imagenet21k.py:s,loss=sigmoid,runlocal",
    "finetune.py:imagenet,variant=s,runlocal",
    "transfer.py:flowers,runlocal",
    "ablation.py:fused,placement=1-5,runlocal",
    "folder.py:runlocal",
]
SHIPPED = [
    *(f"imagenet.py:{variant}" for variant in ("s", "m", "l", "xl", "b0", "b1", "b2", "b3")),
    *(f"imagenet.py:{variant},recipe=automl" for variant in ("s", "m", "l", "xl", "b0", "b1", "b2", "b3")),
    "imagenet.py:b0,augmentation=randaugment",
    *(f"imagenet.py:efficientnet-b{number}" for number in (0, 4, 7)),
    *(f"imagenet.py:efficientnet-b{number},resizing=progressive" for number in (4, 5)),
    "imagenet.py:s,resizing=none",
    "imagenet.py:m,resizing=random",
    "imagenet.py:m,resizing=random,regularization=vanilla",
    "imagenet.py:m,regularization=vanilla",
    "imagenet21k.py:s",
    "imagenet21k.py:xl,loss=sigmoid,epochs=30",
    "ablation.py:fused,placement=1-3",
    "ablation.py:size,image_size=192,magnitude=10",
    "digits.py",
    "folder.py",
    "folder.py:s,size=224",
    "finetune.py",
    "finetune.py:imagenet,variant=xl",
    "finetune.py:imagenet,variant=s,recipe=automl",
    "transfer.py:cifar10",
    "transfer.py:cifar100,variant=b1",
    "transfer.py:flowers,variant=m",
    "transfer.py:cars,variant=l,recipe=automl",
    *RUNLOCAL,
]


def load(name: str, *overrides: str) -> ConfigDict:
    return load_config(str(ROOT / "configs" / name), list(overrides))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_resolve_to_the_golden_text(name):
    """Any drift of a hyper-parameter shows; EFFV2_UPDATE_GOLDEN=1 writes the files anew."""
    text = "\n".join(flat_lines(load(name))) + "\n"
    path = GOLDEN / "configs" / (name.replace(".py", "").replace(":", "-").replace(",", "-") + ".txt")
    if os.environ.get("EFFV2_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_accepted_by_all_that_reads_them(name):
    config = load(name)
    num_examples = config.data.num_examples or 1442
    validate(config, num_examples=num_examples, num_devices=1, num_processes=1)
    curriculum = make_curriculum(config, num_examples)
    compiler = Compiler(config, curriculum, 10, num_examples, make_mesh())
    assert compiler.abstract_state.step.shape == ()


def test_every_default_is_kept_or_changed_but_none_added():
    fields = {line.partition(" = ")[0] for line in flat_lines(defaults())}
    for name in SHIPPED:
        assert {line.partition(" = ")[0] for line in flat_lines(load(name))} == fields, name


def test_every_field_is_read_somewhere():
    """No dead options: each name stands in the package outside of the files that declare and check it."""
    declaring = ("fields.py", "rules.py")
    sources = [path.read_text() for path in (ROOT / "effv2_jax").rglob("*.py") if path.name not in declaring]
    code = "\n".join(sources)
    units = "_(steps|epochs|examples|percent)$"
    for line in flat_lines(defaults()):
        name = line.partition(" = ")[0].rpartition(".")[2]
        name = re.sub(units, "", name) if name.startswith(("total", "log", "eval", "check", "warm", "decay")) else name
        assert re.search(rf"[.\"']{re.sub('^duration_.*', 'duration_', name)}", code), name


def test_the_golden_folder_holds_no_stale_file():
    assert len(list((GOLDEN / "configs").iterdir())) == len(SHIPPED)


def test_arguments_of_a_config():
    fields = {"variant": "s", "size": 128, "runlocal": False}
    assert parse_argument(None, **fields) == fields
    assert parse_argument("m,size=224,runlocal", **fields) == {"variant": "m", "size": 224, "runlocal": True}
    assert parse_argument("variant=l,runlocal=false", **fields) == {"variant": "l", "size": 128, "runlocal": False}
    with pytest.raises(UserError, match=r"'sise=3' is unknown; known: variant, size, runlocal"):
        parse_argument("m,sise=3", **fields)
    with pytest.raises(UserError, match="'size=big' needs a value of type int"):
        parse_argument("size=big", **fields)


def test_a_config_survives_json():
    config = load("imagenet.py:m", "--config.curriculum.listed.image_size=(128,160,192,224)")
    assert to_dict(from_dict(json.loads(json.dumps(to_dict(config))))) == to_dict(config)


def test_unknown_fields_of_another_version_are_named():
    values = to_dict(defaults())
    values["optimizer"]["momentun"] = values["optimizer"].pop("momentum")
    with pytest.raises(UserError, match=r"another version's: unknown fields \[optimizer\.momentun\]$"):
        from_dict(values)


def test_fields_that_an_older_version_lacks_have_their_defaults_and_the_log_names_them(caplog):
    values = to_dict(load("imagenet.py:m"))
    del values["data"]["scaled_decoding"], values["batch_norm"]
    config = from_dict(values)
    assert to_dict(config) == to_dict(load("imagenet.py:m")) | {"batch_norm": to_dict(defaults())["batch_norm"]}
    [record] = caplog.records
    assert record.levelname == "WARNING" and record.getMessage() == (
        "the saved config is an older version's: defaults are taken for batch_norm.epsilon, batch_norm.frozen, "
        "batch_norm.group_size, batch_norm.momentum, data.scaled_decoding"
    )


def test_a_unit_that_an_older_version_lacks_gives_no_second_duration(caplog):
    values = to_dict(load("digits.py"))
    del values["total_epochs"], values["schedule"]["warmup_percent"]
    config = from_dict(values)
    assert (config.total_steps, config.total_epochs, config.schedule.warmup_percent) == (900, None, None)
    assert not caplog.records
    validate(config)


def test_an_overridden_duration_replaces_the_file_s():
    config = load("imagenet.py:s", "--config.total_steps=50", "--config.schedule.warmup_percent=10")
    assert (config.total_steps, config.total_epochs) == (50, None)
    assert (config.schedule.warmup_percent, config.schedule.warmup_epochs) == (10.0, None)
    assert config.schedule.decay_epochs == 2.4
    with pytest.raises(UserError, match=r"config\.total_steps=50 and config\.total_epochs=3\.0 give the same duration"):
        load("imagenet.py:s", "--config.total_steps=50", "--config.total_epochs=3")


def test_setting_a_duration_unsets_the_other_units():
    config = defaults()
    duration(config, "total", examples=7)
    assert (config.total_examples, config.total_epochs, config.total_steps) == (7, None, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.optimizer.momentun=1"], r"no field 'optimizer\.momentun'; did you mean optimizer\.momentum\?"),
        (
            ["--config.batch_size=1"],
            r"no field 'batch_size'; did you mean evaluation\.batch_size or global_batch_size\?",
        ),
        (["--config.momentum=1"], r"no field 'momentum'; did you mean batch_norm\.momentum or optimizer\.momentum\?"),
        (["--config.seed=one"], r"config cannot be read: .*config\.seed=one"),
        (["--config.qqqq=1"], r"no field 'qqqq'; `effv2 config` prints all fields"),
    ],
)
def test_a_wrong_override_is_one_sentence(overrides, message):
    with pytest.raises(UserError, match=message) as error:
        load("digits.py", *overrides)
    assert "\n" not in str(error.value)


def test_a_wrong_file_or_argument_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"'nothing\.py' does not exist"):
        load_config("nothing.py", [])
    with pytest.raises(UserError, match=r"imagenet\.py:huge is unknown; it takes s, m, l"):
        load("imagenet.py:huge")
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    with pytest.raises(UserError, match="config cannot be read"):
        load_config(str(broken), [])


@pytest.mark.parametrize(("regularization", "magnitudes"), [("adaptive", (5.0, 20.0)), ("vanilla", (20.0, 20.0))])
def test_random_resizing_draws_sizes_and_regularisation_follows_them(regularization, magnitudes):
    config = load(f"imagenet.py:m,resizing=random,regularization={regularization}")
    stages = make_curriculum(config, config.data.num_examples).stages
    assert len(stages) == 44  # 350 epochs, a new size every 8
    assert {stage.image_size for stage in stages} == {128, 164, 200, 236, 272, 308, 344, 380}
    by_size = {stage.image_size: stage for stage in stages}
    assert (by_size[128].randaugment_magnitude, by_size[380].randaugment_magnitude) == magnitudes
    assert by_size[380].mixup_alpha == 0.2
    for stage in stages:
        first, last = magnitudes
        assert stage.randaugment_magnitude == pytest.approx(first + (last - first) * (stage.image_size - 128) / 252)


# tests/checkpoints/test_exact_resume.py trains l's recipe, which differs from s's in numbers only, and folder.py.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in RUNLOCAL if name not in ("imagenet.py:s,runlocal", "folder.py:runlocal")]
)
def test_a_small_run_of_every_recipe(name, effv2, tmp_path):
    code, _, err = effv2("train", f"--config=configs/{name}", f"--workdir={tmp_path}")
    assert code == 0, err
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 8
