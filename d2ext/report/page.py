"""Write the report of a run: one self-contained HTML page."""

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from msgspec import UnsetType

from d2ext.errors import UserError
from d2ext.evaluation.bootstrap.intervals import ABOUT_INTERVALS, NO_INTERVALS
from d2ext.evaluation.metric_names import VALIDATION_LOSS, is_validation_loss
from d2ext.files import atomic_write
from d2ext.html import page_template
from d2ext.report.analysis import sections
from d2ext.report.charts import Line, chart, page_parts, smooth
from d2ext.report.live import live
from d2ext.report.pictures import galleries, sheets
from d2ext.report.read import RunRecord, read_run
from d2ext.report.scaling import scaling_rows, scaling_sentences
from d2ext.run_dir.schema import UNSET, EvaluationRecord, ExportRecord
from d2ext.text import plural

_AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_MAX_LOSSES = 8  # lines in the chart of the loss's parts
# Counters in metrics.json, and what they count.
_SKIPPED = {
    "bad_images": "Samples replaced because their image could not be read",
    "skipped_steps": "Steps skipped because their loss was not finite",
    "overflowed_steps": "Steps skipped by the float16 loss scaler because gradients overflowed",
}


def write_report(run_dir: str | os.PathLike[str], page: Path | None = None) -> Path:
    """Write the report of a run as one self-contained file.

    Args:
        run_dir: Directory of a run or an evaluation. The page names missing and damaged parts.
        page: Path of the page to write; by default, `report.html` in the run directory.

    Returns:
        The path of the page.

    Raises:
        UserError: `run_dir` is not a run directory, or the page cannot be written.
    """
    run_dir = require_run(run_dir)
    run = read_run(run_dir)
    info = run.info
    last = run.evaluations.get("last") or EvaluationRecord(results={})
    html = page_template(Path(__file__).with_name("page.html")).render(
        name=info.name or run_dir.resolve().name,
        info=info,
        sizes={dataset: run.size(dataset, "instances") for dataset in info.datasets},
        started=_date(info.started),
        duration=duration_words(info.train_seconds),
        config=run.config,
        summary=_summary(run),
        ended_by=info.ended_by,
        notes=_notes(run),
        tiles=list(_tiles(run)),
        table=list(_table(run)),
        ap_names=_AP_NAMES,
        all_numbers=_all_numbers(run),
        about_intervals=about_intervals(run.evaluations.values()),
        evaluations={k: _describe(k, e) for k, e in run.evaluations.items()},
        charts=list(_charts(run)),
        analyses={d: list(sections(a, d, last)) for d, a in run.analyses.items()},
        galleries=list(galleries(run, run_dir)),
        overviews=run.overviews,
        sheets=sheets(run, run_dir),
        scaling=run.scaling
        and {
            "sentences": scaling_sentences(run.scaling),
            "rows": scaling_rows(run.scaling),
        },
        exports=[_export(record) for record in run.exports],
        warnings=run.warnings,
        is_running=run.is_running,
        live=live(run),
        again="" if run.is_evaluation else info.reproduce,
        **page_parts(),
    )
    page = page or run_dir / "report.html"
    with atomic_write(page, "wb") as f:
        f.write(html.encode("utf-8", errors="replace"))
    return page


def require_run(run_dir: str | os.PathLike[str]) -> Path:
    """Return the path of a run directory; raise UserError if it is not one."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such folder; give a run directory")
    if not any((run_dir / f).is_file() for f in ("run.json", "metrics.json", "results.json")):
        raise UserError(
            f"{run_dir} is not a run directory: no run.json, metrics.json or results.json"
        )
    return run_dir


def _notes(run: RunRecord) -> list[str]:
    """Return sentences about what the page does not show, and what is misleading."""
    notes = [*run.damaged, *(f"{text[:1].upper()}{text[1:]}." for text in run.info.caveats or ())]
    if "total_loss" not in run.curves:
        notes.append("No training losses: an evaluation, or stopped before the first loss.")
    elif run.info.stopped_by or run.info.train_seconds is UNSET:
        last = run.curves["total_loss"][-1][0]
        cause = f" (stopped by {run.info.stopped_by})" if run.info.stopped_by else ""
        notes.append(f"Training has not finished{cause}: the last loss is from iteration {last}.")
    for name, words in _SKIPPED.items():
        if counts := run.curves.get(name):
            notes.append(f"{words}: {counts[-1][1]:.0f} (listed in log.txt).")
    if not run.evaluations:
        notes.append("No results.json, so no AP: evaluation is off or has not run yet.")
    if not any(run.overlays.values()):
        notes.append("No pictures: the folder overlays/ is missing or empty.")
    if not run.info.versions:
        notes.append("No package versions in run.json.")
    if not run.config:
        notes.append("No config.yaml.")
    return notes


def _summary(run: RunRecord) -> list[str]:
    """Return lines about the data and weights."""
    data = [f"{dataset}: {run.size(dataset)}" for dataset in run.info.datasets]
    if classes := run.info.classes:
        data.append(plural(len(classes), "class"))
    use = "evaluated weights" if run.is_evaluation else "initial weights"
    sources = ((use, run.info.weights), ("resumed from", run.info.resumed_from))
    weights = [f"{words} {file}" for words, file in sources if file]
    return [" · ".join(parts) for parts in (data, weights) if parts]


def _export(record: ExportRecord) -> dict[str, Any]:
    """Return what the page shows of an exported model."""
    masks = "" if record.masks is None else f", of masks {record.masks:.1g} (1 - IoU)"
    return {
        "file": record.file,
        "page": record.page,
        "facts": [record.precision, f"{record.bytes / 1e6:.1f} MB"],
        "failures": record.failures,
        "results": record.results,
        "differences": (
            f"{plural(record.images, 'image')}, {plural(record.objects, 'object')}: the largest"
            f" difference of boxes is {record.boxes:.1g} pixels of the resized photo, of scores"
            f" {record.scores:.1g}{masks}; {record.within:.1%} of the objects are within the"
            f" tolerances, and {record.alone} are found by only one of the two."
        ),
    }


def _split(key: str) -> tuple[str, str, str]:
    """Split a result's key: balloon_val/coco/segm/AP50 -> balloon_val, coco segm, AP50."""
    dataset, metric, task, name = ["", "", "", *key.rsplit("/", 3)][-4:]
    return dataset, f"{metric} {task}".strip(), name


def _describe(which: str, evaluation: EvaluationRecord) -> str:
    known = evaluation.iteration is not None
    return f"{which}, iteration {evaluation.iteration}" if known else which


def _rows(
    run: RunRecord, evaluation: EvaluationRecord
) -> dict[tuple[str, str], dict[str, float | None]]:
    """Return the numbers that the table shows by (dataset, task), then by name."""
    rows: dict[tuple[str, str], dict[str, float | None]] = {}
    for key, value in evaluation.results.items():
        dataset, task, name = _split(key)
        if dataset and name in _AP_NAMES:
            rows.setdefault((dataset, task), {})[name] = value
    return rows


def _tiles(run: RunRecord) -> Iterator[dict[str, Any]]:
    which = "best" if "best" in run.evaluations else "last"
    if which not in run.evaluations:
        return
    evaluation = run.evaluations[which]
    for (dataset, task), numbers in _rows(run, evaluation).items():
        if numbers.get("AP") is not None:
            yield {
                "label": f"{task} AP",
                "value": numbers["AP"],
                "interval": _intervals(evaluation, dataset, task).get("AP"),
                "ap50": numbers.get("AP50"),
                "detail": f"{dataset} ({_describe(which, evaluation)})",
            }


def _table(run: RunRecord) -> Iterator[dict[str, Any]]:
    best, last = run.evaluations.get("best"), run.evaluations.get("last")
    shown = dict(run.evaluations)
    if best is not None and best == last:
        shown = {"best and last": best}
    by_row = {which: _rows(run, evaluation) for which, evaluation in shown.items()}
    for dataset, task in dict.fromkeys(row for rows in by_row.values() for row in rows):
        for which, evaluation in shown.items():
            if (dataset, task) in by_row[which]:
                yield {
                    "dataset": dataset,
                    "task": task,
                    "which": _describe(which, evaluation),
                    "numbers": by_row[which][dataset, task],
                    "intervals": _intervals(evaluation, dataset, task),
                }


def _intervals(evaluation: EvaluationRecord, dataset: str, task: str) -> dict[str, Any]:
    """Return the intervals of a row of the table by name."""
    start = f"{dataset}/{task.replace(' ', '/')}/"
    found = evaluation.intervals or {}
    return {name: found.get(start + name) for name in _AP_NAMES}


def _all_numbers(run: RunRecord) -> list[tuple[str, list[tuple[float | None, Any]]]]:
    """Return the keys of all results, with the result and interval of each evaluation."""
    evaluations = run.evaluations.values()
    keys = dict.fromkeys(key for e in evaluations for key in e.results)
    return [
        (key, [(e.results.get(key), (e.intervals or {}).get(key)) for e in evaluations])
        for key in keys
    ]


def about_intervals(evaluations: Iterable[EvaluationRecord]) -> list[str]:
    """Return sentences about the intervals of results, their caveats, and APs without intervals."""
    evaluations = list(evaluations)
    shown = [
        (e.intervals or {}).get(key)
        for e in evaluations
        for key, value in e.results.items()
        if value is not None and _split(key)[2] in _AP_NAMES
    ]
    sentences = [ABOUT_INTERVALS] if any(shown) else []
    sentences += dict.fromkeys(f"{text}." for e in evaluations for text in e.caveats or ())
    if not all(shown):
        sentences.append(NO_INTERVALS)
    return sentences


def _charts(run: RunRecord) -> Iterator[dict[str, Any]]:
    def loss_line(name: str, label: str, color: int = 0) -> Line:
        curve = run.curves[name]
        return Line(label, smooth(curve), raw=curve, color=color)

    def validation_lines(loss: str, color: int) -> list[Line]:
        """Return a line for each validation set that has this loss."""
        suffix = f"/{VALIDATION_LOSS}/{loss}"
        names = [name for name in run.curves if name.endswith(suffix)]
        return [
            Line(f"{loss} on {name.removesuffix(suffix)}", run.curves[name], [], color + i, True)
            for i, name in enumerate(sorted(names))
        ]

    pale = "Pale: logged values; dark: moving average."
    if any(map(is_validation_loss, run.curves)):
        pale += (
            " Dashed: the same loss on the validation photos, without augmentation. If it rises"
            " while the training loss falls, the model overfits."
        )
    if "total_loss" in run.curves:
        lines = [loss_line("total_loss", "total loss"), *validation_lines("total_loss", 1)]
        yield _chart("Total loss", chart(lines, "total loss"), pale)
    parts = [n for n in run.curves if n.startswith("loss")]
    # By size, so that the legend has the same order as the lines, from top to bottom.
    parts.sort(key=lambda n: -sum(v for _, v in run.curves[n]) / len(run.curves[n]))
    if parts:
        lines = []
        for i, name in enumerate(parts[:_MAX_LOSSES]):
            lines += [loss_line(name, name, i), *validation_lines(name, i)]
        more = len(parts) > _MAX_LOSSES
        note = f" Only the {_MAX_LOSSES} largest of {len(parts)} are shown." if more else ""
        yield _chart("Parts of the loss", chart(lines, "loss"), pale + note)
    if "lr" in run.curves:
        data = chart([Line("learning rate", run.curves["lr"])], "learning rate")
        yield _chart("Learning rate", data, "Learning rate of the first parameter group.")

    datasets: dict[str, dict[str, list[Line]]] = {}
    for key in sorted(run.curves):
        dataset, task, name = _split(key)
        if dataset and name in ("AP", "AP50"):
            tasks = datasets.setdefault(dataset, {})
            color = list(tasks).index(task) if task in tasks else len(tasks)
            bars = _bars(run, key)
            line = Line(f"{task} {name}", run.curves[key], (), color, name == "AP50", bars)
            tasks.setdefault(task, []).append(line)
    for dataset, tasks in datasets.items():
        lines = [line for group in tasks.values() for line in group]
        data = chart(lines, "AP (percent)", ylim=(0, 100))
        bars = any(line.bars for line in lines)
        text = "Bars: 95 % intervals of the best and the last evaluation." if bars else ""
        yield _chart(f"AP on {dataset}", data, text)

    seconds = [(i, s) for i, s in run.curves.get("time", []) if s > 0]
    if seconds and run.info.batch_size:
        rate = [(i, run.info.batch_size / s) for i, s in seconds]
        data = chart([Line("images/s", smooth(rate), raw=rate)], "images/s")
        yield _chart("Images per second", data, "Training throughput of all processes together.")
    if "memory_mb" in run.curves:
        used = [(i, mb / 1024) for i, mb in run.curves["memory_mb"]]
        data = chart([Line("memory", used)], "memory (GiB)")
        yield _chart("Memory", data, "Rank 0: peak GPU memory, or process memory without a GPU.")


def _bars(run: RunRecord, key: str) -> list[tuple[float, float, float]]:
    """Return the intervals of a result as bars, at the iterations of metrics.json."""
    found = {
        e.iteration - 1: ends
        for e in run.evaluations.values()
        if e.iteration and (ends := (e.intervals or {}).get(key))
    }
    return [(iteration, *ends) for iteration, ends in found.items()]


def _chart(title: str, data: Markup, text: str = "") -> dict[str, Any]:
    return {"title": title, "text": text, "data": data}


def _date(iso: str) -> str:
    try:
        return f"{datetime.fromisoformat(iso):%-d %B %Y, %H:%M}"
    except ValueError:
        return iso


def duration_words(seconds: float | UnsetType) -> str:
    """Format seconds as text; return "" if they are unknown or not finite."""
    if seconds is UNSET or not seconds < 1e12:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
