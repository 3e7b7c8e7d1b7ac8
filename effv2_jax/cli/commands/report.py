"""`effv2 report`: runs on one page of HTML."""

import argparse

from effv2_jax.cli.output import log

HELP = "write one page of HTML on runs, finished or not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of training runs, local or gs://")
    parser.add_argument("--out", default="report.html", metavar="FILE", help="the page; by default report.html")
    parser.add_argument("--no_confusion", action="store_true", help="without predictions on the evaluation data")


def run(args: argparse.Namespace) -> None:
    from effv2_jax.report.page import write_report

    write_report(args.workdirs, args.out, not args.no_confusion, log)
    runs = "1 run" if len(args.workdirs) == 1 else f"{len(args.workdirs)} runs"
    print(f"report of {runs}: {args.out}")
