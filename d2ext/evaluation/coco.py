"""COCO average precision of boxes and masks (https://cocodataset.org/#detection-eval)."""

import contextlib
import io
import logging
import math
from collections.abc import Sequence

from d2ext.data.formats.coco import to_coco
from d2ext.data.records import image_ids_of
from d2ext.errors import UserError

logger = logging.getLogger(__name__)

_TASKS = ("bbox", "segm")


class CocoMetric:
    """AP of a detector on one data set, computed by hotcoco (equal to pycocotools to six digits).

    Args:
        tasks: `bbox`, `segm` or both; None takes `bbox`, and `segm` where predictions and ground
            truth have masks.
        per_class: adds `AP-<class>` where there are several classes.

    Raises:
        UserError: `tasks` is no list or holds something else.
    """

    def __init__(self, tasks: Sequence[str] | None = None, per_class: bool = True):
        # A text is a sequence, too: "bbox" would be the tasks b, b, o and x.
        is_list = isinstance(tasks, Sequence) and not isinstance(tasks, str)
        if tasks is not None and not (is_list and all(task in _TASKS for task in tasks)):
            raise UserError(
                f"CocoMetric: tasks={tasks!r}; give a list of {' and '.join(_TASKS)}, such as"
                " [bbox], or null"
            )
        self._tasks = tasks
        self._per_class = per_class

    def __call__(
        self, records: Sequence[dict], classes: Sequence[str], predictions: list[dict]
    ) -> dict[str, float]:
        """Evaluates one data set.

        Args:
            records: Detectron2 dataset dicts with ground truth.
            classes: class names by category_id.
            predictions: COCO results; `category_id` counts from 0 as in the records, `bbox` is
                [x, y, width, height] in pixels, `segmentation` an RLE (absent without masks).

        Returns:
            `<task>/<name>` to percent; NaN where the data set holds no such object.
        """
        # Numbered anew: an image id may be a text (Cityscapes'), which no backend takes.
        ids = {image_id: i for i, image_id in enumerate(image_ids_of(records), start=1)}
        truth = to_coco(({**r, "image_id": ids[r["image_id"]]} for r in records), classes)
        predictions = [{**p, "image_id": ids[p["image_id"]]} for p in predictions]
        with_masks = any("segmentation" in a for a in truth["annotations"])
        with_masks &= not predictions or "segmentation" in predictions[0]
        numbers = {}
        for task in self._wanted(with_masks):
            evaluated, table = _evaluate(truth, predictions, task, self._per_class)
            logger.info("COCO %s:\n%s", task, table)
            numbers |= {f"{task}/{name}": value for name, value in evaluated.items()}
        return numbers

    def keys(self, classes: Sequence[str], with_masks: bool) -> set[str]:
        """The names of the results that a data set will have."""
        nothing = to_coco([], classes)
        return {
            f"{task}/{name}"
            for task in self._wanted(with_masks)
            for name in _evaluate(nothing, [], task, self._per_class)[0]
        }

    def _wanted(self, with_masks: bool) -> Sequence[str]:
        return self._tasks or (["bbox", "segm"] if with_masks else ["bbox"])


def _evaluate(
    truth: dict, predictions: list[dict], task: str, per_class: bool
) -> tuple[dict[str, float], str]:
    """The numbers by name, and the usual table of them."""
    import hotcoco

    results = [
        {**p, "category_id": p["category_id"] + 1}  # to_coco numbers categories from 1
        for p in predictions
        if math.isfinite(p["score"])  # anything else breaks the sort inside every backend
    ]
    gt = hotcoco.COCO(truth)
    evaluation = hotcoco.COCOeval(gt, gt.load_res(results), task)
    evaluation.evaluate()
    evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as table:
        evaluation.summarize()
    numbers = evaluation.get_results(per_class=per_class and len(truth["categories"]) > 1)
    # "AP/<class>" is Detectron2's "AP-<class>": a slash separates dataset, metric, task and name.
    numbers = {name.replace("/", "-", 1): _percent(value) for name, value in numbers.items()}
    if per_class and len(truth["categories"]) > 1:  # hotcoco leaves out classes without objects
        for category in truth["categories"]:
            numbers.setdefault(f"AP-{category['name']}", math.nan)
    return numbers, table.getvalue().rstrip()


def _percent(value: float) -> float:
    # The COCO tools write -1 where there is no ground truth to average over.
    return math.nan if value < 0 else 100 * value
