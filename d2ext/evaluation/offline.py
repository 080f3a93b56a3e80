"""A results file against an annotation file: any metrics, any analyses, no model."""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2ext.data.formats.common import no_collection
from d2ext.errors import UserError
from d2ext.evaluation.analysis import analyse, printed
from d2ext.evaluation.backends import chosen_backend, evaluable
from d2ext.evaluation.dataset_file import read_dataset
from d2ext.evaluation.results_file import read_results, to_detections
from d2ext.files import finite_or_none, write_json

logger = logging.getLogger(__name__)

METRICS = {
    "coco": ("d2ext.evaluation.coco", "CocoMetric"),
    "voc": ("d2ext.evaluation.voc", "VocMetric"),
    "open_images": ("d2ext.evaluation.open_images", "OpenImagesMetric"),
    "lvis": ("d2ext.evaluation.lvis", "LvisMetric"),
}


def evaluate_files(
    predictions: Path,
    dataset: Path,
    metrics: Sequence[str],
    per_class: bool = False,
    parts: Mapping[str, bool] | None = None,
    out: Path | None = None,
    backend: str = "auto",
) -> dict[str, float]:
    """Reads each file once, prints the metrics' tables, and writes the numbers.

    Args:
        predictions: COCO results.
        dataset: COCO annotations.
        metrics: of METRICS.
        per_class: also the numbers of each class.
        parts: which analyses, as `analyse` takes them.
        out: the file for the numbers; those of the analyses are written beside it, to
            `<its stem>_analysis.json`, by task.
        backend: COCO's.

    Returns:
        `<metric>/<task>/<name>` to percent, NaN where undefined.

    Raises:
        UserError: a file is not what it should be, an output cannot be written, or hotcoco is
            absent where it is needed.
    """
    if len(set(metrics)) < len(metrics):
        raise UserError(f"--metrics {' '.join(metrics)}: name each once")
    if parts and any(parts.values()):
        chosen_backend("hotcoco")
    wanted = {name: _made(name, per_class, backend) for name in metrics}
    # What is read dies with the call, before the collector would look at all of it.
    with _printing(), no_collection():
        numbers, analyses = _evaluated(predictions, dataset, wanted, parts or {})
    if out is not None:
        write_json(out, finite_or_none(numbers))
        if analyses:
            write_json(out.with_name(f"{out.stem}_analysis.json"), analyses)
    return numbers


def _evaluated(
    predictions: Path, dataset: Path, metrics: Mapping[str, Any], parts: Mapping[str, bool]
) -> tuple[dict[str, float], dict[str, Any]]:
    """The numbers, and the analyses by task."""
    results = read_results(predictions)
    data = read_dataset(dataset, with_masks=not results or results[0].segmentation is not None)
    found = to_detections(predictions, results, data)
    del results  # hundreds of megabytes
    truth = data.truth
    logger.info(
        "%d images, %d objects of %d classes, %d detections",
        len(truth.image_ids),
        len(truth.image),
        len(truth.classes),
        len(found.scores),
    )
    numbers = {
        f"{name}/{key}": value
        for name, metric in metrics.items()
        for key, value in metric(truth, found).items()
    }
    analyses = {}
    if any(parts.values()):
        for task in evaluable(None, truth, found):
            analyses[task] = analyse(truth, found, task, parts)
            logger.info("Analysis of %s\n\n%s", task, printed(analyses[task]))
    return numbers, analyses


def _made(name: str, per_class: bool, backend: str) -> Any:
    module, kind = METRICS[name]
    options = {"backend": backend} if name == "coco" else {}
    return getattr(importlib.import_module(module), kind)(per_class=per_class, **options)


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """Prints what evaluation logs, the tables among it."""
    evaluation = logging.getLogger("d2ext.evaluation")
    handler, level = logging.StreamHandler(sys.stdout), evaluation.level
    evaluation.addHandler(handler)
    evaluation.setLevel(logging.INFO)
    try:
        yield
    finally:
        evaluation.removeHandler(handler)
        evaluation.setLevel(level)
