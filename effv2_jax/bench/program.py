"""Our training step against the one from plain Flax and Optax, according to the compiler for TPUs.

Nothing runs: cycles are the compiler's own estimates (see `plan`), collectives and bytes are read from the programs.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from rich.console import RenderableType

from effv2_jax.bench.baseline import lower_plain_train_step
from effv2_jax.curriculum import make_curriculum
from effv2_jax.monitoring.tables import empty_table
from effv2_jax.planning.cost_model import CostModel
from effv2_jax.planning.plan import describe_slices, estimate

SIDES = ("ours", "plain")


def compare_programs(config: ConfigDict, topologies: list[str], cost_model: CostModel) -> list[dict[str, Any]]:
    """Rows {'topology', 'image_size', 'ours': cost, 'plain': cost}; a cost has the fields of `StepCost` and `Estimate`.

    Raises:
      UserError: an unknown topology, or a batch that is not a multiple of its devices.
      Unavailable: a process that compiled was killed.
    """
    rows = []
    for tpu_slice in describe_slices(config, topologies, cost_model.num_examples):
        for stage in make_curriculum(config, cost_model.num_examples).stages:
            costs = {
                "ours": cost_model.step_cost(config, stage, tpu_slice.name),
                "plain": cost_model.step_cost(config, stage, tpu_slice.name, lower_plain_train_step, "plain Flax"),
            }
            row: dict[str, Any] = {"topology": tpu_slice.name, "image_size": stage.image_size}
            for side, cost in costs.items():
                row[side] = dataclasses.asdict(cost)
                if cost.fits:
                    row[side] |= dataclasses.asdict(estimate(cost, tpu_slice, config.global_batch_size))
            rows.append(row)
    return rows


def program_table(rows: list[dict[str, Any]]) -> RenderableType:
    """One row per stage and slice."""
    table = empty_table(
        "slice", "size\n(px)", "ours\n(Mcycles)", "plain\n(Mcycles)", "plain\n/ ours",
        "ours, times\nthe roofline", "plain, times\nthe roofline", "ours\n(collectives)", "plain\n(collectives)",
        "ours\n(GB/device)", "plain\n(GB/device)",
    )  # fmt: skip
    for row in rows:
        costs = [row[side] for side in SIDES]
        cells = [row["topology"], str(row["image_size"])]
        cells += [f"{cost['cycles'] / 1e6:.1f}" if cost["fits"] else "does not fit" for cost in costs]
        if all(cost["fits"] for cost in costs):
            ours, plain = costs
            cells.append(f"{plain['cycles'] / ours['cycles']:.2f}x")
            cells += [f"{cost['seconds'] / cost['roofline_seconds']:.1f}x" for cost in costs]
            cells += [str(cost["collectives"]) for cost in costs]
            cells += [f"{cost['memory_bytes'] / 1e9:.1f}" for cost in costs]
        table.add_row(*cells)
    return table
