"""`effv2 bench WHAT`: measurements, in the order of `effv2 bench --help`."""

from effv2_jax.cli.commands.bench import input, parity, program, stages, step

HELP = "measure: stages, programs, input, parity with other libraries"

COMMANDS = {"stages": stages, "parity": parity, "step": step, "program": program, "input": input}
