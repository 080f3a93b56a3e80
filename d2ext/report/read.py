"""Read the files of a run directory; a missing or damaged part reads as empty."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from d2ext.config.lr_scaling import ScalingReport
from d2ext.evaluation.analysis import AnalysisRecord
from d2ext.report.charts import Curve
from d2ext.report.log import Warned, read_warnings
from d2ext.run_dir.metrics import read_metrics
from d2ext.run_dir.schema import (
    UNSET,
    DatasetOverview,
    EvaluationRecord,
    ExportRecord,
    ExportsRecord,
    ResultsRecord,
    RunInfo,
    read_record,
    valid_part,
)

T = TypeVar("T")

_FRESH = 3600  # seconds since the last numbers, which is longer than most evaluations take


@dataclass
class RunRecord:
    """Content of the files of a run directory."""

    info: RunInfo
    config: str
    curves: dict[str, Curve]
    evaluations: dict[str, EvaluationRecord]  # "best" and "last", if they exist
    overlays: dict[str, list[Path]]  # dataset -> pictures
    analyses: dict[str, AnalysisRecord]  # dataset -> error analysis
    overviews: dict[str, DatasetOverview]  # dataset -> counts and sizes
    scaling: ScalingReport | None
    exports: list[ExportRecord]
    warnings: list[Warned]
    is_running: bool  # still training, as far as the files show
    damaged: list[str] = field(default_factory=list)  # sentences about unreadable parts

    @property
    def is_evaluation(self) -> bool:
        """Return whether nothing shows that the run trained."""
        return not self.info.max_iter and "total_loss" not in self.curves

    def size(self, dataset: str, unit: str = "objects") -> str:
        """Describe the number of images and objects of a dataset; "" if run.json lacks it."""
        if not (info := self.info.datasets.get(dataset)):
            return ""
        images, instances = ("?" if n is None else n for n in (info.images, info.instances))
        return f"{images} images, {instances} {unit}"


def read_run(run_dir: Path) -> RunRecord:
    """Read all data of the page, except that pictures are only listed."""
    damaged: list[str] = []
    info = valid_part(_read_object(run_dir / "run.json", damaged), RunInfo)
    results = valid_part(_read_object(run_dir / "results.json", damaged), ResultsRecord)
    evaluations = {}
    for name, evaluation in (("best", results.best), ("last", results.last)):
        if evaluation:
            numbers = {key: _number(value) for key, value in evaluation.results.items()}
            ends = {key: _interval(value) for key, value in (evaluation.intervals or {}).items()}
            evaluations[name] = EvaluationRecord(
                iteration=evaluation.iteration,
                results=numbers,
                intervals=ends,
                samples=evaluation.samples,
                caveats=evaluation.caveats,
            )
    overlays = {
        folder.name: sorted(folder.glob("*.jpg"))
        for folder in sorted((run_dir / "overlays").glob("*"))
        if folder.is_dir()
    }
    return RunRecord(
        info=info,
        config=_read_text(run_dir / "config.yaml"),
        curves=_read_metrics(run_dir / "metrics.json", damaged),
        evaluations=evaluations,
        overlays=overlays,
        analyses=_read_datasets(run_dir / "analysis", AnalysisRecord, damaged),
        overviews=_read_datasets(run_dir / "overview", DatasetOverview, damaged),
        scaling=_read_scaling(run_dir / "scaling.json", damaged),
        exports=valid_part(_read_object(run_dir / "export.json", damaged), ExportsRecord).exports,
        warnings=read_warnings(run_dir / "log.txt"),
        is_running=_is_running(run_dir, info),
        damaged=damaged,
    )


def _is_running(run_dir: Path, info: RunInfo) -> bool:
    """Return whether training has not ended, failed or been killed, judging by recent files."""
    if not info.max_iter or info.train_seconds is not UNSET or info.ended_by:
        return False
    files = [run_dir / name for name in ("run.json", "metrics.json")]
    return time.time() - max(f.stat().st_mtime for f in files if f.is_file()) < _FRESH


def _read_datasets(folder: Path, kind: type[T], damaged: list[str]) -> dict[str, T]:
    """Read a folder with one file per dataset; skip damaged files and add them to `damaged`."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found[file.stem] = read_record(file, kind)
        except (OSError, ValueError, RecursionError):
            damaged.append(f"{folder.name}/{file.name} is damaged and was skipped.")
    return found


def _read_scaling(file: Path, damaged: list[str]) -> ScalingReport | None:
    """Read scaling.json; return None if learning rates were not scaled, or the file is damaged."""
    try:
        return read_record(file, ScalingReport)
    except OSError:
        return None
    except (ValueError, RecursionError):
        damaged.append(f"{file.name} is damaged and was skipped.")
        return None


def _read_metrics(path: Path, damaged: list[str]) -> dict[str, Curve]:
    """Return one curve per name, without the iterations that a resumed run repeated."""
    written, unreadable = read_metrics(path)
    rows: list[dict[str, Any]] = []
    for row in written:
        while rows and rows[-1]["iteration"] >= row["iteration"]:
            rows.pop()  # written after the checkpoint that was resumed
        rows.append(row)
    if unreadable:
        damaged.append(f"metrics.json: {unreadable} unreadable line(s) skipped.")
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            number = _number(value)
            if number is not None and name != "iteration":
                curves.setdefault(name, []).append((row["iteration"], number))
    return curves


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def _read_object(path: Path, damaged: list[str]) -> dict[str, Any]:
    text = _read_text(path)
    value = _parse(text)
    if isinstance(value, dict):
        return value
    if text:
        damaged.append(f"{path.name} is damaged and was skipped.")
    return {}


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _interval(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return an interval if both ends can be drawn, else None."""
    low, high = map(_number, ends or (None, None))
    return None if low is None or high is None else (low, high)


def _number(value: Any) -> float | None:
    """Return a value if it can be drawn: not NaN, and not larger than a diverged fp32 loss."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e39:
        return None
    return None if math.isnan(value) else float(value)
