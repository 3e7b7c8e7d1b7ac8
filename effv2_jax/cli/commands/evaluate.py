"""`effv2 evaluate`: accuracy of a run or of weights."""

import argparse
import json
from typing import Any

from effv2_jax.cli.output import exit_unreadable
from effv2_jax.errors import UserError

HELP = "evaluate a run's checkpoint, or weights on a config's data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--workdir", default="", help="of a training run, on its own data")
    subject.add_argument(
        "--weights", default="", metavar="PATH", help="of any format that convert reads; with --config"
    )
    parser.add_argument("--config", default="", metavar="FILE[:ARGUMENT]", help="data and evaluation of --weights")
    parser.add_argument("--step", default="latest", help="latest, best, or the number of a kept step")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    if bool(args.weights) != bool(args.config):
        raise UserError("--weights and --config go together; a run is evaluated by --workdir alone")
    if args.weights and args.step != "latest":
        raise UserError("--step needs --workdir; if --weights is a run, its best step is evaluated")
    from effv2_jax.evaluate import confidence_interval, evaluate_run, evaluate_weights
    from effv2_jax.monitoring.progress import describe_results

    if args.weights:
        bundle, results = evaluate_weights(args.weights, args.config)
        subject: dict[str, Any] = {"weights": args.weights, "architecture": bundle.architecture.name}
        title = f"{args.weights} {bundle.architecture.name}"
    else:
        step, results = evaluate_run(args.workdir, args.step)
        subject, title = {"step": step}, f"step {step}"
    intervals = {name: confidence_interval(shares["top1"], int(shares["count"])) for name, shares in results.items()}
    if args.json:
        print(json.dumps(subject | results | {"top1_interval_95": intervals}))
    else:
        print(f"{title} | {describe_results(results)}")
        text = ", ".join(f"{name} {low:.2%} to {high:.2%}" for name, (low, high) in intervals.items())
        print(f"95 % interval of top-1: {text}")
    if unreadable := int(max(shares["unreadable"] for shares in results.values())):
        exit_unreadable(str(unreadable))
