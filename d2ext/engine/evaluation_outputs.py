"""Write an evaluation to the run directory: predictions, analyses, overlays."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from msgspec import UNSET, UnsetType

from d2ext.errors import best_effort
from d2ext.evaluation.analysis import AnalysisRecord, RankedImages, TaskAnalysis, analyze
from d2ext.evaluation.backends import chosen_backend, evaluable
from d2ext.evaluation.bootstrap.intervals import (
    intervals,
    rare_classes_note,
    without_classes,
)
from d2ext.evaluation.bootstrap.resampling import Samples, write_samples
from d2ext.evaluation.instances import Detections
from d2ext.evaluation.predictions import results_of, write_predictions
from d2ext.evaluation.suite import Evaluation
from d2ext.run_dir.names import RESAMPLES, digest_of
from d2ext.run_dir.schema import write_record
from d2ext.text import with_interval

logger = logging.getLogger(__name__)

_PICTURES = 32  # overlays per test set, at most 12 each of the worst and the best images
_PARTS = {"confusion_matrix": True, "pr_curves": True, "errors": True}


class Written(NamedTuple):
    """Numbers of an evaluation, as `Results.record` takes them.

    Attributes:
        results: Flat results of all test sets.
        intervals: Their intervals by the same keys; UNSET if no draws were made.
        samples: Name of the file in resamples/ with the draws; UNSET without draws.
        caveats: Sentences about what biases the results and intervals; UNSET if there are none.
    """

    results: dict[str, float]
    intervals: dict[str, tuple[float, float] | None] | UnsetType = UNSET
    samples: str | UnsetType = UNSET
    caveats: list[str] | UnsetType = UNSET


def write_evaluations(evaluations: Sequence[Evaluation], out: Path) -> Written:
    """Log the AP of all test sets and write their files, replacing an earlier evaluation's.

    The draws of an earlier evaluation stay until `Results.record` replaces it.

    Args:
        evaluations: One evaluation per test set.
        out: Run directory.

    Returns:
        Results and intervals of all test sets.

    Raises:
        UserError: A file cannot be written.
    """
    found: dict[str, tuple[float, float] | None] = {}
    samples = {e.dataset: e.samples for e in evaluations if e.samples}
    for name, of in samples.items():
        found |= {f"{name}/{key}": ends for key, ends in intervals(of).items()}
    for folder in ("predictions", "analysis", "overlays"):  # may hold files of other test sets
        shutil.rmtree(out / folder, ignore_errors=True)
    results = {}
    for evaluation in evaluations:
        for key, value in evaluation.results.items():
            if key.endswith("/AP"):
                logger.info("%s %s", key, with_interval(value, found.get(key)))
        _write_evaluation(evaluation, out)
        results |= evaluation.results
    if not samples:
        return Written(results)
    notes = {e.dataset: rare_classes_note(e.ground_truth) for e in evaluations if e.samples}
    caveats = [f"{name}: {note}" for name, note in notes.items() if note]
    return Written(results, found, _write_samples(samples, out / RESAMPLES), caveats or UNSET)


def _write_samples(samples: Mapping[str, Samples], folder: Path) -> str:
    """Write the draws of all test sets, without those of single classes; return the file's name.

    The name is a digest, so that an interrupted run never has a file that belongs to another
    evaluation than results.json says.
    """
    new = folder / "new.npz"
    write_samples(new, {name: without_classes(of) for name, of in samples.items()})
    name = f"{digest_of(new)}.npz"
    new.replace(folder / name)
    return name


def _write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Write `predictions/<dataset>.json`, `analysis/<dataset>.json` and `overlays/<dataset>/`.

    The analysis holds the result of `analyze` by task, and `pictures`, which maps image ids (as
    strings) to overlays in `out`. It needs hotcoco and is skipped without it. Predictions and
    analysis are skipped if the model returns no instances. Errors in the analysis or the overlays
    are logged.
    """
    name, ground_truth, found = evaluation.dataset, evaluation.ground_truth, evaluation.detections
    if found is not None:
        write_predictions(name, found, ground_truth.image_ids, out / "predictions")
    with best_effort(f"analysis and pictures of {name}"):
        _write_analysis(evaluation, out)


def _write_analysis(evaluation: Evaluation, out: Path) -> None:
    name, ground_truth, found = evaluation.dataset, evaluation.ground_truth, evaluation.detections
    analyses: dict[str, TaskAnalysis] = {}
    if found is not None and chosen_backend("auto") == "hotcoco":
        analyses = {
            task: TaskAnalysis(**analyze(ground_truth, found, task, _PARTS))
            for task in evaluable(None, ground_truth, found)
        }
    # Prefer the analysis of the masks, because the overlays show them.
    shown = list(analyses.values())[-1].images if analyses else None
    rows = _rows(shown, ground_truth.image_ids)
    # Imported here to keep matplotlib out of the startup.
    from d2ext.visualize.overlay import write_overlays

    files = write_overlays(
        [evaluation.records[i] for i in rows],
        list(_results_in(rows, found, ground_truth.image_ids)) if found else None,
        MetadataCatalog.get(name),
        out / "overlays" / name,
        segmentations={
            ground_truth.image_ids[i]: evaluation.segmentations[i]
            for i in rows
            if i in evaluation.segmentations
        },
        **({"score_threshold": shown.min_score} if shown and shown.min_score else {}),
    )
    if analyses:
        pictures = {
            str(ground_truth.image_ids[i]): str(file.relative_to(out))
            for i, file in zip(rows, files, strict=True)
        }
        write_record(out / "analysis" / f"{name}.json", AnalysisRecord(analyses, pictures))


def _results_in(rows: Sequence[int], found: Detections, image_ids: Sequence[Any]) -> Iterator[dict]:
    """Yield the detections in the images with these indices as COCO results."""
    starts = np.searchsorted(found.image, np.arange(len(image_ids) + 1))
    for i in rows:
        yield from results_of(found, image_ids, slice(starts[i], starts[i + 1]))


def _rows(shown: RankedImages | None, image_ids: Sequence[Any]) -> list[int]:
    """Return the images to draw, in order: the worst, the best, and evenly spread ones."""
    place = {image_id: i for i, image_id in enumerate(image_ids)}
    rows: dict[int, None] = {}
    if shown:
        named = (image.image_id for image in [*shown.worst[:12], *shown.best[:12]])
        rows = dict.fromkeys(place[image_id] for image_id in named)
    count = min(_PICTURES, len(image_ids))
    for i in np.linspace(0, len(image_ids) - 1, count).astype(int).tolist():
        if len(rows) < _PICTURES:
            rows.setdefault(i)
    return sorted(rows)
