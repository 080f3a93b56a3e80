"""Open Images' average precision of boxes, on any dataset.

https://storage.googleapis.com/openimages/web/evaluation.html, as TensorFlow's Object Detection API
computes it (OpenImagesChallengeEvaluator). hotcoco 1.3 also has the metric, but matches like COCO:
a detection whose best object is already matched gets another one, whereas the protocol counts a
false positive. It also keeps only 100 detections per image and class, and has no difficult objects.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2ext.data.formats.json_io import read_json, truncate_repr
from d2ext.data.formats.open_images import class_descriptions
from d2ext.errors import UserError
from d2ext.evaluation.average_precision import average_precision, sampled_precision, voc_matches
from d2ext.evaluation.bootstrap.draws import named_samples
from d2ext.evaluation.instances import Detections, GroundTruth, Instances
from d2ext.evaluation.tables import check_flags, named

logger = logging.getLogger(__name__)


class OpenImagesMetric:
    """AP at IoU 0.5, with group boxes and a class hierarchy.

    A group counts as one object. It is found by detections that miss all single objects and have at
    least half of their area in the group's box: the best of them is a hit, and the others are
    ignored. Detections in a COCO crowd (which need not be found, because it has no single box that
    a detector should return) and of difficult objects are ignored, too. On a dataset without groups
    and crowds and without a hierarchy, this is VOC's AP.

    Open Images ignores detections of classes that were not annotated in the image (image-level
    labels). Datasets here have no such labels, so these detections are false positives, and results
    on Open Images itself are lower than the challenge's.

    Args:
        hierarchy_file: Open Images' JSON of `LabelName` and `Subcategory`, such as
            bbox_labels_600_hierarchy.json. Objects also count for all ancestors of their class. If
            there is a `*class-descriptions*.csv` next to the file, codes are translated to names.
        expand_detections: Count detections for all ancestors of their class, too. The challenge
            does not, but without it a detector that predicts only the most specific classes misses
            all objects of the others.
        per_class: Add the results of each class.

    Raises:
        UserError: An argument has the wrong type, or the file is absent or malformed.
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
            ground_truth: Ground truth of the dataset.
            detections: Detections, any number per image; masks are not used.

        Returns:
            `bbox/AP50`, and `bbox/AP50-<class>` for the classes, in percent; NaN without objects.

        Raises:
            UserError: The hierarchy has none of the classes.
        """
        above = self._above_by_index(ground_truth.classes)
        ap = average_precision(*self._matching(ground_truth, detections, above))
        numbers, table = named("bbox", ["AP50"], ap, ground_truth.classes, self._per_class)
        pairs = sum(map(len, above))
        logger.info("Open Images bbox, %d pairs of a class and an ancestor:\n%s", pairs, table)
        return numbers

    def resampled(
        self, ground_truth: GroundTruth, detections: Detections, draws: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Evaluate draws of the images; see `d2ext.evaluation.metric.Metric`."""
        above = self._above_by_index(ground_truth.classes)
        ap = sampled_precision(voc_matches(*self._matching(ground_truth, detections, above)), draws)
        return named_samples("bbox", ["AP50"], ap, ground_truth.classes, self._per_class)

    def _matching(
        self, ground_truth: GroundTruth, detections: Detections, above: list[list[int]]
    ) -> tuple[GroundTruth, Detections, list[float], np.ndarray, np.ndarray]:
        """Return the arguments of `voc_matches`."""
        ground_truth = _expanded(ground_truth, above)
        if self._expand_detections:
            detections = _expanded(detections, above)
        regions = ground_truth.group_of | (ground_truth.crowd & ~ground_truth.difficult)
        ignored = ground_truth.difficult | (ground_truth.crowd & ~ground_truth.group_of)
        return ground_truth, detections, [0.5], ignored, regions

    def keys(self, classes: Sequence[str], tasks: Sequence[str]) -> set[str]:
        """Return the keys of the results for a dataset; raise UserError as `__call__` does."""
        self._above_by_index(classes)
        return set(
            named("bbox", ["AP50"], np.zeros((1, len(classes))), classes, self._per_class)[0]
        )

    def _above_by_index(self, classes: Sequence[str]) -> list[list[int]]:
        """Return the ancestors of each class, as indices."""
        index = {name: i for i, name in enumerate(classes)}
        if self._file is not None and not (index.keys() & self._above):
            raise UserError(
                f"{self._file} has none of the classes {truncate_repr(list(classes))}, but"
                f" {truncate_repr(list(self._above))}; if these are codes, put Open Images'"
                " class-descriptions-boxable.csv next to it"
            )
        return [sorted(index[a] for a in self._above.get(c, ()) if a in index) for c in classes]


def read_hierarchy(path: str | Path) -> dict[str, set[str]]:
    """Return the ancestors of each name of a hierarchy; a repeated name has all of them.

    Args:
        path: JSON file with `{"LabelName": ..., "Subcategory": [...]}` of any depth. Parts (`Part`)
            are not subclasses, and are ignored.

    Raises:
        UserError: The file is absent or malformed.
    """
    if not Path(path).is_file():
        raise UserError(f"OpenImagesMetric: hierarchy_file={path} does not exist; correct the path")
    names = class_descriptions(path)
    above: dict[str, set[str]] = {}
    todo: list[tuple[Any, frozenset[str]]] = [(read_json(path), frozenset())]
    while todo:
        node, ancestors = todo.pop()
        label = node.get("LabelName") if isinstance(node, dict) else None
        below = node.get("Subcategory", []) if isinstance(node, dict) else None
        if not isinstance(label, str) or not isinstance(below, list):
            raise UserError(
                f"{path} is not an Open Images hierarchy: {truncate_repr(node)} is not of the form"
                ' {"LabelName": "...", "Subcategory": [...]}; download it again'
            )
        name = names.get(label, label)
        above.setdefault(name, set()).update(ancestors - {name})
        todo += [(child, ancestors | {name}) for child in below]
    return above


_PER_INSTANCE = ("image", "boxes", "areas", "crowd", "difficult", "group_of", "scores")


def _expanded(instances: Instances, above: list[list[int]]) -> Instances:
    """Add a copy of each instance, without its mask, for every ancestor of its class."""
    pairs = [(c, a) for c, classes in enumerate(above) for a in classes]
    copied: list[np.ndarray] = [np.flatnonzero(instances.label == c) for c, _ in pairs]
    rows = np.concatenate([np.arange(len(instances.label)), *copied])
    label = instances.label[rows]
    label[len(instances.label) :] = np.repeat([a for _, a in pairs], list(map(len, copied)))
    masks = "segmentations" if isinstance(instances, GroundTruth) else "masks"
    columns: dict[str, Any] = {
        c: getattr(instances, c)[rows] for c in _PER_INSTANCE if hasattr(instances, c)
    }
    return dataclasses.replace(instances, **columns, **{"label": label, masks: None})
