"""The mathematics of a training step: pure functions of their arguments."""
