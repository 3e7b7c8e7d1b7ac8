"""`effv2 bench input`: our training input against those of other libraries."""

import argparse
import json

from effv2_jax.cli.options import comma_list, count, number_list
from effv2_jax.cli.output import log

HELP = "the training input against those of tf.data and torchvision"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", required=True, metavar="DIR", help="of images, anywhere below it")
    parser.add_argument("--image_size", type=number_list, default=[128, 300], metavar="PIXELS,...")
    parser.add_argument(
        "--workers", type=number_list, default=[0, 2], metavar="N,...", help="processes of ours; 0: threads"
    )
    parser.add_argument("--peer", type=comma_list, default=["tf.data", "torchvision"], metavar="NAME,...")
    parser.add_argument("--batch", type=count, default=64, help="images in a batch")
    parser.add_argument("--batches", type=count, default=20, help="of each side in a round")
    parser.add_argument("--rounds", type=count, default=3, help="in which all sides take turns")
    parser.add_argument("--scaled", action="store_true", help="ours with config.data.scaled_decoding")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.bench import input
    from effv2_jax.monitoring import tables

    results = input.bench_input(
        args.folder,
        args.image_size,
        workers=args.workers,
        peers=args.peer,
        batch_size=args.batch,
        batches=args.batches,
        rounds=args.rounds,
        scaled=args.scaled,
        log=log,
    )
    if args.json:
        print(json.dumps(results, indent=1))
        return
    for table in input.input_tables(results):
        print(tables.to_text(table), end="")
