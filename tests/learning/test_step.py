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
import optax
import pytest
from launching import ROOT
from tiny import NUM_CLASSES, compiler_of, random_batch, tiny_config, to_host

from effv2_jax.learning.step import random_stream, split_batch
from effv2_jax.network.model import make_model, normalize
from effv2_jax.runtime.mesh import make_mesh, put_batch

GOLDEN = ROOT / "tests" / "golden" / "step.json"


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
    Where that was the purpose, write the new numbers with `EFFV2_UPDATE_GOLDEN=1 pytest
    tests/learning/test_step.py` and say in the commit why they moved.
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


PLAIN = {  # nothing random, and nothing that couples examples but batch norm
    "curriculum__mixup_alpha": (0.0, 0.0),
    "curriculum__cutmix_alpha": (0.0, 0.0),
    "curriculum__dropout_rate": (0.0, 0.0),
    "curriculum__survival_probability": (1.0, 1.0),
    "loss__label_smoothing": 0.0,
}
FROZEN = (("stem|block_", 0.0), (".*", 1.0))


def flat(tree):
    return {jax.tree_util.keystr(k, simple=True, separator="/"): x for k, x in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize(("mode", "accumulation_steps"), [("l2", 1), ("decoupled", 2)])
def test_frozen_parameters_stay_bit_for_bit(mode, accumulation_steps):
    config = tiny_config(
        optimizer__learning_rate_multipliers=FROZEN,
        optimizer__weight_decay=0.1,
        optimizer__weight_decay_mode=mode,
        optimizer__clip_norm=1.0,
        schedule__warmup_steps=0,
        ema__decay=0.9,
        curriculum__accumulation_steps=accumulation_steps,
    )
    before, after, metrics = steps(config, count=3)
    assert metrics["finite"]
    averages = flat(after.ema["params"])
    trained = 0
    for path, old in flat(before.params).items():
        frozen = path.startswith(("stem", "block_"))
        assert (old.tobytes() == flat(after.params)[path].tobytes()) == frozen, path
        assert (old.tobytes() == averages[path].tobytes()) == frozen, path
        trained += 0 if frozen else old.size
    for path, old in flat(before.batch_stats).items():
        assert not np.array_equal(old, flat(after.batch_stats)[path]), path  # batch norm itself is not frozen
    assert sum(x.size for x in jax.tree.leaves(after.opt_state) if x.ndim) == 2 * trained


def test_a_frozen_minus_zero_stays():
    config = tiny_config(optimizer__learning_rate_multipliers=FROZEN)
    compiler, curriculum = compiler_of(config)
    stage, state = curriculum.stages[3], compiler.initial_state()
    state.params["stem_bn"]["bias"] = -state.params["stem_bn"]["bias"]
    batch = put_batch(random_batch(0, 16, stage.image_size), make_mesh())
    state, _ = compiler.train_step(stage)(state, batch)
    assert np.signbit(state.params["stem_bn"]["bias"]).all()


def test_frozen_parameters_do_not_count_in_the_gradient_norm():
    learning_rate = {"schedule__name": "constant", "optimizer__learning_rate_per_256": 16.0}
    sgd = {"optimizer__name": "sgd", "optimizer__weight_decay": 0.0, "schedule__warmup_steps": 0} | learning_rate
    _, _, all_metrics = steps(tiny_config(**PLAIN, **sgd))
    before, after, metrics = steps(tiny_config(optimizer__learning_rate_multipliers=FROZEN, **PLAIN, **sgd))
    moved = jax.tree.map(lambda a, b: np.square(a - b).sum(), before.params, after.params)
    assert metrics["gradient_norm"] == pytest.approx(np.sqrt(sum(jax.tree.leaves(moved))), rel=1e-4)  # a rate of 1
    assert metrics["gradient_norm"] < all_metrics["gradient_norm"]
    assert metrics["loss"] == pytest.approx(all_metrics["loss"], rel=1e-6)


def test_freezing_leaves_out_the_backward_pass():
    """A frozen network under a trained head costs its forward pass, a third of the whole."""

    def flops(**changes):
        compiler, curriculum = compiler_of(tiny_config(**changes))
        return compiler.train_step(curriculum.stages[3]).cost_analysis()["flops"]

    whole = flops()
    assert flops(optimizer__learning_rate_multipliers=FROZEN) < 0.6 * whole
    assert flops(optimizer__learning_rate_multipliers=((".*", 0.5),)) > 0.98 * whole


def test_multipliers_scale_a_step():
    changes = {"schedule__warmup_steps": 0, "optimizer__weight_decay_mode": "decoupled"}
    before, whole, _ = steps(tiny_config(**changes))
    multipliers = (("^classifier/", 1.0), (".*", 0.25))
    _, scaled, _ = steps(tiny_config(optimizer__learning_rate_multipliers=multipliers, **changes))
    for path, old in flat(before.params).items():
        factor = 1.0 if path.startswith("classifier/") else 0.25
        expected = old + factor * (flat(whole.params)[path] - old)
        np.testing.assert_allclose(flat(scaled.params)[path], expected, rtol=1e-5, atol=1e-6, err_msg=path)
    assert relative_difference(scaled.replace(params=whole.params, ema=whole.ema), whole) < 1e-5


def frozen_norm_step(**changes):
    """One SGD step at rate 1 from statistics that are nobody's, and the batch: the parameters move by the gradients."""
    config = tiny_config(
        batch_norm__frozen=True,
        optimizer__name="sgd",
        optimizer__weight_decay=0.0,
        optimizer__learning_rate_per_256=16.0,
        schedule__name="constant",
        schedule__warmup_steps=0,
        **PLAIN | changes,
    )
    compiler, curriculum = compiler_of(config)
    stage = curriculum.stages[3]
    state = compiler.initial_state()
    rng = np.random.default_rng(0)
    stats = jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), state.batch_stats)
    state = jax.device_put(state.replace(batch_stats=stats), compiler.abstract_state.step.sharding)
    before = to_host(state)
    batch = random_batch(0, 16, stage.image_size)
    state, metrics = compiler.train_step(stage)(state, put_batch(batch, make_mesh()))
    return config, before, to_host(state), to_host(metrics), batch


def test_frozen_batch_norm_trains_the_network_of_evaluation():
    config, before, after, metrics, batch = frozen_norm_step(batch_norm__group_size=0)
    model = make_model(config, NUM_CLASSES, "cpu")

    def loss_fn(params):
        images = normalize(batch["image"], "v2")
        logits = model.apply({"params": params, "batch_stats": before.batch_stats}, images, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    loss, grads = jax.value_and_grad(loss_fn)(before.params)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
    moved = jax.tree.map(np.subtract, before.params, after.params)
    for path, gradient in flat(grads).items():
        np.testing.assert_allclose(flat(moved)[path], gradient, rtol=1e-3, atol=1e-5, err_msg=path)
        assert np.abs(gradient).max() > 0, path
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, before.batch_stats)


@pytest.mark.parametrize("changes", [{"curriculum__accumulation_steps": 4}, {"curriculum__remat": True}])
def test_frozen_batch_norm_does_not_know_how_a_step_is_computed(changes):
    # Groups of the whole batch: only a batch norm that is not frozen would see fewer examples.
    _, before, whole, metrics, _ = frozen_norm_step(batch_norm__group_size=0)
    _, _, other, other_metrics, _ = frozen_norm_step(batch_norm__group_size=0, **changes)
    assert relative_difference(other, whole) < 1e-4
    assert other_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    jax.tree.map(np.testing.assert_array_equal, other.batch_stats, before.batch_stats)


def test_averages_of_frozen_statistics_approach_them():
    _, before, after, _, _ = frozen_norm_step(ema__decay=0.5, ema__warmup=False)
    for path, old in flat(before.ema["batch_stats"]).items():
        expected = (old + flat(before.batch_stats)[path]) / 2
        np.testing.assert_allclose(flat(after.ema["batch_stats"])[path], expected, rtol=1e-6)


def test_split_batch_keeps_units_together():
    parts = split_batch({"label": jnp.arange(24)}, 3, 4)["label"]
    np.testing.assert_array_equal(parts[0], [0, 1, 2, 3, 12, 13, 14, 15])
    np.testing.assert_array_equal(parts[2], [8, 9, 10, 11, 20, 21, 22, 23])


def test_streams_differ_by_name_and_step():
    keys = [random_stream(0, "dropout", 1), random_stream(0, "mixing", 1), random_stream(0, "dropout", 2)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


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
        "PYTHONPATH": f"{ROOT / 'tests'}:{Path(__file__).parent}",
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
