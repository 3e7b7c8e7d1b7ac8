"""The network against Keras' EfficientNetV2, and what its options promise."""

import dataclasses

import jax
import jax.numpy as jnp
import keras
import keras_peer
import numpy as np
import pytest

from effv2_jax.architecture import Architecture, Block, count_parameters, count_variables, get_architecture
from effv2_jax.compile import make_model
from effv2_jax.config import defaults
from effv2_jax.curriculum import make_curriculum
from effv2_jax.errors import UserError
from effv2_jax.layers import update_batch_stats
from effv2_jax.model import EfficientNet, normalize

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


@pytest.fixture(scope="module")
def keras_b0():
    model = keras.applications.EfficientNetV2B0(
        weights=None, include_preprocessing=False, input_shape=(65, 65, 3), classes=10, classifier_activation=None
    )
    keras_peer.randomize(model, seed=0)
    return model


@pytest.mark.parametrize("lowering", ["native", "decomposed"])
def test_logits_and_endpoints_equal_keras(keras_b0, lowering):
    architecture = get_architecture("efficientnetv2-b0")
    variables = keras_peer.variables_of(keras_b0, architecture)
    x = images(0, 2, 65)  # odd sizes come up in progressive learning
    outputs = {
        "reduction_1": "block1a_project_activation",
        "reduction_2": "block2b_add",
        "reduction_3": "block3b_add",
        "reduction_4": "block5e_add",
        "reduction_5": "block6h_add",
        "head": "top_activation",
        "pooled": "avg_pool",
    }
    peer = keras.Model(keras_b0.input, [keras_b0.get_layer(n).output for n in outputs.values()] + [keras_b0.output])
    *expected, expected_logits = peer.predict(x, verbose=0)

    model = EfficientNet(architecture, 10, lowering=lowering)
    logits, state = jax.jit(lambda v, x: model.apply(v, x, mutable=["endpoints"]))(variables, x)
    for name, value in zip(outputs, expected, strict=True):
        ours = state["endpoints"][name][0]
        assert np.abs(ours - value).max() <= 1e-4 * np.abs(value).max(), name
    assert np.abs(logits - expected_logits).max() <= 1e-4 * np.abs(expected_logits).max()


def test_real_weights_classify_real_photos_as_in_keras(shared_data):
    model = keras.applications.EfficientNetV2B0(weights=None)
    model.load_weights(shared_data / "weights" / "efficientnetv2-b0.weights.h5")
    variables = keras_peer.variables_of(model, get_architecture("efficientnetv2-b0"))
    paths = sorted((shared_data / "ilsvrc_val").glob("*.JPEG"))[:16]
    pixels = np.stack([keras.utils.img_to_array(keras.utils.load_img(path, target_size=(224, 224))) for path in paths])
    expected = model.predict(pixels, verbose=0)
    network = EfficientNet(get_architecture("efficientnetv2-b0"), 1000, lowering="decomposed")
    logits = jax.jit(lambda x: network.apply(variables, normalize(x, "imagenet")))(pixels.astype(np.uint8))
    np.testing.assert_array_equal(np.argmax(logits, 1), np.argmax(expected, 1))
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=1e-4)


def test_loss_gradients_and_statistics_equal_keras_in_training(keras_b0):
    architecture = get_architecture("efficientnetv2-b0")
    # Keras with no dropout at all: its model with every rate set to 0.
    config = keras_b0.get_config()
    for layer in config["layers"]:
        if layer["class_name"] == "Dropout":
            layer["config"]["rate"] = 0.0
    peer = keras.Model.from_config(config)
    peer.set_weights(keras_b0.get_weights())
    variables = keras_peer.variables_of(peer, architecture)
    x, labels = images(1, 4, 65), np.array([1, 5, 9, 0])

    def loss_of(logits):
        return -jax.nn.log_softmax(logits)[np.arange(4), labels].mean()

    def peer_loss(trainable, non_trainable):
        logits, non_trainable = peer.stateless_call(trainable, non_trainable, x, training=True)
        return loss_of(logits), non_trainable

    trainable = [v.value for v in peer.trainable_variables]
    non_trainable = [v.value for v in peer.non_trainable_variables]
    (expected_loss, new), grads = jax.jit(jax.value_and_grad(peer_loss, has_aux=True))(trainable, non_trainable)
    for variable, value in zip(peer.non_trainable_variables, new, strict=True):
        variable.assign(value)
    for variable, value in zip(peer.trainable_variables, grads, strict=True):
        variable.assign(value)
    expected = keras_peer.variables_of(peer, architecture)  # gradients in the place of parameters

    model = EfficientNet(architecture, 10, lowering="decomposed")

    def our_loss(params):
        variables_now = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, updates = model.apply(variables_now, x, train=True, mutable=["group_stats"])
        return loss_of(logits), updates["group_stats"]

    (loss, group_stats), grads = jax.jit(jax.value_and_grad(our_loss, has_aux=True))(variables["params"])
    batch_stats = update_batch_stats(variables["batch_stats"], group_stats, 0.9)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    for ours, theirs in ((grads, expected["params"]), (batch_stats, expected["batch_stats"])):
        # A shift that a later batch norm takes away has gradient 0, but for rounding: the floor is for it.
        floor = 1e-5 * np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(theirs)))
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
            difference, size = np.linalg.norm(a - b), np.linalg.norm(b)
            assert difference <= 1e-3 * size + floor, (jax.tree_util.keystr(path), difference, size)


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
    config.model.padding = "simmetric"
    with pytest.raises(UserError, match=r"config\.model\.padding 'simmetric' is unknown; did you mean 'symmetric'"):
        make_model(config, 1000, "cpu")
    config.model.padding = "same"
    config.dtype = "float16"
    with pytest.raises(UserError, match=r"config\.dtype 'float16' is unknown; did you mean 'bfloat16'"):
        make_model(config, 1000, "cpu")
