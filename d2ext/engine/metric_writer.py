"""The numbers of a run's steps: metrics.json, TensorBoard, and the lines that a person follows."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, TensorboardXWriter

_WINDOW = 20  # iterations whose median is written


class MetricWriter(HookBase):
    """Writes the numbers of a step where they are due, as Detectron2's JSON lines and the others.

    Which steps those are, and what stands in their lines, does not depend on where a run was
    stopped. What a kill has taken from behind the checkpoint that is resumed is made up for.

    Args:
        folder: of the run.
        due: whether there is a line behind so many iterations.
        max_iter: of the run.
    """

    def __init__(self, folder: Path, due: Callable[[int], bool], max_iter: int):
        self._file = folder / "metrics.json"
        self._due = due
        self._others = [CommonMetricPrinter(max_iter), TensorboardXWriter(str(folder))]
        self._written = _last_iteration(self._file)
        _end_last_line(self._file)

    def before_train(self) -> None:
        done = self.trainer.start_iter
        # A new folder may go on with another run's checkpoint, whose numbers are there.
        if self._written is not None and self._written < done - 1 and self._due(done):
            self._write(done - 1)

    def after_step(self) -> None:
        if self._due(self.trainer.iter + 1):
            for writer in self._others:
                writer.write()
            self._write(self.trainer.iter)

    def after_train(self) -> None:
        for writer in self._others:
            writer.close()

    def _write(self, iteration: int) -> None:
        latest = self.trainer.storage.latest_with_smoothing_hint(_WINDOW)
        numbers = {name: value for name, (value, i) in latest.items() if i == iteration}
        try:
            with open(self._file, "a", encoding="utf-8") as f:
                f.write(json.dumps({**numbers, "iteration": iteration}, sort_keys=True) + "\n")
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self._file)) from e


def _last_iteration(metrics: Path) -> int | None:
    """The last iteration in the file: -1 for none, None for no file."""
    if not metrics.is_file():
        return None
    for line in reversed(metrics.read_bytes().splitlines()):
        try:
            return json.loads(line)["iteration"]
        except (ValueError, KeyError, TypeError):  # broken off
            continue
    return -1


def _end_last_line(file: Path) -> None:
    """Ends a line that a full disk or a kill broke off, so that the next one stands alone."""
    if file.is_file() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        with open(file, "ab") as f:
            f.write(b"\n")
