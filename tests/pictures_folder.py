"""A folder of small random pictures in two classes, as people have one of photos."""

from pathlib import Path

import cv2
import numpy as np


def write_photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 6)):
        for name in ("tulip", "rose"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                path = folder / split / name / f"{number}.jpg"
                cv2.imwrite(str(path), rng.integers(0, 256, (40, 50, 3), np.uint8))
