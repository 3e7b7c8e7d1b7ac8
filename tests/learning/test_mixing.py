"""Mixup and CutMix on images whose mixed pixels can be counted."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from effv2_jax.learning.mixing import mix, symmetric_beta


def mixed(batch, mixup_alpha, cutmix_alpha, seed=0, height=16, width=24, dtype=jnp.float32):
    """Mixes a batch of constant images: image i is i + 1 everywhere, its target row i of the identity."""
    images = jnp.broadcast_to((1.0 + jnp.arange(batch))[:, None, None, None], (batch, height, width, 3)).astype(dtype)
    mix_jit = jax.jit(mix, static_argnums=(3, 4))
    images, targets = mix_jit(jax.random.key(seed), images, jnp.eye(batch), mixup_alpha, cutmix_alpha)
    return np.asarray(images, np.float32), np.asarray(targets)


def own_shares(targets):
    """The weight of each example's own label, after checking that the rest belongs to its neighbour."""
    index = np.arange(len(targets))
    own, neighbours = targets[index, index], targets[index, index ^ 1]
    np.testing.assert_allclose(own + neighbours, 1, rtol=1e-6)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    return own


def check_mixup(images, share, own, neighbour):
    assert share >= 0.5
    np.testing.assert_allclose(images, share * own + (1 - share) * neighbour, rtol=1e-5)


def check_cutmix(image, share, own, neighbour):
    """The image is `own` outside of one full rectangle of `neighbour`, whose area is the share of its label."""
    cut = image == neighbour
    np.testing.assert_array_equal(image[~cut], own)
    assert share == pytest.approx(1 - cut[..., 0].mean(), abs=1e-6)
    rows, columns = cut.any((1, 2)), cut.any((0, 2))
    np.testing.assert_array_equal(cut, np.repeat(np.outer(rows, columns)[..., None], 3, -1))
    for line in (rows, columns):
        assert (np.diff(np.flatnonzero(line)) == 1).all()


def test_mixup_blends_neighbours_as_their_labels():
    images, targets = mixed(64, 0.4, 0.0)
    shares = own_shares(targets)
    for i in range(64):
        check_mixup(images[i], shares[i], i + 1, (i ^ 1) + 1)
    assert len(np.unique(shares)) > 60  # each example draws its own


def test_cutmix_label_weights_are_pixel_counts():
    images, targets = mixed(64, 0.0, 1.0)
    shares = own_shares(targets)
    for i in range(64):
        check_cutmix(images[i], shares[i], i + 1, (i ^ 1) + 1)
    assert len(np.unique(shares)) > 40  # each example draws its own, and few areas coincide


def test_both_give_alternate_pairs_mixup_and_cutmix():
    images, targets = mixed(64, 0.4, 1.0)
    shares = own_shares(targets)
    for i in range(64):
        check = check_cutmix if i // 2 % 2 else check_mixup
        check(images[i], shares[i], i + 1, (i ^ 1) + 1)


def test_cutmix_boxes_have_the_papers_distribution():
    height, width, alpha = 20, 30, 1.0
    _, targets = mixed(512, 0.0, alpha, height=height, width=width)
    areas = 1 - own_shares(targets)
    rng = np.random.default_rng(0)
    ratios = np.sqrt(1 - rng.beta(alpha, alpha, 20_000))
    expected = 1.0
    for length in (height, width):
        sides = (ratios * length).astype(int)
        first = rng.integers(0, length, 20_000) - sides // 2
        expected = expected * (np.minimum(first + sides, length) - np.maximum(first, 0)) / length
    assert stats.ks_2samp(areas, expected).pvalue > 0.01


def test_cutmix_boxes_lie_anywhere_in_the_image():
    images, _ = mixed(512, 0.0, 1.0, height=16, width=24)
    index = np.arange(512)
    cut = images[..., 0] == ((index ^ 1) + 1)[:, None, None]
    coverage = cut.mean(0)
    # Centres are uniform, so the middle is covered most, and opposite sides alike.
    assert coverage.min() > 0.08
    np.testing.assert_allclose(coverage, coverage[::-1, ::-1], atol=0.12)


@pytest.mark.parametrize("alpha", [0.067, 0.2, 0.5, 1.0, 2.5])
def test_symmetric_beta_is_exact(alpha):
    draws = np.asarray(symmetric_beta(jax.random.key(3), alpha, 100_000), np.float64)
    assert ((draws >= 0) & (draws <= 1)).all()
    # float32 rounds what is very near 1 to 1, so the distribution is compared between: Kolmogorov's bound at 1 %.
    points = np.linspace(0.001, 0.999, 999)
    empirical = np.searchsorted(np.sort(draws), points, side="right") / len(draws)
    assert np.abs(empirical - stats.beta(alpha, alpha).cdf(points)).max() < 1.63 / np.sqrt(len(draws))


def test_mixup_weights_follow_the_folded_beta():
    alpha = 0.4
    _, targets = mixed(1024, alpha, 0.0, height=1, width=1)
    beta = stats.beta(alpha, alpha)
    assert stats.kstest(own_shares(targets), lambda x: beta.cdf(x) - beta.cdf(1 - x)).pvalue > 0.01


def test_zero_is_the_identity():
    images, targets = jnp.ones((3, 2, 2, 3)), jnp.eye(3)
    same_images, same_targets = mix(jax.random.key(0), images, targets, 0.0, 0.0)
    assert same_images is images and same_targets is targets


def test_keys_decide():
    first, again, other = (mixed(8, 0.4, 1.0, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_bfloat16_images_keep_their_type_and_float32_weights():
    images = jnp.full((4, 8, 8, 3), 1.5, jnp.bfloat16)
    same_images, targets = jax.jit(mix, static_argnums=(3, 4))(jax.random.key(0), images, jnp.eye(4), 0.4, 1.0)
    assert same_images.dtype == jnp.bfloat16 and targets.dtype == jnp.float32
    np.testing.assert_array_equal(same_images, images)  # equal partners: weights sum to 1
    half, _ = mixed(64, 0.4, 1.0, dtype=jnp.bfloat16)
    full, _ = mixed(64, 0.4, 1.0)
    np.testing.assert_allclose(half, full, rtol=2**-8)  # one rounding, at the end


@pytest.mark.parametrize(("batch", "alphas", "multiple"), [(3, (0.2, 0.0), 2), (3, (0.0, 0.2), 2), (6, (0.2, 0.2), 4)])
def test_batches_that_cannot_be_paired_are_refused(batch, alphas, multiple):
    with pytest.raises(ValueError, match=f"needs a multiple of {multiple} examples, not {batch}"):
        mix(jax.random.key(0), jnp.ones((batch, 2, 2, 3)), jnp.eye(batch), *alphas)


def test_eight_devices_mix_alike_without_talking():
    program = """
        import re
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from effv2_jax.learning.mixing import mix

        assert jax.device_count() == 8
        sharding = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), P("data"))
        images = jax.random.normal(jax.random.key(1), (32, 8, 8, 3))
        targets = jax.nn.one_hot(jnp.arange(32) % 10, 10)
        for alphas in ((0.2, 0.0), (0.0, 0.2), (0.4, 1.0)):
            step = jax.jit(lambda rng, x, y: mix(rng, x, y, *alphas))
            one = step(jax.random.key(0), images, targets)
            many = step.lower(jax.random.key(0), *jax.device_put((images, targets), sharding)).compile()
            shared = many(jax.random.key(0), *jax.device_put((images, targets), sharding))
            for a, b in zip(one, shared):
                assert b.sharding.is_equivalent_to(sharding, b.ndim), b.sharding
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
            talk = re.findall("all-reduce|all-gather|all-to-all|collective|reduce-scatter", many.as_text())
            assert not talk, (alphas, talk)
        print("alike")
    """
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.stdout == "alike\n", run.stderr
