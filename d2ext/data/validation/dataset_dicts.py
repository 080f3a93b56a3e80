"""Check a dataset before a run, to find errors that would stop it hours later."""

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2ext.data.formats.annotation_kinds import CROWD, DIFFICULT, GROUP_OF, NO_MASK, is_object
from d2ext.data.formats.images import image_size
from d2ext.data.records.columns import Columns
from d2ext.data.records.records import columns_of, file_names_of, image_ids_of
from d2ext.errors import UserError
from d2ext.invocation import command

_SIZES = 2000  # maximum number of images whose headers are read; takes 0.1 s on a disk
_MAX_CROWD_SHARE = 0.1  # a larger share of crowds is most likely an error; COCO has 1 %


@dataclass(frozen=True)
class DatasetSummary:
    """Counts of a dataset; annotations that are not trained on do not count as objects.

    Attributes:
        name: Name of the dataset in the config.
        images: Number of images.
        instances: Number of annotated objects.
        per_class: Number of objects by class name, in the order of the classes.
        empty: Number of images without an object.
        skipped: Number of the other annotations, by reason.
        most: Maximum number of objects in one image.
        most_of_a_class: Maximum number of objects of one class in one image.
        problems: Issues that are not errors, one line each.
    """

    name: str
    images: int
    instances: int
    per_class: dict[str, int]
    empty: int
    skipped: dict[str, int]
    most: int
    most_of_a_class: int
    problems: list[str]

    def skipped_words(self, use: str = "trained on") -> str:
        """Say how many annotations are skipped, and why."""
        total = self.instances + sum(self.skipped.values())
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.skipped.items())
        skipped = total - self.instances
        verb = "is" if skipped == 1 else "are"
        return f"{skipped} of {total} annotations {verb} not {use}: {reasons}"


def check_dataset_dicts(
    name: str,
    records: Sequence[dict],
    classes: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
    use: str = "trained on",
) -> DatasetSummary:
    """Check Detectron2's dataset dicts and count their objects.

    Args:
        name: Name of the dataset in the config.
        records: Dataset dicts.
        classes: Class names, indexed by `category_id`.
        metadata: Metadata of the dataset, with the reader's counts of what it left out.
        use: What a run does with the objects, for the summary.

    Raises:
        UserError: There are no images; image files are missing, unreadable or of another size
            (of a large dataset only a sample is read); classes or image ids are not distinct; a
            height or width is not a positive integer; or an annotation's `category_id` is not an
            index into `classes`.
    """
    if twice := _repeated(classes):
        raise UserError(f"datasets.{name}.classes names {twice[0]!r} twice; make them distinct")
    if not records:
        raise UserError(f"dataset {name!r} holds no images; check its annotation file")
    names, columns = file_names_of(records), columns_of(records)
    absent = _absent(names)
    if absent:
        raise UserError(
            f"dataset {name!r}: {len(absent)} of {len(records)} images are missing, the first is"
            f" {absent[0]}; put them there, or {_paths_remedy(name, metadata or {})}"
        )
    # Detectron2's readers of label maps give neither sizes nor ids.
    maps_only = len(records) > 0 and "annotations" not in records[0]
    for side, values in (("height", columns.heights), ("width", columns.widths)):
        for i in np.flatnonzero(values < 0)[:1]:
            if maps_only and side not in records[i]:
                continue
            raise UserError(
                f"dataset {name!r}: {names[i]} has {side}={records[i].get(side)!r}, which is not a"
                " positive integer; correct its annotation file"
            )
    _check_sizes(name, names, columns)
    image_ids = image_ids_of(records)
    if None in image_ids and not maps_only:
        file_name = names[image_ids.index(None)]
        raise UserError(f"dataset {name!r}: {file_name} has no image_id; number the images")
    if twice := _repeated([i for i in image_ids if i is not None]):
        raise UserError(f"dataset {name!r} has the image_id {twice[0]!r} twice; make them distinct")
    objects = columns.objects_only()
    unknown = (objects.categories < 0) | (objects.categories >= len(classes))
    for i in objects.images()[unknown][:1]:
        ids = [a.get("category_id") for a in filter(is_object, records[i]["annotations"])]
        wrong = next(c for c in ids if c not in range(len(classes)))
        raise UserError(
            f"dataset {name!r}: {names[i]} has category_id {wrong}, but there are"
            f" {len(classes)} classes (ids from 0); correct the annotation or"
            f" datasets.{name}.classes"
        )
    counts = columns.category_counts(len(classes))[0].tolist()
    empty = int(np.sum(columns.objects == 0))
    per_class = {c: counts[i] for i, c in enumerate(classes)}
    unseen = [c for c, n in per_class.items() if n == 0]
    problems: list[str] = []
    skipped = _skipped(columns, metadata or {})
    summary = DatasetSummary(
        name=name,
        images=len(records),
        instances=sum(counts),
        per_class=per_class,
        empty=empty,
        skipped=skipped,
        most=int(columns.objects.max()),
        most_of_a_class=_most_of_a_class(objects, len(classes)),
        problems=problems,
    )
    if skipped:
        problems.append(summary.skipped_words(use))
    if unseen:
        problems.append(f"no object of {_first(unseen)}")
    if empty:
        problems.append(f"{empty} of {len(records)} images have no objects")
    return summary


def checker_command(json_file: str, image_root: str | None) -> str:
    """Return the command that checks a COCO file; callers may append `--fix`."""
    check = f"{command('check')} {shlex.quote(str(json_file))}"
    return check if image_root is None else f"{check} --images {shlex.quote(str(image_root))}"


def check_trainable(summaries: Sequence[DatasetSummary]) -> None:
    """Raise UserError if the datasets have annotations, but training would skip all of them."""
    if any(s.instances or not s.skipped for s in summaries):
        return
    words = "; ".join(f"dataset {s.name!r}: {s.skipped_words()}" for s in summaries)
    raise UserError(f"nothing is left to train on: {words}; correct the annotations")


def _most_of_a_class(objects: Columns, num_classes: int) -> int:
    pairs = objects.images() * num_classes + objects.categories
    return int(np.unique(pairs, return_counts=True)[1].max(initial=0))


def _skipped(columns: Columns, metadata: Mapping[str, Any]) -> dict[str, int]:
    """Count the annotations that training skips, each for one reason.

    Difficult objects and groups usually are crowds, too, because other programs ignore only those.
    """
    flags = columns.flags
    difficult = flags & DIFFICULT > 0
    crowds = int(np.sum(flags == CROWD))
    groups = int(np.sum((flags & GROUP_OF > 0) & ~difficult))
    counts = {
        _crowds(crowds, len(flags), metadata): crowds,
        "marked difficult or ignore": int(np.sum(difficult)),
        "group (is_group_of)" if groups == 1 else "groups (is_group_of)": groups,
        **metadata.get("left_out", {}),
    }
    return {reason: n for reason, n in counts.items() if n}


def _crowds(crowds: int, annotations: int, metadata: Mapping[str, Any]) -> str:
    file = metadata.get("json_file")
    if not file or crowds <= _MAX_CROWD_SHARE * annotations:
        return "crowd" if crowds == 1 else "crowds"
    command = f"sed -E 's/(\"iscrowd\": *)1/\\10/g' {shlex.quote(str(file))} >objects.json"
    return f"crowds (CVAT writes brush masks as crowds; if each is one object: {command})"


def check_masks(name: str, records: Sequence[dict], mask_format: str | None) -> None:
    """Check that a model with masks can be trained on Detectron2's dataset dicts.

    Annotations that training skips, such as crowds, need no mask.

    Args:
        name: Name of the dataset in the config.
        records: Dataset dicts.
        mask_format: The mapper's `instance_mask_format`, `polygon` or `bitmask` (both accept
            polygons and RLE, see `build_train_loader`); None for a model without masks, which
            accepts any data.

    Raises:
        UserError: Objects lack a mask, or the format does not exist.
    """
    if mask_format is None:
        return
    field = "dataloader.train.mapper"
    if mask_format not in ("polygon", "bitmask"):
        raise UserError(f"{field}.instance_mask_format={mask_format!r}: give polygon or bitmask")
    columns = columns_of(records).objects_only()
    lacking = np.flatnonzero(columns.masks == NO_MASK)
    if len(lacking):
        first = file_names_of(records)[columns.images()[lacking[0]]]
        raise UserError(
            f"dataset {name!r}: {len(lacking)} of {len(columns.masks)} objects have no outline"
            f" (`segmentation`), the first is in {first}; use the boxes as outlines with"
            " data.boxes_as_masks=True (outside the custom/ recipes:"
            f" datasets.{name}.boxes_as_masks=True), or"
            " train boxes only with custom/faster_rcnn_lite0_fpn.py (a model without a"
            f" mask head, and {field}.use_instance_mask=False)"
        )


def format_summary(summaries: Sequence[DatasetSummary]) -> str:
    """Format a table with a line for each dataset, followed by a line for each of its problems."""
    width = max((len(s.name) for s in summaries), default=0)
    width = max(width, len("dataset"))
    lines = [f"{'dataset':{width}}  images  objects  objects per class"]
    for s in summaries:
        per_class = _first([f"{c} {n}" for c, n in s.per_class.items()])
        lines.append(f"{s.name:{width}}  {s.images:6d}  {s.instances:7d}  {per_class}")
        lines += [f"{'':{width}}  note: {problem}" for problem in s.problems]
    return "\n".join(lines)


def _check_sizes(name: str, paths: Sequence[str], columns: Columns) -> None:
    """Compare the stated sizes with the files' headers, for a sample of a large dataset."""
    step = -(-len(paths) // _SIZES)
    for i in range(0, len(paths), step):
        stated = (int(columns.widths[i]), int(columns.heights[i]))
        if -1 not in stated and (actual := image_size(paths[i])) != stated:
            raise UserError(
                f"dataset {name!r}: its annotation file states {stated[0]} x {stated[1]} pixels for"
                f" {paths[i]}, but the image has {actual[0]} x {actual[1]} (after its EXIF"
                " orientation, if any, is applied); use the images that were annotated, or see"
                f" {command('check')}"
            )


def _absent(paths: Sequence[str]) -> list[str]:
    """Return the paths that do not exist; listing folders is faster than a stat for each path."""
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


def _paths_remedy(name: str, metadata: Mapping[str, Any]) -> str:
    file, root = metadata.get("json_file"), metadata.get("image_root")
    if root is None:  # the records come from a user's function
        return "correct the file_name of each record in the dataset's function"
    remedy = (
        f"check datasets.{name}.image_root (in a custom/ recipe that is data.train.images, or"
        " data.val.images)"
    )
    if file:
        remedy += f", or fix misspelled names with {checker_command(file, root)} --fix OUT.json"
    return remedy


def _repeated(values: Sequence) -> list:
    return [value for value, count in Counter(values).items() if count > 1]


def _first(words: Sequence[str], limit: int = 5) -> str:
    more = len(words) - limit
    return ", ".join(words[:limit]) + (f", and {more} more" if more > 0 else "")
