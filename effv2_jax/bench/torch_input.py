"""A PyTorch data set equivalent to our input, from torchvision's own functions; worker processes can import it."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Photos:
    """Example i is file i with its crop (top, left, height, width) and flip, as a uint8 tensor [3, size, size].

    `magnitude` is that of RandAugment with two operations on our scale of 0 to 10; torchvision's is 0 to 30. None is
    without.
    """

    def __init__(
        self, paths: Sequence[str], boxes_Nx4: np.ndarray, flips_N: np.ndarray, size: int, magnitude: float | None
    ):
        self.paths, self.boxes, self.flips, self.size = list(paths), boxes_Nx4, flips_N, size
        self.magnitude = magnitude

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        from effv2_jax.bench.peers import import_torch_peers

        import_torch_peers()  # must precede any other import of torchvision
        from torchvision.transforms import RandAugment
        from torchvision.transforms import functional as F

        with open(self.paths[index], "rb") as file:  # torchvision.datasets.folder.pil_loader
            image = Image.open(file).convert("RGB")
        image = F.resized_crop(image, *map(int, self.boxes[index]), [self.size, self.size])
        if self.flips[index]:
            image = F.hflip(image)
        if self.magnitude is not None:
            image = RandAugment(2, round(self.magnitude * 3), fill=[128] * 3)(image)
        return F.pil_to_tensor(image)


def loader(photos: Photos, batch_size: int, num_workers: int) -> Any:
    """A DataLoader whose worker processes live through all passes."""
    import torch

    return torch.utils.data.DataLoader(
        photos,  # type: ignore[arg-type]
        batch_size,
        num_workers=num_workers,
        drop_last=True,
        persistent_workers=num_workers > 0,
        multiprocessing_context="spawn" if num_workers else None,
    )
