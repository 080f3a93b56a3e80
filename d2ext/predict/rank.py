"""Rank photos by what labels for them would teach the model."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from d2ext.files import atomic_write, write_json
from d2ext.predict.outcomes import Outcome

logger = logging.getLogger(__name__)

FILES = ("rank.json", "rank.txt")
_MAX_SHOWN = 20


def uncertainty(scores: np.ndarray) -> float:
    """Return how uncertain a model is about the objects in an image.

    This is the sum of (1 - |2s - 1|)^2 over the scores s of all detections: a detection counts 1
    at a score of 0.5, and 0 at 0 or 1. The rule is margin sampling (1-vs-2) with the aggregation
    "sum" of Brust, Käding and Denzler, "Active Learning for Deep Object Detection", 2019
    (https://arxiv.org/abs/1809.09875), with two outcomes for a detection: it is an object of its
    class or not, so that the margin between them is |s - (1 - s)|.

    Args:
        scores: (N,) scores of all detections, also of those that are too low to show.
    """
    margins = np.abs(2 * scores.astype(np.float64) - 1)
    return float(((1 - margins) ** 2).sum())


class Ranking:
    """Photos in the order in which to label them."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def write(self, outcome: Outcome) -> None:
        """Add a photo."""
        scores, name = outcome.all_scores, outcome.item.file_name
        value = round(uncertainty(scores), 4)
        self._rows.append({"file_name": name, "uncertainty": value, "detections": len(scores)})

    def save(self, output: Path) -> None:
        """Write rank.json and rank.txt, which has only the file names, and log the first photos.

        The most uncertain photo is first; equal ones are sorted by name.
        """
        rows = sorted(self._rows, key=lambda row: (-row["uncertainty"], row["file_name"]))
        write_json(output / FILES[0], rows)
        with atomic_write(output / FILES[1]) as f:
            f.writelines(f"{row['file_name']}\n" for row in rows)
        logger.info("Label these photos first (uncertainty, detections, photo):")
        for row in rows[:_MAX_SHOWN]:
            logger.info("%8.3f %4d  %s", row["uncertainty"], row["detections"], row["file_name"])
        if len(rows) > _MAX_SHOWN:
            logger.info("and %d more; see %s", len(rows) - _MAX_SHOWN, output / FILES[1])
        if none := sum(not row["detections"] for row in rows):
            logger.info("%d photos without any detection are last; look at them as well", none)
