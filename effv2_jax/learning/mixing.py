"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch on the device."""

import jax
import jax.numpy as jnp


def symmetric_beta(rng: jax.Array, alpha: float, size: int) -> jax.Array:
    """Draws of Beta(alpha, alpha), alpha > 0: float32 [size].

    Exact up to rounding, from two uniform numbers per draw: with Student's t of 2 * alpha degrees of freedom in polar
    form (Bailey, Mathematics of Computation 62, 1994), t / sqrt(2 * alpha + t^2) is 2 * Beta(alpha, alpha) - 1
    (Devroye, "Random variate generation in one line of code", 1996). `jax.random.beta` rejects in loops, which compile
    slowly and need an all-reduce if the draws are sharded over devices.
    """
    radius_key, angle_key = jax.random.split(rng)
    cosine = jnp.cos(2 * jnp.pi * jax.random.uniform(angle_key, (size,)))
    # t^2 / (2 * alpha) = cosine^2 * (U^(-1 / alpha) - 1). Its inverse has a floor, far below rounding, to avoid 0 / 0.
    inverse = jnp.maximum(1 / jnp.expm1(jax.random.exponential(radius_key, (size,)) / alpha), 1e-30)
    return jnp.clip(0.5 + 0.5 * cosine / jnp.sqrt(jnp.square(cosine) + inverse), 0, 1)


def _swap_neighbours(x: jax.Array) -> jax.Array:
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def _cut_span(rng: jax.Array, ratio_B: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Pixels of a box along one axis, clipped to the image: (bool [B, length], their number int32 [B])."""
    side = (ratio_B * length).astype(jnp.int32)
    first = jax.random.randint(rng, ratio_B.shape, 0, length) - side // 2
    last = jnp.minimum(first + side, length)
    first = jnp.maximum(first, 0)
    pixels = jnp.arange(length)
    return (pixels >= first[:, None]) & (pixels < last[:, None]), last - first


def mix(
    rng: jax.Array, images_BxHxWxC: jax.Array, targets_BxK: jax.Array, mixup_alpha: float, cutmix_alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with its neighbour (0 with 1, 2 with 3, ...): (images, targets), both of unchanged type.

    The released code (google/automl `efficientnetv2/datasets.py`) mixes with the reversed batch. Batches are shuffled,
    so every fixed pairing has the same distribution. Neighbours lie on the same device (if it holds an even number of
    examples), so mixing needs no communication.

    - mixup: each example draws lambda ~ Beta(alpha, alpha); its own weight is max(lambda, 1 - lambda).
    - cutmix: each example gets a box of its partner, with sides of sqrt(1 - Beta(alpha, alpha)) times the image's and a
      uniform centre, clipped to the image. The partner's label weight is the exact area of that clipped box; the
      released code takes the mean area over the batch.
    - both: of four consecutive examples the first two get mixup and the others cutmix, so that devices and batch-norm
      groups have equal shares. The released code applies mixup to the first half of the batch and cutmix to the second.

    Weights are float32 and drawn per example, so they are the same on any number of devices.

    Args:
      rng: a JAX key.
      images_BxHxWxC: float32 or bfloat16.
      targets_BxK: float32.
      mixup_alpha, cutmix_alpha: Python floats; 0 is off. With both off the inputs are returned.

    Raises:
      ValueError: B is odd, or with both on not a multiple of 4.
    """
    if not (mixup_alpha or cutmix_alpha):
        return images_BxHxWxC, targets_BxK
    batch, height, width, _ = images_BxHxWxC.shape
    both = bool(mixup_alpha and cutmix_alpha)
    if batch % (4 if both else 2):
        kind = "mixing by mixup and cutmix" if both else "mixing"
        raise ValueError(f"{kind} needs a multiple of {4 if both else 2} examples, not {batch}")
    mixup_key, cutmix_key, vertical_key, horizontal_key = jax.random.split(rng, 4)

    if mixup_alpha:
        share_B = symmetric_beta(mixup_key, mixup_alpha, batch)
        share_B = jnp.maximum(share_B, 1 - share_B)
        weight_BxHxWx1 = share_B[:, None, None, None]  # [B, 1, 1, 1] unless cutmix is on as well
    if cutmix_alpha:
        ratio_B = jnp.sqrt(1 - symmetric_beta(cutmix_key, cutmix_alpha, batch))
        rows_BxH, num_rows_B = _cut_span(vertical_key, ratio_B, height)
        columns_BxW, num_columns_B = _cut_span(horizontal_key, ratio_B, width)
        cut_share_B = 1 - num_rows_B * num_columns_B / (height * width)
        cut_BxHxWx1 = 1.0 - (rows_BxH[:, :, None] & columns_BxW[:, None, :])[..., None]
        if both:
            by_mixup_B = jnp.arange(batch) // 2 % 2 == 0
            cut_share_B = jnp.where(by_mixup_B, share_B, cut_share_B)
            cut_BxHxWx1 = jnp.where(by_mixup_B[:, None, None, None], weight_BxHxWx1, cut_BxHxWx1)
        share_B, weight_BxHxWx1 = cut_share_B, cut_BxHxWx1

    def blend(x: jax.Array, weight: jax.Array) -> jax.Array:
        return (weight * x + (1 - weight) * _swap_neighbours(x)).astype(x.dtype)

    return blend(images_BxHxWxC, weight_BxHxWx1), blend(targets_BxK, share_B[:, None])
