"""Read COCO's JSON (https://cocodataset.org/#format-data), including LVIS's.

This module is the only parser of images and annotations (`coco.coco_classes` skips them). A policy
says which defects a file may have; each policy has its own functions and return types:

| policy | function | for | returns |
| --- | --- | --- | --- |
| repair | `read_repaired` | training | columns with masks as text, or dataset dicts |
| repair | `repaired_records` | `d2ext convert` | dataset dicts |
| strict | `read_strict` | `d2ext evaluate` | columns |
| as_is | `read_as_is` | `d2ext check` | entries and the function that decodes them |

| policy | malformed entry | missing bbox, area, iscrowd | box or polygons without an area |
| --- | --- | --- | --- |
| repair | UserError | filled in and counted | dropped and counted |
| strict | UserError | filled in | kept, so that numbers match pycocotools |
| as_is | kept, with the reason | kept | kept |

A UserError names the entry. A missing box becomes the mask's, a missing area that of the mask or
else of the box, and a missing `iscrowd` 0: `_completed` fills them in for `strict`, which keeps
boxes without an area, and `repaired_annotation` for `repair`, which drops them.
`d2ext check --fix` changes the content that `read_content` returns.

`repair` has two paths to the same result. `_repaired_columns` converts a file with ordinary entries
to columns in one pass and keeps masks as text, which takes a fraction of the time of building
dicts. On anything else it gives up, and `repaired_records` repairs the entries one by one and
reports errors.

A file is parsed once, with two exceptions: `repair` and `as_is` parse it again as plain values if
the structs do not fit, and `strict` parses it again with masks if a box or an area is missing.
"""

import codecs
import contextlib
import itertools
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from d2ext.data.formats.annotation_kinds import POLYGON, count_keypoints, mask_kind
from d2ext.data.formats.coco_objects import (
    FAR_BOX,
    FLAT_BOX,
    MALFORMED,
    MAX_COORDINATE,
    image_record,
    mask_area,
    mask_box,
    read_keypoints,
    read_object,
)
from d2ext.data.formats.json_io import (
    inside,
    nearest,
    no_collection,
    not_read,
    read_json,
    read_typed,
    short,
    truncate_repr,
)
from d2ext.data.formats.other_formats import advice
from d2ext.errors import UserError

logger = logging.getLogger(__name__)

Policy = Literal["repair", "strict", "as_is"]
PARTS = ("images", "annotations", "categories")
Box = tuple[float, float, float, float]
_Flag = Literal[0, 1] | bool | None
_NULL = msgspec.Raw(b"null")

# Entries for `strict` and `repair`: what pycocotools and other programs accept.


class Image(msgspec.Struct, gc=False):
    """An entry of `images`; the lists of category ids come from LVIS."""

    id: int | str | float
    height: int | float | None = None
    width: int | float | None = None
    file_name: str = ""
    neg_category_ids: list[int] | None = None
    not_exhaustive_category_ids: list[int] | None = None


class Category(msgspec.Struct):
    """An entry of `categories`; the frequency comes from LVIS."""

    id: int | float
    name: str
    frequency: str | None = None


class _NamedCategory(Category):
    keypoints: Any = None
    skeleton: Any = None


class Annotation(msgspec.Struct, gc=False):
    """An entry of `annotations` without its mask."""

    image_id: int | str | float
    category_id: int | float
    bbox: Box | None = None
    area: float | None = None
    iscrowd: _Flag = None
    ignore: _Flag = None
    difficult: _Flag = None
    is_group_of: _Flag = None


class _MaskedAnnotation(Annotation, gc=False):
    segmentation: list[list[float]] | dict | None = None


class _TextAnnotation(Annotation, gc=False):
    segmentation: msgspec.Raw = _NULL
    keypoints: msgspec.Raw = _NULL


class _Lists(msgspec.Struct):
    images: list[Image]
    annotations: Sequence[Annotation]
    categories: Sequence[Category]


class _MaskedLists(_Lists):
    annotations: list[_MaskedAnnotation]


class _TextLists(_Lists):
    annotations: list[_TextAnnotation]
    categories: list[_NamedCategory]


# Entries for `as_is`: those of a valid file. Other programs round JSON numbers beyond 2**53.
_Integer = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
_Side = Annotated[int, msgspec.Meta(gt=0, lt=MAX_COORDINATE)]
_Text = Annotated[str, msgspec.Meta(min_length=1)]


class Rle(msgspec.Struct, gc=False):
    """An RLE mask in COCO's format; `counts` may be compressed."""

    size: tuple[_Integer, _Integer]
    counts: str | list[_Integer]


class ValidImage(msgspec.Struct, gc=False):
    """A valid entry of `images`; only these fields are checked."""

    id: _Integer
    file_name: _Text
    width: _Side
    height: _Side


class ValidCategory(msgspec.Struct, gc=False):
    """A valid entry of `categories`; only these fields are checked."""

    id: _Integer
    name: _Text


class ValidAnnotation(msgspec.Struct, gc=False):
    """A valid entry of `annotations`; only these fields are checked."""

    id: _Integer
    image_id: _Integer
    category_id: _Integer
    bbox: Box | None = None
    area: float | None = None
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    segmentation: list[list[float]] | Rle | None = None
    attributes: Any = None
    keypoints: Any = None
    ignore: Any = None
    difficult: Any = None
    is_group_of: Any = None


VALID = {"images": ValidImage, "annotations": ValidAnnotation, "categories": ValidCategory}


class _RawLists(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


# Exceptions that msgspec raises for values of a wrong type and for text with lone surrogates.
NOT_OF_TYPE = (ValueError, OverflowError, RecursionError)
Decode = Callable[[Sequence, type], tuple[list, dict[int, str]]]


def _read_lists(json_file: str | Path, policy: Policy, with_masks: bool = True) -> Any:
    """Parse a COCO file.

    Args:
        json_file: Path of the file.
        policy: Policy that determines the type of the entries, see Returns.
        with_masks: Whether `strict` reads the segmentations, which take most of the time.

    Returns:
        An object with the lists `images`, `annotations` and `categories`, which hold structs or,
        with `as_is`, the text of each entry. With `repair` and `as_is` a dict of plain values if
        msgspec cannot read the file (NaN, UTF-16) or an entry has values of other types.

    Raises:
        UserError: The file cannot be read, is not JSON, or lacks one of the three lists; with
            `strict`, also if an entry has values of other types.
    """
    if policy == "strict":
        kind = _MaskedLists if with_masks else _Lists
        wanted = "COCO annotation file with images, annotations and categories"
        return read_typed(Path(json_file), kind, wanted, "coco")
    with contextlib.suppress(OSError, *NOT_OF_TYPE), no_collection():
        data = Path(json_file).read_bytes()
        if _is_utf8(data):  # msgspec does not validate UTF-8 in text that it does not decode
            return msgspec.json.decode(data, type=_TextLists if policy == "repair" else _RawLists)
    return read_content(json_file)


@no_collection()
def read_content(json_file: str | Path) -> dict:
    """Read a COCO file as plain values.

    Raises:
        UserError: The file cannot be read, is not JSON, or lacks one of the three lists.
    """
    content = read_json(json_file)
    require_lists(content, json_file)
    return content


def require_lists(content: object, json_file: str | Path) -> None:
    """Check that a JSON value has the three lists of a COCO file.

    Raises:
        UserError: A list is missing; the message names the format of the file, if known.
    """
    for key in PARTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            known = f"; it is {text}" if (text := advice(json_file, "coco")) else ""
            raise UserError(
                f"{json_file} is not a COCO annotation file: it has no list {key!r}{known}"
            )


def category_names(
    categories: Sequence[dict], json_file: str | Path, id_types: tuple[type, ...] = (int,)
) -> dict[Any, str]:
    """Map category ids to names, in ascending order of ids.

    Raises:
        UserError: An id is not of a type in `id_types`, a name is not text, or an id or a name is
            repeated.
    """
    try:
        names = {c["id"]: c["name"] for c in sorted(categories, key=lambda c: c["id"])}
        distinct = set(names.values())
        for id_, name in names.items():
            if type(id_) not in id_types or type(name) is not str:
                raise TypeError(f"id {id_!r} and name {name!r} are not an integer and a string")
    except (KeyError, TypeError) as e:
        reason = short(e)
        raise UserError(f"{json_file}: `categories` is malformed ({reason}); correct it") from e
    if len(distinct) < len(categories):
        raise UserError(f"{json_file}: `categories` repeats an id or a name; make them distinct")
    return names


def class_indices(
    categories: dict[int, str], classes: Sequence[str] | None, json_file: str | Path
) -> dict[int, int | None]:
    """Map each category id to its index in `classes`, or to None if it is not requested.

    Raises:
        UserError: The file lacks one of `classes`.
    """
    if classes is None:
        classes = list(categories.values())
    for name in classes:
        if name not in categories.values():
            hint = nearest(name, categories.values())
            raise UserError(f"{json_file} has no category {name!r}; {hint}")
    index = {name: i for i, name in enumerate(classes)}
    return {category_id: index.get(name) for category_id, name in categories.items()}


# Columns, for `strict` and `repair`.


@dataclass(frozen=True)
class CocoColumns:
    """A COCO file as columns of I images, C categories and A annotations.

    Attributes:
        image_ids, image_names: Id and name of each image, in ascending order of ids.
        heights, widths: `int64` (I,) in pixels; 0 if unknown, which `strict` allows.
        classes: Class names, indexed by `label`: the requested ones, or all in ascending order of
            category ids.
        category_ids: Index into `classes` by category id, in ascending order of ids.
        image, label: `int64` (A,), the row of the image and the index into `classes`. With `repair`
            annotations are sorted by image, otherwise they are in file order.
        boxes: `float64` (A, 4), x, y, width, height in pixels.
        areas: `float64` (A,) in square pixels.
        crowd, difficult, group_of: `bool` (A,); annotations marked `ignore` are difficult, too.
        masks: Polygons of at least three corners, a compressed RLE, or None for each annotation;
            from `read_repaired`, their JSON text. None if masks were not read.
        mask_kinds: `int8` (A,), kinds of `annotation_kinds`; only with `repair`.
        left_out: Number of dropped annotations by reason; `strict` keeps all.
        keypoints: JSON text of each annotation's keypoints (`read_keypoints`), or `null`; None if
            no annotation has keypoints. Only with `repair`.
        keypoint_counts: `int32` (A, 2), number of keypoints and of labeled ones (visibility above
            0); None like `keypoints`.
        negatives, not_exhaustive: Indices into `classes` for each image of LVIS; otherwise None.
        frequencies: Frequency letter of each class of LVIS; otherwise None.
    """

    image_ids: list
    image_names: list[str]
    heights: np.ndarray
    widths: np.ndarray
    classes: list[str]
    category_ids: dict[Any, int]
    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    group_of: np.ndarray
    masks: list | None
    mask_kinds: np.ndarray | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    keypoints: list[bytes] | None = None
    keypoint_counts: np.ndarray | None = None
    negatives: list[list[int]] | None = None
    not_exhaustive: list[list[int]] | None = None
    frequencies: list[str | None] | None = None


def _annotation_columns(
    annotations: Sequence[Annotation], image_ids: Sequence, category_ids: Sequence
) -> dict[str, Any]:
    """Return the columns of all annotations; missing boxes and areas are NaN.

    `image` and `category` are positions in the lists of ids, or -1 for unknown ids.
    """

    def values(name: str) -> list:
        return list(map(attrgetter(name), annotations))

    def flags(name: str) -> np.ndarray:
        return np.fromiter(map(bool, values(name)), bool, len(annotations))

    return {
        "image": index_column(values("image_id"), image_ids),
        "category": index_column(values("category_id"), category_ids),
        "boxes": box_column(values("bbox")),
        "areas": np.array(values("area"), np.float64),  # None becomes NaN
        "crowd": flags("iscrowd"),
        "difficult": flags("ignore") | flags("difficult"),
        "group_of": flags("is_group_of"),
    }


def box_column(boxes: Sequence[Box | None]) -> np.ndarray:
    """Return N boxes as float64 (N, 4); NaN where one is None."""
    if None in boxes:
        boxes = [box or (math.nan,) * 4 for box in boxes]
    numbers = itertools.chain.from_iterable(boxes)  # type: ignore[arg-type]
    return np.fromiter(numbers, np.float64, 4 * len(boxes)).reshape(-1, 4)


def index_column(values: Sequence[Hashable], ids: Sequence[Hashable]) -> np.ndarray:
    """Return the position in `ids` of each of N values, int64 (N,); -1 if not found.

    Args:
        values: Numbers or strings.
        ids: Numbers or strings; if all are integers, they must be in ascending order.
    """
    # Fast path for integers: numpy would convert strings to numbers, and huge ones overflow.
    if set(map(type, values)) == set(map(type, ids)) == {int}:
        with contextlib.suppress(OverflowError):
            known, asked = np.array(ids, np.int64), np.array(values, np.int64)
            place = np.searchsorted(known, asked)
            place[place == len(ids)] = 0
            return np.where(known[place] == asked, place, -1)
    index = {id_: i for i, id_ in enumerate(ids)}
    return np.array([index.get(value, -1) for value in values], np.int64)


# strict: read everything in the file or raise a UserError.


@no_collection()
def read_strict(path: Path, with_masks: bool) -> CocoColumns:
    """Read a COCO file with all its objects, as pycocotools does.

    A missing area is computed from the mask or else from the box, a missing box from the mask. If
    only boxes are compared, images need no size.

    Args:
        path: Path of the file.
        with_masks: Whether to read the segmentations, which take most of the time.

    Raises:
        UserError: The file is missing or malformed, repeats an image or category id, or has an
            annotation with an unknown id, with neither box nor mask, or with invalid numbers.
    """
    lists = _read_lists(path, "strict", with_masks)
    annotations = lists.annotations
    lacking = [i for i, a in enumerate(annotations) if a.bbox is None or a.area is None]
    if lacking and not with_masks:
        lists = _read_lists(path, "strict")
        annotations = lists.annotations
    images = lists.images
    if len({isinstance(image.id, str) for image in images}) == 1:
        images.sort(key=attrgetter("id"))
    image_ids = [image.id for image in images]
    if len(set(image_ids)) < len(images):
        raise UserError(f"{path}: an id of `images` appears twice; renumber them")
    categories = {c.id: c.frequency for c in sorted(lists.categories, key=attrgetter("id"))}
    names = category_names(msgspec.to_builtins(lists.categories), path, (int, float))
    labels = {id_: c for c, id_ in enumerate(names)}
    columns = _annotation_columns(annotations, image_ids, list(labels))
    for name, plural in (("image", "images"), ("category", "categories")):
        for i in np.flatnonzero(columns[name] < 0)[:1].tolist():
            value = truncate_repr(getattr(annotations[i], f"{name}_id"))
            raise UserError(
                f"{path}: annotations[{i}] refers to an unknown {name}, {value}: `{plural}` lacks"
                " this id (a string does not match a number); add it, or remove the annotation"
            )
    heights, widths = _sides(path, images)
    masks = [a.segmentation for a in annotations] if with_masks else [None] * len(annotations)
    has_masks = any(mask is not None for mask in masks)
    for k in np.flatnonzero(heights * widths == 0)[:1].tolist():
        if has_masks:
            raise UserError(
                f"{path}: the image {truncate_repr(images[k].id)} has no height and width, which"
                " masks require; add them, or give predictions without segmentation"
            )
    boxes, areas = columns["boxes"], columns["areas"]
    for i in sorted({*lacking, *_odd_masks(masks)}):
        k = columns["image"][i]
        try:
            masks[i], boxes[i], areas[i] = _completed(annotations[i], heights[k], widths[k])
        except MALFORMED as e:
            raise _malformed(f"{path}: annotations[{i}]", e) from e
    _check_numbers(path, boxes, areas)
    frequencies = list(categories.values())
    return CocoColumns(
        image_ids=image_ids,
        image_names=[image.file_name for image in images],
        heights=heights,
        widths=widths,
        classes=list(names.values()),
        category_ids=labels,
        label=columns.pop("category"),
        masks=masks if has_masks else None,
        negatives=_listed([image.neg_category_ids for image in images], labels),
        not_exhaustive=_listed([image.not_exhaustive_category_ids for image in images], labels),
        frequencies=frequencies if any(frequencies) else None,
        **columns,
    )


def _sides(path: Path, images: list[Image]) -> list[np.ndarray]:
    """Return heights and widths, int64 (I,); 0 if missing."""
    sides = []
    for name in ("height", "width"):
        values = [getattr(image, name) for image in images]
        for image, value in zip(images, values, strict=True):
            if value is not None and not (0 < value < MAX_COORDINATE and value == int(value)):
                raise UserError(
                    f"{path}: the {name} {value} of the image {truncate_repr(image.id)} is not a"
                    " positive integer; correct it"
                )
        sides.append(np.array([value or 0 for value in values], np.int64))
    return sides


def _odd_masks(masks: list) -> list[int]:
    """Return the indices of masks that are not polygons of at least three corners.

    If any coordinate is too large, all indices are returned.
    """
    odd = []
    for i, mask in enumerate(masks):
        if type(mask) is dict or mask == []:
            odd.append(i)
        elif mask and (min(map(len, mask)) < 6 or any(len(p) % 2 for p in mask)):
            odd.append(i)
    polygons = itertools.chain.from_iterable(m for m in masks if type(m) is list)
    numbers = np.fromiter(itertools.chain.from_iterable(polygons), np.float64)
    return list(range(len(masks))) if np.any(~(np.abs(numbers) < MAX_COORDINATE)) else odd


def _completed(
    annotation: _MaskedAnnotation, height: np.int64, width: np.int64
) -> tuple[Any, Sequence[float], float]:
    """Return the mask (polygons of at least three corners, or compressed RLE), box and area."""
    # Pass a dummy box, because objects without an area are kept.
    read, _ = read_object([0, 0, 1, 1], annotation.segmentation, int(height), int(width))
    mask, box, area = read.get("segmentation"), annotation.bbox, annotation.area
    if box is None:
        if mask is None:
            raise ValueError("it has neither bbox nor segmentation")
        box = mask_box(mask)
    return mask, box, mask_area(mask, *box[2:]) if area is None else area


def _check_numbers(path: Path, boxes: np.ndarray, areas: np.ndarray) -> None:
    """Raise UserError for negative or non-finite boxes or areas, on which backends disagree."""
    with np.errstate(over="ignore", invalid="ignore"):
        good = np.isfinite(boxes.sum(1) + boxes[:, 2:].prod(1)) & (boxes[:, 2:] >= 0).all(1)
    good &= np.isfinite(areas) & (areas >= 0)
    for i in np.flatnonzero(~good)[:1].tolist():
        raise UserError(
            f"{path}: annotations[{i}] has the bbox {boxes[i].tolist()} and the area {areas[i]};"
            " give [x, y, width, height] and square pixels, all finite, with no negative width,"
            " height or area"
        )


def _listed(lists: list[list[int] | None], labels: dict[Any, int]) -> list[list[int]] | None:
    """Convert each image's list of category ids to indices; return None if no image has one."""
    if all(ids is None for ids in lists):
        return None
    return [[labels[id_] for id_ in ids or () if id_ in labels] for ids in lists]


# repair: keep objects that training or metrics need, and count the rest.

# Polygons stripped of digits and spaces: each has an even count of at least 6 numbers.
_POLYGONS = re.compile(rb"\[\[,(?:,,){2,}\](?:,\[,(?:,,){2,}\])*\]")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_FAR = (b",0000000", b"[0000000")  # numbers with 7 digits before the point, digits zeroed
_CHUNK = 10_000  # texts per batch
_EXACT = 2.0**52  # floats below it represent the integers of the file exactly


class _Odd(Exception):
    """Raised for a file that is not ordinary, which `repaired_records` has to read."""


@no_collection()
def read_repaired(
    json_file: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> tuple[CocoColumns | list[dict], dict[str, Any]]:
    """Read a COCO file for training; arguments and errors are those of `coco.read_coco`.

    Returns:
        Columns, or dataset dicts if the file is not ordinary, and a dict of JSON values:
        `classes`, the names by `category_id`; `category_ids`, a list of [id in the file, index
        into classes]; and `left_out`, `keypoints` and `skeleton` as in `coco.read_coco`.
    """
    lists = _read_lists(json_file, "repair")
    if not isinstance(lists, dict):
        try:
            columns = _repaired_columns(lists, json_file, image_root, classes)
        except (_Odd, RecursionError, UserError, *MALFORMED):
            lists = read_content(json_file)
        else:
            info: dict[str, Any] = {"left_out": columns.left_out}
            info |= _keypoint_names(msgspec.to_builtins(lists.categories), classes, json_file)
            ids = [list(pair) for pair in columns.category_ids.items()]
            return columns, info | {"classes": columns.classes, "category_ids": ids}
    info = {}
    records, ids = repaired_records(lists, json_file, image_root, classes, info)
    names = category_names(lists["categories"], json_file).values() if classes is None else classes
    info |= {"classes": list(names), "category_ids": [list(pair) for pair in ids.items()]}
    return records, info


def _repaired_columns(
    lists: _TextLists,
    json_file: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None,
) -> CocoColumns:
    """Return the annotations that `repaired_records` keeps, sorted by image.

    Raises:
        _Odd, RecursionError, UserError, *MALFORMED: An entry may need repair or a closer look.
    """
    categories = category_names(msgspec.to_builtins(lists.categories), json_file)
    labels = class_indices(categories, classes, json_file)
    images = sorted(lists.images, key=attrgetter("id"))
    image_ids = [image.id for image in images]
    sizes = [(image.height, image.width) for image in images]
    _require({type(n) for n in itertools.chain(image_ids, *sizes)} <= {int})
    sizes = np.array(sizes, np.int64).reshape(-1, 2)
    _require(len(set(image_ids)) == len(images))
    _require(np.all((sizes > 0) & (sizes < MAX_COORDINATE)))
    names = _paths(image_root, [image.file_name for image in images])

    entries = lists.annotations
    columns = _annotation_columns(entries, image_ids, list(labels))
    image, category, boxes, areas = (columns[n] for n in ("image", "category", "boxes", "areas"))
    _require(np.all(image >= 0) and np.all(category >= 0))
    _require(not np.isnan(boxes).any() and not np.any(np.abs(areas) >= _EXACT))
    of_category = [-1 if label is None else label for label in labels.values()]
    label = np.array(of_category or [-1], np.int64)[category]
    wanted = label >= 0
    crowds = list(map(attrgetter("iscrowd"), entries))
    lacks_crowd = np.zeros(len(entries), bool)
    if None in crowds:
        lacks_crowd[:] = [crowd is None for crowd in crowds]

    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    near = np.all(np.abs(corners) < MAX_COORDINATE, axis=1)
    solid = near & np.all(corners[:, 2:] > corners[:, :2], axis=1)
    left_out: Counter = Counter()
    left_out[FLAT_BOX] = int(np.sum(wanted & near & ~solid))
    left_out[FAR_BOX] = int(np.sum(wanted & ~near))
    repaired: Counter = Counter()
    valid = wanted & solid
    texts: list[bytes] = [entry.segmentation for entry in entries]
    kinds = np.full(len(entries), POLYGON, np.int8)
    slow = np.isnan(areas)
    slow[_not_polygons(texts)] = True
    slow &= valid
    for i in np.flatnonzero(slow).tolist():
        annotation = {"bbox": entries[i].bbox, "segmentation": msgspec.json.decode(texts[i])}
        annotation |= {"iscrowd": crowds[i], "area": entries[i].area}
        height, width = sizes[image[i]].tolist()
        read, problem = repaired_annotation(annotation, height, width, repaired)
        if problem:
            left_out[problem] += 1
            valid[i] = False
            continue
        areas[i] = read["area"]
        kinds[i] = mask_kind(read)
        texts[i] = json.dumps(read.get("segmentation")).encode()
    repaired["without iscrowd (0)"] += int(np.sum(lacks_crowd & valid & ~slow))
    with_keypoints = [i for i, entry in enumerate(entries) if entry.keypoints is not _NULL]
    keypoints: list[bytes] = [_NULL] * len(entries) if with_keypoints else []
    keypoint_counts = np.zeros((len(keypoints), 2), np.int32)
    for i in with_keypoints:
        value = msgspec.json.decode(entries[i].keypoints) if valid[i] else None
        if points := _keypoints(value, repaired):
            keypoints[i] = msgspec.json.encode(points)
            keypoint_counts[i] = count_keypoints(points)
    _log_repairs(json_file, +left_out, +repaired)
    order = np.argsort(image, kind="stable")
    order = order[valid[order]]
    del columns["category"]
    return CocoColumns(
        image_ids=image_ids,
        image_names=names,
        heights=sizes[:, 0],
        widths=sizes[:, 1],
        classes=list(categories.values() if classes is None else classes),
        category_ids={id_: i for id_, i in labels.items() if i is not None},
        label=label[order],
        masks=[texts[i] for i in order.tolist()],
        mask_kinds=kinds[order],
        left_out=not_read(+left_out, int(np.sum(~wanted))),
        keypoints=[keypoints[i] for i in order.tolist()] if keypoint_counts.any() else None,
        keypoint_counts=keypoint_counts[order] if keypoint_counts.any() else None,
        **{name: column[order] for name, column in columns.items()},
    )


def _require(ordinary: Any) -> None:
    if not ordinary:
        raise _Odd


def _paths(image_root: str | Path, names: list[str]) -> list[str]:
    """Return the image paths; names that could lead out of the folder go through `inside`."""
    prefix = os.path.join(image_root, "")
    return [
        inside(image_root, name, "images")
        if "/" in name or "\0" in name or name in ("", ".", "..")
        else prefix + name
        for name in names
    ]


def _not_polygons(texts: list) -> list[int]:
    """Return the indices of texts that are not valid polygons of numbers below MAX_COORDINATE."""
    places: list[int] = []
    known: dict[bytes, bool] = {}
    for first in range(0, len(texts), _CHUNK):
        chunk = texts[first : first + _CHUNK]
        zeros = b"\0".join(chunk).translate(_DIGITS, b"- \t\r\n")
        far = _reaches_far(zeros)
        shapes = zeros.translate(None, b"0.").split(b"\0")
        _require(len(shapes) == len(chunk))
        for row, shape in enumerate(shapes, start=first):
            plain = known.get(shape)
            if plain is None:
                plain = known[shape] = _POLYGONS.fullmatch(shape) is not None
            if plain and far:
                zeros = bytes(texts[row]).translate(_DIGITS, b"- \t\r\n")
                plain = not _reaches_far(zeros)
            if not plain:
                places.append(row)
    return places


def _reaches_far(zeros: bytes) -> bool:
    # Search from the right, because the first character of a mark is rarer than its zeros.
    return any(zeros.rfind(mark) >= 0 for mark in _FAR)


def repaired_records(
    content: dict,
    json_file: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None = None,
    info: dict | None = None,
) -> tuple[list[dict], dict[int, int]]:
    """Convert the content of a COCO file to dataset dicts, like `coco.read_coco`."""
    names = category_names(content["categories"], json_file)
    category_ids = class_indices(names, classes, json_file)
    records = {}
    for i, image in enumerate(content["images"]):
        where = f"{json_file}: images[{i}]"
        try:
            image_id, size = image["id"], (image["height"], image["width"])
            record = image_record(image_root, image["file_name"], image_id, size, where)
        except MALFORMED as e:
            raise _malformed(where, e) from e
        if image_id in records:
            raise UserError(f"{json_file}: the image id {image_id} appears twice; renumber them")
        records[image_id] = record

    left_out: Counter = Counter()
    repaired: Counter = Counter()
    others = 0
    for i, annotation in enumerate(content["annotations"]):
        where = f"{json_file}: annotations[{i}]"
        try:
            image_id, category = annotation["image_id"], annotation["category_id"]
            if image_id not in records:
                raise UserError(
                    f"{where} refers to the image {short(image_id)}, which `images` lacks"
                )
            if category not in category_ids:
                raise UserError(
                    f"{where} refers to the category {short(category)}, which `categories` lacks"
                )
            if category_ids[category] is None:
                others += 1
                continue
            record = records[image_id]
            size = record["height"], record["width"]
            read, problem = repaired_annotation(annotation, *size, repaired)
        except MALFORMED as e:
            raise _malformed(where, e) from e
        if problem:
            left_out[problem] += 1
        else:
            read["category_id"] = category_ids[category]
            record["annotations"].append(read)
    _log_repairs(json_file, left_out, repaired)
    if info is not None:
        info["left_out"] = not_read(left_out, others)
        info |= _keypoint_names(content["categories"], classes, json_file)
    indices = {id_: index for id_, index in category_ids.items() if index is not None}
    return [records[image_id] for image_id in sorted(records)], indices


def repaired_annotation(
    annotation: dict, height: int, width: int, repaired: Counter
) -> tuple[dict, str]:
    """Return an annotation for Detectron2 without its category, or the reason to drop it.

    Args:
        annotation: Annotation as in the file.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        repaired: Counts the values filled in.

    Raises:
        MALFORMED: A value does not conform to COCO's format.
    """
    box = annotation.get("bbox") or None
    if box is not None:
        x, y, w, h = box
        box = [x, y, x + w, y + h]
    read, problem = read_object(box, annotation.get("segmentation"), height, width)
    if problem:
        return {}, problem
    if box is None:
        repaired["without bbox (the mask's)"] += 1
    crowd, area = annotation.get("iscrowd"), annotation.get("area")
    if crowd is None:
        crowd = 0
        repaired["without iscrowd (0)"] += 1
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd is {crowd!r}")
    if area is None:
        x0, y0, x1, y1 = read["bbox"]
        area = mask_area(read.get("segmentation"), x1 - x0, y1 - y0)
        repaired["without area (the mask's, else the box's)"] += 1
    if not math.isfinite(area):
        raise ValueError(f"the area is {area}")
    # Detectron2 ignores the area, but APs, APm and APl are defined by it.
    read |= {"iscrowd": int(crowd), "area": area}
    if _flag(annotation, "ignore") | _flag(annotation, "difficult"):
        read["difficult"] = 1
    if _flag(annotation, "is_group_of"):
        read["is_group_of"] = 1
    if points := _keypoints(annotation.get("keypoints"), repaired):
        read["keypoints"] = points
    return read, ""


def _keypoints(value: Any, repaired: Counter) -> list[float] | None:
    """Return an annotation's keypoints; count malformed ones, which only some models need."""
    try:
        return read_keypoints(value)
    except MALFORMED:
        repaired["with malformed keypoints (ignored)"] += 1
        return None


def _keypoint_names(
    categories: Sequence[dict], classes: Sequence[str] | None, json_file: str | Path
) -> dict[str, list]:
    """Return `keypoints` and `skeleton` of the requested categories, as in `coco.read_coco`."""
    given = [c for c in categories if classes is None or c["name"] in classes]
    named = [c for c in given if c.get("keypoints")]
    if not named:
        return {"keypoints": [], "skeleton": []}
    names, skeleton = named[0]["keypoints"], named[0].get("skeleton") or []
    try:
        if other := next((c for c in named if c["keypoints"] != names), None):
            raise ValueError(f"those of {other['name']!r} differ")
        if not isinstance(names, list) or len(set(names)) < len(names) or not all(names):
            raise ValueError("they are not a list of distinct names")
        if not {i for pair in skeleton for i in pair} <= set(range(1, len(names) + 1)):
            raise ValueError(f"`skeleton` has other numbers than 1 to {len(names)}")
        names, skeleton = list(map(str, names)), [[i, j] for i, j in skeleton]
    except MALFORMED as e:
        where = f"{json_file}: the keypoint names of the category {named[0]['name']!r}"
        logger.warning("%s are ignored: %s", where, short(e))
        return {"keypoints": [], "skeleton": []}
    return {"keypoints": names, "skeleton": skeleton}


def _flag(annotation: dict, name: str) -> bool:
    value = annotation.get(name)
    if value not in (0, 1, None):
        raise ValueError(f"{name} is {value!r}")
    return bool(value)


def _log_repairs(json_file: str | Path, left_out: Counter, repaired: Counter) -> None:
    """Log how many annotations were dropped and repaired, by reason."""
    for level, counter, done in (
        (logging.WARNING, left_out, "skipped"),
        (logging.INFO, repaired, "repaired"),
    ):
        if counter:
            parts = ", ".join(f"{n} {what}" for what, n in counter.items())
            logger.log(level, "%s: %d annotations %s: %s", json_file, counter.total(), done, parts)


def _malformed(where: str, e: Exception) -> UserError:
    return UserError(f"{where} is malformed ({short(e)}); correct it")


# as_is: return every entry, and the reason for each malformed one.


def read_as_is(json_file: str | Path) -> tuple[dict[str, Sequence], Decode]:
    """Parse a COCO file regardless of what its entries hold.

    Returns:
        The entries of each of `PARTS`, and a function that converts a slice of them to structs of
        `VALID`. The function returns None for each malformed entry, and the reasons by row.

    Raises:
        UserError: The file cannot be read, is not JSON, or lacks one of the three lists.
    """
    lists = _read_lists(json_file, "as_is")
    if isinstance(lists, dict):
        return {part: lists[part] for part in PARTS}, convert_entries
    return {part: getattr(lists, part) for part in PARTS}, _decode_entries


def _decode_entries(chunk: Sequence[msgspec.Raw], kind: type) -> tuple[list, dict[int, str]]:
    text = b"[" + b",".join(chunk) + b"]"
    try:
        return msgspec.json.decode(text, type=GenericAlias(list, (kind,))), {}
    except msgspec.ValidationError:
        return convert_entries(msgspec.json.decode(text), kind)


def convert_entries(chunk: Sequence, kind: type) -> tuple[list, dict[int, str]]:
    """Convert plain values to structs; return None for malformed ones, and the reasons by row."""
    try:
        return msgspec.convert(chunk, GenericAlias(list, (kind,))), {}
    except NOT_OF_TYPE:
        pass
    made: list = []
    reasons: dict[int, str] = {}
    for i, entry in enumerate(chunk):
        try:
            made.append(msgspec.convert(entry, kind))
        except NOT_OF_TYPE as e:
            made.append(None)
            reasons[i] = str(e).replace("$.", "")
    return made, reasons


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(data)
    try:
        for start in range(0, len(view), 1 << 20):
            decoder.decode(view[start : start + (1 << 20)])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
