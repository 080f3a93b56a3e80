"""Annotations from other formats to COCO, and from COCO to other formats (`formats`).

hotcoco writes boxes as VOC and Open Images. The other writers are our own. In YOLO's labels hotcoco
1.3 drops the subfolders of images; in CVAT's XML it turns masks into boxes, crowds into objects,
and each part of an object into one. supervision 0.31 writes polygons of YOLO and LabelMe, but draws
each as a mask of the image's size and takes its outline again: a circle of 64 corners comes back as
steps between whole pixels, crowds become objects, subfolders are lost, and it decodes every image.
Here a polygon stays as it is.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from d2ext.data.formats.coco import coco_classes, read_coco, write_coco
from d2ext.data.formats.format import formats
from d2ext.data.formats.geometry import LeftOut, add_box, add_polygons
from d2ext.data.formats.json_io import inside, no_collection
from d2ext.data.formats.registry import writers
from d2ext.errors import UserError
from d2ext.text import shortened


@no_collection()
def convert_to_coco(
    kind: str,
    source: str | Path,
    images: str | Path,
    output: str | Path,
    classes: Sequence[str] | None = None,
    **options: str | None,
) -> str:
    """Write a COCO file of annotations in another format, as `write_coco` does.

    Args:
        kind: a name in `formats()`.
        source: the annotations, a file or a folder.
        images: folder of the images.
        output: the JSON to write.
        classes: class names, in the order of their ids; None takes those of the source.
        options: the format's `options`: for VIA `attribute`, the region attribute that holds the
            class; for YOLO `split`, the split of data.yaml to read (None takes all of `images`).

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
    records, names = formats()[kind].read(source, images, classes, **options)
    if not records:
        raise UserError(f"{source} lists no image; nothing was written")
    counts = write_coco(records, names, output, images)
    listed = shortened(names, 10)
    return f"{output}: {counts['images']} images, {counts['objects']} objects, classes: {listed}"


def convert_from_coco(
    source: str | Path, kind: str, output: str | Path, images: str | Path | None = None
) -> str:
    """Write the annotations of a COCO file in another format.

    Args:
        source: the COCO JSON.
        kind: one of `writers`.
        output: the folder to make, or for `open_images` and `cvat` the file.
        images: folder of the images, which LabelMe's files then name; otherwise the files name the
            image as if it were in their own folder.

    Returns:
        A line that says what was written and skipped.

    Raises:
        UserError: the file is absent or malformed, two images would have the same label file, or
            `output` exists or cannot be written. Then nothing is left at `output`.
    """
    output = Path(output)
    if output.exists():
        raise UserError(f"{output} exists; name a new --output, or remove it")
    classes = coco_classes(source)
    records, _ = read_coco(source, "")
    for record in records:
        inside(".", record["file_name"], str(source))
    lost = _cut_at_edges(records)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            made = Path(folder) / "made"
            counts = {**writers()[kind](records, classes, made, images), **lost}
            os.replace(made, output)
    except OSError as e:
        raise UserError(f"cannot write {output}: {e.strerror or e}") from e
    return f"{output}: " + ", ".join(
        f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n or name == "images"
    )


def _cut_at_edges(records: Sequence[dict]) -> dict[str, int]:
    """Cut boxes and outlines at the edge of their image: some formats cannot hold more.

    Returns:
        How many objects were cut, and how many were skipped, by reason.
    """
    left_out = LeftOut()
    for record in records:
        annotations, record["annotations"] = record["annotations"], []
        for a in annotations:
            masks = a.get("segmentation")
            polygons = masks if isinstance(masks, list) else []
            xs, ys = ([c for shape in (a["bbox"], *polygons) for c in shape[i::2]] for i in (0, 1))
            if min(xs + ys) >= 0 and max(xs) <= record["width"] and max(ys) <= record["height"]:
                record["annotations"].append(a)
                continue
            part = {**record, "annotations": []}
            if polygons:
                add_polygons(part, a["category_id"], polygons, left_out)
            else:
                add_box(part, a["category_id"], a["bbox"], left_out)
            record["annotations"] += [
                {**a, **cut, "iscrowd": a["iscrowd"]} for cut in part["annotations"]
            ]
    skipped = {f"skipped {reason}": n for reason, n in left_out.items()}
    return {"cut at the edge of their image": left_out.cut} | skipped
