"""Pascal VOC average precision of boxes, on any dataset (host.robots.ox.ac.uk/pascal/VOC/)."""

import dataclasses
import logging
from collections.abc import Sequence
from numbers import Real

import numpy as np

from d2ext.errors import UserError
from d2ext.evaluation.average_precision import average_precision, sampled_precision, voc_matches
from d2ext.evaluation.bootstrap.draws import named_samples
from d2ext.evaluation.instances import Detections, GroundTruth, Instances
from d2ext.evaluation.tables import check_flags, named

logger = logging.getLogger(__name__)

_MODES = ("area", "11points")


class VocMetric:
    """AP as the VOC development kit computes it: see `average_precision`.

    Difficult objects, crowds and groups are neither hits nor misses; VOC has only difficult ones,
    but none of them is a single object that a detector should find. They are matched by IoU. A
    class without objects has no AP and is left out of the means; one without detections has AP 0.

    In the 11-point mode, Detectron2 and MMDetection compute the recalls 0.1 * k in floating point,
    where 3 of 5 found objects do not reach 0.6, so their results differ. Detectron2 also rounds
    detections (boxes to 0.1, scores to 0.001) and requires an IoU above the threshold; for VOC and
    MMDetection, an IoU equal to the threshold is enough.

    Args:
        iou_thresholds: IoU thresholds above 0, up to 1.
        mode: `area` for the area under the curve (since VOC 2010), `11points` for VOC 2007.
        plus_one: Add a pixel to widths and heights, for boxes whose right and bottom are pixel
            indices, as in VOC's XML. The VOC readers of d2ext and Detectron2 have done so already.
        per_class: Add the results of each class.

    Raises:
        UserError: An argument is invalid.
    """

    def __init__(
        self,
        iou_thresholds: Sequence[float] = (0.5,),
        mode: str = "area",
        plus_one: bool = False,
        per_class: bool = True,
    ):
        is_list = isinstance(iou_thresholds, Sequence) and not isinstance(iou_thresholds, str)
        if not (is_list and iou_thresholds and all(map(_is_threshold, iou_thresholds))):
            raise UserError(
                f"VocMetric: iou_thresholds={iou_thresholds!r}; give a list of numbers above 0 and"
                " up to 1, such as [0.5]"
            )
        if mode not in _MODES:
            raise UserError(f"VocMetric: mode={mode!r}; choose {' or '.join(_MODES)}")
        check_flags("VocMetric", plus_one=plus_one, per_class=per_class)
        self._thresholds = sorted(set(map(float, iou_thresholds)))
        self._names = ["AP", *(f"AP{100 * t:g}" for t in self._thresholds)]
        self._mode = mode
        self._plus_one = plus_one
        self._per_class = per_class

    def __call__(self, ground_truth: GroundTruth, detections: Detections) -> dict[str, float]:
        """Evaluate one dataset.

        Args:
            ground_truth: Ground truth of the dataset.
            detections: Detections, any number per image; masks are not used.

        Returns:
            `bbox/AP50` and so on for each threshold, `bbox/AP` for their mean, and each with
            `-<class>` for the classes, in percent; NaN without objects.
        """
        eleven_points = self._mode == "11points"
        ap = average_precision(
            *self._matching(ground_truth, detections), eleven_points=eleven_points
        )
        numbers, table = self._named(ap, ground_truth.classes)
        logger.info("Pascal VOC bbox, %s:\n%s", self._mode, table)
        return numbers

    def resampled(
        self, ground_truth: GroundTruth, detections: Detections, draws: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Evaluate draws of the images; see `d2ext.evaluation.metric.Metric`."""
        matches = voc_matches(*self._matching(ground_truth, detections))
        ap = sampled_precision(matches, draws, self._mode == "11points")
        values = np.concatenate([ap.mean(axis=0, keepdims=True), ap])
        return named_samples("bbox", self._names, values, ground_truth.classes, self._per_class)

    def _matching(
        self, ground_truth: GroundTruth, detections: Detections
    ) -> tuple[GroundTruth, Detections, list[float], np.ndarray, np.ndarray]:
        """Return the arguments of `voc_matches`."""
        if self._plus_one:
            ground_truth, detections = _grown(ground_truth), _grown(detections)
        ignored = ground_truth.difficult | ground_truth.crowd | ground_truth.group_of
        return ground_truth, detections, self._thresholds, ignored, np.zeros_like(ignored)

    def keys(self, classes: Sequence[str], tasks: Sequence[str]) -> set[str]:
        """Return the keys of the results for a dataset."""
        return set(self._named(np.zeros((len(self._thresholds), len(classes))), classes)[0])

    def _named(self, ap: np.ndarray, classes: Sequence[str]) -> tuple[dict[str, float], str]:
        return named(
            "bbox", self._names, np.vstack([ap.mean(axis=0), ap]), classes, self._per_class
        )


def _is_threshold(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) <= 1


def _grown(instances: Instances) -> Instances:
    return dataclasses.replace(instances, boxes=instances.boxes + [0, 0, 1, 1])
