"""Pascal VOC's XML, one file per image (http://host.robots.ox.ac.uk/pascal/VOC/).

d2ext has its own reader because neither library reads the files faithfully: hotcoco 1.3 truncates
class names at entities ("salt &amp; pepper" becomes "pepper") and reads a missing size as 0;
supervision 0.31 decodes every image, and finds images only by the name of the XML.
"""

import contextlib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from d2ext.data.formats.annotation_kinds import is_object
from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, convert_advice
from d2ext.data.formats.geometry import LeftOut, add_box, add_polygons, parsed, rectangle
from d2ext.data.formats.image_folder import ImageFolder, sized_record
from d2ext.data.formats.json_io import (
    annotation_files,
    by_name,
    inside,
    is_text,
    natural,
    read_text,
    read_xml,
    truncate_repr,
)
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.writing import count_skipped_masks, label_files
from d2ext.errors import UserError
from d2ext.text import plural

logger = logging.getLogger(__name__)


# The classes of VOC2007 and later, in the order of Detectron2 and MMDetection.
CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike"
    " person pottedplant sheep sofa train tvmonitor".split()
)


def read_voc(
    source: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None = None,
    list_file: str | Path | None = None,
    info: dict | None = None,
) -> tuple[list[dict], tuple[str, ...]]:
    """Read VOC's boxes into Detectron2's dataset dicts.

    VOC numbers pixels from 1 and boxes include their last pixel, so a box becomes xmin - 1 to xmax,
    as in Detectron2. (MMDetection subtracts 1 from xmax, too, and its metric adds it again.)
    Difficult objects get `difficult` 1 and also `iscrowd` 1, because other programs count only
    detections of crowds as neither true nor false positives. Rotated boxes (`robndbox`, as written
    by roLabelImg and DIOR-R) become polygons. Parts of objects are not read.

    Args:
        source: The folder of the XML files, a folder with a subfolder `Annotations`, or one file.
        image_root: The folder of the images. `ImageFolder.find_all` finds each image by
            `filename` or else by the name of the XML.
        classes: Class names; `category_id` is an index into them. None uses those of the files,
            sorted.
        list_file: An image set: a text file with one name per line, without suffix. Only the XML
            files of these names are read, from `source`, which is then their folder.
        info: Receives `left_out`, the number of skipped objects by reason.

    Returns:
        One dict per image, ordered by the names of the XML files or as in `list_file`, and the
        class names.

    Raises:
        UserError: A file is missing or malformed, or an image is missing or differs in size from
            its XML.
    """
    source = Path(source)
    if list_file is None:
        files = annotation_files(source, ".xml", "Annotations")
    else:
        listed = listed_files(source, list_file)
        if absent := [file for _, file in listed if not file.is_file()]:
            raise UserError(
                f"{source} lacks {plural(len(absent), 'annotation')} of {list_file}, the first is"
                f" {absent[0].name}; complete the folder, or correct the list"
            )
        files = [(file, os.path.dirname(name)) for name, file in listed]
    found, read = set(), []
    for file, folder in files:
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
    if info is not None:
        info["left_out"] = dict(left_out)
    return records, wanted


def listed_files(folder: str | Path, list_file: str | Path) -> list[tuple[str, Path]]:
    """Return the names in an image set and their XML files, which may be missing.

    Raises:
        UserError: The list cannot be read, is empty, or repeats a name.
    """
    lines = map(str.strip, read_text(list_file).splitlines())
    names = list(filter(None, lines))
    if not names:
        raise UserError(f"{list_file} is empty; list the names of the annotations, one per line")
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f"{list_file} repeats {truncate_repr(repeated[0])}; remove one")
    return [(name, Path(inside(folder, f"{name}.xml", str(list_file)))) for name in names]


def listed_stamp(folder: str | Path, list_file: str | Path) -> str:
    """Return a hash of the sizes and times of the XML files of an image set, to detect changes."""
    stamp = hashlib.sha256()
    for name, file in listed_files(folder, list_file):
        with contextlib.suppress(OSError):  # `read_voc` reports missing files
            status = file.stat()
            stamp.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return stamp.hexdigest()


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


def write_voc(
    records: Sequence[dict], classes: Sequence[str], made: Path, images: str | Path | None
) -> dict[str, int]:
    """Write one XML per image in folders like the images', with boxes in whole pixels.

    Crowds become difficult objects.
    """
    counts = {"images": 0, "annotations": 0, "crowd_as_difficult": 0}
    for record, file in label_files(records, made, ".xml"):
        folder, name = os.path.split(record["file_name"])
        root = _element("annotation", folder=folder, filename=name)
        root.append(_element("size", width=record["width"], height=record["height"], depth=3))
        for a in record["annotations"]:
            x0, y0, x1, y1 = map(round, a["bbox"])
            difficult = int(not is_object(a))
            element = _element("object", name=classes[a["category_id"]], difficult=difficult)
            # Pixels count from 1, and a box has at least one.
            corner = {"xmin": min(x0 + 1, record["width"]), "ymin": min(y0 + 1, record["height"])}
            last = {"xmax": max(x1, corner["xmin"]), "ymax": max(y1, corner["ymin"])}
            element.append(_element("bndbox", **corner, **last))
            root.append(element)
            counts["annotations"] += 1
            counts["crowd_as_difficult"] += difficult
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(file, "utf-8")
        counts["images"] += 1
    return counts | count_skipped_masks(records)


def _element(tag: str, **children: object) -> ElementTree.Element:
    """Return an element with children that hold text."""
    element = ElementTree.Element(tag)
    for name, value in children.items():
        ElementTree.SubElement(element, name).text = str(value)
    return element


def _detect(head: FileHead) -> bool:
    return head.root == "annotation"


FORMAT = Format(
    name="voc",
    title="Pascal VOC",
    advice=convert_advice("a Pascal VOC annotation (XML)", "voc", "{folder}"),
    detect=_detect,
    read=read_voc,
    source="Pascal VOC: the folder of the XML files",
    write={"voc": write_voc},
)
