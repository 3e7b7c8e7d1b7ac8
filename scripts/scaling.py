"""Weak scaling of the training step, read from the compiled programs of 1, 2, 4 and 8 simulated devices.

    python scripts/scaling.py --config=configs/imagenet.py:s,runlocal --per_device=16

The batch per device stays the same, and the traffic between devices grows. Nothing is timed, because simulated devices
share the cores.
"""

import argparse
import os
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE[:ARGUMENT]")
    parser.add_argument("--per_device", type=int, default=16, help="examples per device")
    parser.add_argument("--devices", default="1,2,4,8", help="numbers of devices")
    arguments, overrides = parser.parse_known_args()
    counts = [int(number) for number in arguments.devices.split(",")]
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={max(counts)}"
    os.environ["JAX_PLATFORMS"] = "cpu"

    import jax

    from effv2_jax.cli.load_config import load_config
    from effv2_jax.config.validate import validate
    from effv2_jax.curriculum import make_curriculum
    from effv2_jax.errors import UserError
    from effv2_jax.monitoring.tables import empty_table, to_text
    from effv2_jax.planning.hlo import program_stats
    from effv2_jax.runtime.compiler import Compiler
    from effv2_jax.runtime.mesh import make_mesh

    try:
        config = load_config(arguments.config, overrides)
        table = empty_table(
            "batch norm\n(examples)", "devices", "collectives", "received\n(MB/device)", "temporary\n(MB/device)"
        )
        for group in (arguments.per_device, 0):
            for count in counts:
                config.batch_norm.group_size = group
                config.global_batch_size = arguments.per_device * count
                config.evaluation.batch_size = count
                num_examples = config.data.num_examples or 1000
                validate(config, num_examples=num_examples, num_devices=count)
                curriculum = make_curriculum(config, num_examples)
                compiler = Compiler(config, curriculum, 1000, num_examples, make_mesh(jax.devices()[:count]))
                compiled = compiler.lower_train_step(curriculum.stages[0]).compile()
                stats, memory = program_stats(compiled.as_text()), compiled.memory_analysis()
                table.add_row(
                    f"{group} each" if group else "all",
                    str(count),
                    str(stats.collectives),
                    f"{stats.collective_bytes / 1e6:.1f}",
                    f"{memory.temp_size_in_bytes / 1e6:.1f}",
                )
            table.add_section()
    except UserError as error:
        print(f"scaling: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(to_text(table), end="")


if __name__ == "__main__":
    main()
