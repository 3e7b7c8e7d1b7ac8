"""The evaluation step against a computation by hand: ranks, ties, padding, loss, numbers that are not finite."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effv2_jax.config import defaults
from effv2_jax.evaluate import evaluate
from effv2_jax.learning.step import make_evaluation_step
from effv2_jax.runtime.mesh import make_mesh


class TopRow(nn.Module):
    """Logits are the first channel of the first row of pixels: the test writes them into the image."""

    num_classes: int = 8
    dtype: type = jnp.float32

    def __call__(self, x_BxHxWxC):
        return x_BxHxWxC[:, 0, : self.num_classes, 0]


class Silent:
    """A counter of broken images for input that has none."""

    def update(self, batch):
        assert batch["mask"].any()


def batches_of(logits, labels, batch_size):
    """Padded batches whose images hold whole-number logits, 0 to 255."""
    for start in range(0, len(labels), batch_size):
        rows, part = logits[start : start + batch_size], labels[start : start + batch_size]
        batch = {
            "image": np.full((batch_size, 8, 8, 3), 255, np.uint8),
            "label": np.zeros(batch_size, np.int32),
            "mask": np.arange(batch_size) < len(part),
        }
        batch["image"][: len(part), 0, :, 0] = rows
        batch["label"][: len(part)] = part
        yield batch


@pytest.mark.parametrize(("loss", "count"), [("softmax", 37), ("sigmoid", 40)])
def test_shares_are_exact_with_padding_and_ties(loss, count):
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 140, (count, 8)).astype(np.uint8)  # ties are frequent
    labels = rng.integers(0, 8, count).astype(np.int32)
    config = defaults()
    config.loss.name = loss
    step = jax.jit(make_evaluation_step(config, TopRow()))
    results = evaluate(step, {"raw": {}}, batches_of(pixels, labels, 10), make_mesh(), Silent())["raw"]

    logits = (pixels.astype(np.float64) - 128) / 128
    order = np.argsort(-logits, axis=1, kind="stable")
    rank = (order == labels[:, None]).argmax(1)
    one_hot = np.eye(8)[labels]
    if loss == "softmax":
        losses = -(one_hot * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)
    else:
        losses = (np.log1p(np.exp(-np.abs(logits))) + np.maximum(logits, 0) - logits * one_hot).sum(1)
    assert results["count"] == count
    assert results["top1"] == (rank < 1).mean()
    assert results["top5"] == (rank < 5).mean()
    assert results["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_of_several_labels_the_best_ranked_counts():
    rng = np.random.default_rng(1)
    pixels = rng.integers(100, 110, (60, 8)).astype(np.uint8)
    labels = np.stack([rng.permutation(8)[:3] for _ in range(60)]).astype(np.int32)
    labels[rng.random((60, 3)) < 0.4] = -1
    labels[:, 0] = np.maximum(labels[:, 0], 0)

    def batches():
        for start in range(0, 60, 20):
            image = np.zeros((20, 8, 8, 3), np.uint8)
            image[:, 0, :, 0] = pixels[start : start + 20]
            yield {"image": image, "label": labels[start : start + 20], "mask": np.ones(20, bool)}

    step = jax.jit(make_evaluation_step(defaults(), TopRow()))
    results = evaluate(step, {"raw": {}}, batches(), make_mesh(), Silent())["raw"]
    ranked = np.argsort(-pixels.astype(int), axis=1, kind="stable")
    best = [
        min(list(order).index(label) for label in row if label >= 0) for order, row in zip(ranked, labels, strict=True)
    ]
    assert results["top1"] == (np.array(best) < 1).mean()
    assert results["top5"] == (np.array(best) < 5).mean()


def test_logits_that_are_not_finite_are_never_right():
    class NotFinite(TopRow):
        def __call__(self, x_BxHxWxC):
            return super().__call__(x_BxHxWxC) * jnp.nan

    step = jax.jit(make_evaluation_step(defaults(), NotFinite()))
    batches = batches_of(np.zeros((4, 8), np.uint8), np.zeros(4, np.int32), 4)
    results = evaluate(step, {"raw": {}}, batches, make_mesh(), Silent())["raw"]
    assert (results["top1"], results["top5"], results["count"]) == (0, 0, 4)


def test_every_set_of_weights_sees_the_same_batches():
    class Scaled(TopRow):
        @nn.compact
        def __call__(self, x_BxHxWxC):
            return super().__call__(x_BxHxWxC) * self.param("scale", nn.initializers.ones, ())

    rng = np.random.default_rng(1)
    pixels, labels = rng.permutation(256)[:48].reshape(6, 8).astype(np.uint8), rng.integers(0, 8, 6).astype(np.int32)
    step = jax.jit(make_evaluation_step(defaults(), Scaled()))
    weights = {"raw": {"params": {"scale": 1.0}}, "ema": {"params": {"scale": -1.0}}}
    results = evaluate(step, weights, batches_of(pixels, labels, 4), make_mesh(), Silent())
    assert results["raw"]["top1"] == (pixels.argmax(1) == labels).mean()
    assert results["ema"]["top1"] == (pixels.argmin(1) == labels).mean()
