"""Counts against Keras' and the published numbers; the notation of block strings."""

import needs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effv2_jax.errors import UserError
from effv2_jax.network import architecture
from effv2_jax.network.architecture import Block, count_macs, count_parameters, count_variables, get_architecture

# name: trainable parameters; with batch-norm statistics (asserted in automl's effnetv2_model_test.py, but for V1-B7);
# billion MACs at evaluation size; at training size (V2 only); blocks; stem; head; training size; evaluation size
COUNTS = {
    "efficientnetv2-b0": (7_139_704, 7_200_312, "0.718", "0.528", 21, 32, 1280, 192, 224),
    "efficientnetv2-b1": (8_141_052, 8_212_124, "1.197", "0.747", 27, 32, 1280, 192, 240),
    "efficientnetv2-b2": (10_096_086, 10_178_374, "1.698", "1.043", 28, 32, 1408, 208, 260),
    "efficientnetv2-b3": (14_358_406, 14_467_622, "3.011", "1.908", 32, 40, 1536, 240, 300),
    "efficientnetv2-s": (21_458_488, 21_612_360, "8.366", "5.308", 40, 24, 1280, 300, 384),
    "efficientnetv2-m": (54_139_356, 54_431_388, "24.582", "15.74", 57, 24, 1280, 384, 480),
    "efficientnetv2-l": (118_515_272, 119_027_848, "56.080", "35.90", 79, 32, 1280, 384, 480),
    "efficientnetv2-xl": (208_119_808, 208_896_832, "93.353", "52.53", 100, 32, 1280, 384, 512),
    "efficientnet-b0": (5_288_548, 5_330_564, "0.386", None, 16, 32, 1280, 176, 224),
    "efficientnet-b1": (7_794_184, 7_856_232, "0.687", None, 23, 32, 1280, 192, 240),
    "efficientnet-b2": (9_109_994, 9_177_562, "0.994", None, 23, 32, 1408, 208, 260),
    "efficientnet-b3": (12_227_212, 12_314_268, "1.757", None, 26, 40, 1536, 240, 300),
    "efficientnet-b4": (19_341_616, 19_466_816, "4.394", None, 32, 48, 1792, 304, 380),
    "efficientnet-b5": (30_389_784, 30_562_520, "10.266", None, 39, 48, 2048, 352, 456),
    "efficientnet-b6": (43_040_704, 43_265_136, "19.068", None, 45, 56, 2304, 416, 528),
    "efficientnet-b7": (66_347_960, 66_658_680, "37.746", None, 55, 64, 2560, 480, 600),
}


def printed(value: float, like: str) -> str:
    return f"{value:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_variant(name: str) -> None:
    trainable, total, evaluation_macs, train_macs, blocks, stem, head, train_size, evaluation_size = COUNTS[name]
    arch = get_architecture(name)
    assert count_parameters(arch) == trainable
    assert count_variables(arch) == total
    assert (len(arch.blocks), arch.stem_filters, arch.head_filters) == (blocks, stem, head)
    assert (arch.train_size, arch.evaluation_size) == (train_size, evaluation_size)
    assert printed(count_macs(arch, evaluation_size) / 1e9, evaluation_macs) == evaluation_macs
    if train_macs:
        assert printed(count_macs(arch, train_size) / 1e9, train_macs) == train_macs


@pytest.mark.parametrize(
    ("name", "millions"),
    [("b0", "33.84"), ("b1", "34.84"), ("b2", "39.46"), ("b3", "46.39")]
    + [("s", "48.16"), ("m", "80.84"), ("l", "145.22"), ("xl", "234.82")],
)
def test_the_imagenet_21k_classifier(name: str, millions: str) -> None:
    arch = get_architecture(f"efficientnetv2-{name}")
    assert printed(count_parameters(arch, num_classes=21843) / 1e6, millions) == millions


# Paper, Table 3: million parameters, billion FLOPs. FLOPs there include norm and activation: ours stay below.
@pytest.mark.parametrize(
    ("label", "parameters", "flops"),
    [("none", "19.3", 4.5), ("1-3", "20.0", 7.5), ("1-5", "43.4", 21.3)] + [("1-7", "132.0", 34.4)],
)
def test_fused_placement_has_the_parameters_of_table_3(label: str, parameters: str, flops: float) -> None:
    arch = get_architecture(f"efficientnet-b4-fused-{label}")
    assert printed(count_parameters(arch) / 1e6, parameters) == parameters
    assert 0.97 < count_macs(arch, arch.evaluation_size) / 1e9 / flops < 1


def test_none_fused_is_b4_itself() -> None:
    assert get_architecture("efficientnet-b4-fused-none").blocks == get_architecture("efficientnet-b4").blocks


@pytest.mark.parametrize("size", ["b1", "b3", "s"])
def test_blocks_against_keras(size: str) -> None:
    """Keras' own EfficientNetV2: kernel, stride and filters of every convolution, block by block."""
    keras = needs.keras()
    build = getattr(keras.applications, f"EfficientNetV2{size.upper()}")
    model = build(weights=None, include_preprocessing=False)
    arch = get_architecture(f"efficientnetv2-{size}")
    convolutions = [
        (layer.kernel_size[0], layer.strides[0], layer.input.shape[-1], layer.output.shape[-1])
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D)
    ]
    expected = [(3, 2, 3, arch.stem_filters)]
    for block in arch.blocks:
        k, s, i, o, e = block.kernel_size, block.stride, block.input_filters, block.output_filters, block.expand_ratio
        if block.kind == "fused":
            expected += [(k, s, i, o)] if e == 1 else [(k, s, i, i * e), (1, 1, i * e, o)]
        else:
            expected += [(1, 1, i, i * e), (k, s, i * e, i * e)]
            expected += [(1, 1, i * e, i // 4), (1, 1, i // 4, i * e), (1, 1, i * e, o)]
    expected.append((1, 1, arch.blocks[-1].output_filters, arch.head_filters))
    assert convolutions == expected
    residuals = sum(isinstance(layer, keras.layers.Add) for layer in model.layers)
    assert sum(block.has_residual for block in arch.blocks) == residuals
    assert count_variables(arch) == model.count_params()


def test_a_small_network_by_hand() -> None:
    """Stem 8, one Fused block of expand 2, one MBConv with squeeze-excite; 5 x 5 pixels and 10 classes."""
    arch = get_architecture("efficientnetv2-b0", blocks=("r1_k3_s1_e2_i8_o8_c1", "r1_k5_s2_e3_i8_o16_se0.25"), width=1)
    assert arch.blocks == (Block("fused", 3, 1, 2, 8, 8), Block("mbconv", 5, 2, 3, 8, 16, 0.25))
    assert [block.has_residual for block in arch.blocks] == [True, False]
    fused = 9 * 8 * 16 + 2 * 16 + 16 * 8 + 2 * 8
    squeeze = 24 * 2 + 2 + 2 * 24 + 24
    mbconv = 8 * 24 + 2 * 24 + 25 * 24 + 2 * 24 + squeeze + 24 * 16 + 2 * 16
    head = 16 * 1280 + 2 * 1280 + 1280 * 10 + 10
    assert count_parameters(arch, 10) == 27 * 8 + 2 * 8 + fused + mbconv + head
    assert count_variables(arch, 10) == count_parameters(arch, 10) + 2 * (8 + 16 + 8 + 24 + 24 + 16 + 1280)
    # 5 pixels become 3 after the stem, 2 after the strided depthwise convolution
    macs = 9 * (27 * 8 + 9 * 8 * 16 + 16 * 8 + 8 * 24) + 4 * (25 * 24 + 24 * 16 + 16 * 1280) + 2 * 24 * 2 + 1280 * 10
    assert count_macs(arch, 5, 10) == macs


def test_multipliers_of_ones_own() -> None:
    b1 = get_architecture("efficientnetv2-b0", depth=1.1)
    assert b1.blocks == get_architecture("efficientnetv2-b1").blocks
    b3 = get_architecture("efficientnet-b0", width=1.2, depth=1.4)
    assert count_parameters(b3) == 12_227_212
    assert b1.published_top1 is None and b3.published_top1 is None
    assert get_architecture("efficientnetv2-b1", depth=1.1).published_top1 == 79.8


@given(filters=st.integers(1, 3000), width=st.floats(0.05, 8))
def test_filters_are_scaled_to_the_nearest_multiple_of_eight(filters: int, width: float) -> None:
    arch = get_architecture("efficientnetv2-s", blocks=(f"r1_k3_s1_e1_i{filters}_o8_c1",), width=width)
    assert arch.stem_filters % 8 == 0 and arch.stem_filters >= 8
    assert abs(arch.stem_filters - filters * width) <= 4 or filters * width < 8


def test_preprocessing_and_family() -> None:
    for name in architecture.names():
        arch = get_architecture(name)
        modern = name in {f"efficientnetv2-{size}" for size in ("s", "m", "l", "xl")}
        assert (arch.normalization, arch.interpolation) == (("v2", "bilinear") if modern else ("imagenet", "bicubic"))
        assert bool(arch.published_source) == (arch.published_top1 is not None)
    released = {"b0": 0.2, "b1": 0.2, "b2": 0.3, "b3": 0.3, "s": 0.2, "m": 0.3, "l": 0.4, "xl": 0.4}
    assert {size: get_architecture(f"efficientnetv2-{size}").dropout_rate for size in released} == released


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("r1_k3_s1_e1_i32", ["'o' is missing"]),
        ("r1_k3_s3_e1_i32_o16", ["'s3'", "1 or 2"]),
        ("r0_k3_s1_e1_i32_o16", ["'r0'", "repeats"]),
        ("r1_k3_s1_e1.5_i32_o16", ["'e1.5'", "whole number"]),
        ("r1_k3_s1_e1_i32_o16_se1.5", ["'se1.5'", "0 to 1"]),
        ("r1_k3_s1_e1_i32_o16_c2", ["'c2'", "Fused-MBConv"]),
        ("r1_k3_s1_e1_i32_o16_x7", ["'x7'", "r, k, s, e, i, o, c, se"]),
        ("r1_k3_k5_s1_e1_i32_o16", ["'k' is given twice"]),
        ("r1_k3_s1_e1_ifoo_o16", ["'ifoo'", "input filters"]),
        ("r0_k3_s9_e1_i32", ["'r0'", "'s9'", "'o' is missing"]),
        ("", ["''", "'r' is missing"]),
    ],
)
def test_a_malformed_block_string_is_named_with_what_is_wrong(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        get_architecture("efficientnetv2-s", blocks=(text,))
    for word in [f"'{text}'", *words]:
        assert word in str(error.value)


def test_stages_that_do_not_fit_together() -> None:
    with pytest.raises(UserError, match=r"'r1_k3_s1_e1_i24_o32' takes 24 filters, but the one before it gives 16"):
        get_architecture("efficientnetv2-s", blocks=("r1_k3_s1_e1_i32_o16", "r1_k3_s1_e1_i24_o32"))


@pytest.mark.parametrize("blocks", ["r1_k3_s1_e1_i32_o16", (3,)])
def test_blocks_must_be_a_tuple_of_strings(blocks: object) -> None:
    with pytest.raises(UserError, match=r"model\.blocks needs a tuple of block strings"):
        get_architecture("efficientnetv2-s", blocks=blocks)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["width", "depth"])
def test_multipliers_must_be_positive(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"model\.{field} is {value}"):
        get_architecture("efficientnetv2-s", **{field: value})


def test_an_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(UserError, match="'efficientnetv2_s' is unknown; did you mean 'efficientnetv2-s'"):
        get_architecture("efficientnetv2_s")
    with pytest.raises(UserError, match="'resnet50' is unknown; known: efficientnetv2-b0, "):
        get_architecture("resnet50")
