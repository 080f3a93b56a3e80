"""A COCO annotation file, LVIS's included, as ground truth.

All objects stay, as they are (the policy `strict` of `coco_file`), so that the numbers are those
that pycocotools gives for the file. A run's are the same, unless the file has objects that no
training takes: boxes without an area and polygons that are none. Such boxes are always missed here,
and the log says how many there are; a run drops them.
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
        path: of the file.
        ground_truth: its objects; images and classes by rising id.
        category_ids: the ids of the classes.
    """

    path: Path
    ground_truth: GroundTruth
    category_ids: Sequence[int]


def read_dataset(path: Path, with_masks: bool) -> DatasetFile:
    """Read a COCO annotation file.

    Args:
        path: the file.
        with_masks: False leaves out the segmentations, which saves most of the time.

    Raises:
        UserError: as `read_strict` does.
    """
    coco = read_strict(path, with_masks)
    if flat := int((coco.boxes[:, 2:] == 0).any(1).sum()):
        logger.warning(
            "%s: %d objects have a box without an area: no detection finds them (in a run they are"
            " left out)",
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
