"""The file that a check looks at, and its options."""

from dataclasses import dataclass, field
from pathlib import Path

from d2ext.data.validation.coco.checks.all_checks import MAX_DETECTIONS
from d2ext.data.validation.coco.checks.statistics import Anchors


@dataclass(frozen=True)
class Source:
    """A file, and what it is checked against.

    Attributes:
        json_file: the COCO JSON.
        images: the folder of its images; None: they are not looked at.
        against: another COCO JSON, of the validation set, say,
        against_images: and its images' folder; None: that of `images`.
        decode: whether pixels are decoded; None: in sets of up to `DECODED_BY_ITSELF` images.
        anchors: what object sizes are compared with.
        max_detections: objects that a model and a metric take in an image.
    """

    json_file: Path
    images: Path | None = None
    against: Path | None = None
    against_images: Path | None = None
    decode: bool | None = None
    anchors: Anchors = field(default_factory=Anchors)
    max_detections: int = MAX_DETECTIONS
