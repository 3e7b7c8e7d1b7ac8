"""`effv2 convert`: weights from one format to another."""

import argparse
import os
import sys

from effv2_jax.errors import UserError

HELP = "convert weights: automl, Keras, timm, torchvision, a run; and back"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a file, a TensorFlow checkpoint or a workdir")
    parser.add_argument("destination", metavar="DST", help="NAME.safetensors or (Keras) NAME.weights.h5")
    parser.add_argument("--architecture", default="auto", help="of a foreign SRC; by default recognised")
    parser.add_argument("--format", default="auto", help="of DST: effv2, timm or keras; by default by its ending")
    parser.add_argument("--head", default="keep", choices=["keep", "drop"], help="the classifier")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.weights import read_weights, write_weights
    from effv2_jax.weights.files import format_of, lost_metadata

    format_of(args.destination)  # an unknown ending is an error before SRC is read
    if os.path.exists(args.destination) and os.path.samefile(args.source, args.destination):
        raise UserError(f"'{args.destination}' is the source itself; name another destination")
    bundle = read_weights(args.source, args.architecture)
    if args.head == "drop":
        bundle = bundle.without_head()
    write_weights(bundle, args.destination, args.format)
    if lost := lost_metadata(bundle, args.format if args.format != "auto" else format_of(args.destination)):
        print(f"effv2: {args.destination} does not store {lost}; its users have to know it", file=sys.stderr)
    weights = "averaged weights" if "ema" in bundle.sets else "weights"
    head = f"{bundle.num_classes} classes" if bundle.num_classes else "no classifier"
    print(f"{weights} of {bundle.architecture.name}, {head}, {bundle.preprocess.image_size} px: {args.destination}")
