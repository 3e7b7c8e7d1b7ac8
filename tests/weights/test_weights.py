"""Reading and writing of weights in five formats."""

import argparse
import dataclasses
import importlib
import os
import pathlib
import shutil

import h5py
import jax
import numpy as np
import pytest
from etils import epath
from flax import linen as nn
from needs import needs, tensorflow
from random_weights import B0, random_bundle
from safetensors.numpy import save_file

import effv2_jax
from effv2_jax.bench.parity import random_variables
from effv2_jax.bench.peers import import_keras, import_torch_peers, make_peer
from effv2_jax.errors import UserError
from effv2_jax.network.architecture import get_architecture, names
from effv2_jax.weights import Bundle, read_weights, write_weights
from effv2_jax.weights.bundle import (
    flatten_arrays,
    foreign_bundle,
    imagenet_class_names,
)
from effv2_jax.weights.files import WRITABLE
from effv2_jax.weights.mapping import entries
from effv2_jax.weights.preprocess import Preprocess


def assert_equal(one, other):
    one, other = flatten_arrays(one), flatten_arrays(other)
    assert one.keys() == other.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(array, other[path], err_msg=path)


@pytest.mark.parametrize("format", WRITABLE)
def test_a_round_trip_is_bit_exact(b0, written, format):
    bundle = read_weights(written[format])
    assert bundle.architecture == B0 and bundle.num_classes == 10
    assert_equal(bundle.variables, b0.variables)
    assert bundle.preprocess == b0.preprocess
    os.umask(mask := os.umask(0))
    assert written[format].stat().st_mode & 0o777 == 0o666 & ~mask


def test_our_format_holds_any_network_with_classes_and_preprocessing(tmp_path):
    own = get_architecture("efficientnet-b4-fused-1-3", width=0.25, depth=0.25)
    bundle = random_bundle(own, 2)
    bundle = Bundle(
        own,
        2,
        bundle.sets,
        Preprocess(40, "squash", "bilinear", "unit"),
        ("äöü", "cat"),
        "symmetric",
        1e-5,
    )
    write_weights(bundle, tmp_path / "own.safetensors")
    back = read_weights(tmp_path / "own.safetensors")
    assert_equal(back.variables, bundle.variables)
    for field in ("architecture", "preprocess", "class_names", "padding", "batch_norm_epsilon"):
        assert getattr(back, field) == getattr(bundle, field)
    with pytest.raises(UserError, match="timm has no network with a network of family 'fused-placement' and symmetric"):
        write_weights(bundle, tmp_path / "timm.safetensors", "timm")
    thin = random_bundle(get_architecture("efficientnetv2-b0", width=0.5), 2)
    with pytest.raises(UserError, match="keras has no network with custom blocks or widths"):
        write_weights(thin, tmp_path / "thin.weights.h5")


def test_metadata_that_a_foreign_format_loses_is_reported(effv2, b0, tmp_path):
    own = dataclasses.replace(b0, preprocess=Preprocess(96, "squash", "bilinear", "unit"))
    write_weights(own, tmp_path / "own.safetensors")
    code, _, err = effv2("convert", tmp_path / "own.safetensors", tmp_path / "t.safetensors", "--format=timm")
    assert code == 0 and "does not store its preprocessing (image_size 96, crop squash" in err and "unit)" in err
    code, _, err = effv2("convert", tmp_path / "own.safetensors", tmp_path / "o.safetensors")
    assert code == 0 and not err


def test_keras_loads_what_we_write_and_we_read_what_keras_writes(b0, written, tmp_path):
    needs("keras")
    model = import_keras().applications.EfficientNetV2B0(weights=None, classes=10, include_preprocessing=True)
    model.load_weights(written["keras"])
    by_name = {layer.name: layer.get_weights() for layer in model.layers}
    np.testing.assert_array_equal(by_name["top_conv"][0], b0.variables["params"]["head_conv"]["kernel"])
    np.testing.assert_array_equal(
        by_name["block6h_bn"][3], b0.variables["batch_stats"]["block_20"]["depthwise_bn"]["var"]
    )
    model.save(tmp_path / "model.keras")
    assert_equal(read_weights(tmp_path / "model.keras").variables, b0.variables)
    # Keras 2's layout, in which its weights are published.
    with h5py.File(tmp_path / "keras2.h5", "w") as file:
        layers = [layer for layer in model.layers if layer.get_weights()]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            weights = {f"{layer.name}/{i}:0": value for i, value in enumerate(layer.get_weights())}
            group.attrs["weight_names"] = [name.encode() for name in weights]
            for name, value in weights.items():
                group[name] = value
    assert_equal(read_weights(tmp_path / "keras2.h5").variables, b0.variables)


def test_every_name_and_shape_is_timms_and_torchvisions():
    needs("torchvision")
    timm, models = import_torch_peers()
    import torch

    compared = 0
    with torch.device("meta"):
        for name in names():
            peers = {"timm": lambda name=name: timm.create_model("tf_" + name.replace("-", "_"))}
            if hasattr(models, torchvision_name := name.replace("-", "_").replace("efficientnetv2", "efficientnet_v2")):
                peers["torchvision"] = getattr(models, torchvision_name)
            if name == "efficientnet-b3" or "fused" in name:  # nobody else has them
                continue
            if name == "efficientnet-b3-original":
                peers = {"timm": lambda: timm.create_model("tf_efficientnet_b3"), "torchvision": models.efficientnet_b3}
            for format, make in peers.items():
                state = {k: tuple(v.shape) for k, v in make().state_dict().items() if "num_batches" not in k}
                ours = entries(get_architecture(name), 1000, format)
                assert {entry.name: entry.foreign_shape for entry in ours} == state, (name, format)
                compared += 1
    assert compared == 16 + 8 + 3


@pytest.mark.parametrize(
    ("peer", "variant"),
    [
        ("timm", "efficientnetv2-b0"),
        ("torchvision", "efficientnetv2-s"),
        ("torchvision", "efficientnet-b0"),
        ("keras", "efficientnet-b0"),
        ("keras", "efficientnetv2-s"),
    ],
)
def test_files_of_the_other_libraries(tmp_path, peer, variant):
    """The files of other libraries give the right weights; test_parity.py compares the outputs of the networks."""
    needs(peer)
    architecture = get_architecture(variant)
    variables = random_variables(architecture)
    model = make_peer(peer, architecture, variables, 64).model
    path = tmp_path / ("w.weights.h5" if peer == "keras" else "w.pth")
    if peer == "keras":
        model.save_weights(path)
    else:
        importlib.import_module("torch").save(model.state_dict(), path)
    bundle = read_weights(path)
    assert_equal(bundle.variables, variables)
    expected = foreign_bundle(peer, architecture, 10, {})
    for field in ("architecture", "num_classes", "preprocess", "padding", "batch_norm_epsilon"):
        assert getattr(bundle, field) == getattr(expected, field), field


def test_timm_and_training_dictionaries_load(b0, written, tmp_path):
    needs("timm")
    import timm
    import torch
    from safetensors.torch import load_file

    state = load_file(written["timm"])
    timm.create_model("tf_efficientnetv2_b0", num_classes=10).load_state_dict(state)  # strict
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "c.pth"
    )
    assert_equal(read_weights(tmp_path / "c.pth").variables, b0.variables)


def write_automl(prefix, bundle, *, averages=True):
    """A TensorFlow checkpoint as google/automl's main.py writes it: values, averages, slots and the step."""
    tf = tensorflow()
    flat = flatten_arrays(bundle.variables)
    arrays = {"global_step": np.int64(7)}
    for entry in entries(bundle.architecture, bundle.num_classes, "automl"):
        value = entry.to_foreign(flat[entry.path])
        name = f"{bundle.architecture.name}/{entry.name}"
        arrays[name] = value + 1 if averages else value
        if averages:
            arrays[f"{name}/ExponentialMovingAverage"] = value
        arrays |= {f"{name}/RMSProp": value, f"{name}/RMSProp_1": value} if entry.path.startswith("params") else {}
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=list(arrays.values()),
    )


@pytest.mark.parametrize("where", ["model.ckpt-7", "", "model.ckpt-7.index"])
def test_automl_checkpoints_prefer_the_averages(b0, tmp_path, where):
    write_automl(tmp_path / "model.ckpt-7", b0)
    bundle = read_weights(tmp_path / where)
    assert_equal(bundle.variables, b0.variables)
    np.testing.assert_array_equal(
        bundle.sets["raw"]["params"]["stem_conv"]["kernel"], b0.variables["params"]["stem_conv"]["kernel"] + 1
    )


def test_the_newest_of_several_automl_checkpoints(b0, tmp_path):
    older = random_bundle(B0, 10, seed=1)
    for step, bundle in ((9000, older), (100, older), (10000, b0)):
        write_automl(tmp_path / f"model.ckpt-{step}", bundle, averages=False)
    assert_equal(read_weights(tmp_path).variables, b0.variables)
    (tmp_path / "checkpoint").write_bytes(b'\xffmodel_checkpoint_path: "/gone/model.ckpt-9000"')
    assert_equal(read_weights(tmp_path).variables, older.variables)


def test_a_21k_head_has_its_classes(tmp_path):
    bundle = random_bundle(B0, 21843)
    write_automl(tmp_path / "model.ckpt", bundle, averages=False)
    assert read_weights(tmp_path / "model.ckpt").num_classes == 21843


def test_load_gives_model_variables_and_preprocessing(written):
    model, variables, preprocess = effv2_jax.load(written["effv2"])
    x = preprocess(np.full((50, 70), 128, np.uint8))
    assert x.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(x[0, 0, 0], (128 / 255 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], 1e-5)
    assert jax.eval_shape(model.apply, variables, x).shape == (1, 10)
    assert jax.eval_shape(model.clone(num_classes=0).apply, variables, x).shape == (1, 1280)


def test_convert_describes_its_output_and_drops_the_head(effv2, written, tmp_path):
    code, out, _ = effv2("convert", written["keras"], tmp_path / "x.safetensors")
    assert code == 0 and out.startswith("weights of efficientnetv2-b0, 10 classes, 224 px: ")
    code, out, _ = effv2("convert", tmp_path / "x.safetensors", tmp_path / "y.safetensors", "--head=drop")
    assert code == 0 and "no classifier" in out
    assert read_weights(tmp_path / "y.safetensors").num_classes == 0
    code, out, _ = effv2("convert", tmp_path / "y.safetensors", tmp_path / "y.weights.h5")
    assert code == 0
    assert "classifier" not in read_weights(tmp_path / "y.weights.h5").variables["params"]


def test_one_error_lists_all_mismatches(effv2, written, tmp_path):
    from safetensors.numpy import load_file

    arrays = load_file(written["timm"])
    del arrays["blocks.0.0.conv.weight"], arrays["bn2.bias"]
    arrays["extra"] = np.zeros(3, np.float32)
    arrays["bn1.weight"] = np.zeros(33, np.float32)
    save_file(arrays, tmp_path / "bad.safetensors")
    code, _, err = effv2("convert", tmp_path / "bad.safetensors", tmp_path / "x.safetensors")
    assert code == 2 and not (tmp_path / "x.safetensors").exists()
    assert (
        "is not efficientnetv2-b0 as timm writes it: 2 missing (blocks.0.0.conv.weight, bn2.bias); "
        "1 unexpected (extra); "
        "1 of another shape (bn1.weight [33] instead of [32])"
    ) in err
    code, _, err = effv2("convert", written["timm"], tmp_path / "x.safetensors", "--architecture=efficientnetv2-b1")
    assert code == 2 and "is not efficientnetv2-b1 as timm writes it" in err


def test_dictionaries_of_training_scripts(tmp_path, b0, written):
    """timm's saver and torchvision's reference script keep a Namespace, averages and counters beside the weights."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: make peers")
    from safetensors.torch import load_file

    state = load_file(written["timm"])
    counters = {"bn1.num_batches_tracked": torch.tensor(7)}
    wrong = {name: torch.zeros_like(value) for name, value in state.items()}
    arguments = argparse.Namespace(model="tf_efficientnetv2_b0", lr=0.1, opt_betas=None)
    averaged = {f"module.{name}": value for name, value in (state | counters).items()} | {"n_averaged": torch.tensor(3)}
    parameters = {name: torch.nn.Parameter(value) for name, value in state.items()}
    for number, saved in enumerate(
        (
            {"epoch": 3, "arch": "x", "state_dict": wrong, "state_dict_ema": state | counters, "args": arguments},
            {"model": wrong, "model_ema": averaged, "args": arguments, "epoch": 1},
            parameters,
        )
    ):
        torch.save(saved, tmp_path / f"{number}.pth")
        assert_equal(read_weights(tmp_path / f"{number}.pth").variables, b0.variables)
    for saved, message in (
        ({name: value.to(torch.int32) for name, value in state.items()}, "is int32, not floating-point"),
        ({0: torch.zeros(1)}, "instead of a dictionary of tensors"),
    ):
        torch.save(saved, tmp_path / "bad.pth")
        with pytest.raises(UserError, match=message):
            read_weights(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.onnx", "must end in .safetensors or .weights.h5"),
        ("no/such/x.safetensors", "there is no folder"),
        ("itself", "is the source itself"),
    ],
)
def test_invalid_destinations(effv2, written, tmp_path, name, message):
    destination = written["effv2"] if name == "itself" else tmp_path / name
    code, _, err = effv2("convert", written["effv2"], destination)
    assert code == 2 and message in err


def test_inside_another_model(tmp_path):
    write_weights(foreign_bundle("timm", B0, 10, {"raw": random_variables(B0)}), tmp_path / "w.safetensors")
    backbone, weights, _ = effv2_jax.load(tmp_path / "w.safetensors")
    backbone = backbone.clone(num_classes=0)

    class Other(nn.Module):
        backbone: nn.Module

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(self.backbone(x))

    x = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    variables = {name: {"backbone": value} for name, value in weights.items()}
    dense = {"kernel": np.eye(1280, 2, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    variables["params"] |= {"Dense_0": dense}
    shapes = jax.eval_shape(Other(backbone).init, jax.random.key(0), x)["params"]
    assert shapes["Dense_0"].keys() == dense.keys() and "head_conv" in shapes["backbone"]
    features = jax.jit(backbone.apply)(weights, x)
    np.testing.assert_allclose(jax.jit(Other(backbone).apply)(variables, x), features[:, :2], rtol=1e-5)


def test_a_file_in_a_bucket(b0, written, tmp_path):
    @epath.register_path_cls("bucket://")
    class Bucket(pathlib.PurePosixPath):
        """A path of the scheme, as etils has for gs://; its files lie in `tmp_path`."""

        def _file(self):
            return tmp_path / self.name

        def exists(self):
            return self._file().exists()

        def copy(self, destination):
            shutil.copy(self._file(), destination)

    shutil.copy(written["timm"], tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(written["timm"].read_bytes()[:1000])
    assert_equal(read_weights("bucket://some/w.safetensors").variables, b0.variables)
    with pytest.raises(UserError, match=r"weights 'bucket:/+some/absent.safetensors' cannot be read: .*No such file"):
        read_weights("bucket://some/absent.safetensors")
    with pytest.raises(UserError, match=r"'bucket:/+some/cut.safetensors' cannot be read as weights, it is damaged"):
        read_weights("bucket://some/cut.safetensors")


def test_published_weights_of_keras(shared_data):
    bundle = read_weights(shared_data / "weights" / "efficientnetv2-b0.weights.h5")
    assert (bundle.architecture.name, bundle.num_classes) == ("efficientnetv2-b0", 1000)
    assert bundle.class_names == imagenet_class_names() and bundle.name_of(472) == "canoe"
