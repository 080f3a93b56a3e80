"""Pascal VOC's XML, one file per image (http://host.robots.ox.ac.uk/pascal/VOC/).

d2ext has its own reader because neither library reads the files faithfully: hotcoco 1.3 truncates
class names at entities ("salt &amp; pepper" becomes "pepper") and reads a missing size as 0;
supervision 0.31 decodes every image, and finds images only by the name of the XML.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, convert_advice
from d2ext.data.formats.geometry import LeftOut, add_box, add_polygons, parsed, rectangle
from d2ext.data.formats.image_folder import ImageFolder, sized_record
from d2ext.data.formats.json_io import (
    annotation_files,
    by_name,
    is_text,
    natural,
    read_xml,
    truncate_repr,
)
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.writing import hotcoco_writer
from d2ext.errors import UserError

logger = logging.getLogger(__name__)


def read_voc(
    source: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    """Read VOC's boxes into Detectron2's dataset dicts.

    VOC numbers pixels from 1 and boxes include their last pixel, so a box becomes xmin - 1 to xmax.
    Difficult objects get `difficult` 1 and also `iscrowd` 1, because other programs count only
    detections of crowds as neither true nor false positives. Rotated boxes (`robndbox`, as written
    by roLabelImg and DIOR-R) become polygons. Parts of objects are not read.

    Args:
        source: The folder of the XML files, a folder with a subfolder `Annotations`, or one file.
        image_root: The folder of the images. `ImageFolder.find_all` finds each image by
            `filename` or else by the name of the XML.
        classes: Class names; `category_id` is an index into them. None uses those of the files,
            sorted.

    Returns:
        One dict per image, ordered by the names of the XML files, and the class names.

    Raises:
        UserError: A file is missing or malformed, or an image is missing or differs in size from
            its XML.
    """
    source = Path(source)
    found, read = set(), []
    for file, folder in annotation_files(source, ".xml", "Annotations"):
        image, size, objects = _parse(file)
        found |= {name for name, _, _ in objects}
        read.append((file, folder, image, size, objects))
    names = tuple(sorted(found, key=natural))
    wanted = tuple(classes or names)
    index = by_name(names, wanted, source)

    records: list[dict] = []
    left_out = LeftOut()
    paths = ImageFolder(image_root).find_all([(image, f, folder) for f, folder, image, *_ in read])
    for path, (file, _, _, size, objects) in zip(paths, read, strict=True):
        record = sized_record(path, len(records) + 1, size, file)
        for name, shape, difficult in objects:
            if (category := index[name]) is None:
                left_out[f"of the class {truncate_repr(name)}"] += 1
            else:
                flags = {"iscrowd": 1, "difficult": 1} if difficult else {}
                if len(shape) == 4:
                    add_box(record, category, shape, left_out, **flags)
                else:
                    add_polygons(record, category, [shape], left_out, **flags)
        records.append(record)
    left_out.warn(logger, source)
    return records, wanted


_Object = tuple[str, list[float], int]


def _parse(file: Path) -> tuple[str | None, tuple[float, float] | None, list[_Object]]:
    """Return an image's name, its (width, height), and the class, shape and difficulty of objects.

    A shape is a box (x0, y0, x1, y1) or the corners of a rotated box, in pixels.
    """
    try:
        root = read_xml(file)
        if root.tag != "annotation":
            known = advice(file, "voc")
            raise ValueError(f"it is {known}" if known else f"its root is <{root.tag[:100]}>")
        width, height = _number(root, "size/width", 0), _number(root, "size/height", 0)
        objects = []
        for element in root.findall("object"):
            name = (element.findtext("name") or "").strip()
            if not name or not is_text(name):
                raise ValueError("an object has no name")
            difficult = (element.findtext("difficult") or "").strip() == "1"
            objects.append((name, _shape(element), int(difficult)))
    except ValueError as e:
        raise UserError(f"{file} is not a VOC annotation: {e}") from e
    image = (root.findtext("filename") or "").strip() or None
    return image, (width, height) if width and height else None, objects


def _shape(element: ElementTree.Element) -> list[float]:
    """Return an object's box, or the corners of its rotated box, whose pixels count from 0."""
    if element.find("robndbox") is None:
        x0, x1 = sorted(_number(element, f"bndbox/{k}") for k in ("xmin", "xmax"))
        y0, y1 = sorted(_number(element, f"bndbox/{k}") for k in ("ymin", "ymax"))
        return [x0 - 1, y0 - 1, x1, y1]
    if element.find("robndbox/x_left_top") is not None:  # DIOR-R
        corners = ("left_top", "right_top", "right_bottom", "left_bottom")
        return [_number(element, f"robndbox/{axis}_{c}") for c in corners for axis in "xy"]
    # roLabelImg: the angle is in radians, clockwise.
    cx, cy, w, h, angle = (
        _number(element, f"robndbox/{k}") for k in ("cx", "cy", "w", "h", "angle")
    )
    corners = rectangle(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, angle)
    return [float(c) for c in corners]


def _number(element: ElementTree.Element, path: str, default: float | None = None) -> float:
    text = element.findtext(path)
    if text is None or not text.strip():
        if default is None:
            raise ValueError(f"an object lacks {path}")
        return default
    (number,) = parsed([text])
    return number


def _detect(head: FileHead) -> bool:
    return head.root == "annotation"


FORMAT = Format(
    name="voc",
    title="Pascal VOC",
    advice=convert_advice("a Pascal VOC annotation (XML)", "voc", "{folder}"),
    detect=_detect,
    read=read_voc,
    source="Pascal VOC: the folder of the XML files",
    write={"voc": hotcoco_writer("to_voc")},
)
