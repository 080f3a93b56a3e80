"""Evaluate a results file against an annotation file, without a model."""

import contextlib
import importlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tabulate import tabulate

from d2ext.data.formats.json_io import no_collection
from d2ext.errors import UserError
from d2ext.evaluation.analysis import analyze, printed
from d2ext.evaluation.backends import chosen_backend, evaluable
from d2ext.evaluation.bootstrap.comparison import comparison_text, differences
from d2ext.evaluation.bootstrap.intervals import (
    ABOUT_INTERVALS,
    rare_classes_note,
    wants_intervals,
)
from d2ext.evaluation.bootstrap.intervals import intervals as intervals_of
from d2ext.evaluation.bootstrap.resampling import MAX_IMAGES, RESAMPLES, Samples, resample
from d2ext.evaluation.coco import MAX_DETECTIONS
from d2ext.evaluation.dataset_file import reading_dataset
from d2ext.evaluation.instances import Detections, GroundTruth
from d2ext.evaluation.metric_names import METRICS
from d2ext.evaluation.results_file import (
    NO_RESULTS,
    read_parts,
    read_results,
    starts_with_masks_only,
    to_detections,
)
from d2ext.files import atomic_write, finite_or_none
from d2ext.text import plural, with_interval

logger = logging.getLogger(__name__)


def evaluate_files(
    predictions: Sequence[Path],
    dataset: Path,
    metrics: Sequence[str],
    per_class: bool = False,
    parts: Mapping[str, bool] | None = None,
    out: Path | None = None,
    backend: str = "auto",
    tasks: Sequence[str] | None = None,
    max_detections: int = MAX_DETECTIONS[-1],
    intervals: bool | None = None,
    resamples: int = RESAMPLES,
    against: Path | None = None,
) -> dict[str, float]:
    """Evaluate results files; print the tables of the metrics and write the results.

    Args:
        predictions: Files with COCO results, for different images.
        dataset: File with COCO annotations.
        metrics: Names in METRICS.
        per_class: Add the results of each class.
        parts: Analyses to run, as for `analyze`.
        out: File for the results; the analyses are written next to it, by task, to
            `<its stem>_analysis.json`. Either both files are replaced or neither is.
        backend: Backend of the COCO metric.
        tasks: Tasks of the COCO metric.
        max_detections: Maximum detections per image and class in the COCO metric.
        intervals: Compute 95 % intervals; None: of datasets with up to 1,000 images.
        resamples: Number of draws of the images for intervals; 0 for none.
        against: Another results file, to compare the first one with; implies intervals.

    Returns:
        Percent by `<metric>/<task>/<name>`; NaN if undefined.

    Raises:
        UserError: An input is invalid, an output cannot be written, or hotcoco is needed but not
            installed.
    """
    for flag, values in (("--metrics", metrics), ("--tasks", tasks or ())):
        if len(set(values)) < len(values):
            raise UserError(f"{flag} {' '.join(values)}: name each once")
    if tasks and "coco" not in metrics:
        raise UserError(f"--tasks {' '.join(tasks)} needs --metrics coco, which is not given")
    if not resamples and (intervals or against):
        flag = "--against" if against else "--intervals"
        raise UserError(
            f"{flag} needs draws of the images, but --resamples is 0; leave --resamples out"
        )
    if parts and any(parts.values()):
        chosen_backend("hotcoco")
        if parts.get("pr_curves") and out is None:
            raise UserError(
                "--pr-curves needs --out FILE; the curves are written next to it, to"
                " <stem>_analysis.json"
            )
    files = [] if out is None else [out, out.with_name(f"{out.stem}_analysis.json")]
    for file in files[: 1 + any((parts or {}).values())]:
        _check_place(file, [*predictions, dataset, *([against] if against else [])])
    limits = [*(n for n in MAX_DETECTIONS[:-1] if n < max_detections), max_detections]
    of_coco = {"backend": backend, "tasks": tasks, "max_detections": limits}
    wanted = {name: _made(name, per_class, of_coco if name == "coco" else {}) for name in metrics}
    # Everything read is freed when the call returns, so the garbage collector need not scan it.
    limit = max_detections if "coco" in wanted else None
    with _printing(), no_collection():
        wants = True if against else intervals
        numbers, analyses, more = _evaluated(
            predictions, dataset, wanted, parts or {}, limit, wants, resamples, against
        )
    contents: list[Any] = [finite_or_none(numbers) | more]
    if analyses:
        contents.append(msgspec.to_builtins(analyses))
    with contextlib.ExitStack() as stack:
        for file, content in zip(files, contents, strict=False):
            f = stack.enter_context(atomic_write(file))
            json.dump(content, f, indent=1)
            f.write("\n")
            f.flush()  # if the disk is full, neither file is replaced
    return numbers


def _check_place(out: Path, inputs: Sequence[Path]) -> None:
    """Raise UserError if a file would replace an input or cannot be written."""
    for file in inputs:
        if out.exists() and file.exists() and out.samefile(file):
            raise UserError(f"--out would replace the input {file}; name another file")
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; name a file in it")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out: cannot write {out}: {parent} is not a writable folder")


def _evaluated(
    predictions: Sequence[Path],
    dataset: Path,
    metrics: Mapping[str, Any],
    parts: Mapping[str, bool],
    limit: int | None,
    intervals: bool | None,
    resamples: int,
    against: Path | None,
) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
    """Evaluate the files.

    Args:
        predictions: Files with COCO results.
        dataset: File with COCO annotations.
        metrics: Metrics by name.
        parts: Analyses to run.
        limit: COCO's `max_detections`, or None.
        intervals: Argument of `wants_intervals`.
        resamples: Number of draws.
        against: File with COCO results to compare with, or None.

    Returns:
        The results, the analyses by task, and other keys of the output file.
    """
    with reading_dataset(dataset, starts_with_masks_only(predictions[0])) as read:
        results = read_parts(predictions)
        data = read(
            results is NO_RESULTS or results.segmentation is not None,
            results is NO_RESULTS or results.keypoints is not None,
        )
    name = ", ".join(map(str, predictions))
    detections = to_detections(Path(name), results, data)
    del results  # hundreds of megabytes
    others = to_detections(against, read_results(against), data) if against else None
    ground_truth = data.ground_truth
    logger.info(
        "%d images, %d objects of %d classes, %d detections",
        len(ground_truth.image_ids),
        len(ground_truth.image),
        len(ground_truth.classes),
        len(detections.scores),
    )
    count = len(ground_truth.image_ids)
    if empty := count - len(np.unique(detections.image)):
        logger.info("%d of %s have no detections", empty, plural(count, "image"))
    if limit is not None:
        _warn_of_limit(ground_truth, limit)
    numbers = _numbers(metrics, ground_truth, detections)
    samples: Samples | None = None
    more: dict[str, Any] = {}
    if wants_intervals(len(ground_truth.image_ids), intervals, resamples):
        samples = resample(metrics, ground_truth, detections, numbers, resamples)
        more["intervals"] = intervals_of(samples)
        logger.info("%s\n", _interval_table(samples, resamples))
        if note := rare_classes_note(ground_truth):
            logger.info("%s\n", note)
    elif intervals is None and len(ground_truth.image_ids) > MAX_IMAGES and resamples:
        logger.info(
            "No intervals, because there are more than %d images; --intervals computes them\n",
            MAX_IMAGES,
        )
    analyses = {}
    if any(parts.values()):
        for task in evaluable(None, ground_truth, detections):
            analyses[task] = analyze(ground_truth, detections, task, parts)
            logger.info("Analysis of %s\n\n%s", task, printed(analyses[task]))
    if others and not samples:
        logger.info("%s has no images, so %s is not compared", dataset, against)
    elif others and samples:
        logger.info("\nResults of %s, for comparison:", against)
        base = _numbers(metrics, ground_truth, others)
        found = differences(samples, resample(metrics, ground_truth, others, base, resamples))
        more["against"] = {
            key: {"difference": row.value, "interval": row.interval} for key, row in found.items()
        }
        logger.info("\n%s", "\n".join(comparison_text(name, str(against), found)))
    return numbers, analyses, more


def _numbers(
    metrics: Mapping[str, Any], ground_truth: GroundTruth, detections: Detections
) -> dict[str, float]:
    return {
        f"{name}/{key}": value
        for name, metric in metrics.items()
        for key, value in metric(ground_truth, detections).items()
    }


def _interval_table(samples: Samples, resamples: int) -> str:
    rows = [
        (key, with_interval(samples.estimates[key], ends))
        for key, ends in intervals_of(samples).items()
    ]
    table = tabulate(rows, tablefmt="plain", disable_numparse=True)
    title = f"With 95 % intervals, from {resamples} draws of the {plural(samples.images, 'image')}:"
    return f"{title}\n{table}\n{ABOUT_INTERVALS}"


def _warn_of_limit(ground_truth: GroundTruth, limit: int) -> None:
    """Warn about images with more objects of a class than detections that are counted."""
    counted = ~(ground_truth.crowd | ground_truth.difficult | ground_truth.group_of)
    pairs = np.stack([ground_truth.image[counted], ground_truth.label[counted]])
    (images, labels), counts = np.unique(pairs, axis=1, return_counts=True)
    if len(many := np.flatnonzero(counts > limit)):
        most = many[counts[many].argmax()]
        logger.warning(
            "%d images have more than %d objects of a class (image %s has %d of %s), but only that"
            " many detections count; give --max-detections %d, and predict with a"
            " test_topk_per_image at least as high",
            len(np.unique(images[many])),
            limit,
            ground_truth.image_ids[images[most]],
            counts[most],
            ground_truth.classes[labels[most]],
            counts[most],
        )


def _made(name: str, per_class: bool, options: Mapping[str, Any]) -> Any:
    module, kind = METRICS[name]
    return getattr(importlib.import_module(module), kind)(per_class=per_class, **options)


class _Printer(logging.Handler):
    """Print log records; unlike logging's own handler, raise an error if printing fails."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record))


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """Print the log records of the evaluation, including the tables."""
    evaluation = logging.getLogger("d2ext.evaluation")
    handler, level = _Printer(), evaluation.level
    evaluation.addHandler(handler)
    evaluation.setLevel(logging.INFO)
    try:
        yield
    finally:
        evaluation.removeHandler(handler)
        evaluation.setLevel(level)
