"""Define and check the interface of metrics in `evaluators`; this module does not import torch."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from d2ext.errors import UserError
from d2ext.evaluation.instances import Detections, GroundTruth


@runtime_checkable
class Metric(Protocol):
    """Interface of a metric, which is an entry of a config's `evaluators`.

    A metric needs only the method `__call__`, no base class. It runs on rank 0, once for each test
    set and evaluation. `d2ext.evaluation.instances` describes the columns of `GroundTruth` and
    `Detections`: `boxes` are (N, 4) float64, [x, y, width, height] in pixels; `image` and `label`
    are (N,) int64, indices into the images and classes; `scores` are (M,) float64.

    A metric may also have a method `keys(classes, tasks)` that returns the keys of its results in
    advance, for these class names and the tasks that the test set and the model support: `bbox`,
    and `segm` and `keypoints` if both have masks or keypoints. Preflight then rejects a
    `train.best.metric` or `--expect` that no evaluation will return. The method raises a
    `UserError` for a test set on which the metric cannot be computed.

    Results get intervals if the metric also has a method `resampled(ground_truth, detections,
    draws)`. `draws` is (R, I) int64: how often each of R draws contains each of the I images. The
    method returns (R,) float64 by the keys of `__call__`, or some of them: the result on a test set
    in which each image is repeated as often as in the draw; NaN if undefined. For a draw that has
    each image once, it is the result of `__call__`.

    Examples:
        >>> import d2ext
        >>> class CountError:
        ...     def __call__(self, ground_truth, detections):
        ...         found = (detections.scores >= 0.5).sum()
        ...         return {"bbox/count_error": abs(found - len(ground_truth.label))}
        ...     def keys(self, classes, tasks):
        ...         return ["bbox/count_error"]
        >>> isinstance(CountError(), d2ext.Metric)  # evaluators.count = L(CountError)() in a config
        True
    """

    def __call__(self, ground_truth: GroundTruth, detections: Detections) -> Mapping[str, float]:
        """Return results by `<task>/<name>`, such as `bbox/AP` in percent; NaN if undefined."""
        ...


def check_metric(field: str, metric: Any) -> None:
    """Check an object that was built from an entry of `evaluators`.

    Raises:
        UserError: The object is not a metric.
    """
    if not isinstance(metric, Metric):
        raise UserError(
            f"{field}: {type(metric).__name__} is not a metric; give a class with"
            " __call__(ground_truth, detections) that returns numbers by <task>/<name>, or a"
            " DatasetEvaluator of Detectron2"
        )
    try:
        inspect.signature(metric).bind(None, None)
    except TypeError as e:
        raise UserError(
            f"{field}: {type(metric).__name__}.__call__ cannot take (ground_truth, detections): {e}"
        ) from e
    except ValueError:  # some callables written in C have no signature
        pass


def checked_results(field: str, results: Any) -> dict[str, float]:
    """Return a metric's results as a dict of Python floats.

    Raises:
        UserError: The results are not numbers by `<task>/<name>`.
    """
    try:
        numbers = {key: float(value) for key, value in results.items()}
    except (AttributeError, TypeError, ValueError) as e:
        raise UserError(
            f"{field} returned {results!r:.80}; return a dict of numbers by <task>/<name>"
        ) from e
    if wrong := [key for key in numbers if not isinstance(key, str) or "/" not in key]:
        raise UserError(
            f"{field} returned the result {wrong[0]!r}; name it <task>/<name>, such as bbox/AP"
        )
    return numbers
