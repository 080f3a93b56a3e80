"""Open Images' average precision of boxes, on any dataset.

https://storage.googleapis.com/openimages/web/evaluation.html, as TensorFlow's Object Detection API
computes it (OpenImagesChallengeEvaluator). hotcoco 1.3 has the metric, too, but matches as COCO
does: a detection whose best object is taken gets another one, where the protocol counts a false
positive; it keeps 100 detections of a class in an image, and knows no difficult objects.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d2ext.data.formats.json_io import read_json, truncate_repr
from d2ext.data.formats.open_images import class_descriptions
from d2ext.errors import UserError
from d2ext.evaluation.average_precision import average_precision
from d2ext.evaluation.instances import Detections, GroundTruth
from d2ext.evaluation.tables import check_flags, named

logger = logging.getLogger(__name__)


class OpenImagesMetric:
    """AP at IoU 0.5, with boxes of groups and a hierarchy of classes.

    A detection that misses all single objects and lies with half its area or more in the box of a
    group has found that group, which is one object to be found: of several in it the best is a hit,
    and the others count nothing. So do detections in a crowd of COCO (which need not be found: it
    has no single box that a detector should give) and those of a difficult object. On a dataset
    without groups and crowds and without a hierarchy this is VOC's AP.

    Open Images does not count a detection of a class that nobody looked for in the image
    (image-level labels). Datasets here have no such labels: such a detection is a false positive,
    so that numbers on Open Images itself are lower than the challenge's.

    Args:
        hierarchy_file: Open Images' JSON of `LabelName` and `Subcategory`, such as
            bbox_labels_600_hierarchy.json. An object is also one of each class above its own. Where
            a `*class-descriptions*.csv` lies beside it, its codes are names from there.
        expand_detections: so is a detection. The challenge takes detections as they were handed
            in; but a detector that knows each object's own class alone would miss the others.
        per_class: adds the numbers of each class.

    Raises:
        UserError: an argument is of the wrong kind, or the file is absent or malformed.
    """

    def __init__(
        self,
        hierarchy_file: str | None = None,
        expand_detections: bool = True,
        per_class: bool = True,
    ):
        check_flags("OpenImagesMetric", expand_detections=expand_detections, per_class=per_class)
        if not isinstance(hierarchy_file, (str, Path, type(None))):
            raise UserError(
                f"OpenImagesMetric: hierarchy_file={hierarchy_file!r}; give a path, or null"
            )
        self._file = hierarchy_file
        self._above = {} if hierarchy_file is None else read_hierarchy(hierarchy_file)
        self._expand_detections = expand_detections
        self._per_class = per_class

    def __call__(self, ground_truth: GroundTruth, detections: Detections) -> dict[str, float]:
        """Evaluate one dataset.

        Args:
            ground_truth: its objects.
            detections: with any number of detections an image; masks are not looked at.

        Returns:
            `bbox/AP50`, and `bbox/AP50-<class>` for the classes; percent, NaN where there are no
            objects.

        Raises:
            UserError: the hierarchy knows none of the classes.
        """
        above = self._above_by_index(ground_truth.classes)
        ground_truth = _expanded(ground_truth, above)
        if self._expand_detections:
            detections = _expanded(detections, above)
        regions = ground_truth.group_of | (ground_truth.crowd & ~ground_truth.difficult)
        ignored = ground_truth.difficult | (ground_truth.crowd & ~ground_truth.group_of)
        ap = average_precision(ground_truth, detections, [0.5], ignored, regions)
        numbers, table = named("bbox", ["AP50"], ap, ground_truth.classes, self._per_class)
        more = sum(map(len, above))
        logger.info("Open Images bbox, %d pairs of a class and one above it:\n%s", more, table)
        return numbers

    def keys(self, classes: Sequence[str], with_masks: bool) -> set[str]:
        """Return the keys of the results for a dataset; raise a UserError as a call does."""
        self._above_by_index(classes)
        return set(
            named("bbox", ["AP50"], np.zeros((1, len(classes))), classes, self._per_class)[0]
        )

    def _above_by_index(self, classes: Sequence[str]) -> list[list[int]]:
        """Return the classes above each class."""
        index = {name: i for i, name in enumerate(classes)}
        if self._file is not None and not (index.keys() & self._above):
            raise UserError(
                f"{self._file} names none of the classes {truncate_repr(list(classes))}, but"
                f" {truncate_repr(list(self._above))}; where it has codes, put Open Images'"
                " class-descriptions-boxable.csv beside it"
            )
        return [sorted(index[a] for a in self._above.get(c, ()) if a in index) for c in classes]


def read_hierarchy(path: str | Path) -> dict[str, set[str]]:
    """Return the names above each name of a hierarchy; one in several places has all theirs.

    Args:
        path: JSON, `{"LabelName": ..., "Subcategory": [...]}` of any depth. Parts (`Part`) are no
            kinds, and left out.

    Raises:
        UserError: the file is absent or malformed.
    """
    if not Path(path).is_file():
        raise UserError(f"OpenImagesMetric: hierarchy_file={path} does not exist; correct the path")
    names = class_descriptions(path)
    above: dict[str, set[str]] = {}
    todo = [(read_json(path), frozenset())]
    while todo:
        node, ancestors = todo.pop()
        label = node.get("LabelName") if isinstance(node, dict) else None
        below = node.get("Subcategory", []) if isinstance(node, dict) else None
        if not isinstance(label, str) or not isinstance(below, list):
            raise UserError(
                f"{path} is no hierarchy of Open Images: {truncate_repr(node)} is no"
                ' {"LabelName": "...", "Subcategory": [...]}; download it again'
            )
        name = names.get(label, label)
        above.setdefault(name, set()).update(ancestors - {name})
        todo += [(child, ancestors | {name}) for child in below]
    return above


_PER_INSTANCE = ("image", "boxes", "areas", "crowd", "difficult", "group_of", "scores")


def _expanded(
    instances: GroundTruth | Detections, above: list[list[int]]
) -> GroundTruth | Detections:
    """Add each instance, without its mask, once more for every class above its own."""
    pairs = [(c, a) for c, classes in enumerate(above) for a in classes]
    copied = [np.flatnonzero(instances.label == c) for c, _ in pairs]
    rows = np.concatenate([np.arange(len(instances.label)), *copied])
    label = instances.label[rows]
    label[len(instances.label) :] = np.repeat([a for _, a in pairs], list(map(len, copied)))
    masks = "segmentations" if isinstance(instances, GroundTruth) else "masks"
    columns = {c: getattr(instances, c)[rows] for c in _PER_INSTANCE if hasattr(instances, c)}
    return dataclasses.replace(instances, label=label, **columns, **{masks: None})
