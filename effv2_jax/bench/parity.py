"""The network against those of Keras, timm and torchvision: `effv2 bench parity`.

Random weights with no trivial batch norm go into both. In evaluation every block's output and the logits are compared,
in training the loss, the gradient of every parameter and the statistics of every batch norm.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effv2_jax.bench.peers import PEERS, Outputs, TrainStep, check_installed, check_size, make_peer, peer_name
from effv2_jax.errors import UserError, check_known
from effv2_jax.network import architecture as architectures
from effv2_jax.network.architecture import Architecture, get_architecture
from effv2_jax.network.layers import Residual
from effv2_jax.runtime.isolated_process import run_isolated
from effv2_jax.weights.bundle import Bundle, Variables, flatten_arrays, foreign_bundle, unflatten_arrays
from effv2_jax.weights.mapping import entries

CLASSES = 10
TRAIN_VARIANTS = ("efficientnetv2-b0", "efficientnetv2-s")
TRAIN_BATCH, TRAIN_SIZE = 8, 64


def measure(
    variants: Sequence[str], peers: Sequence[str], size: int | None, log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Compares, each variant in a process of its own, which takes its memory with it.

    Args:
      variants: names of architectures; () for all that a peer has.
      peers: of PEERS; () for all.
      size: pixels; None for each variant's evaluation size, and TRAIN_SIZE in training.
      log: takes a line of progress.

    Returns:
      Rows, as JSON can hold them: `compare_forward`'s, and of TRAIN_VARIANTS `compare_training`'s, which have 'loss'.

    Raises:
      Unavailable: a process that compared was killed.
      UserError: an unknown variant or peer, one that no peer has, or a library that is not installed.
    """
    for variant in variants:
        check_known("--variant", variant, architectures.names())
    for peer in peers:
        check_known("--peer", peer, PEERS)
    if size is not None:
        check_size("size", size)
    found = {
        variant: [peer for peer in peers or PEERS if peer_name(peer, variant)]
        for variant in variants or architectures.names()
    }
    if strange := [variant for variant in variants if not found[variant]]:
        raise UserError(f"{', '.join(strange)} is in none of {', '.join(peers or PEERS)}")
    for peer in sorted({peer for some in found.values() for peer in some}):
        check_installed(peer)
    rows = []
    for variant, some in found.items():
        modes = [compare_forward] + [compare_training] * (variant in TRAIN_VARIANTS)
        for mode in modes if some else ():
            new = run_isolated(variant, mode, variant, some, size, initializer=_on_the_cpu)
            for row in new:
                log(describe(row))
            rows += new
    return rows


def _on_the_cpu() -> None:
    jax.config.update("jax_platforms", "cpu")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # TensorFlow's and PyTorch's


def random_variables(architecture: Architecture, seed: int = 0) -> Variables:
    """Weights for CLASSES classes, with no batch norm left trivial.

    What a residual block adds is kept small: else activations grow from block to block, the gates of squeeze-excite
    become steps, and a network of a hundred blocks magnifies rounding without end.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for entry in entries(architecture, CLASSES, "effv2"):
        leaf = entry.path.rpartition("/")[2]
        if leaf in ("scale", "var"):
            value = rng.uniform(0.7, 1.4, entry.shape) * (0.5 if entry.path.endswith("project_bn/scale") else 1)
        elif entry.kind == "vector":
            value = rng.normal(0, 0.2, entry.shape)
        else:
            value = rng.normal(0, np.prod(entry.shape[:-1]) ** -0.5, entry.shape)
        arrays[entry.path] = value.astype(np.float32)
    return unflatten_arrays(arrays)


def compare_forward(variant: str, peers: Sequence[str], size: int | None = None) -> list[dict[str, Any]]:
    """Rows of {'variant', 'peer', 'size', 'logits', 'worst', 'worst_at'}: largest differences, each relative to the
    largest value of what is compared; 'worst' is that of any output."""
    architecture = get_architecture(variant)
    variables, size = random_variables(architecture), size or architecture.evaluation_size
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    rows = []
    for peer, ours in _of_each(peers, architecture, variables, lambda bundle: forward(bundle, images)):
        theirs = make_peer(peer, architecture, variables, size).forward(images)
        if ours.keys() != theirs.keys():
            raise ValueError(f"{peer} has {theirs.keys() - ours.keys()} more and {ours.keys() - theirs.keys()} less")
        errors = {name: relative(ours[name], value) for name, value in theirs.items()}
        row: dict[str, Any] = {"variant": variant, "peer": peer, "size": size, "logits": errors["logits"]}
        row["worst_at"], row["worst"] = worst(errors)
        rows.append(row)
    return rows


def _of_each(
    peers: Sequence[str], architecture: Architecture, variables: Variables, compute: Callable[[Bundle], Any]
) -> Iterator[tuple[str, Any]]:
    """What `compute` makes of our network with the numerics of each peer, once for those that share them."""
    computed: dict[Any, Any] = {}
    for peer in peers:
        bundle = foreign_bundle(peer, architecture, CLASSES, {"raw": variables})
        numerics = (bundle.padding, bundle.batch_norm_epsilon)
        if numerics not in computed:
            computed[numerics] = compute(bundle)
        yield peer, computed[numerics]


def forward(bundle: Bundle, images_BxHxWx3: np.ndarray) -> Outputs:
    """Our outputs, with the names of `peers`."""

    @jax.jit
    def run(images: jax.Array) -> Any:
        return bundle.model.apply(
            bundle.variables,
            images,
            mutable=["endpoints", "intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, Residual),
        )

    logits, state = run(images_BxHxWx3)
    blocks = {name: value["__call__"][0] for name, value in state["intermediates"].items()}
    ends = {name: state["endpoints"][name][0] for name in ("stem", "head", "pooled")}
    return {name: np.asarray(value) for name, value in (blocks | ends | {"logits": logits}).items()}


def compare_training(variant: str, peers: Sequence[str], size: int | None = None) -> list[dict[str, Any]]:
    """Rows of {'variant', 'peer', 'size', 'batch', 'loss', 'gradients', 'gradients_at', 'statistics', 'statistics_at'}.

    Relative: the loss's difference, and the largest of any parameter's gradient and of any mean or variance by norms.
    """
    architecture, size = get_architecture(variant), size or TRAIN_SIZE
    variables = random_variables(architecture)
    rng = np.random.default_rng(1)
    images = rng.normal(size=(TRAIN_BATCH, size, size, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, TRAIN_BATCH)
    rows = []
    for peer, ours in _of_each(peers, architecture, variables, lambda bundle: train_step(bundle, images, labels)):
        theirs = make_peer(peer, architecture, variables, size).train_step(images, labels)
        row: dict[str, Any] = {"variant": variant, "peer": peer, "size": size, "batch": TRAIN_BATCH}
        row["loss"] = abs(ours.loss - theirs.loss) / theirs.loss
        for name in ("gradients", "statistics"):
            errors = relative_norms(getattr(ours, name), getattr(theirs, name))
            row[f"{name}_at"], row[name] = worst(errors)
        rows.append(row)
    return rows


def train_step(bundle: Bundle, images_BxHxWx3: np.ndarray, labels_B: np.ndarray) -> TrainStep:
    """Ours, of the whole batch as one batch-norm group."""

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_statistics(params: Any, images: jax.Array) -> Any:
        variables = bundle.variables | {"params": params}
        logits, updates = bundle.model.apply(variables, images, train=True, mutable=["group_stats"])
        log_probabilities = jax.nn.log_softmax(logits)
        return -log_probabilities[jnp.arange(len(labels_B)), labels_B].mean(), updates["group_stats"]

    (loss, statistics), gradients = jax.jit(loss_and_statistics)(bundle.variables["params"], images_BxHxWx3)
    return TrainStep(float(loss), jax.device_get(gradients), jax.tree.map(lambda x: np.asarray(x[0]), statistics))


def worst(errors: dict[str, float]) -> tuple[str, float]:
    """The largest with its name; what is not a number is larger than any."""
    return max(errors.items(), key=lambda item: (math.isnan(item[1]), item[1]))


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference in units of the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def relative_norms(ours: Variables, theirs: Variables) -> dict[str, float]:
    """By path: the norm of the difference relative to the norm.

    Where a batch norm follows, a shift has gradient 0 but for rounding: no array counts as smaller than a hundredth of
    their root mean square.
    """
    flat_ours, flat_theirs = flatten_arrays(ours), flatten_arrays(theirs)
    norms = {path: float(np.linalg.norm(value)) for path, value in flat_theirs.items()}
    floor = 0.01 * float(np.sqrt(np.mean(np.square(list(norms.values())))))
    return {
        path: float(np.linalg.norm(flat_ours[path] - flat_theirs[path])) / max(norms[path], floor) for path in norms
    }


def describe(row: dict[str, Any]) -> str:
    where = f"{row['variant']} {row['size']} px against {row['peer']}"
    if "loss" in row:
        return (
            f"{where}, training: loss {row['loss']:.1e}, gradients {row['gradients']:.1e} ({row['gradients_at']}), "
            f"statistics {row['statistics']:.1e} ({row['statistics_at']})"
        )
    return f"{where}: logits {row['logits']:.1e}, any output {row['worst']:.1e} ({row['worst_at']})"


def tables(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """(headers, rows of cells) of what was compared in evaluation, then of training where it was."""
    forward_rows = [row for row in rows if "loss" not in row]
    found = {(row["variant"], row["peer"]): row for row in forward_rows}
    cells = []
    for variant, size in dict.fromkeys((row["variant"], row["size"]) for row in forward_rows):
        pairs = []
        for peer in PEERS:
            row = found.get((variant, peer))
            pairs += [f"{row['logits']:.1e}", f"{row['worst']:.1e} {row['worst_at']}"] if row else ["–", "–"]
        cells.append((variant, str(size), *pairs))
    yield ("variant", "px", *(f"{peer}: {what}" for peer in PEERS for what in ("logits", "any output"))), cells
    training = [
        (row["variant"], row["peer"], f"{row['loss']:.1e}")
        + tuple(f"{row[name]:.1e} {row[f'{name}_at']}" for name in ("gradients", "statistics"))
        for row in rows
        if "loss" in row
    ]
    if training:
        yield ("variant", "peer", "loss", "any gradient", "any statistic"), training


def page(rows: Sequence[dict[str, Any]]) -> str:
    """docs/parity.md."""
    found = [peer for peer in PEERS if any(row["peer"] == peer for row in rows)]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", *found))
    evaluation, *training = (
        "\n".join(f"| {' | '.join(line)} |" for line in (headers, ["---"] * len(headers), *cells))
        for headers, cells in tables(rows)
    )
    text = PAGE.format(versions=versions, table=evaluation)
    if training:
        size = next(row["size"] for row in rows if "loss" in row)
        text += TRAINING.format(batch=TRAIN_BATCH, size=size, table=training[0])
    return text


PAGE = """# Check the network against Keras, timm and torchvision

With the same weights our networks give the same outputs as those of Keras, timm and torchvision, up to
float32 rounding. Measured on the CPU in float32
({versions}).

```sh
effv2 bench parity --page
```

This command prints this page. It needs all three libraries (`make peers`).

## Inference

Both networks get the same two random images and the same random weights, in which the scales, shifts and
statistics of every batch norm differ from 1 and 0. The table shows the largest difference relative to the
largest value. *Logits* compares the logits. *Any output* compares stem, blocks, head, pooled features and
logits, and names the one that differs most.

timm's networks are its `tf_` ones. Against torchvision, ours use its padding and epsilon
([why](weights.md#what-the-arrays-do-not-record)). V1's B3 is `efficientnet-b3-original`. A dash means that
the library does not have the network.

{table}
"""
TRAINING = """
## Training

One batch of {batch} images of {size} px in training mode, without dropout and stochastic depth. *Loss* is the
relative difference of the cross-entropy. *Any gradient* and *any statistic* are the largest relative
differences, by norms, of any parameter's gradient and of any batch norm's mean or variance.

If a later batch norm removes a shift, the gradient of that shift is zero up to rounding. Therefore no norm
counts as smaller than a hundredth of the root mean square of all norms.

{table}
"""
