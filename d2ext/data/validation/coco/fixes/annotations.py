"""Fix annotations."""

from itertools import chain
from typing import Any

import msgspec
import numpy as np

from d2ext.data.formats.coco_file import NOT_OF_TYPE, Rle
from d2ext.data.formats.coco_objects import MAX_COORDINATE
from d2ext.data.formats.geometry import LeftOut, add_polygons, new_record
from d2ext.data.formats.rle import compressed
from d2ext.data.validation.coco import json_numbers, locations
from d2ext.data.validation.coco.finding import Finding
from d2ext.data.validation.coco.fixes.changes import MutableCoco, as_json
from d2ext.data.validation.coco.outlines import outlines


def _annotation_malformed(m: MutableCoco, f: Finding) -> None:
    for row in f.rows:
        entry = m.get("annotations", row)
        if not isinstance(entry, dict):
            m.remove("annotations", row, "it is not an object")
            continue
        made = dict(entry)
        for key, part in (("image_id", "images"), ("category_id", "categories")):
            made[key] = m.reference(part, entry.get(key))
            if made[key] is None:
                why = f"{key} {as_json(entry.get(key))} is not an integer"
                m.remove_if_allowed("annotations", row, why)
                break
        else:
            made["id"] = json_numbers.integer(entry.get("id"))
            if made["id"] is None:
                made["id"] = m.fresh_id("annotations")
            made |= {
                "bbox": _box(entry.get("bbox")),
                "area": json_numbers.number(entry.get("area")),
                "iscrowd": int(json_numbers.number(_plain(entry.get("iscrowd"))) == 1),
                "segmentation": _segmentation(entry.get("segmentation")),
            }
            optional = ("bbox", "area", "segmentation")
            if made["bbox"] is made["segmentation"] is None and _is_shape(entry):
                m.remove_if_allowed("annotations", row, "its box or mask has an unknown form")
                continue
            made = {k: v for k, v in made.items() if v is not None or k not in optional}
            changed = [k for k in {**entry, **made} if _differ(entry.get(k), made.get(k))]
            what = ", ".join(
                f"{k} {as_json(entry.get(k))[:60]} -> {as_json(made.get(k))[:60]}" for k in changed
            )
            m.replace("annotations", row, made, what)


def _is_shape(entry: dict) -> bool:
    """Return whether an unreadable box or mask may have a meaning, such as [x, y, w, h, angle]."""
    box, mask = entry.get("bbox"), entry.get("segmentation")
    is_other_type = any(isinstance(shape, dict | str) and shape for shape in (box, mask))
    return is_other_type or (isinstance(box, list) and len(json_numbers.numbers(box) or ()) > 4)


def _differ(a: Any, b: Any) -> bool:
    return type(a) is not type(b) or a != b


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _box(value: Any) -> list[float] | None:
    box = json_numbers.numbers(value)
    return box if box and len(box) == 4 else None


def _segmentation(value: Any) -> Any:
    """Return polygons with numeric values, or an RLE; None for anything else."""
    if isinstance(value, list):
        if flat := json_numbers.numbers(value):  # one polygon without the enclosing list
            return [flat]
        polygons = [made for p in value if (made := json_numbers.numbers(p) or _flat(p))]
        return polygons or None
    if isinstance(value, dict) and isinstance(value.get("counts"), list):
        value = {**value, "counts": [json_numbers.integer(run) for run in value["counts"]]}
    if isinstance(value, dict) and isinstance(value.get("size"), list):
        value = {**value, "size": [json_numbers.integer(side) for side in value["size"]]}
    try:
        msgspec.convert(value, Rle)
    except NOT_OF_TYPE:
        return None
    return value


def _flat(points: Any) -> list[float] | None:
    """Flatten [[x0, y0], [x1, y1], ...] to [x0, y0, x1, y1, ...]; return None for other values."""
    if not isinstance(points, list):
        return None
    pairs = [pair for pair in map(json_numbers.numbers, points) if pair and len(pair) == 2]
    if len(pairs) < 3 or len(pairs) < len(points):
        return None
    return list(chain.from_iterable(pairs))


def _new_id(m: MutableCoco, f: Finding) -> None:
    for row in f.rows:
        if entry := m.get("annotations", row):
            new = m.fresh_id("annotations")
            m.set("annotations", row, f"id {entry['id']} -> {new}", id=new)


def _annotation_duplicate(m: MutableCoco, f: Finding) -> None:
    wanted = set(m.columns.image[f.rows].tolist())
    suspects = set(f.rows)
    seen: dict[int, list[dict]] = {}
    for row in np.flatnonzero(np.isin(m.columns.image, list(wanted))).tolist():
        entry = m.get("annotations", row)
        if not entry or not m.columns.good["annotations"][row]:
            continue
        shape = {k: v for k, v in entry.items() if k != "id"}
        others = seen.setdefault(entry["image_id"], [])
        if row in suspects and shape in others:
            m.remove("annotations", row, "it repeats another")
        else:
            others.append(shape)


def _unknown_image(m: MutableCoco, f: Finding) -> None:
    for row in f.rows:
        if entry := m.get("annotations", row):
            m.remove_if_allowed("annotations", row, f"there is no image {entry['image_id']}")


def _unknown_category(m: MutableCoco, f: Finding) -> None:
    taken = set(m.columns.category_name)
    texts = {number: text for text, number in m.of_text["categories"].items()}
    for number in dict.fromkeys(m.columns.category[f.rows].tolist()):
        name = texts.get(number, f"category_{number}")
        while name in taken:
            name += "_"
        m.add("categories", {"id": number, "name": name}, f"{name}: rename it")


def _box_from_mask(m: MutableCoco, f: Finding) -> None:
    c = m.columns
    width, height = _image_sizes(m).tolist()
    for row in f.rows:
        if m.get("annotations", row) is None or width[row] < 0:
            continue
        x, y, w, h = c.masks.extent[row].tolist()
        right, low = min(x + w, width[row]), min(y + h, height[row])
        x, y = max(x, 0.0), max(y, 0.0)
        box = [x, y, right - x, low - y]
        if cut := _cut(m, row, width[row], height[row]):
            m.set("annotations", row, f"bbox -> {cut['bbox']}, of its clipped mask", **cut)
            continue
        if c.masks.rle[row] and not np.isnan(c.masks.area[row]):
            box = _rle_box(m.get("annotations", row)["segmentation"])
        entry = m.get("annotations", row)
        if np.isfinite(box).all() and box[2] > 0 and box[3] > 0:
            m.set("annotations", row, f"bbox -> {box}, of its mask", bbox=box)
        elif f.code == "box_outside" or entry.get("segmentation"):
            m.remove_if_allowed("annotations", row, "neither its box nor a mask is in the image")
        elif not entry.get("bbox") or 0 in entry["bbox"][2:]:
            m.remove("annotations", row, "it has neither a box of positive size nor a mask")


def _box_over_edge(m: MutableCoco, f: Finding) -> None:
    width, height = _image_sizes(m).tolist()
    for row in f.rows:
        if not (entry := m.get("annotations", row)):
            continue
        if cut := _cut(m, row, width[row], height[row]):
            what = f"bbox {entry['bbox']} -> {cut['bbox']}, of its clipped mask"
            m.set("annotations", row, what, **cut)
            continue
        x, y, w, h = entry["bbox"]
        left, top = max(x, 0), max(y, 0)
        box = [left, top, min(x + w, width[row]) - left, min(y + h, height[row]) - top]
        if box[2] > 0 and box[3] > 0:
            m.set("annotations", row, f"bbox {entry['bbox']} -> {box}", bbox=box)
        else:  # the size is lost to rounding when it is added to a huge x or y
            m.remove_if_allowed("annotations", row, f"its box {entry['bbox']} is not in the image")


def _cut(m: MutableCoco, row: int, width: int, height: int) -> dict[str, Any] | None:
    """Clip polygons that extend past the image's edge, as the readers do.

    Returns:
        The new `bbox`, `segmentation` and `area`; None if the polygons do not extend past the edge,
        or nothing is left.
    """
    extent = m.columns.masks.extent[row]
    low, high = extent[:2], extent[:2] + extent[2:]
    if (
        not ((low < 0) | (high > (width, height))).any()
        or not (np.abs([low, high]) < MAX_COORDINATE).all()
    ):
        return None
    polygons = [p for p in m.get("annotations", row)["segmentation"] if len(p) >= 6]
    record = new_record(m.where("annotations", row), 0, (width, height))
    add_polygons(record, 0, [p for p in polygons if len(p) % 2 == 0], LeftOut())
    if not record["annotations"]:
        return None
    made = record["annotations"][0]
    x0, y0, x1, y1 = made["bbox"]
    box = [x0, y0, x1 - x0, y1 - y0]
    return {"bbox": box, "segmentation": made["segmentation"], "area": made["area"]}


def _image_sizes(m: MutableCoco) -> np.ndarray:
    """Return (2, A) width and height of each annotation's image; -1 without an image."""
    rows = locations.image_rows(m.columns)
    return np.append(m.columns.image_size, [[-1, -1]], 0)[rows].T


def _polygon_degenerate(m: MutableCoco, f: Finding) -> None:
    for row in f.rows:
        if not (entry := m.get("annotations", row)):
            continue
        polygons = entry["segmentation"]
        kept = [p for p in polygons if not outlines([[p]]).degenerate[0]]
        if not kept and (flat := _flat(polygons)) and not outlines([[flat]]).degenerate[0]:
            m.set("annotations", row, "its points were joined into a polygon", segmentation=[flat])
        elif kept:
            n = len(polygons) - len(kept)
            m.set("annotations", row, f"{n} polygons removed", segmentation=kept)


def _rle_invalid(m: MutableCoco, f: Finding) -> None:
    for row in f.rows:
        _drop_mask(m, row, "its RLE is invalid")


def _rle_size(m: MutableCoco, f: Finding) -> None:
    for row in f.rows if m.drop else ():
        _drop_mask(m, row, "its RLE does not fit the image")


def _drop_mask(m: MutableCoco, row: int, why: str) -> None:
    """Remove a mask, or the whole annotation if it has no box."""
    if not (entry := m.get("annotations", row)):
        return
    if entry.get("bbox") and min(entry["bbox"][2:]) > 0:
        m.set("annotations", row, f"mask removed: {why}", segmentation=None, area=None)
    else:
        m.remove("annotations", row, f"{why}, and it has no box")


def _area(m: MutableCoco, f: Finding) -> None:
    c = m.columns
    for row in f.rows:
        entry = m.get("annotations", row)
        if not entry or entry.get("area") not in (None, c.area[row]):
            continue  # another fix of this round has set it already
        area = float(c.masks.area[row])
        if not np.isfinite(area):
            area = float(c.box[row, 2] * c.box[row, 3])
        if np.isfinite(area) and area >= 0 and area != entry.get("area"):
            was = as_json(entry.get("area"))
            m.set("annotations", row, f"area {was} -> {area:g}", area=area)


def _rle_box(rle: dict) -> list[float]:
    """Return x, y, width, height of a valid RLE."""
    from pycocotools import mask

    return mask.toBbox(compressed(rle)).tolist()


ENTRIES = {
    "annotation_malformed": _annotation_malformed,
    "annotation_id_zero": _new_id,
    "annotation_duplicate_id": _new_id,
    "annotation_duplicate": _annotation_duplicate,
    "unknown_image": _unknown_image,
    "unknown_category": _unknown_category,
}
SHAPES = {
    "box_none": _box_from_mask,
    "box_outside": _box_from_mask,
    "box_over_edge": _box_over_edge,
    "polygon_degenerate": _polygon_degenerate,
    "rle_invalid": _rle_invalid,
    "rle_size": _rle_size,
    "area_missing": _area,
    "area_not_of_mask": _area,
}
