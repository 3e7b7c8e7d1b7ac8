"""Our network against those of Keras, timm and torchvision, by `effv2 bench parity`."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from needs import needs

from effv2_jax.bench import parity
from effv2_jax.bench.peers import PEERS, make_peer, peer_name
from effv2_jax.network.architecture import get_architecture, names
from effv2_jax.weights.bundle import foreign_bundle

EVALUATION, TRAINING = 1e-4, 1e-3  # relative tolerances


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
@pytest.mark.parametrize(
    ("peer", "variant"),
    [
        ("keras", "efficientnetv2-b0"),
        ("timm", "efficientnetv2-b0"),
        ("keras", "efficientnet-b0"),
        ("torchvision", "efficientnet-b0"),
    ],
)
def test_every_output_equals_the_peers(peer, variant):
    needs(peer)
    (row,) = parity.compare_forward(variant, [peer], 65)  # progressive learning has odd sizes
    assert row["logits"] <= EVALUATION and row["worst"] <= EVALUATION


def within(row):
    """Whether all values of a row are within their tolerance; NaN is not."""
    allowed = TRAINING if "loss" in row else EVALUATION
    return all(row[name] <= allowed for name in ("logits", "worst", "loss", "gradients", "statistics") if name in row)


@pytest.mark.parametrize("peer", ["keras", "timm"])
def test_loss_gradients_and_statistics_equal_the_peers(peer):
    needs(peer)
    (row,) = parity.compare_training("efficientnetv2-b0", [peer], 32)
    assert within(row)


def test_convolutions_as_single_operations_equal_the_peers_too():
    architecture = get_architecture("efficientnetv2-b0")
    variables = parity.random_variables(architecture)
    x = np.random.default_rng(0).normal(size=(2, 65, 65, 3)).astype(np.float32)
    expected = make_peer("keras", architecture, variables, 65).forward(x)["logits"]
    model = foreign_bundle("keras", architecture, parity.CLASSES, {"raw": variables}).model.clone(lowering="native")
    assert parity.relative(np.asarray(jax.jit(model.apply)(variables, x)), expected) <= EVALUATION


@pytest.mark.parametrize(
    "wrong", [{"padding": "symmetric"}, {"batch_norm_epsilon": 1e-5}, {"sets": "mean"}, {"sets": "kernel"}]
)
def test_the_comparison_sees_a_network_that_differs(wrong):
    architecture = get_architecture("efficientnetv2-b0")
    variables = parity.random_variables(architecture)
    bundle = foreign_bundle("keras", architecture, parity.CLASSES, {"raw": variables})
    if wrong == {"sets": "mean"}:
        other = jax.tree.map(np.copy, variables)
        other["batch_stats"]["block_20"]["depthwise_bn"]["mean"][3] += 0.1
        wrong = {"sets": {"raw": other}}
    elif wrong == {"sets": "kernel"}:
        other = jax.tree.map(np.copy, variables)
        kernel = other["params"]["block_9"]["depthwise_conv"]["kernel"]
        kernel[:] = kernel[::-1]
        wrong = {"sets": {"raw": other}}
    x = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    right, changed = parity.forward(bundle, x), parity.forward(dataclasses.replace(bundle, **wrong), x)
    assert max(parity.relative(changed[name], right[name]) for name in right) > 3 * EVALUATION


def test_the_comparison_of_training_sees_what_differs():
    rng = np.random.default_rng(0)
    right = {"a": {"kernel": rng.normal(size=(3, 4))}, "b": {"scale": rng.normal(size=5)}, "zero": np.zeros(3)}
    wrong = jax.tree.map(np.copy, right)
    assert parity.worst(parity.relative_norms(right, right))[1] == 0
    wrong["b"]["scale"] *= 1.01
    path, error = parity.worst(parity.relative_norms(wrong, right))
    assert path == "b/scale" and error == pytest.approx(0.01)
    wrong["a"]["kernel"][:] = np.nan
    path, error = parity.worst(parity.relative_norms(wrong, right))
    assert path == "a/kernel" and np.isnan(error)
    # Rounding of a zero gradient does not count as a difference; more than rounding does.
    small = right | {"zero": np.full(3, 1e-8)}
    assert parity.worst(parity.relative_norms(small, right))[1] < 1e-4
    assert parity.worst(parity.relative_norms(right | {"zero": np.full(3, 1e-2)}, right))[1] > 0.1


def test_names_of_the_peers():
    pairs = {(peer, name) for peer in PEERS for name in names() if peer_name(peer, name)}
    assert len(pairs) == 15 + 16 + 11
    assert peer_name("keras", "efficientnetv2-s") == "EfficientNetV2S"
    assert peer_name("keras", "efficientnet-b3-original") == "EfficientNetB3"
    assert peer_name("timm", "efficientnetv2-xl") == "tf_efficientnetv2_xl"
    assert peer_name("torchvision", "efficientnetv2-l") == "efficientnet_v2_l"
    assert not peer_name("torchvision", "efficientnetv2-b0") and not peer_name("keras", "efficientnetv2-xl")


def test_the_command_prints_rows_tables_and_the_page(effv2, monkeypatch):
    rows = [
        {"variant": "efficientnetv2-s", "size": 384, "peer": "timm", "logits": 1e-7, "worst": 2e-7, "worst_at": "head"},
        {"variant": "efficientnetv2-s", "size": 64, "peer": "timm", "batch": 8, "loss": 1e-7}
        | {"gradients": 3e-5, "gradients_at": "stem_bn/bias", "statistics": 4e-6, "statistics_at": "stem_bn/var"},
    ]
    monkeypatch.setattr(parity, "compare_networks", lambda *arguments: rows)
    monkeypatch.setattr(parity, "version", lambda package: "1.0")  # packages need not be installed
    assert json.loads(effv2("bench", "parity", "--json")[1]) == rows
    text, page = effv2("bench", "parity")[1], effv2("bench", "parity", "--page")[1]
    for cell in ("1.0e-07", "2.0e-07 head", "3.0e-05 stem_bn/bias", "4.0e-06 stem_bn/var"):
        assert cell in text and cell in page
    assert "| efficientnetv2-s | 384 | – | – | 1.0e-07 | 2.0e-07 head | – | – |" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant=efficientnetv2-bo"], "--variant 'efficientnetv2-bo' is unknown; did you mean"),
        (["--peer=tim"], "--peer 'tim' is unknown; did you mean 'timm'"),
        (["--variant=efficientnetv2-xl", "--peer=keras"], "efficientnetv2-xl is in none of keras"),
        (["--size=16"], "--size=16 is too small"),
    ],
)
def test_invalid_input(effv2, arguments, message):
    code, _, err = effv2("bench", "parity", *arguments)
    assert code == 2 and message in err


@pytest.mark.slow
def test_every_variant_equals_every_peer():
    for peer in PEERS:
        needs(peer)
    rows = parity.compare_networks((), (), 128, print)
    assert len(rows) == 42 + 5
    for row in rows:
        assert within(row), row
