"""Write the metrics of a run to metrics.json, to the terminal, and to other writers."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    get_event_storage,
)

from d2ext.config.schedule import Schedule
from d2ext.engine.trainer import WINDOW
from d2ext.errors import format_exception
from d2ext.evaluation.metric_names import is_validation_loss
from d2ext.run_dir.metrics import read_metrics
from d2ext.text import without_credentials

logger = logging.getLogger(__name__)


class MetricWriter(HookBase):
    """Write metrics when they are due, as Detectron2's JSON lines and to its writers.

    The lines do not depend on where a run was stopped: lines that were lost after the resumed
    checkpoint are written again.

    Args:
        folder: Run directory.
        schedule: Schedule of the run.
        writers: Detectron2 writers, called at the same steps. Their errors become warnings.
    """

    def __init__(self, folder: Path, schedule: Schedule, writers: Sequence[EventWriter] = ()):
        self._file = folder / "metrics.json"
        self._schedule = schedule
        self._others: list[Any] = [_Printer(schedule.max_iter), *map(_Tolerant, writers)]
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
            # Among the writers, only TensorBoard's clears these.
            self.trainer.storage.clear_images()
            self.trainer.storage.clear_histograms()
            self._write(self.trainer.iter)

    def after_train(self) -> None:
        if self.trainer.error is not None:
            self.close()

    def close(self) -> None:
        """Close the writers if they are open; unless training failed, the run calls this."""
        writers, self._others = self._others, []
        with self.trainer.storage:
            for writer in writers:
                writer.close()

    def _write(self, iteration: int) -> None:
        numbers = step_metrics(self.trainer.storage, iteration)
        try:
            with open(self._file, "a", encoding="utf-8") as f:
                f.write(json.dumps({**numbers, "iteration": iteration}, sort_keys=True) + "\n")
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self._file)) from e


class _Printer(CommonMetricPrinter):
    """Detectron2's printer without validation losses, which are logged by each evaluation."""

    def write(self) -> None:
        histories = get_event_storage().histories()
        hidden = {name: histories.pop(name) for name in filter(is_validation_loss, [*histories])}
        super().write()
        histories.update(hidden)


class _Tolerant:
    """Call a writer and warn of its first error; while it keeps failing, call it rarely.

    No error of a writer ends training, not even a full disk: if the run's own disk is full,
    metrics.json fails. A writer may wait for a server; if it fails, its calls take at most a tenth
    of the run's time.
    """

    def __init__(self, writer: EventWriter):
        self._writer = writer
        self._failing = False
        self._paused_until = -math.inf

    def write(self) -> None:
        if time.monotonic() >= self._paused_until:
            self._call(self._writer.write)

    def close(self) -> None:
        self._call(self._writer.close)

    def _call(self, function: Callable[[], None]) -> None:
        name, start = type(self._writer).__name__, time.monotonic()
        try:
            function()
        except Exception as e:
            if not self._failing:
                logger.warning(
                    "%s failed (%s); training continues and will call it again",
                    name,
                    without_credentials(format_exception(e)),
                )
            self._failing = True
            now = time.monotonic()
            self._paused_until = now + 9 * (now - start)
        else:
            if self._failing:
                logger.info("%s works again", name)
            self._failing = False


def step_metrics(storage: EventStorage, iteration: int) -> dict[str, float]:
    """Return the metrics of a step by name, as in metrics.json; losses are medians."""
    latest = storage.latest_with_smoothing_hint(WINDOW)
    return {name: value for name, (value, i) in latest.items() if i == iteration}


def _last_iteration(metrics: Path) -> int | None:
    """Return the last iteration in the file: -1 if it has none, None if there is no file."""
    if not metrics.is_file():
        return None
    rows, _ = read_metrics(metrics)
    return rows[-1]["iteration"] if rows else -1


def _end_last_line(file: Path) -> None:
    """End a line that a full disk or a kill cut off, so that the next line starts after it."""
    if file.is_file() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        with open(file, "ab") as f:
            f.write(b"\n")
