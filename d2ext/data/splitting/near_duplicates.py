"""Find photos that look alike: copies that were resized, recompressed or slightly edited.

The perceptual hash is pHash (Zauner, Implementation and Benchmarking of Perceptual Image Hash
Functions, 2010) with 256 bits instead of 64. On the 74 balloon photos, copies of half the size, in
JPEG quality 20 or with 1.3 times the brightness differ in a median of 1 to 4 % of the bits,
and different photos in at least 38 %. The package imagehash has the same hash, but needs SciPy and
PyWavelets.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from d2ext.data.formats.images import decoded, open_image
from d2ext.errors import UserError

_SIDE = 64  # of the thumbnail, in pixels
_FREQUENCIES = 16  # of the hash, per axis
_BITS = _FREQUENCIES**2
_MOST_DIFFERENT = _BITS // 10  # bits by which near-duplicates may differ
_BLOCK = 256  # rows of the matrix of distances that are in memory


def perceptual_hash(path: str) -> np.ndarray:
    """Return the hash of a photo, rotated according to its EXIF orientation, as bool (256,).

    Raises:
        OSError: The file is missing or damaged.
        UserError: The photo is too large, or its format needs another package.
    """
    with open_image(path) as image:
        image.draft("L", (2 * _SIDE, 2 * _SIDE))  # decodes a JPEG at a fraction of its size
        gray = decoded(image, path).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    spectrum = _COSINES @ np.asarray(gray, np.float64) @ _COSINES.T
    return (spectrum > np.median(spectrum)).ravel()


# Rows of the discrete cosine transform (DCT-II), without the mean.
_COSINES = np.cos(np.pi / _SIDE * np.outer(np.arange(1, _FREQUENCIES + 1), np.arange(_SIDE) + 0.5))


def perceptual_hashes(paths: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Return the hashes of photos, bool (N, 256), and why some have none, by index."""
    hashes, failed = np.zeros((len(paths), _BITS), bool), {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i, made in enumerate(pool.map(_hash_or_reason, paths)):
            if isinstance(made, str):
                failed[i] = made
            else:
                hashes[i] = made
    return hashes, failed


def _hash_or_reason(path: str) -> np.ndarray | str:
    try:
        return perceptual_hash(path)
    except FileNotFoundError:
        return "it does not exist"
    except (OSError, SyntaxError, UserError) as e:
        return str(e)


def near_duplicates(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the pairs of hashes that differ in at most a tenth of their bits.

    Args:
        hashes: Hashes, bool (N, 256).

    Yields:
        Indices i < j of pairs, int64 (2, P).
    """
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    for first in range(0, len(signs), _BLOCK):
        alike = signs[first : first + _BLOCK] @ signs[first:].T  # bits that agree - that differ
        i, j = np.nonzero(alike >= _BITS - 2 * _MOST_DIFFERENT)
        yield np.stack([i, j])[:, i < j] + first
