"""The predictions of a run on its evaluation data: which classes it confuses, and which images."""

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints, damage_of
from effv2_jax.config import from_dict
from effv2_jax.data.images.decode import BrokenImage
from effv2_jax.data.pipeline import evaluation_batches
from effv2_jax.data.source import Source
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import UserError
from effv2_jax.network.cpu_kernels import compiler_options
from effv2_jax.network.model import normalize
from effv2_jax.runtime import mesh as mesh_lib
from effv2_jax.runtime.mesh import make_mesh, put_batch
from effv2_jax.weights.run import read_run

IMAGES_PER_DEVICE = 32  # in a batch; this machine may have less memory than the one that trained
LOG_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The most probable class of every readable evaluation example.

    indices: int [N], of the examples in `source`.
    labels, predicted: int [N].
    probability: float [N], of the predicted class.
    """

    step: int
    weights: str
    class_names: tuple[str, ...]
    source: Source
    indices: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray

    @property
    def num_correct(self) -> int:
        return int((self.labels == self.predicted).sum())

    def pairs(self) -> list[tuple[tuple[int, int], int]]:
        """((label, predicted class), count) of the wrong predictions, the most frequent first."""
        wrong = self.labels != self.predicted
        counts = collections.Counter(zip(self.labels[wrong].tolist(), self.predicted[wrong].tolist(), strict=True))
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))

    def most_confused(self, most: int) -> list[int]:
        """The `most` classes in the most wrong predictions, ordered by label."""
        counts: collections.Counter = collections.Counter()
        for pair, count in self.pairs():
            counts.update(dict.fromkeys(pair, count))
        return sorted(sorted(counts, key=lambda label: (-counts[label], label))[:most])

    def matrix(self, classes: list[int]) -> np.ndarray:
        """Counts by label (row) and prediction (column), int [K, K + 1] for K classes; the last column: any other."""
        index = {label: number for number, label in enumerate(classes)}
        counts = np.zeros((len(classes), len(classes) + 1), int)
        for label, predicted in zip(self.labels.tolist(), self.predicted.tolist(), strict=True):
            if label in index:
                counts[index[label], index.get(predicted, -1)] += 1
        return counts

    def confused(self, pair: tuple[int, int]) -> list[int]:
        """The positions in the arrays of a pair's examples, the most confident prediction first."""
        places = np.flatnonzero((self.labels == pair[0]) & (self.predicted == pair[1]))
        return places[np.argsort(-self.probability[places], kind="stable")].tolist()

    def picture(self, place: int) -> np.ndarray | None:
        """The image at a position, uint8 [H, W, 3]; None if it can no longer be read."""
        try:
            return self.source.load(int(self.indices[place]))[0].pixels()
        except BrokenImage:
            return None


def predict_run(workdir: epath.Path, log: Callable[[str], None]) -> Predictions:
    """Predictions on the run's evaluation data by its best intact checkpoint, else its newest.

    Args:
      workdir: of the run; only read.
      log: takes a line of progress every few seconds.

    Raises:
      UserError: no intact checkpoint, or the evaluation data are missing or changed.
    """
    if not (workdir / CHECKPOINTS).exists():
        raise UserError("there is no checkpoint yet")
    checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    try:
        step = _intact(checkpoints)
        run = checkpoints.restore_run(step)
    finally:
        checkpoints.close()
    config = from_dict(run["config"])
    source = make_sources(config).evaluation
    if source.fingerprint != (recorded := run["data"]["evaluation data"]):
        raise UserError(f"the evaluation data are not those of the run: {recorded} then, {source.fingerprint} now")
    mesh = make_mesh()
    config.evaluation.batch_size = IMAGES_PER_DEVICE * mesh.size  # no result depends on it
    bundle = read_run(workdir, str(step))
    replicated = mesh_lib.replicated(mesh)

    def classify(variables: dict, image_BxSxSx3: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits: Any = bundle.model.apply(variables, normalize(image_BxSxSx3, bundle.preprocess.normalization))
        probabilities, labels = jax.lax.top_k(jax.nn.softmax(logits), 1)
        return probabilities[:, 0], labels[:, 0]

    classify = jax.jit(classify, out_shardings=replicated, compiler_options=compiler_options(jax.default_backend()))
    variables = jax.device_put(bundle.variables, replicated)
    parts, done, last_log = [], 0, time.monotonic()
    for batch in evaluation_batches(source, config):
        images = put_batch({"image": batch["image"]}, mesh)["image"]
        probability, predicted = jax.device_get(classify(variables, images))
        parts.append((batch["mask"], batch["label"], predicted, probability))
        done = min(done + len(predicted), len(source))
        if time.monotonic() - last_log > LOG_SECONDS:
            last_log = time.monotonic()
            log(f"{workdir}: {done:,} of {len(source):,} evaluation images classified")
    mask, labels, predicted, probability = map(np.concatenate, zip(*parts, strict=True))
    return Predictions(
        step,
        "averaged weights" if "ema" in bundle.sets else "weights",
        bundle.class_names,
        source,
        np.flatnonzero(mask),
        one_label(labels[mask], predicted[mask]),
        predicted[mask],
        probability[mask],
    )


def one_label(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """int [N] from one label [N] or several [N, L] per example: the predicted one if it is a label, else the first."""
    if labels.ndim == 1:
        return labels
    return np.where((labels == predicted[:, None]).any(1), predicted, labels[:, 0])


def _intact(checkpoints: Checkpoints) -> int:
    faults = []
    for step in dict.fromkeys((checkpoints.best(), checkpoints.latest())):
        if step is not None:
            if not (damage := damage_of(checkpoints.directory / str(step))):
                return step
            faults.append(f"checkpoint {step} is damaged: {', '.join(damage)}")
    raise UserError("; ".join(faults) or "there is no checkpoint yet")
