"""Label maps of semantic and panoptic segmentation, kept as small PNGs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

_IGNORED = 255  # label of pixels without a class, unless the metadata has another


@dataclass(frozen=True)
class Segment:
    """A region of a label map.

    Attributes:
        category: Index into the `thing_classes` or `stuff_classes` of the dataset's metadata.
        is_thing: Whether it is an object.
    """

    category: int
    is_thing: bool


@dataclass(frozen=True)
class Segmentation:
    """Regions of an image that do not overlap.

    Attributes:
        png: PNG (H, W) in which a pixel is k in the k-th segment, counted from 1, and 0 in none.
        segments: The segments.
    """

    png: bytes
    segments: Sequence[Segment]

    @property
    def is_panoptic(self) -> bool:
        """Return whether there are objects among the segments."""
        return any(segment.is_thing for segment in self.segments)

    @property
    def labels(self) -> np.ndarray:
        """Return the pixels of the PNG, uint8 or uint16 (H, W)."""
        labels = cv2.imdecode(np.frombuffer(self.png, np.uint8), cv2.IMREAD_UNCHANGED)
        assert labels is not None  # None for data that is not an image
        return labels


def predicted_segmentation(output: Mapping[str, Any], metadata: Any) -> Segmentation | None:
    """Return the segmentation in a model's output for one image, the panoptic one if there are two.

    Args:
        output: Detectron2's `panoptic_seg` (labels and segments) or `sem_seg` (scores by class).
        metadata: Metadata of the dataset; without segments, its `label_divisor` splits the labels.
    """
    if "panoptic_seg" in output:
        labels, infos = output["panoptic_seg"]
        labels = labels.cpu().numpy()
        if infos is not None:
            return _encoded(labels, {i["id"]: _segment(i) for i in infos})
        if (divisor := getattr(metadata, "label_divisor", None)) is None:
            return None  # unknown classes
        things = metadata.thing_dataset_id_to_contiguous_id.values()
        ids = {i: i // divisor for i in np.unique(labels[labels >= 0]).tolist()}
        return _encoded(labels, {i: Segment(c, c in things) for i, c in ids.items()})
    if "sem_seg" in output:
        return _semantic(output["sem_seg"].argmax(dim=0).cpu().numpy())
    return None


def annotated_segmentation(record: Mapping[str, Any], metadata: Any) -> Segmentation | None:
    """Return the segmentation that a dataset dict names, the panoptic one if there are two.

    Args:
        record: Dataset dict with `pan_seg_file_name` and `segments_info`, or `sem_seg_file_name`.
        metadata: Metadata of the dataset, optionally with `ignore_label`.

    Raises:
        OSError: The file cannot be read.
    """
    if "pan_seg_file_name" in record:
        with Image.open(record["pan_seg_file_name"]) as image:
            labels = np.asarray(image.convert("RGB")).astype(np.int64) @ [1, 256, 256**2]
        return _encoded(labels, {i["id"]: _segment(i) for i in record["segments_info"]})
    if "sem_seg_file_name" in record:
        with Image.open(record["sem_seg_file_name"]) as image:
            labels = np.asarray(image).astype(np.int64)
        ignored = getattr(metadata, "ignore_label", _IGNORED)
        return _semantic(np.where(labels == ignored, -1, labels))
    return None


def _segment(info: Mapping[str, Any]) -> Segment:
    return Segment(info["category_id"], bool(info.get("isthing", True)))


def _semantic(labels: np.ndarray) -> Segmentation:
    present = np.flatnonzero(np.bincount(labels[labels >= 0]))
    return _encoded(labels, {c: Segment(c, is_thing=False) for c in present.tolist()})


def _encoded(labels: np.ndarray, segments: Mapping[int, Segment]) -> Segmentation:
    """Return the segmentation of labels (H, W), of which only those in `segments` are kept."""
    table = np.zeros(max([0, int(labels.max()), *segments]) + 1, np.uint16)
    table[list(segments)] = np.arange(1, len(segments) + 1)
    places = np.where(labels < 0, 0, table[labels])
    _, png = cv2.imencode(".png", places.astype(np.uint8 if len(segments) < 256 else np.uint16))
    return Segmentation(png.tobytes(), list(segments.values()))
