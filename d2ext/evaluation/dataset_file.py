"""A COCO annotation file, LVIS's included, as ground truth.

Beside d2ext.data.formats.coco, which repairs a file for training: here all objects stay, as they
are, so that the numbers are those that pycocotools gives for the file. A run's are the same, unless
the file has objects that no training takes: boxes without an area and polygons that are none. Such
boxes are always missed here, and the log says how many there are; a run leaves them out.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from d2ext.data.formats.coco_objects import MALFORMED, mask_area, mask_box, read_object, short
from d2ext.data.formats.json_io import no_collection, truncate_repr
from d2ext.errors import UserError
from d2ext.evaluation.instances import GroundTruth
from d2ext.evaluation.json_files import Box, box_column, decoded, index_column

logger = logging.getLogger(__name__)

# Pixels; no image reaches as far, and the operators of masks would count to it.
_MAX_COORDINATE = 1_000_000
_Flag = Literal[0, 1] | bool | None


class _Image(msgspec.Struct, gc=False):
    id: int | str | float
    height: int | float | None = None
    width: int | float | None = None
    file_name: str = ""
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None


class _Category(msgspec.Struct):
    id: int | float
    name: str
    frequency: str | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: int | str | float
    category_id: int | float
    bbox: Box | None = None
    area: float | None = None
    iscrowd: _Flag = 0
    ignore: _Flag = 0
    difficult: _Flag = 0
    is_group_of: _Flag = 0


class _Masked(_Annotation, gc=False):
    segmentation: list[list[float]] | dict | None = None


class _Boxes(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Masks(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Masked]
    categories: list[_Category]


@dataclass(frozen=True)
class Dataset:
    """A COCO annotation file.

    Attributes:
        path: of the file.
        ground_truth: its objects; images and classes by rising id.
        category_ids: the ids of the classes.
    """

    path: Path
    ground_truth: GroundTruth
    category_ids: Sequence[int]


def read_dataset(path: Path, with_masks: bool) -> Dataset:
    """Reads a COCO annotation file.

    Read are of an annotation `image_id`, `category_id`, `bbox`, `area`, `segmentation`, `iscrowd`,
    `ignore`, `difficult` and `is_group_of`; an absent area is that of the mask, else of the box, an
    absent box that of the mask. Where boxes alone are compared, images need no size.

    Args:
        path: the file.
        with_masks: False leaves out the segmentations, which saves most of the time.

    Raises:
        UserError: it is absent or malformed, repeats an id of an image or a category, or has an
            annotation of an unknown one, without box and mask, or with numbers that are none.
    """
    with no_collection():
        wanted = "COCO annotation file with images, annotations and categories"
        content = decoded(path, _Masks if with_masks else _Boxes, wanted, "coco")
        lacking = [i for i, a in enumerate(content.annotations) if a.bbox is None or a.area is None]
        if lacking and not with_masks:
            content = decoded(path, _Masks, wanted, "coco")
        return _dataset(path, content, with_masks, lacking)


def _dataset(path: Path, content: _Boxes | _Masks, with_masks: bool, lacking: list[int]) -> Dataset:
    images, annotations = content.images, content.annotations
    categories = sorted(content.categories, key=attrgetter("id"))
    if len({isinstance(image.id, str) for image in images}) == 1:
        images.sort(key=attrgetter("id"))
    ids = {
        "image": [image.id for image in images],
        "category": [category.id for category in categories],
    }
    if len(set(ids["image"])) < len(images):
        raise UserError(f"{path}: an id of `images` appears twice; renumber them")
    if min(len(set(ids["category"])), len({c.name for c in categories})) < len(categories):
        raise UserError(f"{path}: `categories` repeats an id or a name; make them distinct")
    columns = {}
    for name, known in ids.items():
        columns[name] = index_column(annotations, f"{name}_id", known)
        for i in np.flatnonzero(columns[name] < 0)[:1].tolist():
            value = truncate_repr(getattr(annotations[i], f"{name}_id"))
            plural = {"image": "images", "category": "categories"}[name]
            raise UserError(
                f"{path}: annotations[{i}] is of an unknown {name}, {value}: `{plural}` lacks this"
                " id (a text is no number); add it, or leave the annotation out"
            )
    heights, widths = _sides(path, images)
    masks = [a.segmentation for a in annotations] if with_masks else [None] * len(annotations)
    has_masks = with_masks and any(mask is not None for mask in masks)
    for k in np.flatnonzero(heights * widths == 0)[:1].tolist():
        if has_masks:
            raise UserError(
                f"{path}: the image {truncate_repr(images[k].id)} has no height and width,"
                " which masks"
                " need; add them, or give predictions without segmentation"
            )
    for i in sorted({*lacking, *_not_plain(masks)}):
        k = columns["image"][i]
        masks[i] = _checked(path, i, annotations[i], int(heights[k]), int(widths[k]))
    boxes = box_column(annotations)
    areas = np.array([a.area for a in annotations], np.float64)
    _check_numbers(path, boxes, areas)
    labels = {id_: c for c, id_ in enumerate(ids["category"])}
    frequencies = [category.frequency for category in categories]
    ground_truth = GroundTruth(
        image_ids=ids["image"],
        file_names=[image.file_name for image in images],
        heights=heights,
        widths=widths,
        classes=[category.name for category in categories],
        image=columns["image"],
        label=columns["category"],
        boxes=boxes,
        areas=areas,
        crowd=np.array([bool(a.iscrowd) for a in annotations], bool),
        difficult=np.array([bool(a.ignore or a.difficult) for a in annotations], bool),
        group_of=np.array([bool(a.is_group_of) for a in annotations], bool),
        segmentations=masks if has_masks else None,
        negatives=_labels([image.neg_category_ids for image in images], labels),
        not_exhaustive=_labels([image.not_exhaustive_category_ids for image in images], labels),
        frequencies=frequencies if any(frequencies) else None,
    )
    return Dataset(path, ground_truth, ids["category"])


def _sides(path: Path, images: list[_Image]) -> list[np.ndarray]:
    """Heights and widths, int64 (I,); 0 where there is none."""
    sides = []
    for name in ("height", "width"):
        values = [getattr(image, name) for image in images]
        for image, value in zip(images, values, strict=True):
            if value is not None and not (0 < value < _MAX_COORDINATE and value == int(value)):
                raise UserError(
                    f"{path}: the {name} {value} of the image {truncate_repr(image.id)} is no"
                    " positive"
                    " integer; correct it"
                )
        sides.append(np.array([value or 0 for value in values], np.int64))
    return sides


def _check_numbers(path: Path, boxes: np.ndarray, areas: np.ndarray) -> None:
    """Refuses boxes and areas that are none, which backends take differently; counts flat boxes."""
    with np.errstate(over="ignore", invalid="ignore"):
        good = np.isfinite(boxes.sum(1) + boxes[:, 2:].prod(1)) & (boxes[:, 2:] >= 0).all(1)
    good &= np.isfinite(areas) & (areas >= 0)
    for i in np.flatnonzero(~good)[:1].tolist():
        raise UserError(
            f"{path}: annotations[{i}] has the bbox {boxes[i].tolist()} and the area {areas[i]}:"
            " give [x, y, width, height] and square pixels, finite and no width, height or area"
            " below 0"
        )
    if flat := int((boxes[:, 2:] == 0).any(1).sum()):
        logger.warning(
            "%s: %d objects have a box without an area: no detection finds them (in a run they are"
            " left out)",
            path,
            flat,
        )


def _not_plain(masks: list) -> list[int]:
    """Those that are no polygons of three corners or more; all where some reaches far."""
    odd = []
    for i, mask in enumerate(masks):
        if type(mask) is dict or mask == []:
            odd.append(i)
        elif mask and (min(map(len, mask)) < 6 or any(len(p) % 2 for p in mask)):
            odd.append(i)
    plain = chain.from_iterable(chain.from_iterable(m for m in masks if type(m) is list))
    numbers = np.fromiter(plain, np.float64)
    return list(range(len(masks))) if np.any(~(np.abs(numbers) < _MAX_COORDINATE)) else odd


def _checked(path: Path, i: int, annotation: _Masked, height: int, width: int) -> Any:
    """The mask: polygons of three corners or more, or compressed RLE; completes area and box."""
    try:
        # Its box is not looked at: objects without an area stay.
        read, _ = read_object([0, 0, 1, 1], annotation.segmentation, height, width)
        mask = read.get("segmentation")
        if annotation.bbox is None:
            if mask is None:
                raise ValueError("it has neither bbox nor segmentation")
            annotation.bbox = mask_box(mask)
        if annotation.area is None:
            annotation.area = mask_area(mask, *annotation.bbox[2:])
    except MALFORMED as e:
        raise UserError(f"{path}: annotations[{i}] is malformed ({short(e)}); correct it") from e
    return mask


def _labels(lists: list[list[int] | None], labels: dict[int, int]) -> list[list[int]] | None:
    """Category ids of each image as indices of classes; None where no image has such a list."""
    if all(ids is None for ids in lists):
        return None
    return [[labels[id_] for id_ in ids or () if id_ in labels] for ids in lists]
