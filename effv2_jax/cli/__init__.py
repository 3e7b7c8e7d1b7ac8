"""The command `effv2`: exit codes and signals, arguments, configs with overrides, one module per verb."""
