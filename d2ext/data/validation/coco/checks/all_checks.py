"""The checks in their order; those that need no image are the fast part, which preflight runs."""

from collections.abc import Callable, Iterator
from pathlib import Path

from d2ext.data.validation.coco.checks import entries, shapes, statistics
from d2ext.data.validation.coco.checks.statistics import Anchors
from d2ext.data.validation.coco.finding import KINDS, SEVERITIES, Finding
from d2ext.data.validation.coco.table import CocoTable, coco_table, read_coco_table

MAX_DETECTIONS = 100  # COCO's, and Detectron2's test_topk_per_image
CHECKS: tuple[Callable[[CocoTable], Iterator[Finding]], ...] = (
    entries.malformed,
    entries.image_ids,
    entries.encodings,
    entries.categories,
    entries.annotation_ids,
    entries.references,
    entries.repetitions,
    shapes.boxes,
    shapes.masks,
    shapes.areas,
    statistics.not_trained_on,
    statistics.empty_images,
    statistics.balance,
)


def fast_findings(
    content: CocoTable | dict | str | Path,
    anchors: Anchors = Anchors(),  # noqa: B008
    images: str | Path | None = None,
    max_detections: int = MAX_DETECTIONS,
) -> list[Finding]:
    """Return the findings in a COCO file that need no images.

    Args:
        content: the file, what is in it, or its columns.
        anchors: what object sizes are held against.
        images: their folder, which is not looked into; without it no absolute name is good.
        max_detections: objects that a model and a metric take in an image.

    Returns:
        Findings, errors first.

    Raises:
        UserError: it cannot be read or is no COCO file.
    """
    if isinstance(content, str | Path):
        content = read_coco_table(content)
    c = content if isinstance(content, CocoTable) else coco_table(content)
    found = [f for check in CHECKS for f in check(c)]
    found += entries.image_paths(c, images)
    found += statistics.crowded_images(c, max_detections)
    return in_order([*found, *statistics.object_sizes(c, anchors)])


def in_order(findings: list[Finding]) -> list[Finding]:
    """Errors first, then as in `KINDS`."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.code)))
