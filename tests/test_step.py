"""The training step: a golden step, overfitting, accumulation, equality on 1 and 8 devices, collectives."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import compiler_of, random_batch, tiny_config, to_host

from effv2_jax.curriculum import make_curriculum
from effv2_jax.errors import UserError
from effv2_jax.mesh import make_mesh, put_batch
from effv2_jax.step import check_batch, random_stream, split_batch

GOLDEN = Path(__file__).parent / "golden" / "step.json"


def steps(config, count=1, devices=None, stage_index=3):
    """The host state before and after `count` steps of a stage on random batches, and the last metrics."""
    compiler, curriculum = compiler_of(config, devices)
    stage = curriculum.stages[stage_index]
    state = compiler.initial_state()
    before = to_host(state)
    step = compiler.train_step(stage)
    for seed in range(count):
        batch = random_batch(seed, config.global_batch_size, stage.image_size)
        state, metrics = step(state, put_batch(batch, make_mesh(devices)))
    return before, to_host(state), to_host(metrics)


def relative_difference(a, b):
    """The largest difference of any array of two states, relative to its norm.

    Arrays far smaller than their kind count by 1e-3 of the whole kind's norm: the gradient of a shift that a later
    batch norm takes away is 0 but for rounding.
    """
    worst = 0.0
    for name in ("params", "batch_stats", "opt_state", "ema"):
        pairs = list(zip(jax.tree.leaves(getattr(a, name)), jax.tree.leaves(getattr(b, name)), strict=True))
        floor = 1e-3 * np.sqrt(sum(np.square(y, dtype=np.float64).sum() for _, y in pairs))
        for x, y in pairs:
            worst = max(worst, np.linalg.norm(np.subtract(x, y, dtype=np.float64)) / max(np.linalg.norm(y), floor))
    return worst


def test_golden_step():
    """One step of the whole recipe in numbers.

    A difference means that training changed: an initial value, a random stream, the model, the loss, the optimizer.
    Where that was the purpose, write the new numbers with `EFFV2_UPDATE_GOLDEN=1 pytest tests/test_step.py` and say in
    the commit why they moved.
    """
    _, state, metrics = steps(tiny_config(schedule__warmup_steps=0))
    sums = {
        "loss": metrics["loss"],
        "gradient_norm": metrics["gradient_norm"],
        "params": sum(np.abs(x, dtype=np.float64).sum() for x in jax.tree.leaves(state.params)),
        "batch_stats": sum(np.abs(x, dtype=np.float64).sum() for x in jax.tree.leaves(state.batch_stats)),
        "ema": sum(np.abs(x, dtype=np.float64).sum() for x in jax.tree.leaves(state.ema)),
    }
    sums = {name: float(value) for name, value in sums.items()}
    if os.environ.get("EFFV2_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(sums, indent=1) + "\n")
    assert sums == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


def test_one_batch_is_learned_to_zero_loss():
    config = tiny_config(
        curriculum__mixup_alpha=(0.0, 0.0),
        curriculum__cutmix_alpha=(0.0, 0.0),
        curriculum__dropout_rate=(0.0, 0.0),
        curriculum__survival_probability=(1.0, 1.0),
        loss__label_smoothing=0.0,
        schedule__name="constant",
        batch_norm__group_size=0,
    )
    compiler, curriculum = compiler_of(config)
    stage = curriculum.stages[3]
    state, step = compiler.initial_state(), compiler.train_step(stage)
    batch = random_batch(0, 16, stage.image_size)
    mesh = make_mesh()
    for _ in range(150):
        state, metrics = step(state, put_batch(batch, mesh))
    assert metrics["accuracy"] == 1.0
    assert metrics["loss"] < 1e-3


def test_a_step_changes_all_that_training_changes():
    before, after, metrics = steps(tiny_config(), count=2)
    assert after.step == 2
    assert metrics["finite"] and np.isfinite(metrics["loss"])
    for name in ("params", "batch_stats", "ema"):
        for path, old in jax.tree_util.tree_leaves_with_path(getattr(before, name)):
            new = after
            for key in (jax.tree_util.GetAttrKey(name), *path):
                new = getattr(new, key.name) if hasattr(key, "name") else new[key.key]
            assert not np.array_equal(old, new), (name, path)


def test_accumulation_equals_the_whole_batch():
    # With groups of 4 and no dropout the examples do not know how many micro-batches there are.
    changes = {
        "schedule__warmup_steps": 0,
        "batch_norm__group_size": 4,
        "curriculum__mixup_alpha": (0.0, 0.0),
        "curriculum__cutmix_alpha": (0.0, 0.0),
        "curriculum__dropout_rate": (0.0, 0.0),
        "curriculum__survival_probability": (1.0, 1.0),
    }
    _, whole, metrics = steps(tiny_config(**changes))
    _, parts, metrics_parts = steps(tiny_config(curriculum__accumulation_steps=4, **changes))
    assert relative_difference(parts, whole) < 1e-4
    np.testing.assert_allclose(metrics["loss"], metrics_parts["loss"], rtol=1e-5)


def test_bfloat16_and_remat_change_the_step_within_rounding():
    plain = tiny_config(schedule__warmup_steps=0)
    _, state, metrics = steps(plain)
    _, remat, _ = steps(tiny_config(schedule__warmup_steps=0, curriculum__remat=True))
    assert relative_difference(remat, state) < 1e-4
    _, half, half_metrics = steps(tiny_config(schedule__warmup_steps=0, dtype="bfloat16"))
    assert half_metrics["loss"].dtype == np.float32
    assert half_metrics["loss"] == pytest.approx(metrics["loss"], rel=0.02)
    assert half_metrics["loss"] != metrics["loss"]
    assert {x.dtype for x in jax.tree.leaves((half.params, half.batch_stats, half.ema))} == {np.dtype("float32")}


def test_split_batch_keeps_units_together():
    parts = split_batch({"label": jnp.arange(24)}, 3, 4)["label"]
    np.testing.assert_array_equal(parts[0], [0, 1, 2, 3, 12, 13, 14, 15])
    np.testing.assert_array_equal(parts[2], [8, 9, 10, 11, 20, 21, 22, 23])


def test_streams_differ_by_name_and_step():
    keys = [random_stream(0, "dropout", 1), random_stream(0, "mixing", 1), random_stream(0, "dropout", 2)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


def test_a_batch_that_cannot_be_divided_is_one_error_with_every_reason():
    config = tiny_config(curriculum__accumulation_steps=2, global_batch_size=20, evaluation__batch_size=100)
    with pytest.raises(
        UserError, match=r"the 16 devices do not divide it.*evaluation.batch_size=100.*micro-batches of 10"
    ):
        check_batch(config, make_curriculum(config, 1442), 16)
    check_batch(tiny_config(), make_curriculum(tiny_config(), 1442), 8)


EIGHT_DEVICES = """
import json, sys
import jax
import numpy as np
from test_step import relative_difference, steps
from tiny import compiler_of, tiny_config

assert jax.device_count() == 8
report = {}
for name, changes in {
    "whole": {},
    "global_batch_norm": {"batch_norm__group_size": 0},
    "accumulated": {"global_batch_size": 64, "curriculum__accumulation_steps": 2},
}.items():
    config = tiny_config(schedule__warmup_steps=0, **changes)
    _, one, metrics_one = steps(config, devices=jax.devices()[:1])
    _, eight, metrics_eight = steps(config, devices=jax.devices())
    report[name] = {
        "difference": relative_difference(eight, one),
        "loss": [float(metrics_one["loss"]), float(metrics_eight["loss"])],
    }
for group in (2, 0):
    compiler, curriculum = compiler_of(tiny_config(batch_norm__group_size=group))
    report[f"text_{group}"] = compiler.train_step(curriculum.stages[3]).as_text()
json.dump(report, sys.stdout)
"""


@pytest.fixture(scope="module")
def eight_devices():
    """What a process with 8 simulated devices reports."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    run = subprocess.run([sys.executable, "-c", EIGHT_DEVICES], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", ["whole", "global_batch_norm", "accumulated"])
def test_one_step_is_the_same_on_one_and_eight_devices(eight_devices, name):
    assert eight_devices[name]["difference"] < 1e-5
    one, eight = eight_devices[name]["loss"]
    assert eight == pytest.approx(one, rel=1e-5)


def collectives(text: str) -> list[str]:
    """The lines of a compiled program that communicate."""
    pattern = r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\("
    return [line for line in text.splitlines() if re.search(pattern, line)]


def test_groups_inside_a_device_need_no_collective_of_their_own(eight_devices):
    """One all-reduce a step carries gradients, running statistics and metrics; batch norm adds none."""
    [everything] = collectives(eight_devices["text_2"])
    assert " all-reduce(" in everything
    # The same search finds those of a batch norm over the global batch: forward and backward for each of 13 layers.
    assert len([line for line in collectives(eight_devices["text_0"]) if "_bn/" in line]) == 26
