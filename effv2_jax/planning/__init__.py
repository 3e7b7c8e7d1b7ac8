"""Memory, collectives, time and cost of a curriculum on TPU slices, estimated without the hardware."""

__all__ = ["cost_model", "hlo", "plan"]
