"""`effv2 data WHAT`: data sets, in the order of `effv2 data --help`."""

from effv2_jax.cli.commands.data import check, prepare

HELP = "prepare data sets, and inspect them"

COMMANDS = {"prepare": prepare, "check": check}
