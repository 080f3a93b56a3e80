"""The kinds of findings: their severity, their meaning, and how `--fix` treats them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)
_STAYS = "stays as it is"
_REFUSED = "nothing is written, unless --drop-unusable removes it"
_ELSE = f"else {_REFUSED}"

# code -> severity, what it means, what --fix does. An error stops the training, or falsifies what
# is learnt or measured without a word; a warning costs objects or hints at a mistake.
KINDS: dict[str, tuple[str, str, str]] = {
    # images
    "image_malformed": (
        ERROR,
        "images with missing or wrong values",
        "numbers written as text are read, ids that are text become numbers wherever they stand, a"
        f" size is taken from the image file; an entry that is not an object is removed; {_ELSE}",
    ),
    "image_path": (
        ERROR,
        "image names that lead out of the image folder",
        f"renamed as images without a file are; {_ELSE}",
    ),
    "image_duplicate_id": (
        ERROR,
        "image ids used twice",
        "the first keeps the id, the others get new ones; if annotations have it, nothing is"
        " written",
    ),
    "image_duplicate_entry": (
        ERROR,
        "image files listed twice, so that each entry lacks the other's objects",
        "the entries become one, which has the objects of both",
    ),
    "image_missing": (
        ERROR,
        "images without a file",
        "renamed where one file differs in case, encoding, slashes or URL quoting, or has the"
        " stated size and differs only in accents and blanks, in the suffix, or in leading folders"
        f" that do not exist; {_ELSE}",
    ),
    "image_refused": (
        ERROR,
        "images over the limit of pixels, or of a format that needs another package",
        "stays as it is, and nothing is written; the example names the remedy",
    ),
    "image_unreadable": (
        ERROR,
        "files that cannot be read as an image",
        _REFUSED,
    ),
    "image_size": (
        ERROR,
        "images whose width or height is not the file's",
        "shapes are turned as the EXIF data say, scaled where the proportions are the file's, or"
        " left where they only fit the file; else nothing is written",
    ),
    "image_depth": (
        INFO,
        "images of more than 8 bits a channel, which are scaled to 8 when they are read",
        _STAYS,
    ),
    "image_frames": (INFO, "images of several frames or pages, whose first is read", _STAYS),
    "image_transparent": (
        INFO,
        "images with transparent pixels, which are read with the color beneath",
        _STAYS,
    ),
    "image_identical": (WARNING, "image files with the content of another", _STAYS),
    "image_empty": (INFO, "images without objects", _STAYS),
    "image_none": (WARNING, "no images at all", _STAYS),
    # categories
    "category_malformed": (
        ERROR,
        "categories with missing or wrong values",
        "gets the missing id, or the name category_<id>; removed where there is neither",
    ),
    "category_duplicate_id": (
        ERROR,
        "category ids used twice",
        "the first keeps the id, another name gets a new one; if annotations have it, nothing is"
        " written",
    ),
    "category_duplicate_name": (ERROR, "category names used twice", "they become one category"),
    "category_mojibake": (
        WARNING,
        "category names in a wrong encoding",
        "decoded, unless that name is taken",
    ),
    "category_unused": (WARNING, "categories without objects", _STAYS),
    "category_imbalance": (INFO, "categories with under a hundredth of the largest", _STAYS),
    "image_mojibake": (
        WARNING,
        "image names in a wrong encoding",
        "stays as it is; a file that is missed for it is found under its right name",
    ),
    # annotations
    "annotation_malformed": (
        ERROR,
        "annotations with missing or wrong values",
        "repaired from what is left (a box from its mask, an area from either); removed without"
        f" any shape; without image or category, or with a shape of an unknown form, {_REFUSED}",
    ),
    "annotation_id_zero": (ERROR, "annotations with the id 0, which pycocotools takes for no match",
                           "gets a new id"),
    "annotation_duplicate_id": (ERROR, "annotation ids used twice", "the others get new ids"),
    "annotation_duplicate": (WARNING, "annotations that repeat another", "the copies are removed"),
    "unknown_image": (
        ERROR,
        "annotations of images that are not listed",
        _REFUSED,
    ),
    "unknown_category": (
        ERROR,
        "annotations of categories that are not listed",
        "kept: a category named category_<id> is added; name it",
    ),
    "box_none": (
        WARNING,
        "objects without a box of positive size, which are not trained on",
        "made from the mask; removed where there is no mask and width or height is 0",
    ),
    "box_outside": (ERROR, "boxes outside of their image", f"made from the mask; {_ELSE}"),
    "box_over_edge": (WARNING, "boxes that reach over their image's edge", "cut at the edge, with"
                      " the polygons"),
    "box_not_of_mask": (WARNING, "boxes that are not those of their masks", _STAYS),
    "mask_none": (
        WARNING,
        "objects without a mask where others have one, which a model with masks does not train on",
        "stays as it is: add masks, or train boxes only (a model such as Faster R-CNN, with"
        " dataloader.train.mapper.use_instance_mask=False)",
    ),
    "polygon_degenerate": (
        WARNING,
        "polygons of under 3 points, an odd number of values, or zero area",
        "points that stand each in a list of its own become one polygon; removed where other"
        " polygons are left",
    ),
    "polygon_crossing": (WARNING, "polygons that cross themselves", _STAYS),
    "rle_invalid": (
        ERROR,
        "RLE masks that do not fill their size",
        "removed; with the object where that has no box",
    ),
    "rle_size": (
        ERROR,
        "RLE masks of another size than their image",
        "nothing is written, unless --drop-unusable removes the masks",
    ),
    "area_missing": (WARNING, "objects without an area", "that of the mask, else of the box"),
    "area_not_of_mask": (WARNING, "areas that are not those of their masks", "that of the mask"),
    "object_crowd": (
        INFO,
        "annotations that are crowds (iscrowd 1), which are not trained on; CVAT writes brush masks"
        " this way",
        "stays as it is: set iscrowd to 0 where it is a single object",
    ),
    "object_ignored": (
        INFO,
        "annotations marked ignore, difficult or is_group_of, which are not trained on",
        _STAYS,
    ),
    "object_rotated": (
        WARNING,
        "boxes with a rotation (of CVAT's rotated rectangles), which are taken as if not rotated",
        "stays as it is: draw polygons instead, which masks and boxes are made of",
    ),
    "object_keypoints": (
        INFO,
        "annotations with keypoints, which only a model with a keypoint head is trained on",
        _STAYS,
    ),
    "object_many": (
        WARNING,
        "images with more objects than a model or a metric takes by default",
        "stays as it is: raise model.roi_heads.box_predictor.test_topk_per_image, and"
        " max_detections of the CocoMetric (--max-detections of an offline evaluation)",
    ),
    "object_anchors": (INFO, "objects that no anchor overlaps by half", _STAYS),
    # between two files
    "against_identical": (WARNING, "image files with the content of one of the other set", _STAYS),
    "against_categories": (WARNING, "categories that only one of the two sets has", _STAYS),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A kind of fault that a file has.

    Attributes:
        code: which one; a key of `KINDS`.
        rows: where: indices into the file's list, which is `part`.
        part: `images`, `annotations` or `categories`.
        example: the first place, and what is there.
        severity: `error`, `warning` or `info`.
    """

    code: str
    rows: list[int] = field(repr=False)
    part: str
    example: str
    severity: str

    @property
    def count(self) -> int:
        """How often."""
        return len(self.rows)

    @property
    def what(self) -> str:
        """Return the meaning of the code."""
        return KINDS[self.code][1]

    @property
    def fix(self) -> str:
        """Return how `--fix` treats the finding."""
        return KINDS[self.code][2]


def finding(code: str, rows: Sequence[int], part: str, example: str, severity: str = "") -> Finding:
    """Return a finding with the severity of its kind, unless another is given."""
    where = [int(row) for row in rows]
    return Finding(code, where, part, printable(example), severity or KINDS[code][0])


def printable(text: str, limit: int = 300) -> str:
    """Text of a file as one short line that any terminal and any encoding can show."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
