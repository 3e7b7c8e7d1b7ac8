"""Our network against those of Keras, timm and torchvision: `effv2 bench parity`.

Both get the same random weights, without a trivial batch norm. In evaluation mode every block's output and the logits
are compared, in training mode the loss, the gradient of every parameter and the statistics of every batch norm.
"""

import functools
import itertools
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


def compare_networks(
    variants: Sequence[str], peers: Sequence[str], size: int | None, log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Compares each variant in a process of its own, which returns its memory when it ends.

    Args:
      variants: names of architectures; () for all that any peer has.
      peers: of PEERS; () for all.
      size: pixels; None for each variant's evaluation size, and TRAIN_SIZE in training.
      log: takes a line of progress.

    Returns:
      Rows, which JSON can hold: those of `compare_forward`, and for TRAIN_VARIANTS those of `compare_training`, which
      have 'loss'.

    Raises:
      Unavailable: a process that compared was killed.
      UserError: an unknown variant or peer, a variant that no peer has, or a library that is not installed.
    """
    for variant in variants:
        check_known("--variant", variant, architectures.names())
    for peer in peers:
        check_known("--peer", peer, PEERS)
    if size is not None:
        check_size("size", size)
    peers_of = {
        variant: [peer for peer in peers or PEERS if peer_name(peer, variant)]
        for variant in variants or architectures.names()
    }
    if missing := [variant for variant in variants if not peers_of[variant]]:
        raise UserError(f"{', '.join(missing)} is in none of {', '.join(peers or PEERS)}")
    for peer in sorted(set(itertools.chain(*peers_of.values()))):
        check_installed(peer)
    rows = []
    for variant, some_peers in peers_of.items():
        if not some_peers:
            continue
        modes = [compare_forward, compare_training] if variant in TRAIN_VARIANTS else [compare_forward]
        for compare in modes:
            new_rows = run_isolated(variant, compare, variant, some_peers, size, initializer=_use_cpu)
            for row in new_rows:
                log(describe(row))
            rows += new_rows
    return rows


def _use_cpu() -> None:
    jax.config.update("jax_platforms", "cpu")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # TensorFlow's and PyTorch's


def random_variables(architecture: Architecture, seed: int = 0) -> Variables:
    """Weights for CLASSES classes, without a trivial batch norm.

    The branches of residual blocks are kept small. Otherwise activations grow from block to block, the gates of
    squeeze-excite become step functions, and a network of a hundred blocks amplifies rounding errors without bound.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for entry in entries(architecture, CLASSES, "effv2"):
        leaf = entry.path.rpartition("/")[2]
        if leaf in ("scale", "var"):
            is_branch_end = entry.path.endswith("project_bn/scale")
            value = rng.uniform(0.7, 1.4, entry.shape) * (0.5 if is_branch_end else 1)
        elif entry.kind == "vector":
            value = rng.normal(0, 0.2, entry.shape)
        else:
            value = rng.normal(0, np.prod(entry.shape[:-1]) ** -0.5, entry.shape)
        arrays[entry.path] = value.astype(np.float32)
    return unflatten_arrays(arrays)


def compare_forward(variant: str, peers: Sequence[str], size: int | None = None) -> list[dict[str, Any]]:
    """Rows of {'variant', 'peer', 'size', 'logits', 'worst', 'worst_at'}.

    'logits' and 'worst' are the largest differences of the logits and of any output, relative to its largest value.
    """
    architecture = get_architecture(variant)
    variables, size = random_variables(architecture), size or architecture.evaluation_size
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    rows = []
    for peer, ours in _ours_for_each(peers, architecture, variables, lambda bundle: forward(bundle, images)):
        theirs = make_peer(peer, architecture, variables, size).forward(images)
        if ours.keys() != theirs.keys():
            extra, missing = theirs.keys() - ours.keys(), ours.keys() - theirs.keys()
            raise ValueError(f"outputs of {peer} differ from ours: it has {extra} and lacks {missing}")
        errors = {name: relative(ours[name], value) for name, value in theirs.items()}
        row: dict[str, Any] = {"variant": variant, "peer": peer, "size": size, "logits": errors["logits"]}
        row["worst_at"], row["worst"] = worst(errors)
        rows.append(row)
    return rows


def _ours_for_each(
    peers: Sequence[str], architecture: Architecture, variables: Variables, compute: Callable[[Bundle], Any]
) -> Iterator[tuple[str, Any]]:
    """(peer, result of `compute` on our network with the peer's numerics); peers with equal numerics share a result."""
    computed: dict[tuple[str, float], Any] = {}
    for peer in peers:
        bundle = foreign_bundle(peer, architecture, CLASSES, {"raw": variables})
        numerics = (bundle.padding, bundle.batch_norm_epsilon)
        if numerics not in computed:
            computed[numerics] = compute(bundle)
        yield peer, computed[numerics]


def forward(bundle: Bundle, images_BxHxWx3: np.ndarray) -> Outputs:
    """Our outputs, named as in `peers`."""

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

    'loss' is the relative difference. 'gradients' and 'statistics' are the largest relative norms of the difference of
    any parameter's gradient, and of any batch norm's mean or variance.
    """
    architecture, size = get_architecture(variant), size or TRAIN_SIZE
    variables = random_variables(architecture)
    rng = np.random.default_rng(1)
    images = rng.normal(size=(TRAIN_BATCH, size, size, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, TRAIN_BATCH)
    rows = []
    for peer, ours in _ours_for_each(peers, architecture, variables, lambda bundle: train_step(bundle, images, labels)):
        theirs = make_peer(peer, architecture, variables, size).train_step(images, labels)
        row: dict[str, Any] = {"variant": variant, "peer": peer, "size": size, "batch": TRAIN_BATCH}
        row["loss"] = abs(ours.loss - theirs.loss) / theirs.loss
        for name in ("gradients", "statistics"):
            errors = relative_norms(getattr(ours, name), getattr(theirs, name))
            row[f"{name}_at"], row[name] = worst(errors)
        rows.append(row)
    return rows


def train_step(bundle: Bundle, images_BxHxWx3: np.ndarray, labels_B: np.ndarray) -> TrainStep:
    """Our result, with the whole batch as one batch-norm group."""

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_statistics(params: Variables, images: jax.Array) -> tuple[jax.Array, Variables]:
        variables = bundle.variables | {"params": params}
        logits, updates = bundle.model.apply(variables, images, train=True, mutable=["group_stats"])
        log_probabilities = jax.nn.log_softmax(logits)
        return -log_probabilities[jnp.arange(len(labels_B)), labels_B].mean(), updates["group_stats"]

    (loss, statistics), gradients = jax.jit(loss_and_statistics)(bundle.variables["params"], images_BxHxWx3)
    return TrainStep(float(loss), jax.device_get(gradients), jax.tree.map(lambda x: np.asarray(x[0]), statistics))


def worst(errors: dict[str, float]) -> tuple[str, float]:
    """(name, value) of the largest error; NaN counts as the largest."""
    return max(errors.items(), key=lambda item: (math.isnan(item[1]), item[1]))


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference relative to their largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def relative_norms(ours: Variables, theirs: Variables) -> dict[str, float]:
    """By path: the norm of the difference relative to the norm of theirs.

    A shift before a batch norm has gradient 0 up to rounding. So no norm counts as less than a hundredth of the root
    mean square of all norms.
    """
    flat_ours, flat_theirs = flatten_arrays(ours), flatten_arrays(theirs)
    norms = {path: float(np.linalg.norm(value)) for path, value in flat_theirs.items()}
    floor = 0.01 * float(np.sqrt(np.mean(np.square(list(norms.values())))))
    return {
        path: float(np.linalg.norm(flat_ours[path] - flat_theirs[path])) / max(norms[path], floor) for path in norms
    }


def describe(row: dict[str, Any]) -> str:
    """One row as a line of the log."""
    pair = f"{row['variant']} {row['size']} px against {row['peer']}"
    if "loss" in row:
        return (
            f"{pair}, training: loss {row['loss']:.1e}, gradients {row['gradients']:.1e} ({row['gradients_at']}), "
            f"statistics {row['statistics']:.1e} ({row['statistics_at']})"
        )
    return f"{pair}: logits {row['logits']:.1e}, any output {row['worst']:.1e} ({row['worst_at']})"


def tables(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """(headers, rows of cells) of evaluation, then of training if any row is of training."""
    forward_rows = [row for row in rows if "loss" not in row]
    by_pair = {(row["variant"], row["peer"]): row for row in forward_rows}
    cells = []
    for variant, size in dict.fromkeys((row["variant"], row["size"]) for row in forward_rows):
        pairs = []
        for peer in PEERS:
            row = by_pair.get((variant, peer))
            pairs += [f"{row['logits']:.1e}", f"{row['worst']:.1e} {row['worst_at']}"] if row else ["–", "–"]
        cells.append((variant, str(size), *pairs))
    headers = [f"{peer}: {output}" for peer in PEERS for output in ("logits", "any output")]
    yield ("variant", "px", *headers), cells
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
    peers = [peer for peer in PEERS if any(row["peer"] == peer for row in rows)]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", *peers))
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
