"""`effv2 models`: the networks that are known by name."""

import argparse
import json

HELP = "print the networks: parameters, MACs, sizes, accuracy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.monitoring import tables
    from effv2_jax.network import architecture

    names = architecture.names()
    if args.json:
        print(json.dumps(tables.models_json(names), indent=1))
    else:
        print(tables.to_text(tables.models_table(names)), end="")
