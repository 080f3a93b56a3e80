"""A COCO file to other formats.

hotcoco writes boxes as VOC and Open Images. YOLO is written here, as hotcoco 1.3 drops the
images' subfolders; so is CVAT, where it turns masks into boxes, crowds into objects, and each part
of an object into one; and so is LabelMe: supervision 0.31, which knows polygons of it and YOLO,
draws each as a mask of the image's size and takes its outline again. A circle of 64 corners comes
back as steps between whole pixels, crowds become objects, subfolders are lost, and it decodes every
image. Here a polygon stays as it is.
"""

import base64
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import yaml

from d2ext.data.formats.coco import coco_classes, read_coco, to_coco
from d2ext.data.formats.coco_objects import mask_area
from d2ext.data.formats.geometry import LeftOut, add_box, add_polygons
from d2ext.data.formats.json_io import inside
from d2ext.data.formats.rle import outlines, rings
from d2ext.data.records.columns import is_object
from d2ext.errors import UserError
from d2ext.files import write_json


def convert_from_coco(
    source: str | Path, kind: str, output: str | Path, images: str | Path | None = None
) -> str:
    """Writes the annotations of a COCO file in another format.

    Args:
        source: the COCO JSON.
        kind: one of `WRITERS`.
        output: the folder to make, or for `open_images` and `cvat` the file.
        images: folder of the images, which LabelMe's files then name; else they name the image as
            if it lay beside them.

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
            counts = WRITERS[kind](records, classes, made, images) | lost
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


def _hotcoco(records: Sequence[dict], classes: Sequence[str]):
    import hotcoco

    content = to_coco(records, classes)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(not is_object(annotation))
        annotation["is_group_of"] = bool(annotation["iscrowd"])
    return hotcoco.COCO(content)


def _by_hotcoco(method: str) -> Callable[..., dict[str, int]]:
    def write(
        records: Sequence[dict], classes: Sequence[str], made: Path, images: str | Path | None
    ) -> dict[str, int]:
        try:
            counts = getattr(_hotcoco(records, classes), method)(str(made))
        except ValueError as e:
            raise UserError(f"not possible in this format: {e}") from e
        bare = len(records) - counts["images"]
        lost = {"skipped_images_without_a_box": bare, **_skipped_masks(records)}
        return counts | lost

    return write


def _to_yolo(
    records: Sequence[dict],
    classes: Sequence[str],
    made: Path,
    images: str | Path | None,
    polygons: bool,
) -> dict[str, int]:
    """Label files in the folders of the images, and data.yaml; of outlines, or of boxes."""
    counts = {"images": 0, "annotations": 0, "skipped_crowd": 0, "skipped_no_mask": 0}
    for record, file in _label_files(records, made, ".txt"):
        counts["images"] += 1
        lines = []
        for a in record["annotations"]:
            if not is_object(a):
                counts["skipped_crowd"] += 1
                continue
            x0, y0, x1, y1 = a["bbox"]
            numbers = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
            if polygons and not (numbers := _joined(_outlines(_masks(a)))):
                counts["skipped_no_mask"] += 1
                continue
            sides = (record["width"], record["height"])
            values = (f"{c / sides[i % 2]:.6f}" for i, c in enumerate(numbers))
            lines.append(f"{a['category_id']} {' '.join(values)}\n")
        counts["annotations"] += len(lines)
        file.write_text("".join(lines))
    content = {"nc": len(classes), "names": list(classes)}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    (made / "data.yaml").write_text(text, encoding="utf-8")
    return counts if polygons else counts | _skipped_masks(records)


def _skipped_masks(records: Sequence[dict]) -> dict[str, int]:
    """Count the masks of objects, for formats that hold boxes alone."""
    objects = (a for record in records for a in record["annotations"] if is_object(a))
    return {"skipped_masks_(boxes_only)": sum(bool(a.get("segmentation")) for a in objects)}


def _masks(annotation: dict) -> list[list[float]] | dict:
    """Return the polygons or the RLE of an object; an empty list for a mask without a pixel."""
    segmentation = annotation.get("segmentation") or []
    is_empty = isinstance(segmentation, dict) and not mask_area(segmentation, 0, 0)
    return [] if is_empty else segmentation


def _outlines(masks: list[list[float]] | dict) -> list[list[float]]:
    """Return the outlines of parts and holes; parts that overlap are united."""
    if isinstance(masks, dict):
        return outlines(masks)
    if len(masks) <= 1:
        return masks
    import shapely

    corners = ([*zip(p[::2], p[1::2], strict=True)] for p in masks)
    return rings(shapely.union_all([shapely.make_valid(shapely.Polygon(c)) for c in corners]))


def _joined(polygons: list[list[float]]) -> list[float]:
    """Join parts and holes to one outline, each round from its first corner.

    Lines without area lead from one to the next and back.
    """
    if len(polygons) <= 1:
        return polygons[0] if polygons else []
    there = [c for p in polygons for c in (*p, *p[:2])]
    back = [c for p in polygons[-2:0:-1] for c in p[:2]]
    return there + back


def _to_cvat(
    records: Sequence[dict], classes: Sequence[str], made: Path, images: str | Path | None
) -> dict[str, int]:
    """CVAT for images 1.1; the parts of an object are a group."""
    counts = {"images": 0, "annotations": 0, "skipped_crowd": 0}
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(
        ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels"
    )
    for name in classes:
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    for record in records:
        size = {"width": str(record["width"]), "height": str(record["height"])}
        attributes = {"id": str(counts["images"]), "name": record["file_name"], **size}
        image = ElementTree.SubElement(root, "image", attributes)
        counts["images"] += 1
        for number, a in enumerate(record["annotations"], start=1):
            if not is_object(a):
                counts["skipped_crowd"] += 1
                continue
            counts["annotations"] += 1
            shapes = _cvat_shapes(a)
            group = {"group_id": str(number)} if len(shapes) > 1 else {}
            for tag, values in shapes:
                common = {"label": classes[a["category_id"]], "occluded": "0", **group}
                ElementTree.SubElement(image, tag, common | values)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(made, "utf-8", xml_declaration=True)
    return counts


def _cvat_shapes(annotation: dict) -> list[tuple[str, dict[str, str]]]:
    """Return an annotation as elements of CVAT: each one's tag, and the attributes of its own."""
    masks = _masks(annotation)
    if not masks:
        corners = map("{:.3f}".format, annotation["bbox"])
        return [("box", dict(zip(("xtl", "ytl", "xbr", "ybr"), corners, strict=True)))]
    if isinstance(masks, list):
        corners = (map("{:.3f},{:.3f}".format, p[::2], p[1::2]) for p in masks)
        return [("polygon", {"points": ";".join(points)}) for points in corners]
    (left, top, width, height), pixels = _mask_pixels(masks)
    # The lengths of runs of background and object in turn, row by row.
    runs = [len(list(run)) for _, run in groupby(pixels.ravel().tolist())]
    if pixels[0, 0]:
        runs.insert(0, 0)
    box = {"left": left, "top": top, "width": width, "height": height}
    values = {"rle": ", ".join(map(str, runs))} | {name: str(side) for name, side in box.items()}
    return [("mask", values)]


def _mask_pixels(rle: dict):
    """Return the box of a mask (left, top, width, height), and its pixels as a uint8 array."""
    from pycocotools import mask

    x, y, width, height = map(int, mask.toBbox(rle))
    return (x, y, width, height), mask.decode(rle)[y : y + height, x : x + width]


def _to_labelme(
    records: Sequence[dict], classes: Sequence[str], made: Path, images: str | Path | None
) -> dict[str, int]:
    """A JSON an image, in the folders of the images; objects without a mask are rectangles."""
    counts = {"images": 0, "annotations": 0, "skipped_crowd": 0}
    for record, file in _label_files(records, made, ".json"):
        shapes = []
        for number, a in enumerate(record["annotations"]):
            if not is_object(a):
                counts["skipped_crowd"] += 1
                continue
            counts["annotations"] += 1
            for shape in _shapes(a, number):
                shapes.append({"label": classes[a["category_id"]], **shape, "flags": {}})
        counts["images"] += 1
        name = record["file_name"]
        place = file.parent.relative_to(made)
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": os.path.basename(name)
            if images is None
            else os.path.relpath(os.path.join(images, name), made.parent.parent / "made" / place),
            "imageData": None,
            "imageHeight": record["height"],
            "imageWidth": record["width"],
        }
        write_json(file, content)
    return counts


def _shapes(annotation: dict, number: int) -> list[dict]:
    """An annotation as shapes of LabelMe, without label."""
    masks = _masks(annotation)
    if isinstance(masks, dict):
        return [_mask(masks)]
    if not masks:
        x0, y0, x1, y1 = map(float, annotation["bbox"])
        return [{"points": [[x0, y0], [x1, y1]], "group_id": None, "shape_type": "rectangle"}]
    group = number if len(masks) > 1 else None
    return [
        {
            "points": [[x, y] for x, y in zip(p[::2], p[1::2], strict=True)],
            "group_id": group,
            "shape_type": "polygon",
        }
        for p in masks
    ]


def _mask(rle: dict) -> dict:
    """LabelMe's mask: a PNG that fills the box from the first to the last point's pixel."""
    from PIL import Image

    (x, y, width, height), part = _mask_pixels(rle)
    png = io.BytesIO()
    Image.fromarray(part * 255).convert("1").save(png, "PNG")
    return {
        "points": [[float(x), float(y)], [float(x + width - 1), float(y + height - 1)]],
        "group_id": None,
        "shape_type": "mask",
        "mask": base64.b64encode(png.getvalue()).decode("ascii"),
    }


def _label_files(records: Sequence[dict], made: Path, suffix: str):
    """Each record with its label file, whose folder exists.

    Raises:
        UserError: two images would have the same one.
    """
    made.mkdir()
    seen: dict[Path, str] = {}
    for record in records:
        file = made / Path(os.path.splitext(record["file_name"])[0] + suffix)
        if file in seen:
            raise UserError(
                f"the images {seen[file]} and {record['file_name']} would have the same label"
                " file; rename one"
            )
        seen[file] = record["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        yield record, file


WRITERS: dict[str, Callable[..., dict[str, int]]] = {
    "cvat": _to_cvat,
    "labelme": _to_labelme,
    "open_images": _by_hotcoco("to_oid"),
    "voc": _by_hotcoco("to_voc"),
    "yolo": partial(_to_yolo, polygons=False),
    "yolo_seg": partial(_to_yolo, polygons=True),
}
