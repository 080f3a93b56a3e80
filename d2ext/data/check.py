"""Checks a data set before a run: what would stop the training hours later stops it at once."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from d2ext.errors import UserError


@dataclass(frozen=True)
class DatasetSummary:
    """What a data set holds. Crowds are not counted: Detectron2 does not train on them.

    Attributes:
        name: its name in the config.
        images: number of images.
        instances: number of annotated objects.
        per_class: number of objects by class name, in the order of the classes.
        empty: number of images without an object.
        problems: what is odd, yet no error; one line each.
    """

    name: str
    images: int
    instances: int
    per_class: dict[str, int]
    empty: int
    problems: list[str]


def check_dataset(name: str, records: Sequence[dict], classes: Sequence[str]) -> DatasetSummary:
    """Checks Detectron2's dataset dicts and counts what they hold.

    Raises:
        UserError: there are no images, image files are absent, or an annotation's `category_id`
            is no index into `classes`.
    """
    if not records:
        raise UserError(f"data set {name!r} holds no images; check its annotation file")
    absent = _absent([r["file_name"] for r in records])
    if absent:
        raise UserError(
            f"data set {name!r}: {len(absent)} of {len(records)} images are missing, the first is"
            f" {absent[0]}; put them there, or check datasets.{name}.image_root"
        )
    counts, empty = Counter(), 0
    for record in records:
        objects = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
        empty += not objects
        counts.update(a["category_id"] for a in objects)
        for a in record.get("annotations", ()):
            if not 0 <= a["category_id"] < len(classes):
                raise UserError(
                    f"data set {name!r}: {record['file_name']} has category_id"
                    f" {a['category_id']}, but there are {len(classes)} classes (ids from 0);"
                    f" correct the annotation or datasets.{name}.classes"
                )
    per_class = {c: counts[i] for i, c in enumerate(classes)}
    unseen = [c for c, n in per_class.items() if n == 0]
    problems = []
    if unseen:
        problems.append(f"no object of {_first(unseen)}")
    if empty:
        problems.append(f"{empty} of {len(records)} images have no objects")
    return DatasetSummary(name, len(records), counts.total(), per_class, empty, problems)


def format_summary(summaries: Sequence[DatasetSummary]) -> str:
    """A table with a line for each data set, and a line for each problem below."""
    width = max((len(s.name) for s in summaries), default=0)
    width = max(width, len("data set"))
    lines = [f"{'data set':{width}}  images  objects  objects a class"]
    for s in summaries:
        per_class = _first([f"{c} {n}" for c, n in s.per_class.items()])
        lines.append(f"{s.name:{width}}  {s.images:6d}  {s.instances:7d}  {per_class}")
        lines += [f"{'':{width}}  note: {problem}" for problem in s.problems]
    return "\n".join(lines)


def _absent(paths: Sequence[str]) -> list[str]:
    """The paths without a file. A folder is listed once: far faster than a stat for each file."""
    listed: dict[str, set[str]] = {}
    absent = []
    for path in map(os.fspath, paths):
        folder, file_name = os.path.split(path)
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(folder or "."))
            except OSError:
                listed[folder] = set()
        if file_name not in listed[folder]:
            absent.append(path)
    return absent


def _first(words: Sequence[str], limit: int = 5) -> str:
    more = len(words) - limit
    return ", ".join(words[:limit]) + (f", and {more} more" if more > 0 else "")
