"""Duplicate images: identical by their bytes, or nearly identical by a perceptual hash of their pixels."""

import cv2
import numpy as np

BITS = 128  # per hash
_SIDE = 8  # pixels; 64 bits per direction fit one uint64 each
_BLOCK = 1 << 22  # pairs compared at a time


def difference_hash(image: np.ndarray) -> np.ndarray:
    """The dHash of uint8 [H, W, 3] in both directions, uint64 [2]: whether each grey pixel is darker than the next.

    The image is resized to 9 x 8 to compare neighbours in a row, and to 8 x 9 to compare neighbours in a column. A
    different size, JPEG quality or brightness changes few bits; a crop or a flip changes many. N. Krawetz, "Kind of
    Like That", hackerfactor.com, 2013, uses the first direction only, which confuses a knitted scarf with a savanna.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    row = cv2.resize(grey, (_SIDE + 1, _SIDE), interpolation=cv2.INTER_AREA)
    column = cv2.resize(grey, (_SIDE, _SIDE + 1), interpolation=cv2.INTER_AREA)
    bits = np.stack([row[:, :-1] < row[:, 1:], column[:-1] < column[1:]])
    return np.packbits(bits.reshape(2, -1), axis=1).view(np.uint64)[:, 0]


def near_pairs(first: np.ndarray, second: np.ndarray, distance: int) -> list[tuple[int, int, int]]:
    """All (i, j, d), in order, for which first[i] and second[j], uint64 [N, 2] each, differ in d <= `distance` bits.

    Every pair is compared: a million by fifty thousand takes minutes. A hash of zeros belongs to a broken image or to
    one without contours; it is near to nothing.
    """
    pairs: list[tuple[int, int, int]] = []
    firsts, seconds = (np.flatnonzero(hashes.any(1)) for hashes in (first, second))
    rows = max(1, _BLOCK // max(len(seconds), 1))
    for start in range(0, len(firsts), rows):
        block = firsts[start : start + rows]
        i, j = np.nonzero(np.bitwise_count(first[block, 0][:, None] ^ second[seconds, 0]) <= distance)
        i, j = block[i], seconds[j]
        differing = np.bitwise_count(first[i] ^ second[j]).sum(1)
        near = differing <= distance
        pairs += zip(i[near].tolist(), j[near].tolist(), differing[near].tolist(), strict=True)
    return pairs


def equal_pairs(first: list[bytes], second: list[bytes]) -> list[tuple[int, int]]:
    """All (i, j) with first[i] == second[j]; b'', the digest of a broken image, equals nothing."""
    indices: dict[bytes, list[int]] = {}
    for j, digest in enumerate(second):
        if digest:
            indices.setdefault(digest, []).append(j)
    return [(i, j) for i, digest in enumerate(first) for j in indices.get(digest, ())]
