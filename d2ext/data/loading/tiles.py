"""Read the tiles of photos: pixels, mappers and the order of an evaluation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetMapper
from detectron2.data.samplers import InferenceSampler

from d2ext.data.loading.mapper import Mapper
from d2ext.data.tiles.records import Tiles
from d2ext.errors import UserError


def mapper_of_tiles(mapper: Any, records: Sequence[dict]) -> Callable[[dict], dict]:
    """Return a mapper for records, which may be tiles.

    Detectron2's own DatasetMapper would read the entire photo; a `Mapper` with the same arguments
    replaces it.

    Args:
        mapper: Mapper of the config.
        records: Dataset dicts.

    Raises:
        UserError: The records are tiles, which the mapper does not read.
    """
    if not len(records) or "tile" not in records[0] or isinstance(mapper, Mapper):
        return mapper
    if type(mapper) is not DatasetMapper:
        raise UserError(
            f"data.tiles: the mapper {type(mapper).__name__} does not read tiles; set"
            " mapper._target_=d2ext.data.loading.mapper.Mapper, or data.tiles=null"
        )
    return Mapper(
        mapper.is_train,
        augmentations=mapper.augmentations.augs,
        image_format=mapper.image_format,
        use_instance_mask=mapper.use_instance_mask,
        use_keypoint=mapper.use_keypoint,
        instance_mask_format=mapper.instance_mask_format,
        keypoint_hflip_indices=mapper.keypoint_hflip_indices,
        precomputed_proposal_topk=mapper.proposal_topk,
        recompute_boxes=mapper.recompute_boxes,
    )


def tiles_of_rank(tiles: Tiles) -> list[int]:
    """Return the indices of this rank's tiles: all those of each of its photos, in order."""
    photos = np.zeros(len(tiles.parts[0]), bool)
    photos[list(InferenceSampler(len(photos)))] = True
    return np.flatnonzero(photos[tiles.photos]).tolist()
