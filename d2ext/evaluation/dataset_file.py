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

from d2ext.data.formats.coco_file import read_strict
from d2ext.evaluation.instances import GroundTruth

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


def read_dataset(path: Path, with_masks: bool) -> DatasetFile:
    """Read a COCO annotation file.

    Args:
        path: Path of the file.
        with_masks: Read segmentations, which takes most of the time.

    Raises:
        UserError: The file is not valid, as in `read_strict`.
    """
    coco = read_strict(path, with_masks)
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
    )
    return DatasetFile(path, ground_truth, list(coco.category_ids))
