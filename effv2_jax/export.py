"""Export to StableHLO, ONNX, SavedModel and TFLite; each file is run and compared with JAX before it is kept.

An exported network is a function of a batch of any size, with the weights inside: `images` to logits, probabilities or
pooled features. A JSON file beside it holds what the file does not: classes, crop, resampling.
"""

import dataclasses
import functools
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from effv2_jax.errors import UserError, check_known, is_disk_full_or_readonly, one_line, require
from effv2_jax.files import check_place
from effv2_jax.network.model import NORMALIZATIONS, EfficientNet, normalize
from effv2_jax.weights import Bundle
from effv2_jax.weights.bundle import Variables

Array = jax.Array
Runner = Callable[[np.ndarray], np.ndarray]  # an exported network: images to outputs

OUTPUTS = ("logits", "probabilities", "features")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
BATCH = 8  # images compared together; the last batch is smaller, which shows that the batch is symbolic
TOLERANCE = 1e-3  # of the largest output; float32 rounding stays a hundred times below


@dataclasses.dataclass(frozen=True)
class InferenceProgram:
    """The function that is exported.

    preprocessing: True takes cropped and resized uint8 pixels, False takes normalised float32 input.
    output: one of OUTPUTS; features are [B, head_filters], the others [B, num_classes].
    """

    bundle: Bundle
    output: str = "logits"
    preprocessing: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        size = self.bundle.preprocess.image_size
        return (size, size, 3)

    @property
    def dtype(self) -> Any:
        return np.uint8 if self.preprocessing else np.float32

    @property
    def symbolic_images(self) -> jax.ShapeDtypeStruct:
        shape = jax.export.symbolic_shape("batch, " + ", ".join(map(str, self.shape)))
        return jax.ShapeDtypeStruct(shape, self.dtype)

    @property
    def model(self) -> EfficientNet:
        """The network with the output's head, lowered for the default device."""
        model = self.bundle.model
        return model.clone(num_classes=0) if self.output == "features" else model

    def __call__(self, variables: Variables, images: Array) -> Array:
        """The network, its convolutions as single operations."""
        return self._after(self.model.clone(lowering="native").apply(variables, self._before(images)))

    def on_each_platform(self, variables: Variables, images: Array) -> Array:
        """The same, with the lowering that is fast on the platform at run time."""
        native, decomposed = (self.model.clone(lowering=name).apply for name in ("native", "decomposed"))
        return self._after(lax.platform_dependent(variables, self._before(images), cpu=decomposed, default=native))

    def _before(self, images: Array) -> Array:
        return normalize(images, self.bundle.preprocess.normalization) if self.preprocessing else images

    def _after(self, outputs: Any) -> Array:
        return jax.nn.softmax(outputs) if self.output == "probabilities" else outputs

    def description(self) -> dict[str, Any]:
        """What a user of the file has to know, in types that JSON can hold."""
        width = self.bundle.architecture.head_filters if self.output == "features" else self.bundle.num_classes
        offset, scale = NORMALIZATIONS[self.bundle.preprocess.normalization]
        return {
            "architecture": self.bundle.architecture.name,
            "input": {"name": "images", "dtype": np.dtype(self.dtype).name, "shape": ["batch", *self.shape]},
            "output": {"name": self.output, "dtype": "float32", "shape": ["batch", width]},
            "preprocess": dataclasses.asdict(self.bundle.preprocess),
            "normalization": {"included": self.preprocessing, "offset": offset, "scale": scale},
            "class_names": () if self.output == "features" else self.bundle.class_names,
        }


def write_stablehlo(program: InferenceProgram, path: Path) -> None:
    """`jax.export`'s serialisation, for every one of PLATFORMS."""
    variables = jax.tree.map(jnp.asarray, program.bundle.variables)
    function = jax.jit(functools.partial(program.on_each_platform, variables))
    exported = jax.export.export(function, platforms=PLATFORMS)(program.symbolic_images)
    path.write_bytes(exported.serialize())


def open_stablehlo(path: Path) -> Runner:
    function = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(function(images))


def write_onnx(program: InferenceProgram, path: Path) -> None:
    require("jax2onnx", "export", "ONNX")
    require("onnxruntime", "export", "ONNX")
    # They warn about rules for libraries that are not installed, and about symbolic shapes.
    for name, level in (("jax2onnx", logging.CRITICAL), ("onnx_ir", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    import jax2onnx

    model = jax2onnx.to_onnx(
        functools.partial(program, jax.tree.map(jnp.asarray, program.bundle.variables)),
        [program.symbolic_images],
        model_name=program.bundle.architecture.name,
        input_names=["images"],
        output_names=[program.output],
    )
    path.write_bytes(model.SerializeToString())


def open_onnx(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def write_saved_model(program: InferenceProgram, path: Path) -> None:
    """A folder for `tf.saved_model.load` and TensorFlow Serving; needs TensorFlow alone to run."""
    require("tensorflow", "tensorflow", "a SavedModel")
    _save_tensorflow(program, program.on_each_platform, ("cpu", "cuda", "tpu"), path)


def open_saved_model(path: Path) -> Runner:
    import tensorflow as tf

    function = tf.saved_model.load(path).signatures["serving_default"]
    return lambda images: next(iter(function(images=tf.constant(images)).values())).numpy()


def write_tflite(program: InferenceProgram, path: Path) -> None:
    require("tensorflow", "tensorflow", "TFLite")
    import tensorflow as tf

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        # TFLite has no operation that chooses by platform.
        _save_tensorflow(program, program, ("cpu",), Path(folder, "model"))
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(Path(folder, "model"))).convert())


def open_tflite(path: Path) -> Runner:
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it moves to the package LiteRT
        interpreter = tf.lite.Interpreter(str(path))
    (images_in,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(images_in["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(images_in["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(output["index"])

    return run


def _save_tensorflow(program: InferenceProgram, function: Callable, platforms: tuple[str, ...], path: Path) -> None:
    import tensorflow as tf
    from jax.experimental import jax2tf

    converted = jax2tf.convert(
        lambda variables, images: function(variables, images),  # a lambda is hashable, `function` may not be
        polymorphic_shapes=[None, "(batch, ...)"],
        with_gradient=False,
        native_serialization_platforms=platforms,
    )
    module = tf.Module()
    module.weights = jax.tree.map(tf.Variable, program.bundle.variables)
    signature = tf.TensorSpec((None, *program.shape), program.dtype, "images")
    serve = tf.function(
        lambda images: {program.output: converted(module.weights, images)}, [signature], autograph=False
    )
    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})


# By the file's extension; a SavedModel is a folder and has none.
FORMATS: dict[str, tuple[str, Callable[[InferenceProgram, Path], None], Callable[[Path], Runner]]] = {
    ".stablehlo": ("StableHLO", write_stablehlo, open_stablehlo),
    ".onnx": ("ONNX Runtime", write_onnx, open_onnx),
    ".tflite": ("TFLite", write_tflite, open_tflite),
    "": ("SavedModel", write_saved_model, open_saved_model),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An exported network compared with the same network in JAX.

    runtime: the name of the program that ran the file.
    images: number of images compared.
    difference: the largest difference of any output.
    largest: the largest absolute output of JAX.
    same_best: number of images whose largest output has the same index.
    """

    runtime: str
    images: int
    difference: float
    largest: float
    same_best: int


def export(program: InferenceProgram, path: str | os.PathLike, pixels: Iterable[np.ndarray] = ()) -> Comparison:
    """Writes the network, runs the file, and compares its outputs with JAX.

    Args:
      program: what to export.
      path: NAME.stablehlo, NAME.onnx, NAME.tflite, or NAME without an ending, the folder of a SavedModel. The
        program's description is written beside it, to NAME.ENDING.json.
      pixels: images to compare on, uint8 as `Preprocess.pixels` returns them; by default three images of noise.

    Raises:
      UserError: the ending or the output is unknown, a package or the classifier is missing, `path` cannot be written,
        or outputs differ by more than TOLERANCE. In all these cases `path` is unchanged.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise UserError(f"'{path}' must end in .stablehlo, .onnx or .tflite, or have no ending (SavedModel)")
    check_known("--output", program.output, OUTPUTS)
    if program.output != "features" and not program.bundle.num_classes:
        raise UserError(f"these weights have no classifier, and so no {program.output}; use --output=features")
    if path.is_dir() or (not path.suffix and path.exists()):
        raise UserError(f"'{path}' exists, and a SavedModel needs a new folder; choose another name or remove it")
    check_place(f"'{path}'", path)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    runtime, write, read = FORMATS[path.suffix]
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            written = Path(folder, path.name)
            write(program, written)
            comparison = compare(program, read(written), pixels, runtime)
            if not comparison.difference <= TOLERANCE * comparison.largest:  # also if it is NaN
                raise UserError(
                    f"the exported network differs from JAX by {comparison.difference:.2g}, with {program.output} up "
                    f"to {comparison.largest:.2g}; nothing was kept"
                )
            description = Path(folder, "description")
            description.write_text(json.dumps(program.description(), indent=1) + "\n")
            os.replace(description, path.with_name(f"{path.name}.json"))
            os.replace(written, path)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror or error}") from None
    except Exception as error:  # TensorFlow has its own error for a full disk
        if not is_disk_full_or_readonly(error):
            raise
        raise UserError(f"'{path}' cannot be written: {one_line(error)}") from None
    return comparison


def compare(program: InferenceProgram, run: Runner, pixels: Iterable[np.ndarray], runtime: str) -> Comparison:
    """Outputs of an exported network and of the network itself, its input normalised by NumPy; see `export`."""
    bundle = program.bundle
    apply = jax.jit(functools.partial(program.model.apply, bundle.variables))
    count, difference, largest, same = 0, 0.0, 0.0, 0
    for batch in _batches(pixels, program.shape):
        normalized = bundle.preprocess.normalize(batch)
        ours = np.asarray(apply(normalized))
        if program.output == "probabilities":
            powers = np.exp(ours - ours.max(1, keepdims=True))
            ours = powers / powers.sum(1, keepdims=True)
        theirs = run(batch if program.preprocessing else normalized)
        count += len(batch)
        difference = float(np.maximum(difference, np.abs(ours - theirs).max()))  # keeps a NaN
        largest = max(largest, float(np.abs(ours).max()))
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
    return Comparison(runtime, count, difference, largest, same)


def _batches(pixels: Iterable[np.ndarray], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    batch: list[np.ndarray] = []
    seen = False
    for image in pixels:
        seen = True
        batch.append(image)
        if len(batch) == BATCH:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
    if not seen:
        noise = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
        yield noise[:2]
        yield noise[2:]
