"""The parser of `effv2 VERB ...`, assembled from the commands."""

import argparse
import re
import types
from collections.abc import Mapping
from typing import Any

from effv2_jax.cli.commands import COMMANDS
from effv2_jax.errors import UserError

EXAMPLE = "effv2 train --config=configs/digits.py --workdir=runs/digits --config.seed=1"


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parses a command line; `overrides` of the result are the arguments --config.FIELD=VALUE.

    Raises:
      UserError: overrides without a config.
    """
    overrides = [argument for argument in arguments if re.match(r"--(no)?config\.", argument)]
    args = make_parser().parse_args([argument for argument in arguments if argument not in overrides])
    if overrides and not hasattr(args, "config"):
        raise UserError(f"'effv2 {args.verb}' takes no config, but {overrides[0]} was given")
    if overrides and not args.config:
        raise UserError(f"{overrides[0]} was given without --config")
    args.overrides = overrides
    return args


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="effv2", description="EfficientNetV2 with progressive learning in JAX.", epilog=f"example: {EXAMPLE}"
    )
    _add_commands(parser.add_subparsers(dest="verb", required=True, metavar="VERB"), COMMANDS)
    return parser


def _add_commands(subparsers: Any, commands: Mapping[str, types.ModuleType]) -> None:
    for verb, command in commands.items():
        parser = subparsers.add_parser(verb, help=command.HELP, description=command.HELP, allow_abbrev=False)
        if hasattr(command, "COMMANDS"):  # bench and data have verbs of their own
            _add_commands(parser.add_subparsers(required=True, metavar="WHAT"), command.COMMANDS)
        else:
            command.add_arguments(parser)
            parser.set_defaults(run=command.run)
