"""`effv2 bench step`: all sides run, each in a process of its own."""

import json

import pytest
from needs import needs

from effv2_jax.bench import step as bench
from effv2_jax.errors import UserError
from effv2_jax.monitoring.tables import to_text


@pytest.mark.slow
def test_every_side_runs(effv2):
    needs("timm")
    command = ("bench", "step", "--variant=b0", "--image_size=32", "--batch=4", "--steps=1", "--rounds=1")
    code, out, err = effv2(*command, "--json")
    assert code == 0, err
    training, inference = json.loads(out)
    for row, mode in ((training, "training"), (inference, "inference")):
        assert (row["variant"], row["image_size"], row["mode"]) == ("efficientnetv2-b0", 32, mode)
        assert list(row["images_per_second"]) == ["ours", "timm", "timm, bfloat16", "keras"]
        assert all(rate > 0 for rate in row["images_per_second"].values())


def test_a_table_has_the_ratios():
    rates = {"ours": 30.0, "timm": 20.0}
    text = to_text(
        bench.step_table(
            [{"variant": "efficientnetv2-b0", "image_size": 128, "mode": "training", "images_per_second": rates}]
        )
    )
    assert "1.50x" in text and "30.0" in text


def test_invalid_input(effv2):
    for variants, peers, message in (
        (["b0"], ["tensorflow"], "--peer"),
        (["b9"], [], "efficientnetv2-b9"),
    ):
        with pytest.raises(UserError, match=message):
            bench.bench_step(variants, [32], peers, batch_size=4, steps=1, rounds=1, log=print)
    for argument, message in (
        ("--image_size=16", "too small"),
        ("--image_size=1,x", "must be whole numbers with commas"),
        ("--steps=0", "must be a whole number of at least 1"),
    ):
        code, _, err = effv2("bench", "step", "--peer=", argument)
        assert code == 2 and message in err
