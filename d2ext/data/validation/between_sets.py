"""Compare the sets that a run trains on with those that it evaluates."""

import filecmp
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

from d2ext.data.formats.annotation_kinds import is_object
from d2ext.data.records.records import columns_of, file_names_of
from d2ext.invocation import command
from d2ext.text import plural

# A difference is named if it is both large and certain. Small sets are rarely certain: of 20 and 5
# images, not even entirely different sizes are.
_RATIO = 1.5
_STANDARD_ERRORS = 4.0  # of a single comparison
_MAX_CLASSES = 3
_MEASURED = 1000  # images of each set whose objects are measured
_COMPARED = 200  # images whose contents are compared


def common_images(train: Sequence[dict], val: Sequence[dict]) -> tuple[list[str], bool]:
    """Return the images of one set that are also in another, judging by their files.

    Files are the same if their paths are, or their names and contents. Up to 200 files, spread over
    the set, are compared by their contents.

    Args:
        train: Dataset dicts.
        val: Dataset dicts.

    Returns:
        File names in `val`, and whether there may be more.
    """
    listed = [os.fspath(path) for path in file_names_of(val)]
    names = set(map(os.path.basename, listed))
    trained = [p for p in map(os.fspath, file_names_of(train)) if os.path.basename(p) in names]
    known = set(map(os.path.abspath, trained))
    found = [path for path in listed if os.path.abspath(path) in known]
    others = [path for path in listed if os.path.abspath(path) not in known]
    names = set(map(os.path.basename, others))
    by_key = defaultdict(list)
    for path in trained:
        if os.path.basename(path) in names and (size := _size(path)):
            by_key[os.path.basename(path), size].append(path)
    candidates = [
        (path, twins)
        for path in others
        if (twins := by_key.get((os.path.basename(path), _size(path))))
    ]
    for i in _spread(len(candidates), _COMPARED):
        path, twins = candidates[i]
        if any(_equal_contents(path, twin) for twin in twins):
            found.append(path)
    return found, len(candidates) > _COMPARED


def _spread(count: int, most: int) -> list[int]:
    """Return up to `most` of the numbers below `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).astype(int).tolist()


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # reported elsewhere
        return 0


def _equal_contents(path: str, other: str) -> bool:
    try:
        return filecmp.cmp(path, other, shallow=False)
    except OSError:  # reported elsewhere
        return False


def compare_sets(
    train: Sequence[dict], val: Sequence[dict], classes: Sequence[str], names: tuple[str, str]
) -> Iterator[str]:
    """Yield a sentence for each way in which a validation set differs from a training set.

    Compared are the share of the images that have a class, the sizes of images, and those of
    objects relative to their image. A difference counts if it is at least 1.5-fold and above 4
    standard errors, or more for many classes: the Bonferroni correction keeps the chance of a false
    alarm. The tests are the arcsine transformation of Anscombe (The Transformation of Poisson,
    Binomial and Negative-Binomial Data, 1948) for shares, and the rank-sum test of Mann and Whitney
    (1947) for sizes. An image counts once, because its objects resemble each other.

    Args:
        train: Dataset dicts.
        val: Dataset dicts.
        classes: Class names by `category_id`.
        names: Names of the two sets.
    """
    common, more = common_images(train, val)
    if common:
        yield (
            f"{'at least ' if more else ''}{plural(len(common), 'image')} of {names[1]}, such as"
            f" {common[0]}, {'is' if len(common) == 1 else 'are'} also in {names[0]} (the same"
            " file, or the same name and contents), so that results are too good; `"
            f"{command('split')}` makes sets without common images"
        )
    differ = f"{names[1]} differs from {names[0]}:"
    sides = [columns_of(train).objects_only(), columns_of(val).objects_only()]
    counts = [len(columns.heights) for columns in sides]
    have = [columns.category_counts(len(classes))[1] for columns in sides]
    comparisons = np.count_nonzero(have[0] + have[1]) + 2
    chance = NormalDist().cdf(-_STANDARD_ERRORS)
    threshold = -NormalDist().inv_cdf(chance / comparisons)
    found = []
    for label, name in enumerate(classes):
        p, q = (have[i][label] / max(counts[i], 1) for i in (0, 1))
        angles = [
            math.asin(math.sqrt((have[i][label] + 3 / 8) / (counts[i] + 3 / 4))) for i in (0, 1)
        ]
        deviation = math.sqrt(sum(1 / (count + 1 / 2) for count in counts)) / 2
        certain = abs(angles[0] - angles[1]) / deviation
        if certain > threshold and max(p, q) >= _RATIO * min(p, q):
            found.append((-certain, f"{name} is in {q:.0%} of its images, but in {p:.0%}"))
    for _, text in sorted(found)[:_MAX_CLASSES]:
        yield f"{differ} {text} of {names[0]}'s"
    if len(found) > _MAX_CLASSES:
        yield f"{differ} {plural(len(found) - _MAX_CLASSES, 'more class')} have other shares"
    pixels = [np.sqrt(c.heights.astype(float) * c.widths)[c.heights > 0] for c in sides]
    if medians := _different(pixels[0], pixels[1], threshold):
        base, own = (f"{side:.0f} x {side:.0f} pixels" for side in medians)
        yield f"{differ} the median size of its images is {own}, but that of {names[0]}'s {base}"
    if medians := _different(_object_sizes(train), _object_sizes(val), threshold):
        base, own = (f"{side:.1%}" for side in medians)
        yield (
            f"{differ} the median side of its objects is {own} of the image, but that of"
            f" {names[0]}'s {base}"
        )


def _object_sizes(records: Sequence[dict]) -> np.ndarray:
    """Return the median size of the objects of each image: roots of box area / image area."""
    sizes = []
    for i in _spread(len(records), _MEASURED):
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


def _different(a: np.ndarray, b: np.ndarray, threshold: float) -> tuple[float, float] | None:
    """Return the medians of two samples if they differ by `threshold` standard errors."""
    n, m = len(a), len(b)
    if not n or not m:
        return None
    _, inverse, counts = np.unique(np.concatenate([a, b]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    excess = ranks[:n].sum() - n * (n + m + 1) / 2
    ties = (counts**3.0 - counts).sum() / max((n + m) * (n + m - 1), 1)
    deviation = math.sqrt(n * m / 12 * (n + m + 1 - ties))
    low, high = sorted((float(np.median(a)), float(np.median(b))))
    if abs(excess) <= threshold * deviation or high < _RATIO * low:
        return None
    return float(np.median(a)), float(np.median(b))
