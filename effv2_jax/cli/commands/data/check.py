"""`effv2 data check`: sizes, broken images and duplicates of a data set, and a picture of what its stages see."""

import argparse
import json
from typing import TYPE_CHECKING

from effv2_jax.cli.options import count
from effv2_jax.cli.output import check_picture, exit_unreadable, log
from effv2_jax.errors import UserError

if TYPE_CHECKING:
    from effv2_jax.data.source import Source

HELP = "count and measure images, find broken ones and duplicates, draw the stages"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="", metavar="NAME|DIR", help="of TFDS, or a folder of images")
    parser.add_argument("--data_dir", default="", metavar="DIR", help="where the data set of that NAME is")
    parser.add_argument("--config", default="", metavar="FILE[:ARGUMENT]", help="its two splits; NAME|DIR replaces its")
    parser.add_argument("--picture", default="", metavar="FILE.png", help="draw some photos as its stages see them")
    parser.add_argument("--photos", type=count, default=8, metavar="N", help="in a row of the picture")
    parser.add_argument("--small", type=count, default=128, metavar="PIXELS", help="count images with a side below")
    parser.add_argument(
        "--near", type=int, default=10, metavar="BITS", help="of 128 in which near duplicates may differ"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.data.inspection.check import check, check_tables
    from effv2_jax.monitoring import tables

    if not args.name and not args.config:
        raise UserError("effv2 data check needs the name of a data set, a folder, or --config=FILE")
    if args.picture and not args.config:
        raise UserError("--picture shows the stages of a curriculum: --config=FILE has them")
    check_picture(args.picture, ".png")
    if not 0 <= args.near <= 128:
        raise UserError(f"--near={args.near} must be between 0 and 128")
    sources = _sources(args)
    if args.picture:
        _draw_stages(args, sources[args.config.data.train_split])
        log(f"picture: {args.picture}")
    results = check(sources, args.small, args.near)
    print(json.dumps(results, indent=1) if args.json else tables.to_text(check_tables(results)), end="")
    if unreadable := sum(len(split["broken"]) for split in results["splits"].values()):
        exit_unreadable(str(unreadable))


def _sources(args: argparse.Namespace) -> "dict[str, Source]":
    """The sources by the names of their splits."""
    from etils import epath

    is_folder = bool(args.name) and not args.data_dir and epath.Path(args.name).is_dir()
    if args.config:
        from effv2_jax.data.sources import make_sources

        data = args.config.data
        if args.name:
            data.name, data.source = args.name, "folder" if is_folder else "tfds"
        if args.data_dir:
            data.data_dir = args.data_dir
        if data.train_split == data.evaluation_split:
            raise UserError(
                f"config.data.train_split and config.data.evaluation_split are both '{data.train_split}', but the "
                "check needs two splits; set --config.data.evaluation_split=..."
            )
        sources = make_sources(args.config)
        return {data.train_split: sources.train, data.evaluation_split: sources.evaluation}
    if is_folder:
        from effv2_jax.data.sources.folder import all_splits

        return dict(all_splits(args.name))
    from effv2_jax.data.sources import tfds

    return dict(tfds.all_splits(args.name, args.data_dir))


def _draw_stages(args: argparse.Namespace, train: "Source") -> None:
    from effv2_jax.config.validate import validate
    from effv2_jax.curriculum import make_curriculum
    from effv2_jax.data.inspection.preview import stage_rows
    from effv2_jax.monitoring.plots import draw_rows

    validate(args.config, num_examples=len(train))
    rows = stage_rows(args.config, make_curriculum(args.config, len(train)), train, args.photos)
    draw_rows([(row.title, row.images) for row in rows], args.picture)
