"""Write the metrics of a run's steps: metrics.json, TensorBoard, and lines on the terminal."""

import json
import os
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, TensorboardXWriter

from d2ext.config.schedule import Schedule
from d2ext.engine.trainer import WINDOW
from d2ext.run_dir.metrics import read_metrics


class MetricWriter(HookBase):
    """Write a step's metrics when they are due, as Detectron2's JSON lines and to its writers.

    The lines and their content do not depend on where a run was stopped: lines that were lost
    after the resumed checkpoint are written again.

    Args:
        folder: The run directory.
        schedule: Schedule of the run.
    """

    def __init__(self, folder: Path, schedule: Schedule):
        self._file = folder / "metrics.json"
        self._schedule = schedule
        self._others = [CommonMetricPrinter(schedule.max_iter), TensorboardXWriter(str(folder))]
        self._written = _last_iteration(self._file)
        _end_last_line(self._file)

    def before_train(self) -> None:
        start = self.trainer.start_iter
        # A new directory may resume the checkpoint of another run, which has the lines before it.
        if self._written is not None and self._written < start - 1:
            if self._schedule.log_due(start):
                self._write(start - 1)

    def after_step(self) -> None:
        if self._schedule.log_due(self.trainer.iter + 1):
            for writer in self._others:
                writer.write()
            self._write(self.trainer.iter)

    def after_train(self) -> None:
        for writer in self._others:
            writer.close()

    def _write(self, iteration: int) -> None:
        latest = self.trainer.storage.latest_with_smoothing_hint(WINDOW)
        numbers = {name: value for name, (value, i) in latest.items() if i == iteration}
        try:
            with open(self._file, "a", encoding="utf-8") as f:
                f.write(json.dumps({**numbers, "iteration": iteration}, sort_keys=True) + "\n")
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self._file)) from e


def _last_iteration(metrics: Path) -> int | None:
    """Return the last iteration in the file: -1 if it has none, None if there is no file."""
    if not metrics.is_file():
        return None
    rows, _ = read_metrics(metrics)
    return rows[-1]["iteration"] if rows else -1


def _end_last_line(file: Path) -> None:
    """End a line that a full disk or a kill cut off, so that the next one is on its own line."""
    if file.is_file() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        with open(file, "ab") as f:
            f.write(b"\n")
