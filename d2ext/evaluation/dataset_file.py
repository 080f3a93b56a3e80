"""Read a COCO or LVIS annotation file as ground truth.

All objects are kept unchanged (the policy `strict` of `coco_file`), so that the results equal
pycocotools' results for the file. A run has the same results, unless the file has objects that a
run drops: boxes without an area and invalid polygons. Here, boxes without an area always count as
missed, and their number is logged.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from d2ext.data.formats.coco_file import Box, read_strict
from d2ext.data.formats.json_io import read_typed
from d2ext.evaluation.instances import GroundTruth, keypoint_column

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetFile:
    """A COCO annotation file.

    Attributes:
        path: Path of the file.
        ground_truth: Ground truth; images and classes are sorted by id.
        category_ids: Ids of the classes.
    """

    path: Path
    ground_truth: GroundTruth
    category_ids: Sequence[int]


class _Area(msgspec.Struct, gc=False):
    image_id: int | str
    bbox: Box | None = None
    area: float | None = None


class _AreaLists(msgspec.Struct):
    annotations: list[_Area]


class _Keypoints(msgspec.Struct, gc=False):
    keypoints: list[float] | None = None


class _KeypointLists(msgspec.Struct):
    annotations: list[_Keypoints]


def read_dataset(path: Path, with_masks: bool, with_keypoints: bool = False) -> DatasetFile:
    """Read a COCO annotation file.

    Args:
        path: Path of the file.
        with_masks: Read segmentations, which takes most of the time.
        with_keypoints: Read keypoints.

    Raises:
        UserError: The file is not valid, as in `read_strict`, or keypoints are malformed.
    """
    coco = read_strict(path, with_masks)
    keypoints = _read_keypoints(path) if with_keypoints else None
    if flat := int((coco.boxes[:, 2:] == 0).any(1).sum()):
        logger.warning(
            "%s: %d objects have a box without an area and always count as missed (a run drops"
            " them)",
            path,
            flat,
        )
    ground_truth = GroundTruth(
        image_ids=coco.image_ids,
        file_names=coco.image_names,
        heights=coco.heights,
        widths=coco.widths,
        classes=coco.classes,
        image=coco.image,
        label=coco.label,
        boxes=coco.boxes,
        areas=coco.areas,
        crowd=coco.crowd,
        difficult=coco.difficult,
        group_of=coco.group_of,
        segmentations=coco.masks,
        negatives=coco.negatives,
        not_exhaustive=coco.not_exhaustive,
        frequencies=coco.frequencies,
        keypoints=keypoints,
    )
    return DatasetFile(path, ground_truth, list(coco.category_ids))


def read_areas(path: Path) -> dict[tuple, float]:
    """Return the areas in a COCO or LVIS file, by (image id, x, y, width, height).

    The dataset dicts of Detectron2's readers lack them, but its evaluators use them.
    """
    lists = read_typed(path, _AreaLists, "COCO annotation file with annotations", "coco")
    known = (a for a in lists.annotations if a.bbox and a.area is not None)
    return {(a.image_id, *a.bbox): a.area for a in known}


def _read_keypoints(path: Path) -> np.ndarray | None:
    """Return the keypoints of all annotations, in the order of the file as `read_strict` does."""
    wanted = "COCO annotation file whose keypoints are lists of numbers"
    lists = read_typed(path, _KeypointLists, wanted, "coco")
    return keypoint_column([annotation.keypoints for annotation in lists.annotations])
