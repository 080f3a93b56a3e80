"""Map a dataset to other classes, matched by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from d2ext.data.records.records import relabeled

# Detectron2's metadata key for the category ids of a file, which results use.
FILE_IDS = "thing_dataset_id_to_contiguous_id"
ABSENT = "absent_classes"  # indices of classes that are not in the file


def select_classes(
    records: Sequence[dict], mine: Sequence[str], classes: Sequence[str]
) -> Sequence[dict]:
    """Return records whose `category_id` indexes `classes` instead of `mine`.

    Objects of other classes are dropped. The input is not modified.
    """
    index = {name: i for i, name in enumerate(classes)}
    new = [index.get(name) for name in mine]
    return relabeled(records, new)


def select_metadata(
    metadata: Mapping[str, Any], mine: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """Return a dataset's metadata for `classes` instead of `mine`.

    A class that is not in the file is listed under `ABSENT`, and gets an id after those of the
    file, because Detectron2 requires one for each class. Colors are kept if every class has one.
    """
    made = dict(metadata)
    if ids := made.get(FILE_IDS):
        lacking = made.get(ABSENT, ())
        known = {mine[index]: id_ for id_, index in ids.items() if index not in lacking}
        fresh = range(max(ids) + 1, max(ids) + 1 + len(classes))
        made[FILE_IDS] = {known.get(name, fresh[i]): i for i, name in enumerate(classes)}
        made[ABSENT] = [i for i, name in enumerate(classes) if name not in known]
    if colors := made.pop("thing_colors", None):
        by_name = dict(zip(mine, colors, strict=False))
        if by_name.keys() >= set(classes):
            made["thing_colors"] = [by_name[name] for name in classes]
    return made
