"""Initialization of a run from existing weights."""

import numpy as np
import pytest
from tiny import compiler_of, tiny_config, to_host

from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints
from effv2_jax.errors import UserError
from effv2_jax.evaluate import evaluate_run
from effv2_jax.train import train
from effv2_jax.weights import read_weights, write_weights
from effv2_jax.weights.bundle import flatten_arrays
from effv2_jax.weights.init_from import arrays_to_start_from, start_from


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one stage."""
    workdir = tmp_path_factory.mktemp("run") / "work"
    train(tiny_config(curriculum__num_stages=1, curriculum__image_size=(16, 16)), workdir)
    return workdir


@pytest.fixture(scope="module")
def weights(run):
    path = run.parent / "w.safetensors"
    write_weights(read_weights(run), path)
    return path


@pytest.fixture(scope="module")
def fresh():
    return compiler_of(tiny_config())[0].initial_state()


DIGITS = tuple("0123456789")


def start(state, log=lambda line: None, class_names=DIGITS, **changes):
    return to_host(start_from(state, arrays_to_start_from(tiny_config(**changes), state, class_names, log)))


def test_reading_a_run_gives_its_best_averages_and_its_classes(run):
    bundle = read_weights(run)
    assert bundle.class_names == tuple("0123456789") and bundle.preprocess.image_size == 32
    assert bundle.sets.keys() == {"raw", "ema"} and bundle.variables is bundle.sets["ema"]
    assert not np.array_equal(
        bundle.sets["raw"]["params"]["stem_conv"]["kernel"], bundle.variables["params"]["stem_conv"]["kernel"]
    )


def test_parameters_statistics_and_averages_start_from_the_weights(fresh, weights):
    lines = []
    state = start(fresh, lines.append, init_from=str(weights))
    expected = flatten_arrays(read_weights(weights).variables)
    for variables in (state.variables, state.ema):
        flat = flatten_arrays(variables)
        assert flat.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(flat[name], value, err_msg=name)
    assert (
        f"{len(expected)} of {len(expected)} arrays loaded; with initial values: none; ignored in the file: none"
        in lines[0]
    )
    assert int(state.step) == 0


def test_a_pattern_selects_arrays(fresh, weights):
    before = flatten_arrays(to_host(fresh.variables))
    state = start(fresh, init_from=str(weights), init_pattern="stem")
    changed = {
        name for name, value in flatten_arrays(state.variables).items() if not np.array_equal(value, before[name])
    }
    assert changed and all("stem" in name for name in changed)
    with pytest.raises(UserError, match=r"config.init_pattern 'no such' matches no array"):
        start(fresh, init_from=str(weights), init_pattern="no such")


def test_a_classifier_of_other_classes_is_not_loaded(fresh, weights, tmp_path):
    import dataclasses

    bundle = read_weights(weights)
    params = bundle.variables["params"] | {
        "classifier": {
            "kernel": np.ones((*bundle.variables["params"]["classifier"]["kernel"].shape[:1], 3), np.float32),
            "bias": np.ones(3, np.float32),
        }
    }
    other = dataclasses.replace(
        bundle,
        num_classes=3,
        class_names=(),
        sets={"raw": {"params": params, "batch_stats": bundle.variables["batch_stats"]}},
    )
    write_weights(other, tmp_path / "three.safetensors")
    lines = []
    state = start(fresh, lines.append, init_from=str(tmp_path / "three.safetensors"))
    np.testing.assert_array_equal(state.params["classifier"]["kernel"], fresh.params["classifier"]["kernel"])
    np.testing.assert_array_equal(state.params["stem_conv"]["kernel"], params["stem_conv"]["kernel"])
    heads = "params/classifier/bias, params/classifier/kernel"
    assert f"ignored in the file: {heads}" in lines[0]


def test_the_same_classes_in_another_order_are_not_loaded(fresh, weights):
    lines = []
    state = start(fresh, lines.append, class_names=DIGITS[::-1], init_from=str(weights))
    np.testing.assert_array_equal(state.params["classifier"]["kernel"], fresh.params["classifier"]["kernel"])
    assert "ignored in the file: params/classifier/bias, params/classifier/kernel" in lines[0]
    with pytest.raises(UserError, match=r"leaves nothing of .* to load, because its classes differ"):
        start(fresh, class_names=DIGITS[::-1], init_from=str(weights), init_pattern="classifier")
    # No shared names: they may be other words for the same classes, so the classifier is loaded.
    state = start(fresh, class_names=tuple("abcdefghij"), init_from=str(weights))
    assert not np.array_equal(state.params["classifier"]["kernel"], fresh.params["classifier"]["kernel"])


def test_a_deeper_network_or_other_strides_are_another_network(weights):
    shallow = list(tiny_config().model.blocks)
    for blocks, message in (
        ([*shallow, "r1_k3_s1_e1_i16_o16_c1"], r"params/block_\d/project_bn/scale is missing"),
        ([block.replace("_s2_", "_s1_") for block in shallow], "its blocks have different strides"),
    ):
        state = compiler_of(tiny_config(model__blocks=tuple(blocks)))[0].abstract_state
        config = tiny_config(init_from=str(weights), model__blocks=tuple(blocks))
        with pytest.raises(UserError, match=message):
            arrays_to_start_from(config, state, DIGITS, lambda line: None)
        config.init_pattern = "stem"
        assert arrays_to_start_from(config, state, DIGITS, lambda line: None)


def test_another_network_is_one_error_that_lists_all_differences(fresh, weights, tmp_path):
    with pytest.raises(UserError, match=r"its batch-norm epsilon is 0.001: set --config.batch_norm.epsilon=0.001"):
        start(fresh, init_from=str(weights), batch_norm__epsilon=1e-5)
    with pytest.raises(
        UserError,
        match=r"holds efficientnetv2-s, but config.model.variant is efficientnetv2-b0; set --config.model.variant=eff",
    ):
        start(fresh, init_from=str(weights), model__variant="efficientnetv2-b0", model__blocks=())
    with pytest.raises(UserError, match=r"its padding is 'same': set --config.model.padding=same"):
        start(fresh, init_from=str(weights), model__padding="symmetric")
    config = tiny_config(init_from=str(weights), model__blocks=("r1_k3_s2_e1_i16_o16_c1",), model__width=1.0)
    with pytest.raises(
        UserError, match=r"block_1/\S+ \[8\] instead of nothing.*stem_conv/kernel \[3, 3, 3, 8\] instead of"
    ):
        train(config, tmp_path / "work")
    assert not (tmp_path / "work").exists()
    lines = []
    start(fresh, lines.append, init_from=str(weights), data__normalization="unit")
    assert lines[1].startswith("WARNING: these weights were trained with normalization 'v2'")


def test_a_run_trains_on_from_the_weights_and_resumes_as_itself(run, weights, tmp_path):
    changes = {"curriculum__num_stages": 1, "curriculum__image_size": (16, 16), "optimizer__learning_rate_per_256": 0.0}
    config = tiny_config(init_from=str(weights), ema__decay=0.0, **changes)
    (tmp_path / "work" / CHECKPOINTS).mkdir(parents=True)  # the state of a run that died before its first checkpoint
    train(config, tmp_path / "work")
    state = read_weights(tmp_path / "work").variables
    expected = read_weights(weights).variables
    np.testing.assert_array_equal(state["params"]["stem_conv"]["kernel"], expected["params"]["stem_conv"]["kernel"])
    # Its own checkpoint takes precedence over the weights, which need not exist any more.
    weights.rename(weights.with_name("away.safetensors"))
    try:
        config.total_steps = 10
        train(config, tmp_path / "work")
    finally:
        weights.with_name("away.safetensors").rename(weights)
    checkpoints = Checkpoints(tmp_path / "work" / CHECKPOINTS, read_only=True)
    assert checkpoints.latest() == 10
    checkpoints.close()
    assert evaluate_run(tmp_path / "work")[0] == 10
