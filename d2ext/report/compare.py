"""Write one self-contained HTML page that compares several runs."""

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from d2ext.evaluation.bootstrap.comparison import ABOUT_DIFFERENCES, is_shown
from d2ext.evaluation.metric_names import VALIDATION_LOSS
from d2ext.files import atomic_write
from d2ext.html import page_template
from d2ext.report.charts import Line, chart, page_parts, smooth, whiskers
from d2ext.report.config import leaves
from d2ext.report.differences import compare_results
from d2ext.report.page import about_intervals, duration_words, require_run
from d2ext.report.read import RunRecord, read_run
from d2ext.run_dir.schema import EvaluationRecord

_MAX_CHANGES = 100  # keys to show
_COLORS = 8  # in charts.js; dashed lines reuse them
_RATES = {"time": "seconds per step", "total_loss": "total loss", "lr": "learning rate"}
# Keys that differ between any two runs.
_OWN = ("train.output_dir",)


def write_comparison(
    run_dirs: Sequence[str | os.PathLike[str]],
    page: Path,
    show: Callable[[str], object] = lambda line: None,
) -> Path:
    """Write a page that compares runs: results, curves, and the differences of their configs.

    Args:
        run_dirs: Run directories.
        page: Path of the page to write.
        show: Function that is called with each line of the comparison of results as text.

    Returns:
        The path of the page.

    Raises:
        UserError: A folder is not a run directory, or the page cannot be written.
    """
    folders = [require_run(folder) for folder in run_dirs]
    runs = [read_run(folder) for folder in folders]
    names = _names(folders)
    keys, changes, different = _keys(runs), _changes(runs), _different_data(names, runs)
    compared = compare_results(folders, names, runs)
    html = page_template(Path(__file__).with_name("compare.html")).render(
        keys=[(key, key.split("/")[0] in different) for key in keys],
        different=different,
        lines=2 * _COLORS,
        rows=[_row(name, run, keys) for name, run in zip(names, runs, strict=True)],
        charts=list(_charts(names, runs, keys)),
        about_intervals=about_intervals(filter(None, map(_evaluation, runs))),
        compared=compared,
        whiskers={key: whiskers(r.difference for r in rows) for key, rows in compared.by_key()},
        about_differences=ABOUT_DIFFERENCES,
        changes=changes[:_MAX_CHANGES],
        left_out=len(changes[_MAX_CHANGES:]),
        **page_parts(),
    )
    with atomic_write(page, "wb") as f:
        f.write(html.encode("utf-8", errors="replace"))
    for line in compared.lines():
        show(line)
    return page


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names, with as many parents as needed to make them unique."""
    parts = [folder.resolve().parts for folder in folders]
    length = 1
    while len({p[-length:] for p in parts}) < len(set(parts)):
        length += 1
    return [os.path.join(*p[-length:]) for p in parts]


def _evaluation(run: RunRecord) -> EvaluationRecord | None:
    return run.evaluations.get("best") or run.evaluations.get("last")


def _results(run: RunRecord) -> dict[str, float | None]:
    evaluation = _evaluation(run)
    return evaluation.results if evaluation else {}


def _keys(runs: Sequence[RunRecord]) -> list[str]:
    """Return the keys of AP and AP50 in the results of all runs."""
    found = dict.fromkeys(key for run in runs for key in _results(run))
    return [key for key in found if is_shown(key)]


def _different_data(names: Sequence[str], runs: Sequence[RunRecord]) -> dict[str, str]:
    """Return datasets whose size differs between runs, with each size and its runs."""
    found = {}
    for dataset in dict.fromkeys(d for run in runs for d in run.info.datasets):
        sizes: dict[str, list[str]] = {}
        for name, run in zip(names, runs, strict=True):
            if size := run.size(dataset):
                sizes.setdefault(size, []).append(name)
        if len(sizes) > 1:
            found[dataset] = "; ".join(f"{size} in {', '.join(of)}" for size, of in sizes.items())
    return found


def _row(name: str, run: RunRecord, keys: Sequence[str]) -> dict[str, Any]:
    times = [seconds for _, seconds in run.curves.get("time", [])]
    step = statistics.median(times) if times else None
    iterations = run.curves.get("total_loss", [])
    results, evaluation = _results(run), _evaluation(run)
    ends = (evaluation.intervals if evaluation else None) or {}
    return {
        "name": name,
        "numbers": [(results.get(key), ends.get(key)) for key in keys],
        "iterations": f"{iterations[-1][0] + 1:.0f}" if iterations else "",
        "step": f"{step:.3g}" if step else "",
        "images": f"{run.info.batch_size / step:.3g}" if step and run.info.batch_size else "",
        "duration": duration_words(run.info.train_seconds),
        "device": f"{run.info.device} {run.info.machine}",
    }


def _charts(
    names: Sequence[str], runs: Sequence[RunRecord], keys: Sequence[str]
) -> Iterator[dict[str, Any]]:
    curves = sorted({key for run in runs for key in run.curves})
    validation = [key for key in curves if key.endswith(f"/{VALIDATION_LOSS}/total_loss")]
    for key in ("total_loss", *validation, *keys, "lr", "time"):
        lines = [
            Line(
                name,
                smooth(run.curves[key]) if key in ("total_loss", "time") else run.curves[key],
                color=i,
                dashed=i % (2 * _COLORS) >= _COLORS,
            )
            for i, (name, run) in enumerate(zip(names, runs, strict=True))
            if key in run.curves
        ]
        if lines:
            title = _RATES.get(key, key)
            percent = key in keys
            data = chart(lines, "percent" if percent else title, (0, 100) if percent else None)
            yield {"title": title, "data": data}


def _changes(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    configs = [leaves(run.config) for run in runs]
    rows = []
    for key in sorted({key for config in configs for key in config} - set(_OWN)):
        values = [str(config.get(key, "")) for config in configs]
        if len(set(values)) > 1:
            rows.append((key, values))
    return rows
