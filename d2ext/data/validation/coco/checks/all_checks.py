"""All checks, in order; preflight runs only the fast ones, which do not read images."""

from collections.abc import Callable, Iterator
from pathlib import Path

from d2ext.data.validation.coco.checks import entries, shapes, statistics
from d2ext.data.validation.coco.checks.statistics import Anchors
from d2ext.data.validation.coco.finding import KINDS, SEVERITIES, Finding
from d2ext.data.validation.coco.table import CocoTable, coco_table, read_coco_table

MAX_DETECTIONS = 100  # the default of COCO's metric and of Detectron2's test_topk_per_image
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
    """Run the checks of a COCO file that do not read images.

    Args:
        content: Path, parsed content or table of the file.
        anchors: Anchors that object sizes are compared with.
        images: Image folder, which is not read; without one, absolute file names are errors.
        max_detections: Maximum number of objects per image that models and metrics handle.

    Returns:
        Findings, errors first.

    Raises:
        UserError: The file cannot be read or is not a COCO file.
    """
    if isinstance(content, str | Path):
        content = read_coco_table(content)
    c = content if isinstance(content, CocoTable) else coco_table(content)
    found = [f for check in CHECKS for f in check(c)]
    found += entries.image_paths(c, images)
    found += statistics.crowded_images(c, max_detections)
    return in_order([*found, *statistics.object_sizes(c, anchors)])


def in_order(findings: list[Finding]) -> list[Finding]:
    """Sort findings by severity, errors first, then in the order of `KINDS`."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.code)))
