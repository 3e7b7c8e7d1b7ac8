"""Our training step beside the one that plain Flax and Optax make, as the compiler for TPUs sees both.

Nothing runs: cycles are the compiler's own estimates (see `plan`), exchanges and bytes are read from the programs.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from rich.console import RenderableType

from effv2_jax.curriculum import make_curriculum
from effv2_jax.monitoring.tables import empty_table
from effv2_jax.planning.cost_model import Programs
from effv2_jax.planning.plan import describe_slices, estimate


def measure(config: ConfigDict, topologies: list[str], programs: Programs) -> list[dict[str, Any]]:
    """Rows {'topology', 'image_size', 'ours': figures, 'plain': figures}, figures those of `Program` and `Estimate`.

    Raises:
      UserError: an unknown topology, or a batch that its devices do not divide.
      Unavailable: a process that compiled was killed.
    """
    rows = []
    for where in describe_slices(config, topologies, programs.num_examples):
        for stage in make_curriculum(config, programs.num_examples).stages:
            row: dict[str, Any] = {"topology": where.name, "image_size": stage.image_size}
            for name in ("ours", "plain"):
                program = programs.measure(config, stage, where.name, plain=name == "plain")
                row[name] = dataclasses.asdict(program)
                if program.fits:
                    row[name] |= dataclasses.asdict(estimate(program, where, config.global_batch_size))
            rows.append(row)
    return rows


def program_table(rows: list[dict[str, Any]]) -> RenderableType:
    """A row a stage and slice."""
    table = empty_table(
        *("slice", "size\n(px)"),
        *("ours\n(Mcycles)", "plain\n(Mcycles)", "plain\n/ ours"),
        *("ours, of\nthe roofline", "plain, of\nthe roofline"),
        *("ours\n(exchanges)", "plain\n(exchanges)", "ours\n(GB/device)", "plain\n(GB/device)"),
    )
    for row in rows:
        ours, plain = row["ours"], row["plain"]
        cells = [row["topology"], str(row["image_size"])]
        cells += [f"{side['cycles'] / 1e6:.1f}" if side["fits"] else "does not fit" for side in (ours, plain)]
        if ours["fits"] and plain["fits"]:
            cells.append(f"{plain['cycles'] / ours['cycles']:.2f}x")
            cells += [f"{side['seconds'] / side['roofline_seconds']:.1f}x" for side in (ours, plain)]
            cells += [str(side["collectives"]) for side in (ours, plain)]
            cells += [f"{side['memory_bytes'] / 1e9:.1f}" for side in (ours, plain)]
        table.add_row(*cells)
    return table
