"""Helpers shared by the format writers."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from d2ext.data.formats.annotation_kinds import is_object
from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.coco_objects import mask_area
from d2ext.data.formats.rle import outlines, rings
from d2ext.errors import UserError


def _hotcoco(records: Sequence[dict], classes: Sequence[str]) -> Any:
    import hotcoco

    content = to_coco(records, classes)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(not is_object(annotation))
        annotation["is_group_of"] = bool(annotation["iscrowd"])
    return hotcoco.COCO(content)


def hotcoco_writer(method: str) -> Callable[..., dict[str, int]]:
    """Return a writer for a box format that uses the given hotcoco method."""

    def write(
        records: Sequence[dict], classes: Sequence[str], made: Path, images: str | Path | None
    ) -> dict[str, int]:
        try:
            counts = getattr(_hotcoco(records, classes), method)(str(made))
        except ValueError as e:
            raise UserError(f"not possible in this format: {e}") from e
        bare = len(records) - counts["images"]
        lost = {"skipped_images_without_a_box": bare, **count_skipped_masks(records)}
        return counts | lost

    return write


def count_skipped_masks(records: Sequence[dict]) -> dict[str, int]:
    """Count the masks that a boxes-only format drops."""
    objects = (a for record in records for a in record["annotations"] if is_object(a))
    return {"skipped_masks_(boxes_only)": sum(bool(a.get("segmentation")) for a in objects)}


def have_scores(records: Sequence[dict]) -> bool:
    """Return whether any object has a score, as those of predictions do."""
    return any("score" in a for record in records for a in record["annotations"])


def masks_of(annotation: dict) -> list[list[float]] | dict:
    """Return an object's polygons or RLE, or an empty list if the mask has no pixels."""
    segmentation = annotation.get("segmentation") or []
    is_empty = isinstance(segmentation, dict) and not mask_area(segmentation, 0, 0)
    return [] if is_empty else segmentation


def one_outline(annotation: dict) -> list[float]:
    """Return an object's mask as one outline (see `joined`); empty without a mask.

    Overlapping parts are merged.
    """
    masks = masks_of(annotation)
    if isinstance(masks, dict):
        return joined(outlines(masks))
    if len(masks) > 1:
        import shapely

        corners = ([*zip(p[::2], p[1::2], strict=True)] for p in masks)
        merged = shapely.union_all([shapely.make_valid(shapely.Polygon(c)) for c in corners])
        return joined(rings(merged))
    return joined(masks)


def joined(polygons: Sequence[list[float]]) -> list[float]:
    """Join parts and holes to one outline that traces each from its first corner.

    Zero-area lines connect one part to the next, and lead back at the end.
    """
    if len(polygons) <= 1:
        return list(polygons[0]) if polygons else []
    forward = [c for p in polygons for c in (*p, *p[:2])]
    back = [c for p in polygons[-2:0:-1] for c in p[:2]]
    return forward + back


def mask_pixels(rle: dict) -> tuple[tuple[int, int, int, int], Any]:
    """Return a mask's box (left, top, width, height) and the pixels in it as a uint8 array."""
    from pycocotools import mask

    x, y, width, height = map(int, mask.toBbox(rle))
    return (x, y, width, height), mask.decode(rle)[y : y + height, x : x + width]


def label_files(records: Sequence[dict], made: Path, suffix: str) -> Iterator[tuple[dict, Path]]:
    """Yield each record with its label file, which mirrors the image's folder below `made`.

    Raises:
        UserError: Two images would share a label file.
    """
    made.mkdir()
    check_label_files(record["file_name"] for record in records)
    for record in records:
        file = made / f"{_stem(record['file_name'])}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        yield record, file


def check_label_files(names: Iterable[str]) -> None:
    """Raise UserError if two images, given by name, would share a label file."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(_stem(name), name)) is not name:
            raise UserError(
                f"the images {other} and {name} would share a label file; rename one of them"
            )


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
