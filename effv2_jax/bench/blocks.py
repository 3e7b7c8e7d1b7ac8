"""What `model.scan_blocks` saves in compilation and costs in a training step, on the CPU.

python -m effv2_jax.bench.blocks --variant=b0,s,l --image_size=128 --batch=4

Both programs of a variant are the whole training step as `compile.Compiler` makes it (RMSProp, EMA, stochastic depth),
compiled without any cache. Compilations and steps of the two alternate, so that noise of the machine hits both; every
figure is a median. The processor's seconds tell what compiling costs where other programs share the cores.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Group, RenderableType
from rich.text import Text

from effv2_jax.compile import Compiler
from effv2_jax.config import defaults, duration
from effv2_jax.curriculum import Curriculum, make_curriculum
from effv2_jax.errors import UserError
from effv2_jax.mesh import make_mesh, put_batch
from effv2_jax.tables import empty_table, to_text

NUM_CLASSES = 1000
NUM_EXAMPLES = 1_281_167  # ImageNet's, for the schedule
PROGRAMS = ("unrolled", "scanned")
MEASURES = ("lowering_seconds", "compile_seconds", "compile_cpu_seconds", "step_seconds", "temporary_mib")


def benchmark_config(variant: str, image_size: int, batch_size: int, scan_blocks: bool) -> ConfigDict:
    """The default recipe in one stage of one size."""
    config = defaults()
    config.global_batch_size = batch_size
    duration(config, "total", steps=1000)
    config.model.variant = variant
    config.model.scan_blocks = scan_blocks
    config.curriculum.num_stages = 1
    config.curriculum.image_size = (image_size, image_size)
    return config


def compiler_of(config: ConfigDict) -> tuple[Compiler, Curriculum]:
    curriculum = make_curriculum(config, NUM_EXAMPLES)
    return Compiler(config, curriculum, NUM_CLASSES, NUM_EXAMPLES, make_mesh(jax.devices()[:1])), curriculum


def compile_step(config: ConfigDict) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """The training step, and what it took to make it."""
    compiler, curriculum = compiler_of(config)
    jax.clear_caches()  # else the second program finds functions that the first one traced
    start = time.perf_counter()
    lowered = compiler.lower_train_step(curriculum.stages[0])
    lowering = time.perf_counter() - start
    start, cpu_start = time.perf_counter(), time.process_time()
    compiled = lowered.compile()
    compiling, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    memory: Any = compiled.memory_analysis()
    return compiled, {
        "lowering_seconds": lowering,
        "compile_seconds": compiling,
        "compile_cpu_seconds": cpu,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
    }


def step_seconds(executables: Sequence[jax.stages.Compiled], config: ConfigDict, steps: int) -> list[float]:
    """The median seconds of a step of each executable, after one step that does not count."""
    compiler, curriculum = compiler_of(config)
    state = compiler.initial_state()
    # A step consumes its state; the first executable takes the original.
    states = [state, *(jax.tree.map(lambda x: x.copy(), state) for _ in executables[1:])]
    rng = np.random.default_rng(0)
    size = curriculum.stages[0].image_size
    batch = {
        "image": rng.integers(0, 256, (config.global_batch_size, size, size, 3), np.uint8),
        "label": rng.integers(0, NUM_CLASSES, config.global_batch_size, np.int32),
    }
    on_device = put_batch(batch, make_mesh(jax.devices()[:1]))
    seconds: list[list[float]] = [[] for _ in executables]
    for _ in range(1 + steps):
        for index, executable in enumerate(executables):
            start = time.perf_counter()
            states[index], metrics = executable(states[index], on_device)
            jax.block_until_ready((states[index], metrics))
            seconds[index].append(time.perf_counter() - start)
            if not metrics["finite"]:
                raise RuntimeError("a step was not finite: its time means nothing")
    return [statistics.median(values[1:]) for values in seconds]


def measure(variant: str, image_size: int, batch_size: int, compiles: int, steps: int) -> dict[str, Any]:
    """Both programs of a variant: {'variant', 'unrolled', 'scanned', 'ratio', 'break_even_steps'}.

    A ratio is scanned / unrolled. `break_even_steps` is how many steps lose what lowering and compiling saved: 0 where
    they saved nothing, None where a scanned step is no slower.
    """
    configs = [benchmark_config(variant, image_size, batch_size, scan) for scan in (False, True)]
    rounds = [[compile_step(config) for config in configs] for _ in range(compiles)]
    executables = [executable for executable, _ in rounds[-1]]
    unrolled, scanned = (
        {"step_seconds": seconds} | {name: statistics.median(one[name] for _, one in made) for name in made[0][1]}
        for seconds, made in zip(step_seconds(executables, configs[0], steps), zip(*rounds, strict=True), strict=True)
    )
    ratio = {name: scanned[name] / unrolled[name] for name in MEASURES}
    saved = sum(unrolled[name] - scanned[name] for name in ("lowering_seconds", "compile_seconds"))
    lost = scanned["step_seconds"] - unrolled["step_seconds"]
    return {
        "variant": variant,
        "unrolled": unrolled,
        "scanned": scanned,
        "ratio": ratio,
        "break_even_steps": math.ceil(max(saved, 0) / lost) if lost > 0 else None,
    }


def blocks_table(results: Sequence[dict[str, Any]], note: str) -> RenderableType:
    """Three lines a variant: both programs and their ratio; `note` stands below."""
    headers = ("lowering\n(s)", "compile\n(s)", "compile\n(CPU s)", "step\n(s)", "temporary\n(MiB)")
    table = empty_table("model", "program", *headers, "break-even\n(steps)")
    for result in results:
        for program in (*PROGRAMS, "ratio"):
            digits = (2,) * 5 if program == "ratio" else (1, 1, 1, 3, 0)
            cells = [f"{result[program][name]:.{n}f}" for name, n in zip(MEASURES, digits, strict=True)]
            steps_text = "never" if result["break_even_steps"] is None else str(result["break_even_steps"])
            first, last = (result["variant"] if program == "unrolled" else ""), steps_text if program == "ratio" else ""
            table.add_row(Text(first), program, *cells, last)
    explanation = "Ratio: scanned / unrolled. Break-even: the steps that lose what lowering and compiling saved."
    return Group(table, Text(note), Text(explanation))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m effv2_jax.bench.blocks", description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="b0,s", help="of EfficientNetV2, comma-separated (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=128, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images a step (default: %(default)s)")
    parser.add_argument("--compiles", type=int, default=1, help="compilations of each program (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each program (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    variants = [f"efficientnetv2-{name}" for name in options.variant.split(",")]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        # The first of all programs to be lowered pays for imports; this one is not measured.
        compiler, curriculum = compiler_of(benchmark_config("efficientnetv2-b0", 32, options.batch, False))
        compiler.lower_train_step(curriculum.stages[0])
        sizes = (options.image_size, options.batch, options.compiles, options.steps)
        results = [measure(variant, *sizes) for variant in variants]
    except UserError as error:
        sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        note = (
            f"Training steps of {options.batch} images of {options.image_size} px on the CPU, jax {jax.__version__}; "
            f"medians of {options.compiles} compilations and {options.steps} steps."
        )
        print(to_text(blocks_table(results, note)), end="")


if __name__ == "__main__":
    main()
