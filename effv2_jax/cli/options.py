"""Options that several commands share, and the types of their values."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from effv2_jax.cli.output import log
from effv2_jax.errors import UserError

if TYPE_CHECKING:
    from effv2_jax.planning.cost_model import CostModel


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds --config; `main` replaces its value by the config with overrides before the command runs."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARGUMENT]",
        help="a file such as configs/imagenet.py:s; --config.FIELD=VALUE overrides any field",
    )


def add_topology(parser: argparse.ArgumentParser) -> None:
    """Adds --topology and the options that `cost_model_of` reads."""
    parser.add_argument("--topology", action="append", required=True, metavar="VERSION:SHAPE", help="such as v5e:4x4")
    parser.add_argument("--num_classes", type=int, default=1000, help="of the data, which is not read")
    parser.add_argument("--cache", default="~/.cache/effv2_jax/plan", help="folder that keeps the figures of programs")


def cost_model_of(args: argparse.Namespace) -> "CostModel":
    """The compiled programs of a config on TPU slices, from the options of `add_topology`."""
    from effv2_jax.planning.cost_model import CostModel

    num_examples = args.config.data.num_examples
    if not num_examples:
        raise UserError("the length of an epoch is unknown; pass --config.data.num_examples=N")
    return CostModel(args.num_classes, num_examples, Path(args.cache).expanduser(), log)


def comma_list(text: str) -> list[str]:
    """'b0,s' as ['b0', 's']."""
    return [word for word in text.split(",") if word]


def number_list(text: str) -> list[int]:
    """'128,224' as [128, 224]."""
    words = comma_list(text)
    if not words or not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"'{text}' must be whole numbers with commas between them, such as 128,224")
    return [int(word) for word in words]


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number of at least 1")
    return int(text)
