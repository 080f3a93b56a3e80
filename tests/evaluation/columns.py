"""Short ways to write ground truth and detections in tests of metrics."""

from collections.abc import Sequence

import numpy as np

from d2ext.evaluation.instances import Detections, GroundTruth

Box = tuple[float, float, float, float]  # x, y, width, height


def ground_truth(
    objects: Sequence[tuple], classes: Sequence[str] = ("cat",), images: int = 1
) -> GroundTruth:
    """Return ground truth; objects are (image, label, box) and flags such as "difficult"."""
    boxes = np.array([o[2] for o in objects], dtype=float).reshape(-1, 4)

    def flag(name: str) -> np.ndarray:
        return np.array([name in o[3:] for o in objects], dtype=bool)

    return GroundTruth(
        image_ids=list(range(images)),
        file_names=[f"{i}.jpg" for i in range(images)],
        heights=np.full(images, 1000),
        widths=np.full(images, 1000),
        classes=tuple(classes),
        image=np.array([o[0] for o in objects], dtype=np.int64),
        label=np.array([o[1] for o in objects], dtype=np.int64),
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        crowd=flag("crowd"),
        difficult=flag("difficult"),
        group_of=flag("group_of"),
        segmentations=None,
    )


def detections(found: Sequence[tuple[int, int, Box, float]]) -> Detections:
    """Return detections from (image, label, box, score)."""
    return Detections(
        image=np.array([d[0] for d in found], dtype=np.int64),
        label=np.array([d[1] for d in found], dtype=np.int64),
        boxes=np.array([d[2] for d in found], dtype=float).reshape(-1, 4),
        scores=np.array([d[3] for d in found], dtype=float),
        masks=None,
    )


def perfect(t: GroundTruth) -> Detections:
    """Return detections of all objects, the first one with the lowest score."""
    return Detections(t.image, t.label, t.boxes, np.linspace(0.1, 0.9, len(t.label)), None)
