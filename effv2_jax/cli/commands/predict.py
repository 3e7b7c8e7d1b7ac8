"""`effv2 predict`: the classes of images."""

import argparse
import csv
import io
import json
import sys

from effv2_jax.cli.output import exit_unreadable

HELP = "classify images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER|-", help="-: an image or paths on standard input")
    parser.add_argument("--weights", required=True, metavar="PATH", help="of any format that convert reads, or a run")
    parser.add_argument("--top", type=int, default=5, help="classes of each image")
    parser.add_argument("--batch_size", type=int, default=32)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object per line")
    form.add_argument("--csv", action="store_true", help="print CSV, one row per class")


def run(args: argparse.Namespace) -> None:
    import dataclasses

    from effv2_jax.predict import find_images, predict
    from effv2_jax.weights import read_weights

    for stream in (sys.stdout, sys.stderr):  # names of files may be any bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    images = find_images(args.images)
    bundle = read_weights(args.weights)
    unreadable = 0
    table = csv.writer(sys.stdout, lineterminator="\n")
    if args.csv:
        table.writerow(["file", "rank", "label", "name", "probability"])
    for number, prediction in enumerate(predict(bundle, images, args.top, args.batch_size), 1):
        classes = list(zip(prediction.labels, prediction.names, prediction.probabilities, strict=True))
        if prediction.error:
            unreadable += 1
            print(f"effv2: skipped {prediction.file}: {prediction.error}", file=sys.stderr)
        elif args.json:
            print(json.dumps({key: value for key, value in dataclasses.asdict(prediction).items() if key != "error"}))
        elif args.csv:
            table.writerows([prediction.file, rank, *row] for rank, row in enumerate(classes, 1))
        else:
            print(prediction.file, *(f"  {share:6.1%} {name}" for _, name, share in classes), sep="\n")
        if sys.stderr.isatty() and not sys.stdout.isatty():
            print(f"\r{number}/{len(images)}", end="\n" if number == len(images) else "", file=sys.stderr)
    if unreadable:
        exit_unreadable(f"{unreadable} of {len(images)}")
