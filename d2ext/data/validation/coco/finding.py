"""The kinds of findings: their severity, their meaning, and what `--fix` does about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)
_STAYS = "stays as it is"
_REFUSED = "nothing is written, unless --drop-unusable removes it"
_ELSE = f"else {_REFUSED}"

# code -> severity, meaning, what --fix does. An error stops training, or silently corrupts
# training or metrics; a warning loses objects or hints at a mistake.
KINDS: dict[str, tuple[str, str, str]] = {
    # images
    "image_malformed": (
        ERROR,
        "images with missing or wrong values",
        "numbers written as text are converted, ids that are text become numbers everywhere, a"
        f" size is taken from the image file; an entry that is not an object is removed; {_ELSE}",
    ),
    "image_path": (
        ERROR,
        "image names that lead out of the image folder",
        f"renamed like images without a file; {_ELSE}",
    ),
    "image_duplicate_id": (
        ERROR,
        "image ids used twice",
        "the first keeps the id, the others get new ones; if annotations refer to it, nothing is"
        " written",
    ),
    "image_duplicate_entry": (
        ERROR,
        "image files listed twice, so that each entry lacks the other's objects",
        "the entries are merged into one with the objects of both",
    ),
    "image_missing": (
        ERROR,
        "images without a file",
        "renamed if exactly one file differs only in case, encoding, slashes or URL quoting, or has"
        " the stated size and differs only in accents and spaces, in the suffix, or in leading"
        f" folders that do not exist; {_ELSE}",
    ),
    "image_refused": (
        ERROR,
        "images over the pixel limit, or in a format that needs another package",
        "stays as it is, and nothing is written; the example names the remedy",
    ),
    "image_unreadable": (
        ERROR,
        "files that cannot be read as an image",
        _REFUSED,
    ),
    "image_size": (
        ERROR,
        "images whose width or height differs from the file's",
        "shapes are rotated by the EXIF orientation, scaled if the proportions match the file's, or"
        " left unchanged if they fit only the file; else nothing is written",
    ),
    "image_depth": (
        INFO,
        "images with more than 8 bits per channel, which are scaled to 8 when read",
        _STAYS,
    ),
    "image_frames": (INFO, "images with several frames or pages; only the first is read", _STAYS),
    "image_transparent": (
        INFO,
        "images with transparent pixels; transparency is ignored, the color below it is read",
        _STAYS,
    ),
    "image_identical": (WARNING, "image files with the same content as another", _STAYS),
    "image_empty": (INFO, "images without objects", _STAYS),
    "image_none": (WARNING, "no images at all", _STAYS),
    # categories
    "category_malformed": (
        ERROR,
        "categories with missing or wrong values",
        "gets a new id, or the name category_<id>; removed if both are missing",
    ),
    "category_duplicate_id": (
        ERROR,
        "category ids used twice",
        "the first keeps the id, another name gets a new one; if annotations refer to it, nothing"
        " is written",
    ),
    "category_duplicate_name": (ERROR, "category names used twice", "merged into one category"),
    "category_mojibake": (
        WARNING,
        "category names in a wrong encoding",
        "decoded, unless the correct name is taken",
    ),
    "category_unused": (WARNING, "categories without objects", _STAYS),
    "category_imbalance": (
        INFO,
        "categories with less than a hundredth of the largest category's objects",
        _STAYS,
    ),
    "image_mojibake": (
        WARNING,
        "image names in a wrong encoding",
        "stays as it is; if the file is missing under this name, the correct name is looked up",
    ),
    # annotations
    "annotation_malformed": (
        ERROR,
        "annotations with missing or wrong values",
        "rebuilt from the other values (a box from its mask, an area from either); removed if it"
        f" has no shape; without image or category, or with a shape of unknown form, {_REFUSED}",
    ),
    "annotation_id_zero": (ERROR, "annotations with the id 0, which pycocotools takes for no match",
                           "gets a new id"),
    "annotation_duplicate_id": (ERROR, "annotation ids used twice", "the others get new ids"),
    "annotation_duplicate": (WARNING, "annotations that repeat another", "copies are removed"),
    "unknown_image": (
        ERROR,
        "annotations of images that are not listed",
        _REFUSED,
    ),
    "unknown_category": (
        ERROR,
        "annotations of categories that are not listed",
        "kept, and a category named category_<id> is added, which you should rename",
    ),
    "box_none": (
        WARNING,
        "objects without a box of positive size, which are not trained on",
        "computed from the mask; removed if there is no mask and width or height is 0",
    ),
    "box_outside": (ERROR, "boxes outside their image", f"computed from the mask; {_ELSE}"),
    "box_over_edge": (WARNING, "boxes that extend past their image's edge",
                      "clipped at the edge, with the polygons"),
    "box_not_of_mask": (WARNING, "boxes that do not match their masks", _STAYS),
    "mask_none": (
        WARNING,
        "objects without a mask where others have one, which a model with masks does not train on",
        "stays as it is: add masks, or train boxes only (a model such as Faster R-CNN, with"
        " dataloader.train.mapper.use_instance_mask=False)",
    ),
    "polygon_degenerate": (
        WARNING,
        "polygons with fewer than 3 points, an odd number of values, or zero area",
        "points that are separate lists are joined into one polygon; removed if other polygons are"
        " left",
    ),
    "polygon_crossing": (WARNING, "polygons that cross themselves", _STAYS),
    "rle_invalid": (
        ERROR,
        "RLE masks whose runs do not add up to their size",
        "removed; the object, too, if it has no box",
    ),
    "rle_size": (
        ERROR,
        "RLE masks whose size differs from their image's",
        "nothing is written, unless --drop-unusable removes the masks",
    ),
    "area_missing": (WARNING, "objects without an area", "set to the mask's area, else the box's"),
    "area_not_of_mask": (WARNING, "areas that do not match their masks", "set to the mask's area"),
    "object_crowd": (
        INFO,
        "annotations that are crowds (iscrowd 1), which are not trained on; CVAT writes brush masks"
        " this way",
        "stays as it is: set iscrowd to 0 if it is a single object",
    ),
    "object_ignored": (
        INFO,
        "annotations marked ignore, difficult or is_group_of, which are not trained on",
        _STAYS,
    ),
    "object_rotated": (
        WARNING,
        "boxes with a rotation (from CVAT's rotated rectangles), which is ignored",
        "stays as it is: draw polygons instead; masks and boxes are computed from them",
    ),
    "object_keypoints": (
        INFO,
        "annotations with keypoints, which only a model with a keypoint head is trained on",
        _STAYS,
    ),
    "keypoints_malformed": (
        WARNING,
        "keypoints that are not x, y and visibility of each, in one list, which are ignored",
        _STAYS,
    ),
    "object_many": (
        WARNING,
        "images with more objects than models and metrics handle by default",
        "stays as it is: raise model.roi_heads.box_predictor.test_topk_per_image, and"
        " max_detections of the CocoMetric (--max-detections of an offline evaluation)",
    ),
    "object_anchors": (INFO, "objects that no anchor overlaps by half", _STAYS),
    # between two files
    "against_identical": (WARNING, "image files that are also in the other set", _STAYS),
    "against_categories": (WARNING, "categories that only one of the two sets has", _STAYS),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """All occurrences of one kind of problem in a file.

    Attributes:
        code: Kind of the problem, a key of `KINDS`.
        rows: Indices of the entries in the file's list `part`.
        part: `images`, `annotations` or `categories`.
        example: First entry and its problem.
        severity: `error`, `warning` or `info`.
    """

    code: str
    rows: list[int] = field(repr=False)
    part: str
    example: str
    severity: str

    @property
    def count(self) -> int:
        """Return the number of occurrences."""
        return len(self.rows)

    @property
    def what(self) -> str:
        """Return the meaning of the code."""
        return KINDS[self.code][1]

    @property
    def fix(self) -> str:
        """Return what `--fix` does about the finding."""
        return KINDS[self.code][2]


def finding(
    code: str, rows: Sequence[int] | np.ndarray, part: str, example: str, severity: str = ""
) -> Finding:
    """Return a finding with the severity of its kind, unless another is given."""
    where = [int(row) for row in rows]
    return Finding(code, where, part, printable(example), severity or KINDS[code][0])


def printable(text: str, limit: int = 300) -> str:
    """Escape and shorten text from a file to one line without control characters."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
