"""`effv2 bench parity`: our networks against the same networks of other libraries."""

import argparse
import json

from effv2_jax.cli.output import log

HELP = "our networks against those of Keras, timm and torchvision"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", nargs="+", default=[], help="by default all that another library has")
    parser.add_argument("--peer", nargs="+", default=[], help="keras, timm, torchvision; by default all")
    parser.add_argument(
        "--size",
        type=int,
        default=None,
        metavar="PIXELS",
        help="by default each network's size for evaluation, and 64 in training",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--page", action="store_true", help="print docs/parity.md")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.bench import parity
    from effv2_jax.monitoring import tables

    rows = parity.compare_networks(args.variant, args.peer, args.size, log)
    if args.json or args.page:
        print(json.dumps(rows, indent=1) if args.json else parity.page(rows), end="")
        return
    for headers, cells in parity.tables(rows):
        table = tables.empty_table(*headers)
        for row in cells:
            table.add_row(*row)
        print(tables.to_text(table), end="")
