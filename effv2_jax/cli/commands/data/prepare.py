"""`effv2 data prepare`: tars, folders and TFDS data sets into files with random access."""

import argparse

from effv2_jax.cli.options import count
from effv2_jax.errors import UserError

HELP = "prepare a TFDS data set with random access"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="NAME", help="imagenet, imagenet21k, folder, or the name of a TFDS data set")
    parser.add_argument("--source", default="", metavar="DIR", help="with the tars or images")
    parser.add_argument("--out", required=True, metavar="DIR", help="config.data.data_dir; a local path or gs://")
    parser.add_argument("--name", default="", help="of the data set that a folder becomes; by default the folder's")
    parser.add_argument("--workers", type=count, default=None, metavar="N", help="processes; by default one per core")
    parser.add_argument("--strict", action="store_true", help="stop at a broken image instead of leaving it out")
    parser.add_argument("--skip_checksums", action="store_true", help="do not verify ImageNet's tars")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.data.pipeline import available_cores
    from effv2_jax.data.preparation import prepare
    from effv2_jax.data.preparation.imagenet_facts import imagenet, imagenet21k

    published = {"imagenet": imagenet, "imagenet2012": imagenet, "imagenet21k": imagenet21k}.get(args.kind)
    if args.name and args.kind != "folder":
        raise UserError(f"--name is for a folder; '{args.kind}' has a name")
    if not args.source and (published or args.kind == "folder"):
        raise UserError(f"'effv2 data prepare {args.kind}' needs --source=DIR with its tars or images")
    settings = prepare.Settings(args.workers or available_cores(), args.strict, not args.skip_checksums)
    if published:
        result = prepare.prepare_imagenet(published(), args.source, args.out, settings)
    elif args.kind == "folder":
        result = prepare.prepare_folder(args.source, args.out, args.name, settings)
    else:
        from effv2_jax.data.preparation.prepare_tfds import prepare_by_tfds

        result = prepare_by_tfds(args.kind, args.out, args.source)
    print(prepare.describe(result, args.out))
