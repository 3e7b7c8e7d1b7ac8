"""Images that are the same, by their bytes, or nearly, by a perceptual hash of their pixels."""

import cv2
import numpy as np

BITS = 128  # of a hash
_SIDE = 8  # pixels; 64 bits a direction are two numbers for NumPy
_BLOCK = 1 << 22  # pairs compared at a time


def difference_hash(image: np.ndarray) -> np.ndarray:
    """The dHash of uint8 [H, W, 3] in both directions, uint64 [2]: whether each grey pixel is darker than the next.

    The picture is shrunk to 9 x 8 for neighbours in a row, and to 8 x 9 for those in a column. Another size, another
    JPEG quality or a little more light changes few bits; a crop or a mirror changes many. (N. Krawetz, "Kind of Like
    That", hackerfactor.com, 2013, has the first direction, which alone takes a knitted scarf for a savanna.)
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    row = cv2.resize(grey, (_SIDE + 1, _SIDE), interpolation=cv2.INTER_AREA)
    column = cv2.resize(grey, (_SIDE, _SIDE + 1), interpolation=cv2.INTER_AREA)
    bits = np.stack([row[:, :-1] < row[:, 1:], column[:-1] < column[1:]])
    return np.packbits(bits.reshape(2, -1), axis=1).view(np.uint64)[:, 0]


def near_pairs(first: np.ndarray, second: np.ndarray, distance: int) -> list[tuple[int, int, int]]:
    """(i, j, d) of all hashes first[i] and second[j] that differ in d <= `distance` bits, in order; uint64 [N, 2] each.

    Every pair is compared: a million with fifty thousand takes minutes. A hash without a bit is of a picture without
    a contour, or of none, and is near to nothing.
    """
    pairs: list[tuple[int, int, int]] = []
    firsts, seconds = (np.flatnonzero(hashes.any(1)) for hashes in (first, second))
    rows = max(1, _BLOCK // max(len(seconds), 1))
    for start in range(0, len(firsts), rows):
        block = firsts[start : start + rows]
        i, j = np.nonzero(np.bitwise_count(first[block, 0][:, None] ^ second[seconds, 0]) <= distance)
        i, j = block[i], seconds[j]
        apart = np.bitwise_count(first[i] ^ second[j]).sum(1)
        near = apart <= distance
        pairs += zip(i[near].tolist(), j[near].tolist(), apart[near].tolist(), strict=True)
    return pairs


def equal_pairs(first: list[bytes], second: list[bytes]) -> list[tuple[int, int]]:
    """(i, j) of all equal digests first[i] and second[j]; b'' is of no image and equals nothing."""
    places: dict[bytes, list[int]] = {}
    for j, digest in enumerate(second):
        if digest:
            places.setdefault(digest, []).append(j)
    return [(i, j) for i, digest in enumerate(first) for j in places.get(digest, ())]
