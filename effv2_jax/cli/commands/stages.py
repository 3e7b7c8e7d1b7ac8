"""`effv2 stages`: the stages of a curriculum, as a table, JSON or a picture."""

import argparse
import json

from effv2_jax.cli.options import add_config
from effv2_jax.cli.output import check_picture, log

HELP = "print the stages of a config's curriculum"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--picture", default="", metavar="FILE", help="draw them, as .svg or .png")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.config.validate import validate
    from effv2_jax.curriculum import make_curriculum
    from effv2_jax.monitoring import tables

    check_picture(args.picture, ".png", ".svg")
    num_examples = args.config.data.num_examples
    if not num_examples:
        from effv2_jax.data.sources import make_sources

        num_examples = len(make_sources(args.config).train)
    validate(args.config, num_examples=num_examples)
    curriculum = make_curriculum(args.config, num_examples)
    if args.picture:
        from effv2_jax.monitoring.plots import draw_curriculum

        draw_curriculum(curriculum, args.picture, args.config.global_batch_size / num_examples)
        log(f"picture: {args.picture}")
    if args.json:
        print(json.dumps(tables.stages_json(curriculum, args.config, num_examples), indent=1))
    else:
        print(tables.to_text(tables.stages_table(curriculum, args.config, num_examples)), end="")
