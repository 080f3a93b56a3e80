"""Pascal VOC's XML, a file an image (http://host.robots.ox.ac.uk/pascal/VOC/).

Written here because neither library reads it as it is: hotcoco 1.3 cuts class names at an entity
("salt &amp; pepper" becomes "pepper") and takes a missing size for 0; supervision 0.31 decodes
every image, and looks for it by the name of the XML alone.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from d2ext.data.formats.common import by_name, inside, is_text, natural, read_bytes, shown
from d2ext.data.formats.images import existing, image_size, images_in
from d2ext.data.formats.shapes import LeftOut, add_box, new_record, parsed
from d2ext.errors import UserError

logger = logging.getLogger(__name__)


def read_voc(
    source: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    """Reads VOC's boxes into Detectron2's dataset dicts.

    VOC numbers pixels from 1, and a box holds its last one: it goes from xmin - 1 to xmax. An
    object that is `difficult` has that, and `iscrowd` 1, since other programs know only crowds as
    what is neither hit nor miss. Parts of objects are not read.

    Args:
        source: the folder of the XML files, or one with a folder `Annotations`; also one file.
        image_root: the folder of the images. An image is found by `filename`, else by the XML's
            own name.
        classes: class names; `category_id` is an index into them. None takes those of the files,
            sorted.

    Returns:
        One dict an image, in the order of the XML files' names, and the class names.

    Raises:
        UserError: a file is absent or malformed, an image is absent or of another size than its
            XML says.
    """
    source = Path(source)
    found, read = set(), []
    for file in files_below(source, ".xml", "Annotations"):
        image, size, objects = _parse(file)
        found |= {name for name, _, _ in objects}
        read.append((file, image, size, objects))
    names = tuple(sorted(found, key=natural))
    wanted = tuple(classes or names)
    index = by_name(names, wanted, source)

    stems = {os.path.splitext(name)[0]: name for name in images_in(image_root)}
    records, left_out, seen = [], LeftOut(), {}
    for file, image, size, objects in read:
        path = _image(file, image, image_root, stems)
        if path in seen:
            raise UserError(f"{file} and {seen[path]} describe the same image {path}; remove one")
        seen[path] = file
        record = sized_record(path, len(records) + 1, size, file)
        for name, box, difficult in objects:
            if index[name] is None:
                left_out[f"of the class {shown(name)}"] += 1
            else:
                flags = {"iscrowd": 1, "difficult": 1} if difficult else {}
                add_box(record, index[name], box, left_out, **flags)
        records.append(record)
    left_out.warn(logger, source)
    return records, wanted


def files_below(source: Path, suffix: str, usual: str = "") -> list[Path]:
    """The annotation files of a folder and its subfolders, sorted.

    Args:
        source: the folder, or one file.
        suffix: of the files, such as ".xml".
        usual: a subfolder that holds them where there is one.

    Raises:
        UserError: there are none.
    """
    if source.is_file():
        return [source]
    folder = source / usual if (source / usual).is_dir() else source
    found = (p for p in folder.rglob("*") if p.suffix.lower() == suffix and p.is_file())
    if not (files := sorted(found)):
        raise UserError(f"{source} holds no {suffix} file; give the folder of the annotations")
    return files


def sized_record(path: str, image_id: int, size: tuple[float, float] | None, file: Path) -> dict:
    """A new dataset dict of an image whose width and height an annotation file states, or not.

    Raises:
        UserError: the image is absent, broken or of another size: then its shapes lie elsewhere.
    """
    try:
        actual = image_size(path)
    except FileNotFoundError:
        raise UserError(f"{file}: the image {path} is absent; check --images") from None
    if size is not None and tuple(size) != actual:
        raise UserError(
            f"{file} is for an image of {size[0]:g} x {size[1]:g} pixels, {path} has"
            f" {actual[0]} x {actual[1]} (turned as its EXIF orientation says, where it has one);"
            " use the image that was annotated, or annotate it again"
        )
    return new_record(path, image_id, actual)


_Object = tuple[str, list[float], int]


def _parse(file: Path) -> tuple[str | None, tuple[float, float] | None, list[_Object]]:
    """Image name, its width and height, and objects with class, box in pixels and `difficult`."""
    try:
        root = ElementTree.fromstring(read_bytes(file))
        if root.tag != "annotation":
            raise ValueError(f"its root is <{shown(root.tag)}>, not <annotation>")
        width, height = _number(root, "size/width", 0), _number(root, "size/height", 0)
        objects = []
        for element in root.findall("object"):
            name = (element.findtext("name") or "").strip()
            if not name or not is_text(name):
                raise ValueError("an object has no name")
            x0, y0, x1, y1 = (_number(element, f"bndbox/{k}") for k in _BOX)
            difficult = (element.findtext("difficult") or "").strip() == "1"
            objects.append((name, [x0 - 1, y0 - 1, x1, y1], int(difficult)))
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as e:
        raise UserError(f"{file} is no annotation of VOC ({e}); correct it") from e
    image = (root.findtext("filename") or "").strip() or None
    return image, (width, height) if width and height else None, objects


_BOX = ("xmin", "ymin", "xmax", "ymax")


def _number(element: ElementTree.Element, path: str, default: float | None = None) -> float:
    text = element.findtext(path)
    if text is None or not text.strip():
        if default is None:
            raise ValueError(f"an object lacks {path}")
        return default
    (number,) = parsed([text])
    return number


def _image(file: Path, image: str | None, image_root: str | Path, stems: dict[str, str]) -> str:
    """The path of an annotation's image; where `filename` names none, it is the XML's namesake."""
    if image is not None:
        path = existing(inside(image_root, image, str(file)))
        if os.path.isfile(path):
            return path
    if (name := stems.get(file.stem)) is not None:
        return os.path.join(image_root, name)
    return inside(image_root, image or f"{file.stem}.jpg", str(file))
