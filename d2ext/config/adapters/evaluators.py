"""Placeholder until the branch `evaluators` is merged."""

from typing import Any


def translate_evaluators(node: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the section `evaluators` for Detectron2's `dataloader.evaluator`."""
    return {"coco": {"_target_": "d2ext.evaluation.coco.CocoMetric"}}, []
