"""`effv2 export`: the network for other programs."""

import argparse
from collections.abc import Iterator
from typing import Any

from effv2_jax.errors import UserError

HELP = "write the network for other programs, and compare it with JAX"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="weights of any format that convert reads, or a run")
    parser.add_argument("destination", metavar="DST", help="NAME.stablehlo, .onnx, .tflite, or a SavedModel's folder")
    parser.add_argument("--architecture", default="auto", help="of a foreign SRC; by default recognised")
    parser.add_argument("--output", default="logits", help="logits, probabilities or features")
    parser.add_argument(
        "--preprocessing",
        default="include",
        choices=["include", "exclude"],
        help="include: takes uint8 pixels and normalises them; exclude: takes normalised float32",
    )
    parser.add_argument("--image_size", type=int, default=None, metavar="PIXELS", help="by default that of SRC")
    parser.add_argument("--compare", nargs="+", default=[], metavar="IMAGE|FOLDER", help="photos to compare on")


def run(args: argparse.Namespace) -> None:
    import dataclasses

    from effv2_jax.data.images.decode import BrokenImage
    from effv2_jax.export import InferenceProgram, export
    from effv2_jax.predict import find_images
    from effv2_jax.weights import read_weights

    images = find_images(args.compare)
    bundle = read_weights(args.source, args.architecture)
    if args.image_size is not None:
        if args.image_size < 32:
            raise UserError(f"--image_size={args.image_size} is too small; the network halves it five times")
        preprocess = dataclasses.replace(bundle.preprocess, image_size=args.image_size)
        bundle = dataclasses.replace(bundle, preprocess=preprocess)
    program = InferenceProgram(bundle, args.output, args.preprocessing == "include")

    def pixels() -> Iterator[Any]:
        for name, image in images.items():
            try:
                yield bundle.preprocess.pixels(image)
            except (BrokenImage, OSError) as error:
                raise UserError(f"'{name}' is not a readable image: {error}") from None

    result = export(program, args.destination, pixels())
    print(f"{bundle.architecture.name}, {args.output}, {bundle.preprocess.image_size} px: {args.destination}")
    inputs = f"{result.images} images" if images else f"{result.images} images of noise"
    print(
        f"{result.runtime} against JAX on {inputs}: largest difference {result.difference:.2g}, with {args.output} up "
        f"to {result.largest:.3g}; the same largest output on {result.same_best}"
    )
