"""Scanned blocks compute what unrolled ones do, from the same variables, in a smaller program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import relative_difference, steps
from tiny import tiny_config

from effv2_jax.architecture import Block, get_architecture
from effv2_jax.bench import blocks
from effv2_jax.compile import make_model
from effv2_jax.model import EfficientNet, identical_runs
from effv2_jax.tables import to_text

# Runs of 3 (from block 0 on), 4 (fused) and 4 (MBConv with squeeze-excite) identical blocks, and three alone.
TABLE = ("r3_k3_s1_e1_i8_o8_c1", "r5_k3_s2_e2_i8_o16_c1", "r5_k3_s2_e2_i16_o24_se0.25", "r1_k3_s1_e2_i24_o32_se0.25")
ARCHITECTURE = get_architecture("efficientnetv2-b0", blocks=TABLE)
CONVOLUTIONS = {"fused-e1": 1, "fused": 2, "mbconv-se": 5}
IMAGES = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)


def network(scan: bool, **fields) -> EfficientNet:
    return EfficientNet(ARCHITECTURE, 10, scan_blocks=scan, **fields)


@pytest.fixture(scope="module")
def variables():
    """No two blocks, and no two channels, with the same values."""
    initial = EfficientNet(ARCHITECTURE, 10).init(jax.random.key(0), IMAGES[:1])
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.asarray(x + 0.1 * rng.uniform(size=x.shape), np.float32), initial)


def assert_near(ours, theirs, tolerance):
    """Every array by its norm; the floor is for gradients that are 0 but for rounding."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    leaves = jax.tree.leaves(theirs)
    floor = 1e-3 * np.sqrt(sum(np.square(leaf).sum() for leaf in leaves))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), leaves, strict=True):
        difference = np.linalg.norm(a - b)
        assert difference <= tolerance * max(np.linalg.norm(b), floor), (jax.tree_util.keystr(path), difference)


def test_runs_are_of_identical_blocks_with_a_residual():
    assert identical_runs(ARCHITECTURE.blocks) == [
        *(range(0, 3), range(3, 4), range(4, 8), range(8, 9), range(9, 13), range(13, 14))
    ]
    halving = Block("mbconv", 3, 2, 2, 8, 8)  # equal blocks that cannot be one loop
    assert identical_runs([halving, halving]) == [range(0, 1), range(1, 2)]
    lengths = [len(run) for run in identical_runs(get_architecture("efficientnetv2-l").blocks)]
    assert lengths == [4, 1, 6, 1, 6, 1, 9, 1, 18, 1, 24, 1, 6]


def test_variables_are_those_of_unrolled_blocks():
    shapes = [jax.eval_shape(network(scan).init, jax.random.key(0), IMAGES) for scan in (False, True)]
    assert shapes[0] == shapes[1]
    assert "block_13" in shapes[1]["params"]


@pytest.mark.parametrize("lowering", ["native", "decomposed"])
def test_logits_and_endpoints_are_equal(variables, lowering):
    def outputs(scan):
        model = network(scan, lowering=lowering)
        return jax.jit(lambda x: model.apply(variables, x, mutable=["endpoints", "group_stats"]))(IMAGES)

    (unrolled, unrolled_state), (scanned, scanned_state) = outputs(False), outputs(True)
    assert len(scanned_state["endpoints"]) == 6  # stem, reduction_1 to _3, head, pooled
    assert_near((scanned, scanned_state), (unrolled, unrolled_state), 1e-5)


def loss_and_gradients(variables, scan, **fields):
    model = network(scan, dropout_rate=0.3, survival_probability=0.4, batch_norm_group_size=4, **fields)

    def loss_fn(params, batch_stats, x, key):
        everything = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(everything, x, train=True, rngs={"dropout": key}, mutable=["group_stats"])
        return (logits**2).mean(), updates["group_stats"]

    arguments = (variables["params"], variables["batch_stats"], IMAGES, jax.random.key(3))
    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True)), arguments


@pytest.mark.parametrize(("lowering", "remat"), [("native", False), ("native", True), ("decomposed", False)])
def test_loss_gradients_and_statistics_are_equal_in_training(variables, lowering, remat):
    """With stochastic depth: other masks would be another loss."""
    results = []
    for scan in (False, True):
        function, arguments = loss_and_gradients(variables, scan, lowering=lowering, remat=remat)
        results.append(function(*arguments))
    ((unrolled_loss, unrolled_stats), unrolled), ((loss, stats), gradients) = results
    np.testing.assert_allclose(loss, unrolled_loss, rtol=1e-5)
    assert_near(stats, unrolled_stats, 1e-5)
    assert_near(gradients, unrolled, 1e-4)


def test_the_scanned_program_is_smaller(variables):
    def text(scan):
        function, arguments = loss_and_gradients(variables, scan)
        return function.lower(*arguments).as_text()

    unrolled, scanned = text(False), text(True)
    # One block of each run instead of 3, 4 and 4; a convolution and its two gradients, or a product of matrices.
    saved = 2 * CONVOLUTIONS["fused-e1"] + 3 * CONVOLUTIONS["fused"] + 3 * CONVOLUTIONS["mbconv-se"]
    pattern = r"stablehlo\.(convolution|dot_general)"
    assert len(re.findall(pattern, unrolled)) - len(re.findall(pattern, scanned)) == 3 * saved
    assert scanned.count("stablehlo.while") >= 6  # forward and backward of three runs


def test_a_config_s_step_is_equal():
    """Scanned inside accumulation, which is a scan itself."""
    changes = {"model__blocks": TABLE[:3], "schedule__warmup_steps": 0, "curriculum__accumulation_steps": 2}
    assert make_model(tiny_config(model__scan_blocks=True), 10, "cpu").scan_blocks
    _, unrolled, _ = steps(tiny_config(**changes))
    _, scanned, metrics = steps(tiny_config(model__scan_blocks=True, **changes))
    assert jnp.isfinite(metrics["loss"])
    assert relative_difference(scanned, unrolled) < 1e-4


def test_the_benchmark_measures_both_programs(monkeypatch):
    def tiny(variant, image_size, batch_size, scan_blocks):
        return tiny_config(model__blocks=TABLE, model__scan_blocks=scan_blocks, curriculum__num_stages=1)

    monkeypatch.setattr(blocks, "benchmark_config", tiny)
    result = blocks.measure("tiny", 32, 16, compiles=1, steps=1)
    for name in blocks.MEASURES:
        assert result["unrolled"][name] > 0
        assert result["ratio"][name] == pytest.approx(result["scanned"][name] / result["unrolled"][name])
    lines = to_text(blocks.blocks_table([result], "a note")).splitlines()
    assert [line.split()[0] for line in lines[-5:]] == ["tiny", "scanned", "ratio", "a", "Ratio:"]
