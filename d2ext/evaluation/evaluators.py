"""Run Detectron2's evaluators beside metrics: build them for a test set, and name their results."""

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from detectron2.config import instantiate
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
)
from detectron2.utils.file_io import PathManager
from PIL import Image

from d2ext.config.overrides import parameters
from d2ext.errors import UserError
from d2ext.evaluation.metric import check_metric

# Packages that these evaluators import only when the first images have been processed.
_PACKAGES = {
    COCOPanopticEvaluator: ("panopticapi", "'git+https://github.com/cocodataset/panopticapi.git'"),
    CityscapesInstanceEvaluator: ("cityscapesscripts", "cityscapesscripts"),
    CityscapesSemSegEvaluator: ("cityscapesscripts", "cityscapesscripts"),
}


def build_metric(settings: Any, dataset: str) -> Any:
    """Build a metric or an evaluator of Detectron2 for one test set.

    Args:
        settings: Lazy call, an entry of `evaluators`. If its target takes `dataset_name` and the
            call does not set it, it is the name of the test set.
        dataset: Name of the test set.
    """
    call, known = {**settings}, parameters(settings)
    if "dataset_name" in known and call.get("dataset_name") is None:
        call["dataset_name"] = dataset
    if "sem_seg_loading_fn" in known:
        call.setdefault("sem_seg_loading_fn", _read_labels)
    return instantiate(call)


def _read_labels(file: str, dtype: Any = None) -> np.ndarray:
    """Read a label map; Detectron2's default function fails with numpy 2."""
    with PathManager.open(file, "rb") as f:
        return np.array(Image.open(f), dtype)


def check_entry(field: str, made: Any) -> None:
    """Check an object that was built from an entry of `evaluators`.

    Args:
        field: Field of the entry in the config.
        made: The object.

    Raises:
        UserError: The object is neither a metric nor an evaluator, or an evaluator lacks a package.
    """
    if not isinstance(made, DatasetEvaluator):
        check_metric(field, made)
        return
    for kind, (package, source) in _PACKAGES.items():
        if isinstance(made, kind) and importlib.util.find_spec(package) is None:
            raise UserError(
                f"{field}: {type(made).__name__} needs {package}: pip install {source}, or turn the"
                f" evaluator off with {field}=null"
            )


def flat_results(results: Any) -> tuple[dict[str, float], list[str]]:
    """Return the numbers of an evaluator's nested results, and the keys of all other values.

    Args:
        results: Usually {task: {name: value}}; None is empty. Keys are joined by `/`.
    """
    numbers, others = {}, []
    for key, value in _leaves(results or {}):
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            numbers[key] = float(value)
        except (TypeError, ValueError, RuntimeError):  # torch raises the last for several elements
            others.append(key)
    return numbers, others


def _leaves(results: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in results.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
