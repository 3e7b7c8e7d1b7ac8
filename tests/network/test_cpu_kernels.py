"""Convolutions and batch norm as XLA's CPU backend runs them fast, against the plain operations, with gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effv2_jax.network import cpu_kernels as decomposed
from effv2_jax.network.layers import BatchNorm, convolution


def draws(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def check_equal_with_gradients(one, other, *arguments, tolerance=1e-4):
    result, pull = jax.vjp(one, *arguments)
    expected, expected_pull = jax.vjp(other, *arguments)
    [cotangent] = draws(result.shape, seed=1)
    for ours, theirs in zip((result, *pull(cotangent)), (expected, *expected_pull(cotangent)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


GEOMETRY = dict(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2, 3]),
    padding=st.sampled_from(["same", "symmetric"]),
)


@settings(max_examples=25, deadline=None)
@given(**GEOMETRY)
def test_depthwise(height, width, size, stride, padding):
    arguments = draws((2, height, width, 5), (size, size, 1, 5))
    one, other = (
        lambda x, kernel, lowering=lowering: convolution(x, kernel, stride, True, lowering, padding)
        for lowering in ("decomposed", "native")
    )
    check_equal_with_gradients(one, other, *arguments)


@settings(max_examples=25, deadline=None)
@given(filters=st.sampled_from([(2, 5), (5, 2)]), **GEOMETRY)
def test_spatial(filters, height, width, size, stride, padding):
    arguments = draws((2, height, width, filters[0]), (size, size, *filters))
    one, other = (
        lambda x, kernel, lowering=lowering: convolution(x, kernel, stride, False, lowering, padding)
        for lowering in ("decomposed", "native")
    )
    check_equal_with_gradients(one, other, *arguments)


@pytest.mark.parametrize("filters", [(3, 7), (7, 3)])
def test_pointwise(filters):
    arguments = draws((2, 4, 5, filters[0]), (1, 1, *filters))
    one, other = (
        lambda x, kernel, lowering=lowering: convolution(x, kernel, 1, False, lowering)
        for lowering in ("decomposed", "native")
    )
    check_equal_with_gradients(one, other, *arguments)


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("group_size", [0, 2])
def test_batch_norm(activate, group_size):
    x, scale, bias = draws((6, 3, 4, 5), (5,), (5,))

    def apply(lowering):
        norm = BatchNorm(group_size, lowering=lowering)
        variables = norm.init(jax.random.key(0), x, False)

        def run(x, scale, bias):
            params = {"scale": scale, "bias": bias}
            return norm.apply(variables | {"params": params}, 3 * x + 1, True, activate=activate)

        statistics = norm.apply(variables, x, True, mutable=["group_stats"])[1]
        return run, statistics

    (one, statistics), (other, expected) = apply("decomposed"), apply("native")
    check_equal_with_gradients(one, other, x, scale, bias)
    jax.tree.map(np.testing.assert_array_equal, statistics, expected)


def test_the_compiler_knows_the_options_and_others_get_none(monkeypatch):
    assert decomposed.compiler_options("cpu") == decomposed._OPTIONS and decomposed.compiler_options("tpu") == {}
    decomposed._known_options.cache_clear()
    monkeypatch.setattr(decomposed, "_OPTIONS", {"xla_cpu_no_such_option": "1"})
    assert decomposed.compiler_options("cpu") == {}
    decomposed._known_options.cache_clear()


def test_the_gradient_of_a_depthwise_kernel_is_one_reduction_over_the_pixels():
    x, kernel = draws((2, 6, 6, 8), (3, 3, 8))

    def loss(kernel):
        return decomposed.depthwise_convolution(x, kernel, 1, ((1, 1), (1, 1))).sum()

    text = jax.jit(jax.grad(loss)).lower(kernel).as_text()
    assert text.count(":9 = stablehlo.reduce(") == 1 and "stablehlo.convolution" not in text


def test_no_reader_of_a_depthwise_convolution_computes_it_again():
    x, kernel, scale = draws((2, 6, 6, 8), (3, 3, 8), (8,))

    def loss(x, kernel, scale):
        y = decomposed.depthwise_convolution(jax.nn.silu(x), kernel, 1, ((1, 1), (1, 1)))
        return decomposed.normalize_groups(y[None], scale, scale, 1e-3, True, jnp.float32)[0].sum()

    gradient = jax.jit(jax.grad(loss, (0, 1, 2)), compiler_options=decomposed.compiler_options("cpu"))
    text = gradient.lower(x, kernel, scale).compile().as_text()
    assert len(re.findall(r" call\(.*sum_of_shifts", text)) == 2  # forward, and for the gradient of x


def test_the_gradient_of_a_strided_convolution_multiplies_no_zeros_between_pixels():
    x, kernel = draws((2, 8, 8, 3), (3, 3, 3, 5))

    def loss(x, convolve):
        return jnp.square(convolve(x)).sum()

    def windows(convolve):
        return re.findall(r"lhs_dilate", jax.jit(jax.grad(loss), static_argnums=1).lower(x, convolve).as_text("hlo"))

    assert windows(lambda x: convolution(x, kernel, 2, False, "native"))
    assert not windows(lambda x: convolution(x, kernel, 2, False, "decomposed"))
