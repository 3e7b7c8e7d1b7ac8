"""`effv2 config`: every field of a config, with overrides."""

import argparse
import json

from effv2_jax.cli.options import add_config

HELP = "print the resolved config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.config import flat_lines, to_dict

    print(json.dumps(to_dict(args.config), indent=1) if args.json else "\n".join(flat_lines(args.config)))
