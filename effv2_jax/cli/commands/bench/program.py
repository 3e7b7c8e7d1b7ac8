"""`effv2 bench program`: our compiled step on a TPU against a plain Flax one."""

import argparse
import json

from effv2_jax.cli.options import add_config, add_topology, cost_model_of

HELP = "our step on a TPU against plain Flax"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_topology(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.bench import program
    from effv2_jax.monitoring import tables

    rows = program.compare_programs(args.config, args.topology, cost_model_of(args))
    print(json.dumps(rows, indent=1) if args.json else tables.to_text(program.program_table(rows)), end="")
