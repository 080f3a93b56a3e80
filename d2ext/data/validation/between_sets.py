"""Compare the sets that a run trains on with those that it evaluates."""

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from d2ext.data.formats.annotation_kinds import is_object
from d2ext.data.records.records import columns_of, file_names_of
from d2ext.invocation import command
from d2ext.text import plural

# A difference is named if it is both large and certain. Small sets are rarely certain: of 20 and 5
# images, not even entirely different sizes are.
_RATIO, _STANDARD_ERRORS = 1.5, 4.0
_MAX_CLASSES = 3
_MEASURED = 1000  # images of each set whose objects are measured


def common_images(train: Sequence[dict], val: Sequence[dict]) -> list[str]:
    """Return the images of one set that are also in another, judging by their files.

    Files are the same if their paths are, or their names and their sizes in bytes.

    Args:
        train: Dataset dicts.
        val: Dataset dicts.

    Returns:
        File names in `val`.
    """
    by_name = defaultdict(list)
    for path in map(os.fspath, file_names_of(train)):
        by_name[os.path.basename(path)].append(path)
    found = []
    for path in map(os.fspath, file_names_of(val)):
        others = by_name.get(os.path.basename(path), ())
        if any(os.path.abspath(path) == os.path.abspath(other) for other in others) or (
            others and _size(path) in [_size(other) or None for other in others]
        ):
            found.append(path)
    return found


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # reported elsewhere
        return 0


def compare_sets(
    train: Sequence[dict], val: Sequence[dict], classes: Sequence[str], names: tuple[str, str]
) -> Iterator[str]:
    """Yield a sentence for each way in which a validation set differs from a training set.

    Compared are the share of the images that have a class, the sizes of images, and those of
    objects relative to their image. A difference counts if it is at least 1.5-fold and above 4
    standard errors, by the arcsine transformation for shares and by the rank-sum test of Mann and
    Whitney (1947) for sizes. An image counts once, because its objects resemble each other.

    Args:
        train: Dataset dicts.
        val: Dataset dicts.
        classes: Class names by `category_id`.
        names: Names of the two sets.
    """
    if common := common_images(train, val):
        yield (
            f"{plural(len(common), 'image')} of {names[1]}, such as {common[0]}, "
            f"{'is' if len(common) == 1 else 'are'} also in {names[0]} (the same file, or the same"
            " name and size), so that results are too good; `"
            f"{command('split')}` makes sets without common images"
        )
    differ = f"{names[1]} differs from {names[0]}:"
    sides = [columns_of(train).objects_only(), columns_of(val).objects_only()]
    counts = [len(columns.heights) for columns in sides]
    have = [columns.category_counts(len(classes))[1] for columns in sides]
    found = []
    for label, name in enumerate(classes):
        p, q = (have[i][label] / max(counts[i], 1) for i in (0, 1))
        certain = 2 * abs(math.asin(math.sqrt(p)) - math.asin(math.sqrt(q)))
        certain /= math.sqrt(sum(1 / max(count, 1) for count in counts))
        if certain > _STANDARD_ERRORS and max(p, q) >= _RATIO * min(p, q):
            found.append((-certain, f"{q:.0%} of the images have {name}, and {p:.0%} there"))
    for _, text in sorted(found)[:_MAX_CLASSES]:
        yield f"{differ} {text}"
    if len(found) > _MAX_CLASSES:
        yield f"{differ} {plural(len(found) - _MAX_CLASSES, 'more class')} have other shares"
    pixels = [np.sqrt(c.heights.astype(float) * c.widths)[c.heights > 0] for c in sides]
    if medians := _different(*pixels):
        there, here = (f"{side:.0f} x {side:.0f}" for side in medians)
        yield f"{differ} its images have a median size of {here} pixels, and {there} there"
    if medians := _different(_object_sizes(train), _object_sizes(val)):
        there, here = (f"{side:.1%}" for side in medians)
        yield f"{differ} its objects have a median side of {here} of the image, and {there} there"


def _object_sizes(records: Sequence[dict]) -> np.ndarray:
    """Return the median size of the objects of each image: roots of box area / image area."""
    sizes = []
    rows = np.linspace(0, len(records) - 1, min(len(records), _MEASURED)).astype(int)
    for i in rows.tolist():
        record = records[i]
        areas = []
        for annotation in filter(is_object, record.get("annotations", ())):
            x, y, w, h = map(float, annotation["bbox"])
            if annotation["bbox_mode"] == 0:  # XYXY_ABS
                w, h = w - x, h - y
            areas.append(w * h)
        if areas and (pixels := record.get("height", 0) * record.get("width", 0)):
            sizes.append(math.sqrt(max(float(np.median(areas)), 0) / pixels))
    return np.array(sizes)


def _different(a: np.ndarray, b: np.ndarray) -> tuple[float, float] | None:
    """Return the medians of two samples if they differ; see `compare_sets`."""
    n, m = len(a), len(b)
    if not n or not m:
        return None
    _, inverse, counts = np.unique(np.concatenate([a, b]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    excess = ranks[:n].sum() - n * (n + m + 1) / 2
    ties = (counts**3.0 - counts).sum() / max((n + m) * (n + m - 1), 1)
    deviation = math.sqrt(n * m / 12 * (n + m + 1 - ties))
    low, high = sorted((float(np.median(a)), float(np.median(b))))
    if abs(excess) <= _STANDARD_ERRORS * deviation or high < _RATIO * low:
        return None
    return float(np.median(a)), float(np.median(b))
