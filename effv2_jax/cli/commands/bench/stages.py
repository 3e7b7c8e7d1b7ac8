"""`effv2 bench stages`: compilation in the background against compilation in turn."""

import argparse
import json

from effv2_jax.cli.options import add_config
from effv2_jax.cli.output import log

HELP = "cold start, and the stall at each boundary"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--workdir", default="", help="folder that keeps the two runs; by default they are deleted")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    import contextlib
    import tempfile
    from pathlib import Path

    from effv2_jax.bench import stages
    from effv2_jax.monitoring import tables

    with contextlib.ExitStack() as stack:
        workdir = args.workdir or stack.enter_context(tempfile.TemporaryDirectory())
        results = stages.bench_stages(args.config, Path(workdir), log)
    print(json.dumps(results, indent=1) if args.json else tables.to_text(stages.stages_table(results)), end="")
