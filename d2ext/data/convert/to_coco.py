"""Other formats to a COCO file."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.createml import read_createml
from d2ext.data.formats.cvat import read_cvat
from d2ext.data.formats.json_io import no_collection
from d2ext.data.formats.labelme import read_labelme
from d2ext.data.formats.open_images import read_open_images
from d2ext.data.formats.via import read_via, via_classes
from d2ext.data.formats.voc import read_voc
from d2ext.data.formats.yolo import read_yolo
from d2ext.errors import UserError
from d2ext.files import atomic_write

Read = tuple[list[dict], tuple[str, ...]]


def _read_via(
    source: Path, images: Path, classes: Sequence[str] | None, attribute: str | None
) -> Read:
    if classes is None:
        classes, attribute = via_classes(source, attribute)
    return read_via(source, images, classes, attribute), tuple(classes)


READERS: dict[str, Callable[[Path, Path, Sequence[str] | None], Read]] = {
    "createml": read_createml,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "open_images": read_open_images,
    "voc": read_voc,
    "yolo": read_yolo,
}
FORMATS = ("via", *READERS)


@no_collection()
def convert_to_coco(
    kind: str,
    source: str | Path,
    images: str | Path,
    output: str | Path,
    classes: Sequence[str] | None = None,
    attribute: str | None = None,
    split: str | None = None,
) -> str:
    """Writes a COCO file of annotations in another format.

    It holds all keys that MMDetection's guide lists; objects without a mask have the
    `segmentation` []. Ids count from 1, file names are relative to `images`, and the same input
    gives the same bytes.

    Args:
        kind: one of `FORMATS`.
        source: the annotations, a file or a folder.
        images: folder of the images.
        output: the JSON to write.
        classes: class names, in the order of their ids; None takes those of the source.
        attribute: the attribute of VIA's regions that holds the class.
        split: the split of YOLO's data.yaml to read; None takes all of `images`.

    Returns:
        A line that says what was written.

    Raises:
        UserError: the annotations or images are absent or malformed, or the file cannot be
            written. Then there is no new file.
    """
    if classes is not None and len(set(classes)) < len(classes):
        raise UserError(f"--classes {' '.join(classes)} repeats a name; make them distinct")
    source, images, output = Path(source), Path(images), Path(output)
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the input; name another file")
    if not images.is_dir():
        raise UserError(f"the image folder {images} does not exist; give --images the right one")
    if kind == "via":
        records, names = _read_via(source, images, classes, attribute)
    elif kind == "yolo":
        records, names = read_yolo(source, images, classes, split)
    else:
        records, names = READERS[kind](source, images, classes)
    if not records:
        raise UserError(f"{source} lists no image; nothing was written")
    content = to_coco(records, names)
    root = len(os.path.join(images, ""))
    for image in content["images"]:  # os.path.relpath takes as long as reading the image's size
        image["file_name"] = image["file_name"][root:]
    for annotation in content["annotations"]:
        annotation.setdefault("segmentation", [])
    for category in content["categories"]:
        category.setdefault("supercategory", "")
    with atomic_write(output, "wb", durable=False) as f:
        f.write(msgspec.json.encode(content))
    return (
        f"{output}: {len(content['images'])} images, {len(content['annotations'])} objects,"
        f" classes: {', '.join(names[:10])}{', ...' * (len(names) > 10)}"
    )
