"""Read and check a COCO results file (https://cocodataset.org/#format-results)."""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np
import pycocotools.mask

from d2ext.data.formats.coco_file import Box, box_column, index_column
from d2ext.data.formats.coco_objects import MALFORMED, read_object
from d2ext.data.formats.json_io import no_collection, read_typed, short, truncate_repr
from d2ext.data.formats.rle import sound_text
from d2ext.errors import UserError
from d2ext.evaluation.backends import whole_masks
from d2ext.evaluation.dataset_file import DatasetFile
from d2ext.evaluation.instances import Detections, GroundTruth, finite, keypoint_column

_OPTIONAL = ("bbox", "segmentation", "keypoints")
_PART = 2_000  # entries processed at a time: about 2 MB, which the processor's cache holds
_HEAD = 10_000  # bytes at the beginning of a file
_REACH = 0.05  # fraction of the image's side by which boxes may extend beyond the image
_Side = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class _Rle(TypedDict):
    size: tuple[_Side, _Side]
    counts: str | list[int]


class _Entry(msgspec.Struct, gc=False):
    """An entry of the file; its score may be null, as some writers convert NaN."""

    image_id: int | str | float  # 7.0 is 7, as pandas writes it
    category_id: int | float
    score: float | None
    bbox: Box | None = None
    segmentation: _Rle | None = None
    keypoints: list[float] | None = None


@dataclass(frozen=True)
class Results:
    """M entries of results files as columns; all have boxes, masks or keypoints, or several.

    Attributes:
        image_ids: M ids as in the file, numbers or strings.
        category_ids: M ids as in the file.
        scores: (M,) float64; NaN for null.
        bbox: (M, 4) float64, [x, y, width, height]; None if there are none.
        segmentation: M compressed RLEs; None if there are none.
        sizes: (M, 2) int64, height and width of the masks; None if there are none.
        areas: (M,) float64, pixels in the masks; None if there are none.
        keypoints: M lists [x, y, third number, ...]; None if there are none.
    """

    image_ids: list[int | str | float]
    category_ids: list[int | float]
    scores: np.ndarray
    bbox: np.ndarray | None = None
    segmentation: list[dict] | None = None
    sizes: np.ndarray | None = None
    areas: np.ndarray | None = None
    keypoints: list[list[float]] | None = None


NO_RESULTS = Results([], [], np.zeros(0))


def starts_with_masks_only(path: Path) -> bool:
    """Return whether the first entries of a results file seem to have masks and no keypoints."""
    if not path.is_file():  # reading from a pipe would remove what is read
        return False
    with contextlib.suppress(OSError), open(path, "rb") as f:  # read_results reports errors
        head = f.read(_HEAD)
        return b'"segmentation"' in head and b'"keypoints"' not in head
    return False


def read_results(path: Path) -> Results:
    """Return the entries of a results file.

    Raises:
        UserError: The file is absent, truncated, or not a list of such entries; an RLE is damaged.
    """
    with no_collection():
        entries = read_typed(
            path,
            list[_Entry],
            "list of COCO results: each has image_id, category_id, score, bbox as [x, y, width,"
            " height] and optionally segmentation as RLE and keypoints",
            "results",
        )
        if not entries:
            return NO_RESULTS
        fields = [name for name in _OPTIONAL if getattr(entries[0], name) is not None]
        starts = range(0, len(entries), _PART)
        parts = [_columns(path, entries[i : i + _PART], i, fields) for i in starts]
    if not fields:
        raise UserError(f"{path}: entry 0 has neither bbox, segmentation nor keypoints")
    return _joined(parts)


def _columns(path: Path, entries: list[_Entry], first: int, fields: Sequence[str]) -> Results:
    """Return the columns of some entries.

    Args:
        path: Path of the file, for messages.
        entries: Some entries of the file.
        first: Number of entries before these.
        fields: Optional fields that all entries must have.
    """
    columns = {name: list(map(attrgetter(name), entries)) for name in _Entry.__struct_fields__}
    for name in _OPTIONAL:
        if columns[name].count(None) != (0 if name in fields else len(entries)):
            i = first + columns[name].index(None) if name in fields else 0
            raise UserError(f"{path}: entry {i} has no {name}, but others do")
    boxes = masks = sizes = areas = None
    if "bbox" in fields:
        boxes = box_column(columns["bbox"])
    if "segmentation" in fields:
        masks = columns["segmentation"]
        areas = _check_masks(path, masks, first)
        sides = itertools.chain.from_iterable(map(itemgetter("size"), masks))
        sizes = np.fromiter(sides, np.int64, 2 * len(masks)).reshape(-1, 2)
    return Results(
        columns["image_id"],
        columns["category_id"],
        np.array(columns["score"], np.float64),  # None becomes NaN
        boxes,
        masks,
        sizes,
        areas,
        columns["keypoints"] if "keypoints" in fields else None,
    )


def _joined(parts: Sequence[Results]) -> Results:
    """Concatenate entries that have the same fields."""
    columns = zip(*map(attrgetter(*Results.__dataclass_fields__), parts), strict=True)
    joined: list[Any] = []
    for column in columns:
        if isinstance(column[0], np.ndarray):
            joined.append(np.concatenate(column))
        elif column[0] is None:
            joined.append(None)
        else:
            joined.append(list(itertools.chain.from_iterable(column)))
    return Results(*joined)


def _check_masks(path: Path, masks: list[dict], first: int) -> np.ndarray:
    """Check the RLEs, compress uncompressed ones in place, and return their areas."""
    counts = list(map(itemgetter("counts"), masks))
    if list in set(map(type, counts)):
        masks[:] = [_checked_mask(path, i, mask) for i, mask in enumerate(masks, first)]
        counts = list(map(itemgetter("counts"), masks))
    with contextlib.suppress(ImportError, ValueError):
        import hotcoco

        if sound_text(counts):
            return hotcoco.mask.area(masks).astype(np.float64)  # twenty times as fast
    try:
        masks[:], areas = whole_masks(masks, first)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    return areas


def _checked_mask(path: Path, i: int, mask: dict) -> dict:
    try:
        return read_object([0, 0, 1, 1], mask, *mask["size"])[0]["segmentation"]
    except MALFORMED as e:
        raise UserError(f"{path}: the RLE of entry {i} is malformed ({short(e)})") from e


def read_parts(paths: Sequence[Path]) -> Results:
    """Return the entries of several results files, which are for different images.

    Raises:
        UserError: As in `read_results`; or files have other fields, or entries for the same image.
    """
    found = [(path, read_results(path)) for path in paths]
    parts = [(path, results) for path, results in found if results is not NO_RESULTS]
    if len(parts) < 2:
        return parts[0][1] if parts else NO_RESULTS
    file_of: dict[int | str | float, Path] = {}
    for path, results in parts:
        for name in _OPTIONAL:
            if (getattr(results, name) is None) != (getattr(parts[0][1], name) is None):
                raise UserError(f"{parts[0][0]} or {path} has no {name}, but the other has")
        for image in set(results.image_ids):
            if (other := file_of.setdefault(image, path)) is not path:
                raise UserError(
                    f"{other} and {path} both have detections in image {truncate_repr(image)};"
                    " give files for different images, such as those of the folds of one split"
                )
    return _joined([results for _, results in parts])


def to_detections(path: Path, results: Results, dataset: DatasetFile) -> Detections:
    """Convert the entries to detections in the images of a dataset.

    Args:
        path: Path of the results file, for messages.
        results: Entries of the file.
        dataset: Dataset with the images.

    Raises:
        UserError: An entry has an unknown image or category, appears twice, or its mask does not
            fit its image; entries have different numbers of keypoints; or boxes are [x0, y0, x1,
            y1].
    """
    ground_truth = dataset.ground_truth
    image = _known(path, results.image_ids, "image_id", ground_truth.image_ids, dataset.path)
    label = _known(path, results.category_ids, "category_id", dataset.category_ids, dataset.path)
    if results.sizes is not None:
        _check_sizes(path, results.sizes, image, ground_truth)
    keypoints = None if results.keypoints is None else keypoint_column(results.keypoints)
    if keypoints is None and any(results.keypoints or ()):
        raise UserError(
            f"{path}: the keypoints are not x, y and a third number of the same keypoints in every"
            " entry; write all keypoints of each entry"
        )
    if results.bbox is not None:
        boxes = results.bbox
    elif results.segmentation is not None:
        boxes = pycocotools.mask.toBbox(results.segmentation)
    elif keypoints is not None:  # as in pycocotools
        start, end = keypoints[..., :2].min(1), keypoints[..., :2].max(1)
        boxes = np.hstack([start, end - start])
    else:
        boxes = np.zeros((0, 4))
    detections = Detections(
        image, label, boxes, results.scores, results.segmentation, results.areas, keypoints
    )
    if len(boxes):
        _check_boxes(path, detections, ground_truth)
    _check_distinct(path, detections)
    return finite(detections)


def _known(path: Path, values: Sequence, name: str, ids: Sequence, dataset: Path) -> np.ndarray:
    """Return the index of each entry's image or category."""
    column = index_column(values, ids)
    unknown = np.flatnonzero(column < 0)
    if not len(unknown):
        return column
    first = unknown[0]
    value = values[first]
    remedy = "give the predictions for this dataset"
    if ids and isinstance(value, str) != isinstance(ids[0], str):
        strings, numbers = ("here", "there") if isinstance(value, str) else ("there", "here")
        remedy = f"ids are strings {strings} and numbers {numbers}; write them as the dataset does"
    elif ids and name == "category_id":
        remedy = _category_remedy(values, ids) or remedy
    raise UserError(
        f"{path}: the {name} {truncate_repr(value)} of entry {first}"
        f" ({len(unknown)} of {len(values)} entries have such ids) is unknown to {dataset};"
        f" {remedy}"
    )


def _category_remedy(found: Sequence[float], ids: Sequence[int]) -> str | None:
    """Return what seems wrong with the category ids; `ids` are the dataset's, sorted."""
    gaps = ids[-1] - ids[0] >= len(ids)
    for base in (0, 1):
        if gaps and min(found) >= base and max(found) < len(ids) + base:
            pairs = ", ".join(f"{base + i} is {ids[i]}" for i in (0, len(ids) - 1))
            return (
                f"they seem to be indices, from {base}, into the dataset's {len(ids)} ids, which"
                f" have gaps; write the ids ({pairs})"
            )
    if not gaps and min(found) == ids[0] - 1:
        return f"the ids start at {min(found)}, those of the dataset at {ids[0]}; add 1"
    return None


def _check_sizes(
    path: Path, sizes: np.ndarray, image: np.ndarray, ground_truth: GroundTruth
) -> None:
    """Check that masks have the sizes of their images."""
    wanted = np.stack([ground_truth.heights, ground_truth.widths], 1)[image]
    for i in np.flatnonzero((sizes != wanted).any(1))[:1].tolist():
        raise UserError(
            f"{path}: the RLE of entry {i} has the size {sizes[i].tolist()}, its image (height,"
            f" width) {wanted[i].tolist()}; masks must be of the image's size"
        )


def _check_boxes(path: Path, detections: Detections, ground_truth: GroundTruth) -> None:
    """Check that boxes are [x, y, width, height].

    They are not if many extend beyond their images, nearly all are valid as [x0, y0, x1, y1], and
    they overlap the objects better when read that way.
    """
    boxes, start, end = detections.boxes, detections.boxes[:, :2], detections.boxes[:, 2:]
    sides = np.stack([ground_truth.widths, ground_truth.heights], 1)[detections.image]
    with np.errstate(over="ignore", invalid="ignore"):
        sticks_out = ((start + end > (1 + _REACH) * sides + 1) & (sides > 0)).any(1)
    ordered = (end >= start).all(1)
    if sticks_out.mean() >= 0.1 and ordered.mean() >= 0.95:
        other = np.hstack([start, end - start])
        if _overlap(other, detections, ground_truth) > _overlap(boxes, detections, ground_truth):
            i = np.flatnonzero(sticks_out)[0]
            raise UserError(
                f"{path}: boxes seem to be [x0, y0, x1, y1]: as COCO's [x, y, width, height],"
                f" {100 * sticks_out.mean():.0f}% of them extend beyond their images, such as"
                f" {boxes[i].tolist()} of entry {i} in {sides[i, 0]} x {sides[i, 1]} pixels; write"
                " x1 - x0 and y1 - y0"
            )
    for i in np.flatnonzero((end < 0).any(1))[:1].tolist():
        raise UserError(
            f"{path}: the box of entry {i}, {boxes[i].tolist()}, has a negative width or height;"
            " COCO's boxes are [x, y, width, height]"
        )


def _overlap(boxes: np.ndarray, detections: Detections, ground_truth: GroundTruth) -> float:
    """Return the mean, over the first boxes, of the best IoU with an object of the image."""
    best = []
    for row in range(min(len(boxes), 300)):
        objects = ground_truth.boxes[ground_truth.image == detections.image[row]]
        if len(objects):
            best.append(
                pycocotools.mask.iou(boxes[row : row + 1], objects, [0] * len(objects)).max()
            )
    return float(np.mean(best)) if best else 0.0


def _check_distinct(path: Path, detections: Detections) -> None:
    """Check that no entry is repeated, as in files that were merged from overlapping parts."""
    columns = [detections.image, detections.label, *detections.boxes.T, detections.scores]
    if detections.keypoints is not None:
        columns += [*detections.keypoints.reshape(len(detections.scores), -1).T]
    columns = [column.astype(np.float64) for column in columns]
    # Sorted by a checksum, which is ten times as fast as sorting rows.
    factors = np.random.default_rng(0).integers(1, 2**63, len(columns), dtype=np.uint64) | 1
    sums = sum(column.view(np.uint64) * f for column, f in zip(columns, factors, strict=True))
    order = np.argsort(sums)
    sums = sums[order]
    repeated = np.flatnonzero(sums[1:] == sums[:-1])
    seen: dict[tuple, int] = {}
    for i in np.sort(order[np.union1d(repeated, repeated + 1)]).tolist():
        # Entries with NaN are never equal, because NaN is not equal to itself.
        values = [float(column[i]) for column in columns]
        entry = (*values, detections.masks[i]["counts"] if detections.masks else None)
        if (first := seen.setdefault(entry, i)) != i:
            raise UserError(
                f"{path}: the entries {first} and {i} are the same; was the file merged from"
                " overlapping parts? Remove the duplicates"
            )
