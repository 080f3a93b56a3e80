"""The file to check and its options."""

from dataclasses import dataclass, field
from pathlib import Path

from d2ext.data.validation.coco.checks.all_checks import MAX_DETECTIONS
from d2ext.data.validation.coco.checks.statistics import Anchors


@dataclass(frozen=True)
class Source:
    """A COCO file and what it is checked against.

    Attributes:
        json_file: Path of the COCO JSON.
        images: Folder of its images; None skips the checks that read images.
        against: Path of another COCO JSON to compare with, such as the validation set's.
        against_images: Folder of the other file's images; None means `images`.
        decode: Whether to decode pixels; None decodes sets of up to `DECODED_BY_DEFAULT` images.
        anchors: Anchors that object sizes are compared with.
        max_detections: Maximum number of objects per image that models and metrics handle.
    """

    json_file: Path
    images: Path | None = None
    against: Path | None = None
    against_images: Path | None = None
    decode: bool | None = None
    anchors: Anchors = field(default_factory=Anchors)
    max_detections: int = MAX_DETECTIONS
