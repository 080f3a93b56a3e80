"""Open Images' boxes (https://storage.googleapis.com/openimages/web/download_v7.html).

d2ext has its own reader because hotcoco 1.3 drops the suffix of file names and silently gives
missing images the size 1 x 1, and supervision does not read the format.
"""

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from d2ext.data.formats.file_head import FileHead
from d2ext.data.formats.format import Format, convert_advice
from d2ext.data.formats.geometry import LeftOut, add_box, parsed
from d2ext.data.formats.image_folder import sized_record
from d2ext.data.formats.images import images_in
from d2ext.data.formats.json_io import by_name, csv_rows, is_litter, read_text, truncate_repr
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.writing import hotcoco_writer
from d2ext.errors import UserError
from d2ext.text import plural

logger = logging.getLogger(__name__)

_BOX = ("XMin", "YMin", "XMax", "YMax")


def read_open_images(
    source: str | Path, image_root: str | Path, classes: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    """Read Open Images' boxes into Detectron2's dataset dicts.

    Images are matched by name without suffix, in subfolders too. Missing images are skipped and
    counted in a warning, because most users have only a part of the dataset. A group box gets
    `is_group_of` 1 and also `iscrowd` 1, because other programs ignore only crowds.

    Args:
        source: The CSV with the columns ImageID, LabelName, XMin, XMax, YMin, YMax and optionally
            IsGroupOf; coordinates from 0 to 1. Class names come from a
            `*class-descriptions*.csv` beside it; without one, classes are named by their codes,
            such as /m/0cmf2.
        image_root: The folder of the images.
        classes: Class names; `category_id` is an index into them. None uses those of the boxes,
            sorted.

    Returns:
        One dict per image, in the order of the CSV, and the class names.

    Raises:
        UserError: A file is missing or malformed, or all images are missing.
    """
    source = Path(source)
    descriptions = class_descriptions(source)
    files: dict[str, str] = {}
    for name in images_in(image_root):
        stem = os.path.splitext(os.path.basename(name))[0]
        if stem in files:
            raise UserError(
                f"{image_root}: {files[stem]} and {name} are both the image {stem}; remove one"
            )
        files[stem] = name
    rows: dict[str, list[tuple[str, list[float], int]]] = {}
    for where, row in _rows(source):
        try:
            box = parsed([row[column] or "" for column in _BOX])
            if not (min(box) >= 0 and max(box) <= 1):
                raise ValueError(f"coordinates must be from 0 to 1, not {truncate_repr(box)}")
            name = descriptions.get(row["LabelName"], row["LabelName"])
            if not name or not row["ImageID"]:
                raise ValueError("it lacks an ImageID or a LabelName")
            group = _GROUP_OF[(row.get("IsGroupOf") or "").strip().lower()]
        except KeyError:
            raise UserError(
                f"{where}: IsGroupOf={truncate_repr(row['IsGroupOf'])} is neither 0 nor 1;"
                " correct it"
            ) from None
        except ValueError as e:
            raise UserError(f"{where} is malformed ({e}); download the file again") from e
        rows.setdefault(row["ImageID"], []).append((name, box, int(group)))

    here = {image: boxes for image, boxes in rows.items() if image in files}
    if not here:
        raise UserError(f"{image_root} has no image of {source} (<ImageID>.jpg); check --images")
    if len(here) < len(rows):
        missing = plural(len(rows) - len(here), "missing image")
        logger.warning("%s: %s skipped", source, missing)
    found = tuple(sorted({name for boxes in here.values() for name, _, _ in boxes}))
    wanted = tuple(classes or found)
    index = by_name(found, wanted, source)
    records: list[dict] = []
    left_out = LeftOut()
    for image, boxes in here.items():
        path = os.path.join(image_root, files[image])
        record = sized_record(path, len(records) + 1, None, source)
        sides = (record["width"], record["height"]) * 2
        for name, box, group in boxes:
            if (category := index[name]) is None:
                left_out[f"of the class {truncate_repr(name)}"] += 1
                continue
            box = [c * side for c, side in zip(box, sides, strict=True)]
            flags = {"iscrowd": 1, "is_group_of": 1} if group else {}
            add_box(record, category, box, left_out, **flags)
        records.append(record)
    left_out.warn(logger, source)
    return records, wanted


# Values as written by Open Images (-1: unknown), spreadsheets and pandas.
_GROUP_OF = {"1": 1, "1.0": 1, "true": 1} | dict.fromkeys(
    ("", "0", "0.0", "false", "-1", "-1.0"), 0
)


def _rows(source: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row with its location in the file."""
    try:
        rows = csv_rows(source)
        missing = {"ImageID", "LabelName", *_BOX} - set(rows.fieldnames or ())
        if missing:
            known = advice(source, "open_images")
            reason = f"it is {known}" if known else f"it lacks {', '.join(sorted(missing))}"
            raise UserError(f"{source} is not a CSV of Open Images' boxes: {reason}")
        for row in rows:
            yield f"{source}: line {rows.line_num}", row
    except csv.Error as e:
        raise UserError(f"{source} is not a valid CSV ({e}); download it again") from e


def class_descriptions(source: str | Path) -> dict[str, str]:
    """Map class codes to names by the `*class-descriptions*.csv` beside a file, if there is one.

    Raises:
        UserError: The file is not a valid CSV.
    """
    beside = sorted(Path(source).parent.glob("*class-descriptions*.csv"))
    files = [file for file in beside if not is_litter(file.name)]
    if not files:
        return {}
    try:
        lines = read_text(files[0]).splitlines()
        rows = [row for row in csv.reader(lines) if len(row) >= 2]
    except csv.Error as e:
        raise UserError(f"{files[0]} is not a valid CSV ({e}); download it again") from e
    return {code: name for code, name, *_ in rows}


def _detect(head: FileHead) -> bool:
    return {"ImageID", "LabelName"} <= head.columns


FORMAT = Format(
    name="open_images",
    title="Open Images",
    advice=convert_advice("an Open Images CSV", "open_images"),
    detect=_detect,
    read=read_open_images,
    source="Open Images' boxes: a CSV; a *class-descriptions*.csv beside it names the classes",
    write={"open_images": hotcoco_writer("to_oid")},
)
