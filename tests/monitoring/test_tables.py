"""The tables say what the data say, stay narrow, and are not shortened in a pipe."""

import json

import pytest
from ml_collections import ConfigDict

from effv2_jax.config import defaults
from effv2_jax.curriculum import make_curriculum
from effv2_jax.errors import UserError
from effv2_jax.monitoring import tables
from effv2_jax.network import architecture

IMAGENET = 1_256_144


def lines_of(text: str, first: str) -> list[list[str]]:
    """The cells of the lines whose first cell starts with `first`."""
    return [line.split() for line in text.splitlines() if line.startswith(first)]


def released_config() -> ConfigDict:
    config = defaults()
    config.curriculum.update(recipe="automl", image_size=(128, 384), mixup_alpha=(0.0, 0.2), dropout_rate=(0.3, 0.3))
    config.curriculum.listed.accumulation_steps = (1, 1, 2, 4)
    return config


def stages_text(config: ConfigDict, num_examples: int = IMAGENET) -> str:
    return tables.to_text(tables.stages_table(make_curriculum(config, num_examples), config, num_examples))


def test_the_table_of_models() -> None:
    text = tables.to_text(tables.models_table(architecture.names()))
    lines = lines_of(text, "efficientnet")
    assert [line[0] for line in lines] == list(architecture.names())
    cells = {line[0]: line[1:] for line in lines}
    assert cells["efficientnetv2-s"] == ["21.46", "40", "300", "384", "5.308", "8.366", "83.9", "a"]
    assert cells["efficientnetv2-xl"] == ["208.12", "100", "384", "512", "52.529", "93.353", "87.2", "b"]
    assert cells["efficientnet-b0"] == ["5.29", "16", "176", "224", "0.254", "0.386", "-"]
    assert lines_of(text, "a:") == [["a:", "automl", "README"]]
    assert max(map(len, text.splitlines())) <= 82
    assert "…" not in text and "\x1b" not in text


def test_every_mark_has_its_source_and_no_other() -> None:
    text = tables.to_text(tables.models_table(["efficientnet-b3", "efficientnet-b0"]))
    assert text.splitlines()[-1] == "a: paper, Table 7"
    assert "automl" not in text


def test_models_as_json() -> None:
    [row] = json.loads(json.dumps(tables.models_json(["efficientnetv2-b0"])))
    assert row.pop("train_macs") / 1e9 == pytest.approx(0.528, abs=5e-4)
    assert row.pop("evaluation_macs") / 1e9 == pytest.approx(0.718, abs=5e-4)
    assert row == {
        "name": "efficientnetv2-b0",
        "family": "efficientnetv2",
        "parameters": 7_139_704,
        "variables": 7_200_312,
        "train_size": 192,
        "evaluation_size": 224,
        "blocks": 21,
        "dropout_rate": 0.2,
        "published_top1": 78.7,
        "published_source": "automl README",
    }
    assert tables.models_json(["efficientnetv2-b0"], num_classes=10)[0]["parameters"] == 7_139_704 - 990 * 1281


def test_an_unknown_model() -> None:
    with pytest.raises(UserError, match="did you mean 'efficientnetv2-s'"):
        tables.models_table(["efficientnetv2-z"])


def test_the_table_of_stages() -> None:
    text = stages_text(released_config())
    cells = [" ".join(line.split()) for line in text.splitlines() if line[0].isdigit()]
    assert cells == [
        "1 0 26834 26834 87.5 192 5.00 0.000 0.000 0.300 0.80 4096 0.250",
        "2 26834 53668 26834 87.5 256 8.33 0.067 0.000 0.300 0.80 4096 0.444",
        "3 53668 80502 26834 87.5 320 11.67 0.133 0.000 0.300 0.80 2 x 2048 0.694",
        "4 80502 107336 26834 87.5 384 15.00 0.200 0.000 0.300 0.80 4 x 1024 1.000",
    ]
    assert "recipe 'automl': 107336 steps, 350.0 epochs of 1256144 examples" in text
    assert "cost by image_size^2: 0.597 of a run at 384 px throughout, a saving of 40.3 %" in text
    assert "remat" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_widest_table_of_stages_is_not_cut() -> None:
    config = released_config()
    config.curriculum.listed.remat = (False, False, False, True)
    text = stages_text(config)
    assert [line.split()[-1] for line in text.splitlines() if line[0].isdigit()] == ["no", "no", "no", "yes"]
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text


@pytest.mark.parametrize("augmentation", ["autoaugment", "none"])
def test_randaugment_is_a_dash_where_it_is_not_used(augmentation: str) -> None:
    config = released_config()
    config.data.augmentation = augmentation
    assert [line.split()[6] for line in stages_text(config).splitlines() if line[0].isdigit()] == ["-"] * 4


def test_stages_as_json() -> None:
    config = released_config()
    run = json.loads(json.dumps(tables.stages_json(make_curriculum(config, IMAGENET), config, IMAGENET)))
    stages = run.pop("stages")
    by_hand = (192**2 + 256**2 + 320**2 + 384**2) / 4 / 384**2
    assert run == {
        "recipe": "automl",
        "augmentation": "randaugment",
        "total_steps": 107336,
        "total_epochs": pytest.approx(350, abs=1e-2),
        "num_examples": IMAGENET,
        "largest_image_size": 384,
        "relative_cost": pytest.approx(by_hand),
        "relative_cost_method": "image_size^2",
        "saving": pytest.approx(1 - by_hand),
    }
    assert stages[2] == {
        "index": 2,
        "start_step": 53668,
        "end_step": 80502,
        "num_steps": 26834,
        "epochs": pytest.approx(26834 * 4096 / IMAGENET),
        "image_size": 320,
        "randaugment_magnitude": pytest.approx(35 / 3),
        "mixup_alpha": pytest.approx(0.4 / 3),
        "cutmix_alpha": 0.0,
        "dropout_rate": 0.3,
        "survival_probability": 0.8,
        "accumulation_steps": 2,
        "images_per_step": 4096,
        "images_per_micro_batch": 2048,
        "relative_cost": pytest.approx((320 / 384) ** 2),
        "remat": False,
    }
