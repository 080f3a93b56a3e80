"""A COCO annotation file, LVIS's included, as ground truth.

Beside d2ext.data.formats.coco, which repairs a file for training: here all objects stay, as they
are, so that the numbers are those that pycocotools gives for the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from d2ext.data.formats.common import no_collection, shown
from d2ext.data.formats.objects import MALFORMED, mask_area, read_object, short
from d2ext.errors import UserError
from d2ext.evaluation.instances import GroundTruth
from d2ext.evaluation.json_files import Box, box_column, decoded, index_column

_FAR = 1_000_000  # pixels; no image reaches as far, and the operators of masks would count to it


class _Image(msgspec.Struct, gc=False):
    id: int | str
    height: int
    width: int
    file_name: str = ""
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None


class _Category(msgspec.Struct):
    id: int
    name: str
    frequency: str | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int
    bbox: Box | None = None
    area: float | None = None
    iscrowd: int | bool | None = 0
    ignore: int | bool | None = 0
    difficult: int | bool | None = 0
    is_group_of: int | bool | None = 0


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
        truth: its objects; images and classes by rising id.
        category_ids: the ids of the classes.
    """

    path: Path
    truth: GroundTruth
    category_ids: Sequence[int]


def read_dataset(path: Path, with_masks: bool) -> Dataset:
    """Reads a COCO annotation file.

    Read are of an annotation `image_id`, `category_id`, `bbox`, `area`, `segmentation`, `iscrowd`,
    `ignore`, `difficult` and `is_group_of`; an absent area is that of the mask, else of the box, an
    absent box that of the mask.

    Args:
        path: the file.
        with_masks: False leaves out the segmentations, which saves most of the time.

    Raises:
        UserError: it is absent or malformed, repeats an id of an image or a category, or has an
            annotation of an unknown one, or without box and mask.
    """
    with no_collection():
        wanted = "COCO annotation file with images, annotations and categories"
        content = decoded(path, _Masks if with_masks else _Boxes, wanted)
        lacking = [i for i, a in enumerate(content.annotations) if a.bbox is None or a.area is None]
        if lacking and not with_masks:
            content = decoded(path, _Masks, wanted)
        return _dataset(path, content, with_masks, lacking)


def _dataset(path: Path, content: _Boxes | _Masks, with_masks: bool, lacking: list[int]) -> Dataset:
    images, annotations = content.images, content.annotations
    categories = sorted(content.categories, key=attrgetter("id"))
    if len({type(image.id) for image in images}) == 1:
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
            value = shown(getattr(annotations[i], f"{name}_id"))
            raise UserError(f"{path}: annotations[{i}] is of an unknown {name}, {value}")
    masks = [a.segmentation for a in annotations] if with_masks else [None] * len(annotations)
    for i in sorted({*lacking, *_not_plain(masks)}):
        image = images[columns["image"][i]]
        masks[i] = _checked(path, i, annotations[i], image.height, image.width)
    has_masks = with_masks and any(mask is not None for mask in masks)
    labels = {id_: c for c, id_ in enumerate(ids["category"])}
    frequencies = [category.frequency for category in categories]
    truth = GroundTruth(
        image_ids=ids["image"],
        file_names=[image.file_name for image in images],
        heights=np.array([image.height for image in images], np.int64),
        widths=np.array([image.width for image in images], np.int64),
        classes=[category.name for category in categories],
        image=columns["image"],
        label=columns["category"],
        boxes=box_column(annotations),
        areas=np.array([a.area for a in annotations], np.float64),
        crowd=np.array([bool(a.iscrowd) for a in annotations], bool),
        difficult=np.array([bool(a.ignore or a.difficult) for a in annotations], bool),
        group_of=np.array([bool(a.is_group_of) for a in annotations], bool),
        segmentations=masks if has_masks else None,
        negatives=_labels([image.neg_category_ids for image in images], labels),
        not_exhaustive=_labels([image.not_exhaustive_category_ids for image in images], labels),
        frequencies=frequencies if any(frequencies) else None,
    )
    return Dataset(path, truth, ids["category"])


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
    return list(range(len(masks))) if np.any(~(np.abs(numbers) < _FAR)) else odd


def _checked(path: Path, i: int, annotation: _Masked, height: int, width: int) -> Any:
    """The mask: polygons of three corners or more, or compressed RLE; completes area and box."""
    try:
        # Its box is not looked at: objects without an area stay.
        read, _ = read_object([0, 0, 1, 1], annotation.segmentation, height, width)
        mask = read.get("segmentation")
        if annotation.bbox is None:
            if mask is None:
                raise ValueError("it has neither bbox nor segmentation")
            annotation.bbox = _box_of(mask)
        if annotation.area is None:
            annotation.area = mask_area(mask, *annotation.bbox[2:])
    except MALFORMED as e:
        raise UserError(f"{path}: annotations[{i}] is malformed ({short(e)}); correct it") from e
    return mask


def _box_of(mask: list | dict) -> Box:
    if isinstance(mask, dict):
        from pycocotools import mask as operators

        return tuple(operators.toBbox(mask).tolist())
    xs, ys = ([v for polygon in mask for v in polygon[axis::2]] for axis in (0, 1))
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _labels(lists: list[list[int] | None], labels: dict[int, int]) -> list[list[int]] | None:
    """Category ids of each image as indices of classes; None where no image has such a list."""
    if all(ids is None for ids in lists):
        return None
    return [[labels[id_] for id_ in ids or () if id_ in labels] for ids in lists]
