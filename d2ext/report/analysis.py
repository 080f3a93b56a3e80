"""Prepare the error analysis of a dataset for the page."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from markupsafe import Markup

from d2ext.evaluation.analysis import AnalysisRecord, ClassCurve, ConfusionMatrix, ImageScore
from d2ext.report.charts import Line, chart
from d2ext.run_dir.schema import EvaluationRecord

_MATRIX = 20  # maximum number of classes for which the whole matrix is shown
_CONFUSIONS = 20  # number of most frequent confusions shown for a larger matrix
_CURVES = 8  # lines in a chart


def sections(
    analysis: AnalysisRecord, dataset: str, evaluation: EvaluationRecord
) -> Iterator[dict[str, Any]]:
    """Yield the content of each task's section, masks first.

    Args:
        analysis: Analysis of a dataset.
        dataset: Name of the dataset.
        evaluation: Results of the same evaluation, with the AP of each class.
    """
    for name, task in reversed(analysis.tasks.items()):
        metric, of_class = _class_AP(evaluation.results, dataset, name)
        ends = evaluation.intervals or {}
        yield {
            "task": name,
            "best": task.best_score,
            "classes": [
                (
                    row,
                    of_class.get(row.name),
                    ends.get(f"{dataset}/{metric}/{name}/AP-{row.name}"),
                )
                for row in task.pr_curves
            ],
            "metric": metric,
            "curves": _curves(task.pr_curves),
            "causes": task.errors.causes,
            "AP50": task.errors.AP50,
            "min_score": task.confusion_matrix.min_score,
            **_confusions(task.confusion_matrix),
        }


def captions(analysis: AnalysisRecord, share: int) -> dict[str, str]:
    """Return captions by picture (its path in the run directory), the worst images first.

    There are at most `share` different pictures: the first half shows the worst images (one more
    if the number is odd), and the second half the best ones.
    """
    if not analysis.tasks:
        return {}
    images = list(analysis.tasks.values())[-1].images

    def drawn(rows: list[ImageScore]) -> dict[str, ImageScore]:
        pictures = ((analysis.pictures.get(str(row.image_id)), row) for row in rows)
        return {picture: row for picture, row in pictures if picture}

    worst, best = drawn(images.worst), drawn(images.best)
    count = min(share, len(worst | best))
    worst = dict(islice(worst.items(), (count + 1) // 2))
    best = {picture: row for picture, row in best.items() if picture not in worst}
    best = dict(islice(best.items(), count // 2))
    return {
        picture: f"{kind} {i}: F1 {row.f1:.2f}, {row.hits} found, {row.false_alarms} false"
        f" alarms, {row.missed} missed"
        for kind, rows in (("worst", worst), ("best", best))
        for i, (picture, row) in enumerate(rows.items(), start=1)
    }


def _class_AP(
    results: Mapping[str, float | None], dataset: str, task: str
) -> tuple[str, dict[str, float | None]]:
    """Return the first metric with an AP per class, and these APs; "" and {} if there is none."""
    by_metric: dict[str, dict[str, float | None]] = {}
    for key, value in results.items():
        head, _, name = key.partition("/AP-")
        of, _, metric = head.removesuffix(f"/{task}").rpartition("/")
        if name and of == dataset and head.endswith(f"/{task}"):
            by_metric.setdefault(metric, {})[name] = value
    return next(iter(by_metric.items()), ("", {}))


def _curves(classes: list[ClassCurve]) -> Markup:
    """Return a precision-recall chart of the classes with the most objects."""
    shown = sorted((c for c in classes if c.objects), key=lambda c: -c.objects)[:_CURVES]
    lines = []
    for i, c in enumerate(shown):
        points = [(k / 100, p) for k, p in enumerate(c.curve.precision) if p is not None]
        if points:
            lines.append(Line(c.name, points, color=i))
    return chart(lines, "precision", (0, 1.02), xlabel="recall") if lines else Markup()


def _confusions(content: ConfusionMatrix) -> dict[str, Any]:
    """Return `matrix`, the rows of a small matrix, or `pairs`, the largest cells of a large one."""
    names = [*content.classes, "background"]
    if len(content.classes) > _MATRIX:
        cells = [
            (count, names[i], names[j])
            for i, row in enumerate(content.matrix[: len(names)])
            for j, count in enumerate(row[: len(names)])
            if i != j and count
        ]
        return {"names": names, "matrix": [], "pairs": sorted(cells, reverse=True)[:_CONFUSIONS]}
    rows = [
        (name, [(count, count / max(1, sum(row))) for count in row])
        for name, row in zip(names, content.matrix, strict=False)
    ]
    return {"names": names, "matrix": rows, "pairs": []}
