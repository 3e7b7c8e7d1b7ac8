"""`effv2 plan`: compilation for slices without a TPU."""

import dataclasses
import importlib.util
import json

import pytest
from tiny import tiny_config

from effv2_jax.curriculum import make_curriculum
from effv2_jax.errors import UserError
from effv2_jax.monitoring.tables import to_text
from effv2_jax.planning import plan as plan_module
from effv2_jax.planning.cost_model import StepCost
from effv2_jax.planning.plan import estimate, plan_table
from effv2_jax.planning.slices import CHIPS, Slice, check_name

V5E, V3 = Slice("v5e:4x4", 16, 16), Slice("v3:4x4", 16, 32)
SMALL = (
    "--config=configs/digits.py",
    "--config.data.num_examples=1442",
    "--num_classes=10",
    "--config.curriculum.num_stages=2",
    "--config.curriculum.image_size=(32,32)",
    "--config.model.blocks=('r1_k3_s2_e1_i8_o8_c1','r1_k3_s2_e2_i8_o16_se0.25')",
    "--config.compilation.background=False",
)


def needs_libtpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu: make peers")


def test_an_estimate_by_hand():
    cost = StepCost(True, 1e9, flops=197e9, accessed_bytes=1.638e9, cycles=6_000_000, collectives=1)
    result = estimate(cost, V5E, 2048)
    # 6e6 cycles at 1.5 GHz are 4 ms, for 2048 / 16 images; 197e9 of 197e12 per second is 1 ms, 1.638 of 819 GB 2 ms.
    assert result.seconds == pytest.approx(0.004) and result.images_per_second_per_chip == pytest.approx(32_000)
    assert result.utilization == pytest.approx(0.25)
    assert result.bound == "memory" and result.roofline_seconds == pytest.approx(0.002)
    # Two devices share a v3 chip, its memory and its links.
    network = dataclasses.replace(cost, collective_bytes=int(1e9), accessed_bytes=0.0)
    result = estimate(network, V3, 4096)
    assert result.seconds == pytest.approx(6e6 / 0.94e9)
    assert result.images_per_second_per_chip == pytest.approx(40_106.67)
    assert result.bound == "network" and result.roofline_seconds == pytest.approx(2 * 2e9 / (4 * 656e9 / 8))


def test_peaks_are_whole_matrix_units():
    """The clock that turns cycles into seconds gives the published peak with whole units of a chip."""
    for chip in CHIPS.values():
        units = chip.flops / (2 * 128 * 128 * chip.clock)
        assert abs(units - round(units)) < 0.03 * units and round(units) in (2, 4, 8, 16, 32)


class FakeCostModel:
    """`fits` decides what fits; `tried` records the attempts."""

    num_examples = 1000

    def __init__(self, fits):
        self.fits, self.tried = fits, []

    def step_cost(self, config, stage, topology):
        attempt = (stage.remat, stage.accumulation_steps, config.global_batch_size)
        self.tried.append(attempt)
        fits = self.fits(*attempt)
        return StepCost(fits, 20e9 / stage.accumulation_steps, cycles=1000 if fits else 0, flops=1e9)


def test_a_step_that_does_not_fit_gets_the_first_remedy_that_does():
    config = tiny_config(global_batch_size=256)
    stage = make_curriculum(config, 1000).stages[0]
    cost_model = FakeCostModel(lambda remat, accumulation_steps, batch: accumulation_steps >= 4)
    row = plan_module._plan_stage(config, stage, V5E, cost_model)
    assert cost_model.tried == [(False, 1, 256), (True, 1, 256), (False, 2, 256), (False, 4, 256)]
    assert row["remedy"] == "accumulation_steps=4" and row["fits"] and row["needed_bytes"] == 20e9
    # If nothing else helps, a smaller batch, which takes more steps.
    cost_model = FakeCostModel(lambda remat, accumulation_steps, batch: batch <= 64)
    row = plan_module._plan_stage(config, stage, V5E, cost_model)
    assert cost_model.tried[-2:] == [(False, 1, 128), (False, 1, 64)]
    assert row["remedy"] == "global_batch_size=64" and row["steps"] == 4 * stage.num_steps
    cost_model = FakeCostModel(lambda *attempt: False)
    row = plan_module._plan_stage(config, stage, V5E, cost_model)
    assert row["remedy"] == "none that was tried" and not row["fits"] and "seconds" not in row
    result = {"topology": "v5e:4x4", "chips": 16, "devices": 16, "stages": [row], "evaluation": row, "hours": None}
    assert "does not fit" in to_text(plan_table([result], 1.0))


@pytest.mark.slow
def test_a_slice_without_a_tpu(effv2, tmp_path):
    """Each program is compiled once; later its cost comes from the cache."""
    needs_libtpu()
    command = ("plan", *SMALL, "--topology=v5e:2x2", f"--cache={tmp_path}", "--price_per_chip_hour=2")
    code, out, err = effv2(*command, "--images_per_core=1000,500", "--json")
    assert code == 0, err
    [result] = json.loads(out)
    for row, rate in zip(result["stages"], (1000, 500), strict=True):
        assert row["host_cores_per_chip"] == pytest.approx(row["images_per_second_per_chip"] / rate)
    assert (result["chips"], result["devices"], len(result["stages"])) == (4, 4, 2)
    for row in (*result["stages"], result["evaluation"]):
        assert row["fits"] and row["cycles"] > 1000 and row["flops"] > 1e6 and 0 < row["memory_bytes"] < 1e9
    # Both stages have the same size: their steps differ only in mixing.
    assert len(list(tmp_path.iterdir())) == 3
    hours = sum(row["seconds"] * row["steps"] for row in result["stages"]) / 3600
    assert result["hours"] == pytest.approx(hours)
    code, out, err = effv2(*command)
    assert code == 0 and err.count(": cached") == 3 and "compiled in" not in err and "host cores" not in out
    assert (
        "of training, estimated" in out
        and "at 2 per chip-hour" in out
        and "with the error seen on the paper's v3 runs" in out
    )


@pytest.mark.slow
def test_our_step_beside_plain_flax(effv2, tmp_path):
    """Both are training steps of one network: by the compiler's count their work differs by a few per cent."""
    needs_libtpu()
    config = [argument for argument in SMALL if "num_stages" not in argument] + ["--config.curriculum.num_stages=1"]
    command = ("bench", "program", *config, "--topology=v5e:2x2", f"--cache={tmp_path}")
    code, out, err = effv2(*command, "--json")
    assert code == 0, err
    [row] = json.loads(out)
    assert row["ours"]["flops"] == pytest.approx(row["plain"]["flops"], rel=0.2)
    assert row["ours"]["cycles"] > 1000 and row["plain"]["cycles"] > 1000
    code, out, err = effv2(*command)
    assert code == 0 and err.count(": cached") == 2 and "plain" in out


def test_invalid_input(effv2, tmp_path):
    for arguments, message in (
        (("--topology=v9:4x4",), "must be VERSION:SHAPE, such as v5e:4x4; versions are v2, v3"),
        (("--topology=v5e:2x2", "--images_per_core=9"), "--images_per_core=9 must be 2 rates above 0"),
        (("--topology=v5e:2x2", "--images_per_core=9,0"), "--images_per_core=9,0 must be 2 rates above 0"),
        (("--topology=v5e",), "must be VERSION:SHAPE"),
        (("--topology=v5e:4x4", "--config.data.num_examples=0"), "pass --config.data.num_examples=N"),
    ):
        code, _, err = effv2("plan", *SMALL, *arguments)
        assert code == 2 and message in err
    needs_libtpu()
    for arguments, message in (
        (("--topology=v5e:3x5",), "--topology=v5e:3x5 cannot be described"),
        (("--topology=v5e:4x4", "--config.global_batch_size=24"), "global_batch_size"),
    ):
        code, _, err = effv2("plan", *SMALL, *arguments)
        assert code == 2 and message in err
    check_name("v5e:4x4")


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs libtpu"):
        check_name("v5e:4x4")
