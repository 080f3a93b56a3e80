"""Convert annotations from other formats to COCO, and from COCO to other formats (`formats`).

hotcoco writes boxes as Open Images. All other writers are ours, for these reasons: hotcoco 1.3
drops the subfolders of images in YOLO labels and VOC, and VOC's images without objects; in CVAT
XML, it turns masks into boxes, crowds into objects, and each part of an object into an object.
supervision 0.31 writes YOLO and LabelMe polygons, but rasterizes each polygon and traces its
outline again: a circle with 64 corners becomes steps between whole pixels, crowds become objects,
subfolders are lost, and every image is decoded. Our writers do not change polygons.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from d2ext.data.formats.annotation_kinds import count_keypoints
from d2ext.data.formats.coco import coco_classes, read_coco, write_coco
from d2ext.data.formats.format import formats
from d2ext.data.formats.geometry import LeftOut, add_box, add_polygons
from d2ext.data.formats.json_io import inside, no_collection
from d2ext.data.formats.registry import writers
from d2ext.data.splitting.coco import check_new, split_coco
from d2ext.data.splitting.split import SplitOptions
from d2ext.errors import UserError
from d2ext.text import plural, shortened


@no_collection()
def convert_to_coco(
    kind: str,
    source: str | Path,
    images: str | Path,
    output: str | Path,
    classes: Sequence[str] | None = None,
    **options: str | None,
) -> str:
    """Convert annotations in another format to a COCO file, with `write_coco`.

    Args:
        kind: Name of the format, a key of `formats()`.
        source: File or folder of the annotations.
        images: Folder of the images.
        output: JSON file to write.
        classes: Class names, in the order of their ids; None takes those of the source.
        options: Values of the format's `options`: for VIA `attribute`, the region attribute that
            holds the class; for YOLO `split`, the split of data.yaml to read (None reads all of
            `images`).

    Returns:
        A summary line.

    Raises:
        UserError: Annotations or images are missing or malformed, or the file cannot be written; in
            these cases, no file is created.
    """
    if classes is not None and len(set(classes)) < len(classes):
        raise UserError(f"--classes {' '.join(classes)} repeats a name; give distinct names")
    source, images, output = Path(source), Path(images), Path(output)
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the input; name another file")
    if not images.is_dir():
        raise UserError(f"the image folder {images} does not exist; correct --images")
    records, names = formats()[kind].read(source, images, classes, **options)
    if not records:
        raise UserError(f"{source} lists no images; nothing was written")
    counts = write_coco(records, names, output, images)
    listed = shortened(names, 10)
    found = f"{plural(counts['images'], 'image')}, {plural(counts['objects'], 'object')}"
    return f"{output}: {found}, classes: {listed}"


def convert_and_split(
    kind: str,
    source: str | Path,
    images: str | Path,
    output: str | Path,
    classes: Sequence[str] | None,
    split: SplitOptions,
    /,  # YOLO's options have a `split` as well
    **options: str | None,
) -> list[str]:
    """Convert annotations like `convert_to_coco`, and split them like `split_coco`.

    Args:
        kind: As in `convert_to_coco`.
        source: As in `convert_to_coco`.
        images: As in `convert_to_coco`.
        output: Folder to create, with train.json and val.json.
        classes: As in `convert_to_coco`.
        split: How to split.
        options: As in `convert_to_coco`.

    Returns:
        Lines for the user.

    Raises:
        UserError: As in `convert_to_coco` and `split_coco`; nothing is written.
    """
    output = Path(output)
    check_new(output)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.json"
        convert_to_coco(kind, source, images, whole, classes, **options)
        return split_coco(whole, output, Path(images), split)


def convert_from_coco(
    source: str | Path, kind: str, output: str | Path, images: str | Path | None = None
) -> str:
    """Write the annotations of a COCO file in another format.

    Args:
        source: COCO JSON file.
        kind: Name of the format, a key of `writers()`.
        output: Folder to create, or file for `open_images`, `cvat` and `via`.
        images: Folder of the images, for the image paths in files of LabelMe and VIA; if it is
            None, these name images as if they were in the folder of the file.

    Returns:
        A line with the numbers of written and skipped objects.

    Raises:
        UserError: The file is missing or malformed, two images would have the same label file, or
            `output` exists or cannot be written; in these cases, nothing is left at `output`.
    """
    output = Path(output)
    if output.exists():
        raise UserError(f"{output} exists; give a new --output, or remove it")
    classes = coco_classes(source)
    records, _ = read_coco(source, "")
    for record in records:
        inside(".", record["file_name"], str(source))
    objects = [a for record in records for a in record["annotations"]]
    with_keypoints = sum(count_keypoints(a.get("keypoints", ()))[1] > 0 for a in objects)
    dropped = {} if kind == "coco" else {"skipped_sets_of_keypoints": with_keypoints}
    lost = _cut_at_edges(records)
    counts = {**write_new(kind, records, classes, output, images), **lost, **dropped}
    return f"{output}: " + ", ".join(
        f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n or name == "images"
    )


def write_new(
    kind: str,
    records: Sequence[dict],
    classes: Sequence[str],
    output: Path,
    images: str | Path | None,
) -> Mapping[str, int]:
    """Write annotations to a new file or folder, which appears only when it is complete.

    Args:
        kind: Name of the format, a key of `writers()`.
        records: Dataset dicts.
        classes: Class names by `category_id`.
        output: File or folder to create.
        images: Folder of the images; None as in `convert_from_coco`.

    Returns:
        Counts by their labels.

    Raises:
        UserError: The annotations do not fit the format, cannot be written, or the output exists.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            made = Path(folder) / "made"
            counts = writers()[kind](records, classes, made, images)
            if made.is_file():
                output.open("x").close()  # fails if the file exists; os.replace overwrites it
            os.replace(made, output)  # of folders, it replaces only empty ones
    except OSError as e:
        raise UserError(
            f"cannot write {output}: {e.strerror or e}; free space, or choose another --output"
        ) from e
    return counts


def _cut_at_edges(records: Sequence[dict]) -> dict[str, int]:
    """Clip boxes and outlines to their image, as some formats require.

    Returns:
        The number of objects that were cut, and those that were skipped, by reason.
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
