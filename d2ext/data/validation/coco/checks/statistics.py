"""Statistics of a whole file: images without objects, rare categories, unusual object sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from d2ext.data.validation.coco import locations
from d2ext.data.validation.coco.finding import INFO, WARNING, Finding, finding
from d2ext.data.validation.coco.table import CocoTable

_RARE = 100  # a category with this many times fewer objects than the largest is rare
_OVERLAP = 0.5  # IoU with the best anchor; RPN trains on IoU >= 0.7, or on the best anchor below
_WARNING_SHARE = 0.2  # share of objects above which a finding becomes a warning


@dataclass(frozen=True)
class Anchors:
    """Anchors and the training image size; the defaults are those of Detectron2's FPN configs.

    Attributes:
        sizes: Sides of the square anchors, in pixels.
        ratios: Ratios of height to width.
        short_side: Short side that images are resized to.
        max_size: Limit of the long side, which takes precedence.
    """

    sizes: Sequence[float] = (32, 64, 128, 256, 512)
    ratios: Sequence[float] = (0.5, 1.0, 2.0)
    short_side: int = 800
    max_size: int = 1333


def empty_images(c: CocoTable) -> Iterator[Finding]:
    """Find images without objects; crowds do not count as objects."""
    if not len(c.image_id):
        yield finding("image_none", [0], "images", "`images` is empty")
        return
    objects = c.good["annotations"] & ~c.crowd
    used = np.zeros(len(c.image_id), bool)
    rows = locations.image_rows(c)[objects]
    used[rows[rows >= 0]] = True
    empty = np.flatnonzero(c.good["images"] & ~used)
    if len(empty):
        example = f"{locations.image(c, empty[0])}; {len(empty)} of {len(used)} images"
        yield finding("image_empty", empty, "images", example)


def not_trained_on(c: CocoTable) -> Iterator[Finding]:
    """Find annotations that training skips or uses only in part."""
    good = c.good["annotations"]
    no_mask = np.isnan(c.masks.area)
    for code, marked in (
        ("object_crowd", c.crowd),
        ("object_ignored", c.ignored & ~c.crowd),
        ("object_rotated", c.rotated & no_mask),
        ("object_keypoints", c.keypoints),
        ("keypoints_malformed", c.malformed_keypoints),
    ):
        rows = np.flatnonzero(good & marked)
        if len(rows):
            share = len(rows) / len(good)
            example = f"{locations.annotation(c, rows[0])}; {len(rows)} of {len(good)} annotations"
            many = WARNING if code == "object_crowd" and share > _WARNING_SHARE else ""
            yield finding(code, rows, "annotations", example, many)


def crowded_images(c: CocoTable, limit: int) -> Iterator[Finding]:
    """Find images with more objects than `limit`."""
    rows = locations.image_rows(c)
    rows = rows[c.good["annotations"] & ~c.crowd & ~c.ignored & (rows >= 0)]
    counts = np.bincount(rows, minlength=len(c.image_id))
    many = np.flatnonzero(counts > limit)
    if len(many):
        i = many[counts[many].argmax()]
        example = f"{locations.image(c, i)} has {counts[i]}, but the limit is {limit}"
        yield finding("object_many", many, "images", example)


def balance(c: CocoTable) -> Iterator[Finding]:
    """Find categories with no objects or far fewer than the largest category."""
    rows = locations.category_rows(c)
    rows = rows[c.good["annotations"] & ~c.crowd & (rows >= 0)]
    counts = np.bincount(rows, minlength=len(c.category_id))
    good = c.good["categories"]
    unused = np.flatnonzero(good & (counts == 0))
    if len(unused):
        example = locations.category(c, unused[0])
        yield finding("category_unused", unused, "categories", example)
    rare = np.flatnonzero(good & (counts > 0) & (counts * _RARE < counts.max(initial=0)))
    if len(rare):
        few, many = rare[counts[rare].argmin()], counts.argmax()
        example = (
            f"{locations.category(c, few)} has {counts[few]},"
            f" {c.category_name[many]} {counts[many]}"
        )
        yield finding("category_imbalance", rare, "categories", example)


def object_sizes(c: CocoTable, anchors: Anchors = Anchors()) -> Iterator[Finding]:
    """Find objects that no anchor overlaps by half at the training image size.

    The overlap is the IoU of a box and an anchor with the same center, the best possible value.
    """
    image = locations.image_rows(c)
    rows = np.flatnonzero(
        c.good["annotations"] & ~c.crowd & (image >= 0) & (c.box[:, 2:] > 0).all(1)
    )
    if not len(rows):
        return
    short, long = np.sort(c.image_size[image[rows]], 1).T
    scale = np.minimum(anchors.short_side / short, anchors.max_size / long)
    w, h = (c.box[rows, 2:] * scale[:, None]).T
    best = np.zeros(len(rows))
    with np.errstate(over="ignore", invalid="ignore"):
        for size in anchors.sizes:
            for ratio in anchors.ratios:
                aw, ah = size / ratio**0.5, size * ratio**0.5
                shared = np.minimum(w, aw) * np.minimum(h, ah)
                best = np.fmax(best, shared / (w * h + aw * ah - shared))
        sides = np.sqrt(w * h)
    missed = rows[best < _OVERLAP]
    if len(missed):
        side = sides[best < _OVERLAP]
        share = len(missed) / len(rows)
        small, large = (side < min(anchors.sizes)).sum(), (side > max(anchors.sizes)).sum()
        example = (
            f"{locations.annotation(c, missed[0])}; {share:.0%} of the objects, {small} too small,"
            f" {large} too large, {len(missed) - small - large} too long, at a short side of"
            f" {anchors.short_side}"
        )
        severity = WARNING if share > _WARNING_SHARE else INFO
        yield finding("object_anchors", missed, "annotations", example, severity)
