"""What the options of the network promise, and its answers with published weights."""

import dataclasses

import jax
import jax.numpy as jnp
import needs
import numpy as np
import pytest

from effv2_jax.bench.peers import import_keras
from effv2_jax.config import defaults
from effv2_jax.curriculum import make_curriculum
from effv2_jax.network.architecture import Architecture, Block, count_parameters, count_variables, get_architecture
from effv2_jax.network.model import EfficientNet, make_model, normalize
from effv2_jax.weights import read_weights

TINY = get_architecture(
    "efficientnetv2-b0",
    blocks=("r1_k3_s1_e1_i8_o8_c1", "r2_k3_s2_e2_i8_o16_c1", "r2_k3_s2_e2_i16_o16_se0.25"),
    width=0.5,
)


def images(seed: int, batch: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, size, size, 3)).astype(np.float32)


def size_of(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ["efficientnetv2-b3", "efficientnetv2-s", "efficientnet-b4-fused-1-5"])
def test_parameters_are_as_many_as_the_architecture_counts(name):
    architecture = get_architecture(name)
    model = EfficientNet(architecture, 1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert set(shapes) == {"params", "batch_stats"}
    assert size_of(shapes["params"]) == count_parameters(architecture)
    assert size_of(shapes) == count_variables(architecture)


def test_real_weights_classify_real_photos_as_in_keras(shared_data):
    needs.keras()
    keras = import_keras()
    weights = shared_data / "weights" / "efficientnetv2-b0.weights.h5"
    model = keras.applications.EfficientNetV2B0(weights=None)
    model.load_weights(weights)
    variables = read_weights(weights).variables
    paths = sorted((shared_data / "ilsvrc_val").glob("*.JPEG"))[:16]
    pixels = np.stack([keras.utils.img_to_array(keras.utils.load_img(path, target_size=(224, 224))) for path in paths])
    expected = model.predict(pixels, verbose=0)
    network = EfficientNet(get_architecture("efficientnetv2-b0"), 1000, lowering="decomposed")
    logits = jax.jit(lambda x: network.apply(variables, normalize(x, "imagenet")))(pixels.astype(np.uint8))
    np.testing.assert_array_equal(np.argmax(logits, 1), np.argmax(expected, 1))
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=1e-4)


@pytest.fixture(scope="module")
def tiny_variables():
    return EfficientNet(TINY, 10).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def loss_and_gradients(model, variables, x):
    def loss_fn(params):
        logits, _ = model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            x,
            train=True,
            rngs={"dropout": jax.random.key(3)},
            mutable=["group_stats"],
        )
        return (logits**2).mean()

    return jax.jit(jax.value_and_grad(loss_fn))(variables["params"])


def test_remat_gives_equal_gradients(tiny_variables):
    model = EfficientNet(TINY, 10, dropout_rate=0.3, survival_probability=0.5)
    x = images(2, 8, 32)
    loss, grads = loss_and_gradients(model, tiny_variables, x)
    loss_remat, grads_remat = loss_and_gradients(model.clone(remat=True), tiny_variables, x)
    np.testing.assert_allclose(loss, loss_remat, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, grads_remat)


def test_bfloat16_keeps_logits_parameters_and_statistics_float32(tiny_variables):
    model = EfficientNet(TINY, 10, dtype=jnp.bfloat16)
    x = images(2, 8, 32)
    logits, state = model.apply(
        tiny_variables, x.astype(jnp.bfloat16), train=True, mutable=["group_stats", "endpoints"]
    )
    assert logits.dtype == jnp.float32
    assert state["endpoints"]["head"][0].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state["group_stats"])} == {jnp.dtype("float32")}
    expected, _ = EfficientNet(TINY, 10).apply(tiny_variables, x, train=True, mutable=["group_stats"])
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


def test_survival_falls_linearly_over_all_blocks():
    blocks = tuple(Block("mbconv", 3, stride, 2, 8, 8, 0.25) for stride in (1, 2, 1, 1))
    architecture = dataclasses.replace(TINY, stem_filters=8, head_filters=16, blocks=blocks)
    assert isinstance(architecture, Architecture)
    model = EfficientNet(architecture, 4, survival_probability=0.2)
    seen = {}

    def record(next_method, args, kwargs, context):
        if type(context.module).__name__ == "Residual":
            seen[context.module.name] = context.module.survival_probability
        return next_method(*args, **kwargs)

    import flax.linen as nn

    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert seen == pytest.approx({"block_0": 1.0, "block_1": 0.8, "block_2": 0.6, "block_3": 0.4})


def test_normalizations_by_hand():
    pixels = np.array([0, 128, 255], np.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(normalize(pixels, "v2").ravel(), [-1, 0, 127 / 128])
    np.testing.assert_allclose(normalize(pixels, "unit").ravel(), [-1, 128 / 127.5 - 1, 1], atol=1e-7)
    expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(normalize(pixels, "imagenet").ravel(), expected, rtol=1e-5)
    assert normalize(pixels, "v2", jnp.bfloat16).dtype == jnp.bfloat16


def test_model_of_a_config_follows_stage_and_platform():
    config = defaults()
    stage = make_curriculum(config, 1_000_000).stages[2]
    model = make_model(config, 1000, "cpu", stage)
    assert (model.lowering, model.dropout_rate, model.survival_probability) == ("decomposed", stage.dropout_rate, 0.8)
    assert make_model(config, 1000, "tpu").lowering == "native"
    assert make_model(config, 1000, "tpu").dropout_rate == 0
    config.model.padding = "symmetric"
    assert make_model(config, 1000, "tpu").padding == "symmetric"
