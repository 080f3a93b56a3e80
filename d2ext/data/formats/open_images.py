"""Open Images' boxes (https://storage.googleapis.com/openimages/web/download_v7.html).

d2ext has its own reader because hotcoco 1.3 drops the suffix of file names and silently gives
missing images the size 1 x 1, and supervision does not read the format.

The training set has 14.6 million boxes in 1.7 million images, so that rows are read one by one into
arrays. The files do not hold the sizes of the images, which are read from their headers.
"""

import contextlib
import logging
import math
import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2ext.data.formats.annotation_kinds import NO_MASK
from d2ext.data.formats.coco_file import CocoColumns
from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, convert_advice
from d2ext.data.formats.geometry import XYXY, LeftOut, new_record, parsed
from d2ext.data.formats.images import image_size, images_in
from d2ext.data.formats.json_io import (
    by_name,
    csv_lines,
    is_litter,
    text_lines,
    truncate_repr,
)
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.writing import hotcoco_writer
from d2ext.errors import UserError
from d2ext.terminal import progress
from d2ext.text import plural

logger = logging.getLogger(__name__)

_BOX = ("XMin", "YMin", "XMax", "YMax")
_LOW, _HIGH = -1e-3, 1 + 1e-3  # values just outside of the image are rounding errors
_THREADS, _BATCH = 16, 256  # for reading sizes; on a network disk, each image takes a round trip


def read_open_images(
    source: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    """Read Open Images' boxes into Detectron2's dataset dicts.

    See `read_columns`. A group box gets `is_group_of` 1 and also `iscrowd` 1, because other
    programs ignore only crowds.

    Args:
        source: The file of the boxes; a `*class-descriptions*.csv` beside it names the classes.
        image_root: The folder of the images.
        classes: Class names; `category_id` is an index into them. None uses those of the boxes,
            sorted.

    Returns:
        One dict per image, in the order of the file, and the class names.

    Raises:
        UserError: As in `read_columns`.
    """
    columns = read_columns(source, image_root, classes)
    sizes = zip(columns.widths.tolist(), columns.heights.tolist(), strict=True)
    records = [
        new_record(path, id_, size)
        for path, id_, size in zip(columns.image_names, columns.image_ids, sizes, strict=True)
    ]
    corners = np.hstack([columns.boxes[:, :2], columns.boxes[:, :2] + columns.boxes[:, 2:]])
    rows = (columns.image, columns.label, columns.group_of, corners)
    for image, category, group, box in zip(*(c.tolist() for c in rows), strict=True):
        annotation = {"bbox": box, "bbox_mode": XYXY, "category_id": category, "iscrowd": 0}
        if group:
            annotation |= {"iscrowd": 1, "is_group_of": 1}
        records[image]["annotations"].append(annotation)
    return records, tuple(columns.classes)


def read_columns(
    source: str | Path,
    image_root: str | Path,
    classes: Sequence[str] | None = None,
    class_file: str | Path | None = None,
) -> CocoColumns:
    """Read Open Images' boxes as columns, as many as memory has room for in arrays.

    Images are matched by name without suffix, in subfolders too. Missing images are skipped and
    counted in a warning, because most users have only a part of the dataset.

    Args:
        source: A CSV with the columns ImageID, LabelName, XMin, XMax, YMin, YMax and optionally
            IsGroupOf, with coordinates from 0 to 1; or a text file of the Challenge 2019 in the
            form that MMDetection reads (see `_challenge_rows`).
        image_root: The folder of the images.
        classes: Class names, indexed by `label`. None uses those of the boxes, sorted.
        class_file: CSV that names the classes, see `class_descriptions`; None takes the one beside
            `source`. Without one, classes are named by their codes, such as /m/0cmf2.

    Returns:
        The images in the order of the file, numbered from 1, and their boxes, sorted by image.
        Groups are also crowds. There are no masks, and areas are NaN.

    Raises:
        UserError: A file is missing or malformed, or all images are missing.
    """
    source = Path(source)
    descriptions = class_descriptions(source, class_file)
    files = _files_by_stem(image_root)
    rows = _read_rows(source, files)
    if not rows.images:
        raise UserError(f"{image_root} has no image of {source} (<ImageID>.jpg); check --images")
    if rows.missing:
        logger.warning("%s: %s skipped", source, plural(rows.missing, "missing image"))

    names = [descriptions.get(code, code) for code in rows.codes]
    found = sorted(set(names))
    wanted = list(classes or found)
    index = by_name(found, wanted, source)
    numbers = np.array([-1 if (i := index[name]) is None else i for name in names], np.int64)
    left_out = LeftOut()
    label, (x0, y0, x1, y1) = numbers[rows.label], rows.boxes.T
    for code, count in enumerate(np.bincount(rows.label[label < 0]).tolist()):
        if count:
            left_out[f"of the class {truncate_repr(names[code])}"] += count
    flat = ~((x1 > x0) & (y1 > y0)) & (label >= 0)
    if flat.any():
        left_out["without area"] = int(flat.sum())
    left_out.warn(logger, source)

    kept = np.flatnonzero((label >= 0) & ~flat)
    kept = kept[np.argsort(rows.image[kept], kind="stable")]
    image, label, group = rows.image[kept].astype(np.int64), label[kept], rows.group[kept]
    boxes = rows.boxes[kept].clip(0, 1)
    paths = [os.path.join(image_root, files[stem]) for stem in rows.images]
    widths, heights = _sizes(paths, source)
    boxes[:, 2:] -= boxes[:, :2]
    for axis, sides in enumerate((widths, heights)):
        boxes[:, axis] *= sides[image]
        boxes[:, axis + 2] *= sides[image]
    return CocoColumns(
        image_ids=list(range(1, len(paths) + 1)),
        image_names=paths,
        heights=heights,
        widths=widths,
        classes=wanted,
        category_ids={},
        image=image,
        label=label,
        boxes=boxes,
        areas=np.full(len(kept), math.nan),
        crowd=group,
        difficult=np.zeros(len(kept), bool),
        group_of=group,
        masks=[b"null"] * len(kept),
        mask_kinds=np.full(len(kept), NO_MASK, np.int8),
        left_out=dict(left_out),
    )


@dataclass(frozen=True)
class _Rows:
    """The boxes of a file whose images are there.

    Attributes:
        images: Names of the images without suffix.
        missing: Number of images that are not there.
        codes: Codes of the classes.
        image, label: `int32` (N,), indices into `images` and `codes`.
        boxes: `float64` (N, 4), x0, y0, x1, y1 from 0 to 1.
        group: `bool` (N,).
    """

    images: list[str]
    missing: int
    codes: list[str]
    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    group: np.ndarray


_Row = tuple[int, str, str, Sequence[str], str]  # line, image, class, coordinates, IsGroupOf


def _read_rows(source: Path, files: dict[str, str]) -> _Rows:
    """Read the boxes of the images in `files`; raise UserError at a malformed row."""
    index: dict[str, int] = {}  # -1 for missing images
    images: list[str] = []
    codes: dict[str, int] = {}
    image, label, boxes, group = array("i"), array("i"), array("d"), array("b")
    rows = _challenge_rows(source) if source.suffix == ".txt" else _csv_rows(source)
    for line, name, code, cells, flag in rows:
        try:
            box = _box(cells)
            if not code or not name:
                raise ValueError("it lacks an ImageID or a LabelName")
        except ValueError as e:
            raise UserError(
                f"{source}: line {line} is malformed ({e}); download the file again"
            ) from e
        is_group = _GROUP_OF.get(flag)
        if is_group is None:
            is_group = _GROUP_OF.get(flag.strip().lower())
        if is_group is None:
            raise UserError(
                f"{source}: line {line}: IsGroupOf={truncate_repr(flag)} is neither 0 nor 1;"
                " correct it"
            )
        i = index.get(name)
        if i is None:
            i = index[name] = len(images) if name in files else -1
            if i >= 0:
                images.append(name)
        if i >= 0:
            image.append(i)
            label.append(codes.setdefault(code, len(codes)))
            boxes.extend(box)
            group.append(is_group)
    return _Rows(
        images,
        len(index) - len(images),
        list(codes),
        np.frombuffer(image, np.int32),
        np.frombuffer(label, np.int32),
        np.frombuffer(boxes, np.float64).reshape(-1, 4),
        np.frombuffer(group, np.bool_),
    )


# Values as written by Open Images (-1: unknown), spreadsheets and pandas.
_GROUP_OF = {"1": 1, "1.0": 1, "true": 1} | dict.fromkeys(
    ("", "0", "0.0", "false", "-1", "-1.0"), 0
)


def _box(cells: Sequence[str]) -> tuple[float, ...]:
    """Return the coordinates of a box; raise ValueError unless they are about from 0 to 1."""
    try:
        x0, y0, x1, y1 = map(float, cells)
        if _LOW <= x0 <= _HIGH and _LOW <= y0 <= _HIGH:
            if _LOW <= x1 <= _HIGH and _LOW <= y1 <= _HIGH:
                return x0, y0, x1, y1
    except ValueError:
        pass
    raise ValueError(f"coordinates must be from 0 to 1, not {truncate_repr(parsed(cells))}")


def _csv_rows(source: Path) -> Iterator[_Row]:
    rows = csv_lines(source)
    header = [name.strip().lstrip("#") for name in next(rows, (0, []))[1]]
    if missing := {"ImageID", "LabelName", *_BOX} - set(header):
        known = advice(source, "open_images")
        reason = f"it is {known}" if known else f"it lacks {', '.join(sorted(missing))}"
        raise UserError(f"{source} is not a CSV of Open Images' boxes: {reason}")
    name, code, *corners = (header.index(column) for column in ("ImageID", "LabelName", *_BOX))
    group = header.index("IsGroupOf") if "IsGroupOf" in header else None
    for line, row in rows:
        if len(row) < len(header):
            row += [""] * (len(header) - len(row))
        flag = "" if group is None else row[group]
        yield line, row[name], row[code], [row[i] for i in corners], flag


def _challenge_rows(source: Path) -> Iterator[_Row]:
    """Yield the boxes of the text files of the Challenge 2019 that MMDetection reads.

    For each image they hold a line with its name, one that is ignored, one with the number of
    boxes, and as many with `label xmin ymin xmax ymax group`. Labels count from 1, as in the third
    column of cls-label-description.csv.
    """
    lines = enumerate(text_lines(source), 1)
    for line, name in lines:
        stem = os.path.splitext(os.path.basename(name.strip()))[0]
        next(lines, None)
        line, count = next(lines, (line, ""))
        try:
            boxes = [next(lines) for _ in range(int(count))]
            for line, text in boxes:
                code, *box, group = text.split()
                yield line, stem, code, box, group
        except (ValueError, RuntimeError) as e:  # a generator's StopIteration is a RuntimeError
            known = advice(source, "open_images")
            remedy = f"it is {known}" if known else "download it again"
            raise UserError(
                f"{source} is not a text file of the Open Images Challenge 2019 (line {line}):"
                f" {remedy}"
            ) from e


def _files_by_stem(image_root: str | Path) -> dict[str, str]:
    """Return the images of a folder and its subfolders by their names without suffix."""
    files: dict[str, str] = {}
    for name in images_in(image_root):
        stem = os.path.splitext(os.path.basename(name))[0]
        if stem in files:
            raise UserError(
                f"{image_root}: {files[stem]} and {name} are both the image {stem}; remove one"
            )
        files[stem] = name
    return files


def folder_times(image_root: str | Path) -> list[tuple[str, int]]:
    """Return the times at which a folder and its direct subfolders got their last files."""
    folders = [image_root]
    with contextlib.suppress(OSError):  # `read_columns` reports a missing folder
        folders += sorted(entry.path for entry in os.scandir(image_root) if entry.is_dir())
        return [(os.fspath(folder), os.stat(folder).st_mtime_ns) for folder in folders]
    return []


def _sizes(paths: Sequence[str], source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the widths and heights of images, two int64 arrays, read from their headers."""

    def read(first: int) -> list[tuple[int, int]]:
        return list(map(image_size, paths[first : first + _BATCH]))

    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress(f"sizes of the images of {source.name}", len(paths)) as advance,
    ):
        sizes = []
        for batch in pool.map(read, range(0, len(paths), _BATCH)):
            sizes += batch
            advance(len(batch))
    widths, heights = np.array(sizes, np.int64).T
    return widths, heights


def class_descriptions(source: str | Path, class_file: str | Path | None = None) -> dict[str, str]:
    """Map class codes to names, in the order of the file.

    Args:
        source: A file of Open Images.
        class_file: CSV of codes and names, with or without a header, and with MMDetection's labels
            of the Challenge 2019 in a third column, which then are codes, too, and define the
            order. None takes the first `*class-descriptions*.csv` beside `source`, if there is one.

    Raises:
        UserError: The file is not a valid CSV, or does not exist.
    """
    if class_file is None:
        beside = sorted(Path(source).parent.glob("*class-descriptions*.csv"))
        files = [file for file in beside if not is_litter(file.name)]
        if not files:
            return {}
        class_file = files[0]
    rows = [row for _, row in csv_lines(class_file) if len(row) >= 2 and row[0] != "LabelName"]
    if rows and all(len(row) > 2 and row[2].strip().isdecimal() for row in rows):
        rows.sort(key=lambda row: int(row[2]))
        rows += [[row[2].strip(), row[1]] for row in rows]
    return {row[0]: row[1] for row in rows}


def _detect(head: FileHead) -> bool:
    return {"ImageID", "LabelName"} <= head.columns


FORMAT = Format(
    name="open_images",
    title="Open Images",
    advice=convert_advice("an Open Images CSV", "open_images"),
    detect=_detect,
    read=read_open_images,
    source="Open Images' boxes: a CSV file; *class-descriptions*.csv beside it names the classes",
    write={"open_images": hotcoco_writer("to_oid")},
)
