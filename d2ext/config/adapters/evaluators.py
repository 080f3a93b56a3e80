"""Translate `dataloader.evaluator` of a Detectron2 config into the section `evaluators`."""

import copy
import re
from typing import Any

from d2ext._compat import raw_value
from d2ext.config.check import target_name

_PACKAGE = "detectron2.evaluation."
_WRAPPER = _PACKAGE + "evaluator.DatasetEvaluators"
_COCO = _PACKAGE + "coco_evaluation.COCOEvaluator"
_LVIS = _PACKAGE + "lvis_evaluation.LVISEvaluator"
_CITYSCAPES = _PACKAGE + "cityscapes_evaluation.CityscapesInstanceEvaluator"
# Arguments of evaluators that metrics have as well, or that do not change results.
_TRANSLATED = {
    *("_target_", "dataset_name", "tasks", "max_dets_per_image", "kpt_oks_sigmas"),
    *("distributed", "use_fast_impl", "allow_cached_coco"),
}
_LVIS_MAX_DETECTIONS = 300  # of LvisMetric


def translate_evaluators(
    evaluator_node: Any, proposals_only: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Translate Detectron2's evaluators into entries of `evaluators`.

    COCOEvaluator, LVISEvaluator and CityscapesInstanceEvaluator become metrics of d2ext with the
    same settings. All others stay as they are, except for a `dataset_name` that refers to the name
    of the test set: d2ext sets it for each test set.

    Args:
        evaluator_node: Lazy call of an evaluator or of DatasetEvaluators, a list of calls, or None.
            It is not changed.
        proposals_only: Whether the model returns proposals, which COCOEvaluator evaluates and
            d2ext's metrics do not.

    Returns:
        The entries by name, and a line for each evaluator that is replaced by a metric.
    """
    entries: dict[str, Any] = {}
    changes = []
    for node in _calls(evaluator_node):
        target = target_name(node["_target_"])
        kind = target.rpartition(".")[2]
        metric = None if proposals_only else _metric(target, node)
        name = _unused(metric[0] if metric else _name(kind), entries)
        entries[name] = metric[1] if metric else _kept(node)
        if metric:
            arguments = [f"{key}={value}" for key, value in metric[1].items() if key != "_target_"]
            replaced = metric[1]["_target_"].rpartition(".")[2]
            changes.append(
                f"dataloader.evaluator: {kind} becomes evaluators.{name},"
                f" {replaced}({', '.join(arguments)})"
            )
            if lost := [key for key in node if key not in _TRANSLATED and node[key] is not None]:
                changes[-1] += f"; its {', '.join(lost)} is ignored"
    return entries, changes


def _calls(node: Any) -> list[Any]:
    """Return the lazy calls in a node, whose elements keep their parents for interpolations."""
    if node is None:
        return []
    if "_target_" not in node:  # a list, or a dict by name
        parts = node.values() if hasattr(node, "values") else node
        return [call for part in parts for call in _calls(part)]
    return _calls(node["evaluators"]) if target_name(node["_target_"]) == _WRAPPER else [node]


def _metric(target: str, node: Any) -> tuple[str, dict[str, Any]] | None:
    """Return the name and the lazy call of the metric that replaces an evaluator, if one does."""
    tasks, limit = node.get("tasks"), node.get("max_dets_per_image")
    arguments: dict[str, Any] = {} if tasks is None else {"tasks": list(tasks)}
    if target == _COCO:
        if limit is not None:
            arguments["max_detections"] = [*(n for n in (1, 10) if n < limit), limit]
        if sigmas := node.get("kpt_oks_sigmas"):
            arguments["oks_sigmas"] = list(sigmas)
        return "coco", {"_target_": "d2ext.evaluation.coco.CocoMetric", **arguments}
    if target == _LVIS and limit in (None, _LVIS_MAX_DETECTIONS):
        return "lvis", {"_target_": "d2ext.evaluation.lvis.LvisMetric", **arguments}
    if target == _CITYSCAPES:
        return "cityscapes", {"_target_": "d2ext.evaluation.cityscapes.CityscapesMetric"}
    return None


def _kept(node: Any) -> Any:
    """Return a copy that can be moved: relative interpolations would refer to other nodes."""
    kept = copy.deepcopy(node)  # keeps its parent, which interpolations need
    for key in list(kept):
        raw = raw_value(kept, key)
        if isinstance(raw, str) and key == "dataset_name" and "${" in raw:
            del kept[key]
        elif isinstance(raw, str) and "${." in raw:
            kept[key] = node[key]
    return kept


def _name(kind: str) -> str:
    """Return the name of an entry: `sem_seg` for SemSegEvaluator, `panoptic` for COCO's."""
    stem = kind.removesuffix("Evaluator") or kind
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", stem).lower()
    return words.removeprefix("coco_")


def _unused(name: str, entries: dict[str, Any]) -> str:
    count = sum(re.fullmatch(rf"{re.escape(name)}(_\d+)?", known) is not None for known in entries)
    return f"{name}_{count + 1}" if count else name
