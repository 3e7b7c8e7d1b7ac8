"""The network as data (`architecture`) and as Linen modules (`model`, `layers`)."""

__all__ = ["architecture", "cpu_kernels", "layers", "model", "types"]
