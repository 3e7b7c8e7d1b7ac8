"""timm and torchvision, or a skip where they are not installed (`make peers` installs them)."""

import sys
from typing import Any

import pytest

_OPERATORS: list[Any] = []  # they go with the objects that define them


def import_peers() -> tuple[Any, Any]:
    """(timm, torchvision.models).

    torchvision's binary part does not load beside a PyTorch of another build; its networks need nothing of it, and
    importing it only two names of operators.
    """
    torch = pytest.importorskip("torch", reason="needs PyTorch: make peers")
    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _OPERATORS.append(library)
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
    except ImportError:
        pytest.skip("needs torchvision: make peers")
    timm = pytest.importorskip("timm", reason="needs timm: make peers")
    import torchvision.models

    return timm, torchvision.models


def randomize(model: Any, seed: int) -> None:
    """Non-trivial values everywhere: batch norm's scale, bias and statistics too."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.7, 1.3, generator=generator)
            module.running_var.uniform_(0.7, 1.5, generator=generator)
            for vector in (module.bias.data, module.running_mean):
                vector.normal_(0, 0.2, generator=generator)
        elif getattr(module, "bias", None) is not None:
            module.bias.data.normal_(0, 0.1, generator=generator)
