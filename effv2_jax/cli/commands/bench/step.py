"""`effv2 bench step`: our training step and inference against those of other libraries."""

import argparse
import json

from effv2_jax.cli.options import comma_list, count, number_list
from effv2_jax.cli.output import log

HELP = "a training step and inference against timm and Keras"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", type=comma_list, default=["b0", "s"], metavar="NAME,...")
    parser.add_argument("--image_size", type=number_list, default=[128], metavar="PIXELS,...")
    parser.add_argument("--peer", type=comma_list, default=["timm", "keras"], metavar="NAME,...")
    parser.add_argument("--batch", type=count, default=16, help="images")
    parser.add_argument("--steps", type=count, default=5, help="of each side in a round")
    parser.add_argument("--rounds", type=count, default=5, help="in which all sides take turns")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.bench import step
    from effv2_jax.monitoring import tables

    rows = step.bench_step(
        args.variant,
        args.image_size,
        args.peer,
        batch_size=args.batch,
        steps=args.steps,
        rounds=args.rounds,
        log=log,
    )
    print(json.dumps(rows, indent=1) if args.json else tables.to_text(step.step_table(rows)), end="")
