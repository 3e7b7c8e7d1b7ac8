"""The tables of `effv2 models` and `effv2 stages`, and the same content for `--json`.

Tables are rich renderables, which rich fits to the width of a terminal. `to_text` makes plain text that is never cut,
for a pipe, a file or a narrow terminal.
"""

import dataclasses
import io
import string
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from effv2_jax.curriculum import Curriculum, relative_cost
from effv2_jax.network.architecture import count_macs, count_parameters, count_variables, get_architecture


def empty_table(*headers: str) -> Table:
    """An empty table: the first column left-aligned, the others right-aligned, no cell shortened."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, header in enumerate(headers):
        table.add_column(Text(header), justify="right" if number else "left", vertical="bottom", no_wrap=True)
    return table


def to_text(renderable: RenderableType) -> str:
    """The renderable without colours and as wide as needed: at most 82 columns for models, 100 for stages."""
    console = Console(file=io.StringIO(), width=1000, color_system=None, force_terminal=False, _environ={})
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines()) + "\n"


def models_json(names: Sequence[str], num_classes: int = 1000) -> list[dict[str, Any]]:
    """One dictionary per variant: counts are integers, sizes are in pixels, top-1 is in percent or None.

    Raises:
      UserError: an unknown name.
    """
    rows = []
    for name in names:
        arch = get_architecture(name)
        rows.append(
            {
                "name": name,
                "family": arch.family,
                "parameters": count_parameters(arch, num_classes),
                "variables": count_variables(arch, num_classes),
                "train_size": arch.train_size,
                "evaluation_size": arch.evaluation_size,
                "train_macs": count_macs(arch, arch.train_size, num_classes),
                "evaluation_macs": count_macs(arch, arch.evaluation_size, num_classes),
                "blocks": len(arch.blocks),
                "dropout_rate": arch.dropout_rate,
                "published_top1": arch.published_top1,
                "published_source": arch.published_source,
            }
        )
    return rows


def models_table(names: Sequence[str], num_classes: int = 1000) -> RenderableType:
    """One line per variant, parameters in millions; the letter after a published top-1 refers to its source below.

    Raises:
      UserError: an unknown name.
    """
    headers = ("blocks", "train\nsize", "eval\nsize", "GMACs\ntrain", "GMACs\neval", "published\ntop-1")
    table = empty_table("model", "params\n(M)", *headers)
    marks: dict[str, str] = {}
    for row in models_json(names, num_classes):
        source = row["published_source"]
        if source and source not in marks:
            marks[source] = string.ascii_lowercase[len(marks)]
        table.add_row(
            Text(row["name"]),
            f"{row['parameters'] / 1e6:.2f}",
            str(row["blocks"]),
            str(row["train_size"]),
            str(row["evaluation_size"]),
            f"{row['train_macs'] / 1e9:.3f}",
            f"{row['evaluation_macs'] / 1e9:.3f}",
            f"{row['published_top1']:.1f} {marks[source]}" if source else "-  ",
        )
    notes = ["Trainable parameters; multiply-accumulates of one image, convolutions and head."]
    notes += [f"{mark}: {source}" for source, mark in marks.items()]
    return Group(table, *map(Text, notes))


def stages_json(curriculum: Curriculum, config: ConfigDict, num_examples: int) -> dict[str, Any]:
    """The run, and one dictionary per stage: the fields of `Stage`, steps, epochs, images per step and relative cost.

    Args:
      curriculum: `make_curriculum(config, num_examples)`.
      config: of the experiment.
      num_examples: training examples in an epoch.
    """
    batch_size, cost = config.global_batch_size, relative_cost(curriculum)
    stages = [
        {
            **dataclasses.asdict(stage),
            "num_steps": stage.num_steps,
            "epochs": stage.num_steps * batch_size / num_examples,
            "images_per_step": batch_size,
            "images_per_micro_batch": batch_size // stage.accumulation_steps,
            "relative_cost": stage_cost,
        }
        for stage, stage_cost in zip(curriculum.stages, cost.stages, strict=True)
    ]
    return {
        "recipe": config.curriculum.recipe,
        "augmentation": config.data.augmentation,
        "total_steps": curriculum.total_steps,
        "total_epochs": curriculum.total_steps * batch_size / num_examples,
        "num_examples": num_examples,
        "largest_image_size": max(stage.image_size for stage in curriculum.stages),
        "relative_cost": cost.overall,
        "relative_cost_method": cost.method,
        "saving": cost.saving,
        "stages": stages,
    }


def stages_table(curriculum: Curriculum, config: ConfigDict, num_examples: int) -> RenderableType:
    """One line per stage; below it the cost of the run, relative to a run at the largest size throughout.

    Steps count from 0, and a stage ends before its 'to'. RandAugment is '-' if the input pipeline does not use it. The
    images of a step are 'micro-batches x images' if gradients are accumulated. Arguments as in `stages_json`.
    """
    run = stages_json(curriculum, config, num_examples)
    show_remat = any(stage["remat"] for stage in run["stages"])
    headers = ("from\nstep", "to", "steps", "epochs", "size", "Rand\nAug", "mixup", "cut\nmix", "drop\nout")
    table = empty_table("stage", *headers, "survi\nval", "images\n/step", "cost", *(["remat"] if show_remat else []))
    for stage in run["stages"]:
        parts = stage["accumulation_steps"]
        row = [
            str(stage["index"] + 1),
            str(stage["start_step"]),
            str(stage["end_step"]),
            str(stage["num_steps"]),
            f"{stage['epochs']:.1f}",
            str(stage["image_size"]),
            f"{stage['randaugment_magnitude']:.2f}" if run["augmentation"] == "randaugment" else "-",
            f"{stage['mixup_alpha']:.3f}",
            f"{stage['cutmix_alpha']:.3f}",
            f"{stage['dropout_rate']:.3f}",
            f"{stage['survival_probability']:.2f}",
            str(stage["images_per_step"]) if parts == 1 else f"{parts} x {stage['images_per_micro_batch']}",
            f"{stage['relative_cost']:.3f}",
        ]
        if show_remat:
            row.append("yes" if stage["remat"] else "no")
        table.add_row(*row)
    notes = (
        f"recipe '{run['recipe']}': {run['total_steps']} steps, {run['total_epochs']:.1f} epochs of "
        f"{num_examples} examples",
        f"cost by {run['relative_cost_method']}: {run['relative_cost']:.3f} of a run at {run['largest_image_size']} px "
        f"throughout, a saving of {100 * run['saving']:.1f} %",
    )
    return Group(table, *map(Text, notes))
