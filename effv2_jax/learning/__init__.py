"""The mathematics of a training step: pure functions of their arguments."""

__all__ = ["ema", "losses", "mixing", "optimizer", "step"]
