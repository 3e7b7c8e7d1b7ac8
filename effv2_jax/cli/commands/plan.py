"""`effv2 plan`: speed, memory and cost of a curriculum on TPU slices, from their compiler alone."""

import argparse
import json

from effv2_jax.cli.options import add_config, add_topology, cost_model_of, number_list

HELP = "estimate speed, memory and cost on TPU slices before renting them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_topology(parser)
    parser.add_argument("--price_per_chip_hour", type=float, default=0.0, help="prints the cost of the training")
    parser.add_argument(
        "--images_per_core",
        type=number_list,
        default=[],
        metavar="N,...",
        help="per second, for each stage, as bench input measures: prints how many host cores a chip needs",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.monitoring import tables
    from effv2_jax.planning.plan import plan, plan_table

    results = plan(args.config, args.topology, cost_model_of(args), args.images_per_core)
    table = plan_table(results, args.price_per_chip_hour)
    print(json.dumps(results, indent=1) if args.json else tables.to_text(table), end="")
