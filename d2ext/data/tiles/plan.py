"""Plan the tiles of a photo: pure geometry."""

import numpy as np


def tile_starts(length: int, side: int, shared: int) -> list[int]:
    """Return where the tiles along one side of a photo start, in pixels.

    The last tile is moved inward, so that all tiles lie inside of the photo and cover it, as in
    SAHI (https://doi.org/10.1109/ICIP46576.2022.9897990). A side that is not longer than a tile has
    one tile.

    Args:
        length: Length of the photo's side.
        side: Side of a tile.
        shared: Pixels that neighboring tiles have in common, at least; fewer than `side`.
    """
    last = length - side
    return [0] if last <= 0 else [*range(0, last, side - shared), last]


def plan_tiles(height: int, width: int, side: int, shared: int) -> np.ndarray:
    """Return the tiles of a photo, row by row.

    Args:
        height: Height of the photo in pixels.
        width: Width of the photo in pixels.
        side: Side of a tile.
        shared: Pixels that neighboring tiles have in common, at least.

    Returns:
        int32 (T, 4), x0 y0 x1 y1 of each tile in pixels of the photo. All tiles have the same size.
    """
    tops, lefts = tile_starts(height, side, shared), tile_starts(width, side, shared)
    corners = [(left, top) for top in tops for left in lefts]
    made = np.array(corners, np.int32)
    return np.hstack([made, made + np.minimum((width, height), side).astype(np.int32)])
