"""`effv2 train`: a training run in a workdir."""

import argparse

from effv2_jax.cli.options import add_config
from effv2_jax.errors import UserError

HELP = "train, or resume the training in a workdir"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--workdir", required=True, help="folder of checkpoints and metrics, a local path or gs://")
    parser.add_argument("--force", action="store_true", help="resume although the run was trained with another config")
    parser.add_argument("--wandb", nargs="?", const="", metavar="PROJECT", help="log to Weights & Biases as well")
    parser.add_argument(
        "--profile",
        type=_step_and_steps,
        default=None,
        metavar="STEP,STEPS",
        help="write a jax.profiler trace of the STEPS steps after step STEP to WORKDIR/profile; "
        "view it with XProf (pip install xprof)",
    )
    cluster = parser.add_argument_group("several processes")
    cluster.add_argument("--distributed", action="store_true", help="join the processes of a TPU slice or Slurm job")
    cluster.add_argument(
        "--coordinator", default="", metavar="HOST:PORT", help="of process 0, if JAX cannot discover it by itself"
    )
    cluster.add_argument("--num_processes", type=int, default=0)
    cluster.add_argument("--process_id", type=int, default=-1)
    cluster.add_argument("--timeout", type=int, default=300, help="seconds to wait for the others at the start")


def run(args: argparse.Namespace) -> None:
    if args.num_processes and not args.coordinator:
        raise UserError("--num_processes needs --coordinator=HOST:PORT of process 0")
    if args.wandb is not None:
        from effv2_jax.monitoring.wandb_writer import check_installed

        check_installed()
    # JAX requires that a process joins the others before it does anything else with JAX.
    if args.distributed or args.coordinator:
        from effv2_jax.runtime.processes import initialize_processes

        initialize_processes(args.coordinator, args.num_processes, args.process_id, args.timeout)
    from effv2_jax.checkpoints.manager import silence_background_threads
    from effv2_jax.train import train

    silence_background_threads()
    train(args.config, args.workdir, force=args.force, wandb_project=args.wandb, profile=args.profile)


def _step_and_steps(text: str) -> tuple[int, int]:
    """'100,5' as (100, 5)."""
    step, _, steps = text.partition(",")
    if not (step.isdecimal() and steps.isdecimal() and int(steps)):
        raise argparse.ArgumentTypeError(
            f"'{text}' must be STEP,STEPS, a step of at least 0 and a number of steps of at least 1, such as 100,5"
        )
    return int(step), int(steps)
