"""The networks of Keras, timm and torchvision with given weights, for comparison with ours.

Each is the library's own network, in float32 on the CPU, without dropout and stochastic depth. Outputs have our names:
'stem', 'block_0', 'block_1', ..., 'head', 'pooled' and 'logits'; feature maps are [B, H, W, C].
"""

import dataclasses
import functools
import os
import sys
from typing import Any, Protocol

import numpy as np

from effv2_jax.errors import UserError, require
from effv2_jax.network.architecture import Architecture
from effv2_jax.weights.bundle import Variables, flatten_arrays, unflatten_arrays
from effv2_jax.weights.mapping import Entry, block_places, entries

Outputs = dict[str, np.ndarray]
PEERS = ("keras", "timm", "torchvision")
_PACKAGES = {
    "keras": ("tensorflow", "keras"),
    "tf.data": ("tensorflow",),
    "timm": ("torch", "timm"),
    "torchvision": ("torch", "torchvision"),
}
_OPERATORS: list[Any] = []  # keeps torchvision's operators defined: they are deleted with these objects


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """One batch in training mode: mean cross-entropy, gradient of every parameter, mean and variance of every norm."""

    loss: float
    gradients: Variables  # as 'params'
    statistics: Variables  # as 'batch_stats'


class Peer(Protocol):
    """A network of another library."""

    def forward(self, images_BxHxWx3: np.ndarray) -> Outputs:
        """Every block's output and the logits, in evaluation mode."""

    def train_step(self, images_BxHxWx3: np.ndarray, labels_B: np.ndarray) -> TrainStep:
        """One batch in training mode; the weights do not change."""


def peer_name(peer: str, variant: str) -> str | None:
    """The name of a variant in another library; None if it is not there."""
    if variant == "efficientnet-b3" or "fused" in variant:
        return None  # the V2 code has a B3 of its own; `-original` is the published one
    family, _, size = variant.removesuffix("-original").partition("-")
    if peer == "timm":
        return f"tf_{family}_{size}"
    if peer == "keras":
        if size == "xl":
            return None
        return family.replace("efficientnet", "EfficientNet").replace("v2", "V2") + size.upper()
    if family == "efficientnetv2":
        return f"efficientnet_v2_{size}" if size in ("s", "m", "l") else None
    return f"{family}_{size}"


def check_installed(peer: str) -> None:
    """Raises UserError if a package that a peer needs is not installed."""
    for package in _PACKAGES[peer]:
        require(package, "peers", f"comparing with {peer}")


def check_size(option: str, size: int) -> None:
    """Raises UserError if images are too small for a network."""
    if size < 32:
        raise UserError(f"--{option}={size} is too small; the networks halve it five times")


def make_peer(peer: str, architecture: Architecture, variables: Variables, size: int) -> Peer:
    """The network of one of PEERS for an architecture, with our weights, for images of `size` pixels."""
    name = peer_name(peer, architecture.name)
    if peer == "keras":
        return KerasPeer(import_keras(), str(name), architecture, variables, size)
    timm, models = import_torch_peers()
    make = getattr(models, str(name)) if peer == "torchvision" else functools.partial(timm.create_model, name)
    return TorchPeer(make(num_classes=_num_classes(variables)), peer, architecture, variables)


def import_keras() -> Any:
    """Keras on TensorFlow, which runs operation by operation: nothing is compiled."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UserError("Keras already runs on another backend; set KERAS_BACKEND=tensorflow")
    return keras


def import_torch_peers() -> tuple[Any, Any]:
    """(timm, torchvision.models).

    torchvision's compiled extension does not load with a PyTorch of another build. Its networks do not need the
    extension, and its import needs only the names of two operators.
    """
    import torch

    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _OPERATORS.append(library)
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
    import timm
    import torchvision.models

    return timm, torchvision.models


class KerasPeer:
    """A network of `keras.applications`, from the normalised input on."""

    def __init__(self, keras: Any, name: str, architecture: Architecture, variables: Variables, size: int) -> None:
        num_classes = _num_classes(variables)
        whole = getattr(keras.applications, name)(
            weights=None, classes=num_classes, classifier_activation=None, input_shape=(size, size, 3)
        )
        inside = {layer.name: layer for layer in whole.layers}
        first = inside.get("stem_conv_pad") or inside["stem_conv"]
        ends = {"stem": "stem_activation"}
        for index, (stage, repeat) in enumerate(block_places(architecture.blocks)):
            prefix = f"block{stage + 1}{chr(ord('a') + repeat)}_"
            ends[f"block_{index}"] = [layer for layer in inside if layer.startswith(prefix)][-1]
        ends |= {"head": "top_activation", "pooled": "avg_pool", "logits": "predictions"}
        self.model = keras.Model(first.input, {name: inside[layer].output for name, layer in ends.items()})
        for layer in self.model.layers:
            if layer.name.endswith("drop") or "dropout" in layer.name:
                layer.rate = 0.0
        self.entries = entries(architecture, num_classes, "keras")
        self.by_name = {
            f"{layer.name}/{number}": weight
            for layer in self.model.layers
            for number, weight in enumerate(layer.weights)
        }
        flat = flatten_arrays(variables)
        for entry in self.entries:
            self.by_name[entry.name].assign(entry.to_foreign(flat[entry.path]))

    def forward(self, images_BxHxWx3: np.ndarray) -> Outputs:
        return {name: np.asarray(value) for name, value in self.model(images_BxHxWx3, training=False).items()}

    def train_step(self, images_BxHxWx3: np.ndarray, labels_B: np.ndarray) -> TrainStep:
        import tensorflow as tf

        saved = self.model.get_weights()
        for layer in self.model.layers:
            if hasattr(layer, "moving_mean"):
                layer.momentum = 0.0  # so that the moving statistics become the batch's
        parameters = [entry for entry in self.entries if entry.path.startswith("params/")]
        with tf.GradientTape() as tape:
            logits = self.model(images_BxHxWx3, training=True)["logits"]
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels_B, logits))
        values = tape.gradient(loss, [self.by_name[entry.name].value for entry in parameters])
        gradients = {entry.name: np.asarray(value) for entry, value in zip(parameters, values, strict=True)}
        statistics = {name: np.asarray(value) for name, value in self.by_name.items()}
        self.model.set_weights(saved)
        return _train_step(float(loss), self.entries, gradients, statistics)


class TorchPeer:
    """A network of timm or torchvision."""

    def __init__(self, model: Any, peer: str, architecture: Architecture, variables: Variables) -> None:
        import torch

        self.model = model
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout) or type(module).__name__ == "StochasticDepth":
                module.p = 0.0
        self.entries = entries(architecture, _num_classes(variables), peer)
        flat = flatten_arrays(variables)
        state = {entry.name: torch.from_numpy(entry.to_foreign(flat[entry.path]).copy()) for entry in self.entries}
        missing = model.load_state_dict(state, strict=False).missing_keys
        if other := [name for name in missing if not name.endswith("num_batches_tracked")]:
            raise ValueError(f"{peer} has arrays without a counterpart: {other}")
        self.modules = self._modules(peer, architecture)

    def _modules(self, peer: str, architecture: Architecture) -> dict[str, Any]:
        model, places = self.model, block_places(architecture.blocks)
        if peer == "timm":
            ends = {"stem": model.bn1, "head": model.bn2, "pooled": model.global_pool}
            stages = list(model.blocks)
        else:
            ends = {"stem": model.features[0], "head": model.features[-1], "pooled": model.avgpool}
            stages = list(model.features)[1:-1]
        return ends | {f"block_{index}": stages[stage][repeat] for index, (stage, repeat) in enumerate(places)}

    def forward(self, images_BxHxWx3: np.ndarray) -> Outputs:
        import torch

        outputs: Outputs = {}

        def keep(name: str) -> Any:
            return lambda module, inputs, output: outputs.__setitem__(name, output.numpy().copy())

        hooks = [module.register_forward_hook(keep(name)) for name, module in self.modules.items()]
        with torch.no_grad():
            outputs["logits"] = self.model.eval()(_nchw(images_BxHxWx3)).numpy()
        for hook in hooks:
            hook.remove()
        outputs["pooled"] = outputs["pooled"].reshape(len(images_BxHxWx3), -1)
        return {name: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value for name, value in outputs.items()}

    def train_step(self, images_BxHxWx3: np.ndarray, labels_B: np.ndarray) -> TrainStep:
        import torch

        saved = {name: value.clone() for name, value in self.model.state_dict().items()}
        values: dict[str, int] = {}  # how many values each channel's statistics average
        hooks = []
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # so that the running statistics become the batch's

                def count(module: Any, inputs: Any, name: str = name) -> None:
                    values[name] = inputs[0].numel() // inputs[0].shape[1]

                hooks.append(module.register_forward_pre_hook(count))
        logits = self.model.train()(_nchw(images_BxHxWx3))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels_B))
        loss.backward()
        for hook in hooks:
            hook.remove()
        gradients = {name: parameter.grad.numpy() for name, parameter in self.model.named_parameters()}
        statistics = {name: value.numpy().copy() for name, value in self.model.state_dict().items()}
        for name, number in values.items():  # PyTorch keeps the unbiased variance
            statistics[f"{name}.running_var"] *= (number - 1) / number
        self.model.load_state_dict(saved)
        return _train_step(loss.item(), self.entries, gradients, statistics)


def _num_classes(variables: Variables) -> int:
    return variables["params"]["classifier"]["bias"].size


def _nchw(images_BxHxWx3: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(images_BxHxWx3.transpose(0, 3, 1, 2)))


def _train_step(loss: float, all_entries: list[Entry], gradients: Outputs, statistics: Outputs) -> TrainStep:
    """The results of a peer, converted to our names and layout."""

    def convert(collection: str, arrays: Outputs) -> Variables:
        chosen = [entry for entry in all_entries if entry.path.startswith(f"{collection}/")]
        return unflatten_arrays({entry.path: entry.to_ours(arrays[entry.name]) for entry in chosen})[collection]

    return TrainStep(loss, convert("params", gradients), convert("batch_stats", statistics))
