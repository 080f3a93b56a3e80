"""Read and write results.json: the last and the best evaluation, and scores for early stopping."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from d2ext.errors import UserError
from d2ext.files import finite_or_none
from d2ext.run_dir.names import BEST, RESAMPLES
from d2ext.run_dir.schema import (
    EvaluationRecord,
    ResultsRecord,
    read_record,
    to_plain,
    write_record,
)
from d2ext.text import plural

logger = logging.getLogger(__name__)


class Results:
    """Evaluations of a run; the state is results.json, which a resumed run reads.

    Args:
        path: Path of results.json.
        metric: Key of the result that decides which evaluation is best; None to select none.
        mode: `max` or `min`, for whether higher or lower scores are better.
        iteration: Number of completed iterations; scores after that are ignored.
        start: The same number in steps of the current batch size; None if it has not changed.
        saved: Result of `content` from the resumed checkpoint, in case the file is lost.

    Attributes:
        last: Last evaluation, or None.
        best: Best evaluation, or None.
    """

    def __init__(
        self,
        path: Path,
        metric: str | None,
        mode: str,
        iteration: int,
        start: int | None = None,
        saved: dict | None = None,
    ):
        self._path = path
        self._metric, self._mode = metric, mode
        record = _read(path, saved or {}) if iteration else ResultsRecord()
        self.last = record.last
        self.best = record.best or None
        scores = [(i, score) for i, score in record.scores or [] if i <= iteration]
        if start is not None and start != iteration:  # convert to steps of the current batch size
            scores = [(round(i * start / iteration), score) for i, score in scores]
            for entry in (self.last, self.best):
                if entry and entry.iteration is not None:
                    entry.iteration = round(entry.iteration * start / iteration)
        goal = (metric, mode)
        if metric and self.best and (self.best.metric, self.best.mode) != goal:
            logger.info("train.best changed; the previous best is discarded")
            self.best, scores = None, []
        self._scores = scores

    def known(self, iteration: int) -> dict[str, float | None] | None:
        """Return the results and losses of the last evaluation if `iteration` is its iteration."""
        if not self.last or self.last.iteration != iteration:
            return None
        return {**self.last.results, **(self.last.losses or {})}

    def is_better(self, results: Mapping[str, float]) -> bool:
        """Return whether results are better than the best so far; NaN is never better.

        Raises:
            UserError: The results do not contain the metric.
        """
        if self._metric is None:
            return False
        if self._metric not in results:
            raise UserError(
                f"train.best.metric={self._metric} is not a result of the evaluation; choose from"
                f" {', '.join(results)}"
            )
        before = self.best.results[self._metric] if self.best else None
        return _better(results[self._metric], before, self._mode)

    def record(
        self,
        iteration: int | None,
        results: Mapping[str, float],
        losses: Mapping[str, float] | None = None,
        intervals: Mapping[str, tuple[float, float] | None] | UnsetType = UNSET,
        samples: str | UnsetType = UNSET,
        caveats: list[str] | UnsetType = UNSET,
    ) -> None:
        """Add an evaluation, write the file, and delete the draws of replaced evaluations.

        Args:
            iteration: Number of completed iterations; None if the run does not train.
            results: Numbers by key.
            losses: Validation losses, if there are any.
            intervals: Intervals by key, if draws were made.
            samples: Name of the file in resamples/ with the draws.
            caveats: Sentences about what biases the results and intervals.
        """
        last = EvaluationRecord(
            iteration=iteration,
            results=finite_or_none(results),
            losses=finite_or_none(losses) if losses else UNSET,
            intervals=UNSET if intervals is UNSET else dict(intervals),
            samples=samples,
            caveats=caveats,
        )
        if self.is_better(results):
            metric = self._metric or UNSET
            self.best = msgspec.structs.replace(last, metric=metric, mode=self._mode)
        self.last = last
        if self._metric and iteration is not None:
            self._scores = [score for score in self._scores if score[0] != iteration]
            self._scores.append((iteration, self.last.results[self._metric]))
        record = self._record()
        write_record(self._path, record)
        kept = {entry.samples for entry in (record.last, record.best) if entry}
        for file in self._path.with_name(RESAMPLES).glob("*.npz"):
            if file.name not in kept:
                file.unlink(missing_ok=True)

    def content(self) -> dict[str, Any]:
        """Return the content of the file as plain values."""
        return to_plain(self._record())

    def _record(self) -> ResultsRecord:
        if not self._metric:
            return ResultsRecord(last=self.last)
        return ResultsRecord(last=self.last, best=self.best or UNSET, scores=self._scores)

    def exhausted(self, patience: int | None) -> str | None:
        """Return why early stopping ends the run now, or None.

        Args:
            patience: Number of evaluations without a better score before the run ends; None for no
                limit.
        """
        best, number = None, 0
        for i, (_, score) in enumerate(self._scores):
            if _better(score, best, self._mode):
                best, number = score, i
        if not patience or len(self._scores) - 1 - number < patience:
            return None
        score = "none" if best is None else f"{best:.4g} at iteration {self._scores[number][0]}"
        evaluations = plural(patience, "evaluation")
        return f"{evaluations} did not improve {self._metric}, best {score}"


def _read(path: Path, saved: dict[str, Any]) -> ResultsRecord:
    """Read the file; if it is lost or damaged, return the copy in the checkpoint."""
    try:
        return read_record(path, ResultsRecord)
    except FileNotFoundError:
        pass
    except ValueError:
        logger.warning("%s is damaged; using the results in the checkpoint", path)
    # A best score is useless without its weights.
    lost = not path.with_name(BEST).is_file()
    kept = {key: value for key, value in saved.items() if key != "best" or not lost}
    return msgspec.convert(kept, ResultsRecord)


def _better(score: float | None, than: float | None, mode: str) -> bool:
    if score is None or math.isnan(score):
        return False
    return than is None or (score > than if mode == "max" else score < than)
