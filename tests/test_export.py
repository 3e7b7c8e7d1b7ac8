"""`effv2 export`: what each runtime gives, against the network itself."""

import importlib.util
import json

import jax
import numpy as np
import pytest
from needs import tensorflow
from pictures_folder import write_photos

import effv2_jax
from effv2_jax.errors import UserError
from effv2_jax.export import FORMATS, InferenceProgram, export, open_stablehlo, write_stablehlo
from effv2_jax.network.architecture import get_architecture
from effv2_jax.weights import Bundle, read_weights, write_weights
from effv2_jax.weights.bundle import unflatten_arrays
from effv2_jax.weights.mapping import entries
from effv2_jax.weights.preprocess import Preprocess


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A thin network with both kinds of blocks."""
    blocks = ("r1_k3_s1_e1_i8_o8_c1", "r2_k3_s2_e2_i8_o16_c1", "r2_k3_s2_e2_i16_o16_se0.25")
    network = get_architecture("efficientnetv2-b0", blocks=blocks, width=0.5)
    rng = np.random.default_rng(0)
    arrays = {e.path: rng.uniform(-0.5, 1, e.shape).astype(np.float32) for e in entries(network, 3, "effv2")}
    arrays |= {path: np.abs(array) + 0.5 for path, array in arrays.items() if path.endswith("/var")}
    preprocess = Preprocess(33, "squash", "bilinear", "imagenet")
    bundle = Bundle(network, 3, {"raw": unflatten_arrays(arrays)}, preprocess, ("ant", "bee", "cat"))
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    write_weights(bundle, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return sorted(folder.glob("train/*/*.jpg"))[:11]


@pytest.fixture(autouse=True)
def runtime(request):
    """Skips a test whose parameter `ending` names a format of a package that is not installed."""
    ending = getattr(getattr(request.node, "callspec", None), "params", {}).get("ending")
    if ending == ".onnx":
        for package in ("jax2onnx", "onnxruntime"):
            pytest.importorskip(package, reason="needs ONNX: make peers")
    elif ending in ("", ".tflite"):
        tensorflow()


@pytest.mark.filterwarnings("ignore")  # of jax2onnx and TensorFlow, on their own code
@pytest.mark.parametrize("ending", FORMATS)
def test_the_file_gives_the_networks_outputs_for_any_batch(effv2, weights, photos, tmp_path, ending):
    path = tmp_path / f"net{ending}"
    code, out, err = effv2("export", weights, path, "--compare", *photos)
    assert code == 0, err
    assert "against JAX on 11 images" in out and "the same largest output on 11" in out
    model, variables, preprocess = effv2_jax.load(weights)
    run = FORMATS[ending][2](path)
    for count in (1, 5):
        expected = model.apply(variables, preprocess(photos[:count]))
        pixels = np.stack([preprocess.pixels(photo) for photo in photos[:count]])
        np.testing.assert_allclose(run(pixels), expected, atol=1e-5 * np.abs(expected).max())
    description = json.loads((tmp_path / f"net{ending}.json").read_text())
    assert description["input"] == {"name": "images", "dtype": "uint8", "shape": ["batch", 33, 33, 3]}
    assert description["output"] == {"name": "logits", "dtype": "float32", "shape": ["batch", 3]}
    assert Preprocess(**description["preprocess"]) == preprocess
    assert description["normalization"]["included"] and description["normalization"]["scale"][0] == 0.229 * 255
    assert description["class_names"] == ["ant", "bee", "cat"]
    assert sorted(found.name for found in tmp_path.iterdir()) == sorted([path.name, f"{path.name}.json"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", FORMATS)
def test_features_of_normalised_input_at_another_size(effv2, weights, photos, tmp_path, ending):
    path = tmp_path / f"net{ending}"
    code, out, err = effv2("export", weights, path, "--output=features", "--preprocessing=exclude", "--image_size=48")
    assert code == 0, err
    assert "3 images of noise" in out
    model, variables, _ = effv2_jax.load(weights)
    x = np.random.default_rng(1).normal(size=(4, 48, 48, 3)).astype(np.float32)
    expected = model.clone(num_classes=0).apply(variables, x)
    np.testing.assert_allclose(FORMATS[ending][2](path)(x), expected, atol=1e-5 * np.abs(expected).max())


def test_probabilities(effv2, weights, photos, tmp_path):
    assert effv2("export", weights, tmp_path / "p.stablehlo", "--output=probabilities")[0] == 0
    model, variables, preprocess = effv2_jax.load(weights)
    pixels = preprocess.pixels(photos[0])[None]
    exported = jax.export.deserialize(bytearray((tmp_path / "p.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "rocm", "tpu")
    expected = jax.nn.softmax(model.apply(variables, preprocess(photos[0])))
    np.testing.assert_allclose(exported.call(pixels), expected, rtol=1e-5)


@pytest.mark.parametrize("factor", [1.01, np.nan])
def test_a_file_that_is_not_the_network_is_not_kept(weights, tmp_path, monkeypatch, factor):
    (tmp_path / "net.stablehlo").write_bytes(b"older")

    def wrong(path):
        run = open_stablehlo(path)
        return lambda images: run(images) * factor

    monkeypatch.setitem(FORMATS, ".stablehlo", ("wrong", write_stablehlo, wrong))
    with pytest.raises(UserError, match="the exported network differs from JAX by"):
        export(InferenceProgram(read_weights(weights)), tmp_path / "net.stablehlo")
    assert [path.name for path in tmp_path.iterdir()] == ["net.stablehlo"]
    assert (tmp_path / "net.stablehlo").read_bytes() == b"older"


def test_a_description_that_cannot_be_written_leaves_the_older_file(effv2, weights, tmp_path):
    (tmp_path / "net.stablehlo").write_bytes(b"older")
    (tmp_path / "net.stablehlo.json").mkdir()
    code, _, err = effv2("export", weights, tmp_path / "net.stablehlo")
    assert code == 2 and "cannot be written" in err
    assert (tmp_path / "net.stablehlo").read_bytes() == b"older"


def test_a_full_disk_in_tensorflow_is_a_sentence(effv2, weights, tmp_path, monkeypatch):
    tf = tensorflow()

    def full(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "/x/variables; No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    for name in ("net", "net.tflite"):
        code, _, err = effv2("export", weights, tmp_path / name)
        assert code == 2 and "cannot be written: " in err and "No space left" in err
    assert not list(tmp_path.iterdir())


def test_mistakes(effv2, weights, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    headless = tmp_path / "headless.safetensors"
    assert effv2("convert", weights, headless, "--head=drop")[0] == 0
    for arguments, message in {
        (weights, tmp_path / "net.pb"): "must end in .stablehlo, .onnx or .tflite, or have no ending",
        (weights, tmp_path / "folder"): "exists, and a SavedModel needs a new folder",
        (weights, tmp_path / "file"): "exists, and a SavedModel needs a new folder",
        (weights, tmp_path / "net.onnx", "--output=logit"): "--output 'logit' is unknown; did you mean 'logits'",
        (weights, tmp_path / "net.onnx", "--architecture=b0"): "--architecture 'b0' is unknown",
        (weights, tmp_path / "net.onnx", "--architecture=efficientnetv2-s"): "not of efficientnetv2-s",
        (weights, tmp_path / "no" / "net.stablehlo"): "there is no folder",
        (weights, tmp_path / "net.stablehlo", "--image_size=8"): "is too small",
        (weights, tmp_path / "net.stablehlo", "--compare", tmp_path / "absent.jpg"): "there is no image or folder",
        (weights, tmp_path / "net.stablehlo", "--compare", weights): "is not a readable image",
        (headless, tmp_path / "net.stablehlo"): "have no classifier, and so no logits; use --output=features",
    }.items():
        code, _, err = effv2("export", *arguments)
        assert code == 2 and message in err, (arguments, err)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, message in {
        "net.onnx": "ONNX needs jax2onnx: pip install 'effv2_jax[export]'",
        "net.tflite": "TFLite needs TensorFlow: pip install 'effv2_jax[tensorflow]'",
        "net": "a SavedModel needs TensorFlow: pip install 'effv2_jax[tensorflow]'",
    }.items():
        code, _, err = effv2("export", weights, tmp_path / name)
        assert code == 2 and message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "headless.safetensors"]
