"""Compare an exported model with the model in torch, on the same images."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.config import instantiate
from torch import nn

from d2ext.data.formats.images import images_in
from d2ext.errors import UserError, config_errors
from d2ext.evaluation.instances import Detections
from d2ext.evaluation.predictions import NO_DETECTIONS, joined, predict
from d2ext.evaluation.suite import Suite
from d2ext.predict.predictor import TrainedModel
from d2ext.preflight.plan import plan_run
from d2ext.run_dir.schema import ExportRecord

logger = logging.getLogger(__name__)

# By precision. Differences are those of boxes in pixels, of scores, and of masks (1 - IoU), which
# at least the share `within` of all objects must not exceed: an object near a threshold or a tie
# may come and go. `AP` is in points; at half precision it varies with the few photos of a small
# validation set (docs/deploying.md).
TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "float32": {"boxes": 0.05, "scores": 1e-3, "masks": 0.05, "within": 0.99, "AP": 0.1},
    "float16": {"boxes": 5.0, "scores": 0.05, "masks": 0.2, "within": 0.9, "AP": 1.0},
}
_LEAST_IOU = 0.5  # of two boxes that can be the same object


@dataclass(frozen=True)
class _Differences:
    """Differences of the objects that two models find; the arrays are those of the pairs."""

    objects: int
    alone: int
    boxes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None


def verify(
    trained: TrainedModel, exported: nn.Module, file: Path, precision: str, photos: Sequence[Path]
) -> ExportRecord:
    """Run both models on the validation set or on photos, and compare what they find.

    Args:
        trained: Model in torch.
        exported: Exported model, with the same inputs and outputs.
        file: File of the exported model.
        precision: Key of `TOLERANCES`.
        photos: Photos, and folders of photos; if it is empty, the config's `dataloader.val`.

    Returns:
        The differences; `failures` says which tolerances are exceeded.

    Raises:
        UserError: The data cannot be read, or has other classes than the model.
    """
    models = (trained.model, exported)
    if photos:
        images, (ours, theirs) = _on_photos(trained, models, photos)
        results: dict[str, tuple[float | None, float | None]] = {}
    else:
        images, (ours, theirs), results = _on_validation_set(trained, models)
    found = compare(ours, theirs)
    limits = TOLERANCES[precision]
    within = (found.boxes <= limits["boxes"]) & (found.scores <= limits["scores"])
    if found.masks is not None:
        within &= found.masks <= limits["masks"]
    compared = found.alone + len(within)
    record = ExportRecord(
        file=str(file),
        precision=precision,
        bytes=file.stat().st_size,
        images=images,
        objects=found.objects,
        alone=found.alone,
        boxes=_largest(found.boxes),
        scores=_largest(found.scores),
        masks=None if found.masks is None else _largest(found.masks),
        within=float(within.sum() / compared) if compared else 1.0,
        tolerances=dict(limits),
        results=results,
    )
    record.failures = list(_failures(record))
    return record


def lines(record: ExportRecord) -> list[str]:
    """Return the proof as lines for the terminal."""
    masks = "" if record.masks is None else f", masks by {record.masks:.2g} (1 - IoU)"
    told = [
        f"{name}: AP {_number(torch)} in torch, {_number(onnx)} in onnxruntime"
        for name, (torch, onnx) in record.results.items()
    ]
    return [
        *told,
        f"{record.images} images, {record.objects} objects, {record.alone} found by one model only;"
        f" boxes differ by at most {record.boxes:.2g} px, scores by {record.scores:.1g}{masks};"
        f" {record.within:.2%} within the tolerances",
    ]


def compare(ours: Detections, theirs: Detections) -> _Differences:
    """Pair the objects of two models that are in the same image and of the same class.

    The best objects of `ours` choose first, each the nearest box whose IoU is at least 0.5.
    """
    pairs: list[tuple[int, int]] = []
    for mine, others in _groups(ours, theirs):
        free = list(others)
        for i in mine[np.argsort(-ours.scores[mine], kind="stable")]:
            distances = _distances(ours.boxes[i], theirs.boxes[free])
            if len(free) and np.isfinite(distances).any():
                pairs.append((int(i), int(free.pop(int(np.argmin(distances))))))
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    masks = None
    if ours.masks is not None and theirs.masks is not None:
        masks = np.array([_mask_difference(ours.masks[i], theirs.masks[j]) for i, j in pairs])
    return _Differences(
        len(ours.scores),
        len(ours.scores) + len(theirs.scores) - 2 * len(pairs),
        np.abs(_corners(ours.boxes[a]) - _corners(theirs.boxes[b])).max(1, initial=0),
        np.abs(ours.scores[a] - theirs.scores[b]),
        masks,
    )


def _groups(ours: Detections, theirs: Detections) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices of the objects of each image and class that `ours` has."""
    keys = [np.stack((found.image, found.label), 1) for found in (ours, theirs)]
    both, group = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
    mine, others = np.split(group.ravel(), [len(keys[0])])
    orders = [np.argsort(g, kind="stable") for g in (mine, others)]
    ends = [np.searchsorted(np.sort(g), np.arange(1, len(both))) for g in (mine, others)]
    yield from zip(*(np.split(o, e) for o, e in zip(orders, ends, strict=True)), strict=True)


def _distances(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the largest difference of coordinates; infinite for boxes that overlap too little."""
    a, b = _corners(box[None]), _corners(others)
    inside = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0).prod(1)
    union = box[2:].prod() + others[:, 2:].prod(1) - inside
    distances = np.abs(a - b).max(1, initial=0)
    return np.where(inside >= _LEAST_IOU * union, distances, np.inf)


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.hstack((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]))


def _mask_difference(a: dict, b: dict) -> float:
    """Return 1 minus the IoU of two masks; 0 if both are empty."""
    if not mask_util.area(a) and not mask_util.area(b):
        return 0.0
    return 1 - float(mask_util.iou([a], [b], [False])[0, 0])


def _on_photos(
    trained: TrainedModel, models: Sequence[nn.Module], photos: Sequence[Path]
) -> tuple[int, list[Detections]]:
    files = [file for path in photos for file in _photos_of(path)]
    with config_errors("dataloader.val.mapper"):
        mapper = instantiate(trained.cfg.dataloader.val.mapper)

    def batches() -> Iterator[list[dict[str, Any]]]:
        for i, file in enumerate(files):
            try:
                yield [mapper({"file_name": str(file), "image_id": i})]
            except OSError as e:
                raise UserError(f"{file} cannot be read: {e}; give other --images") from e

    found = (predict(model, batches(), range(len(files))) for model in models)
    return len(files), [(p and p.detections) or NO_DETECTIONS for p in found]


def _photos_of(path: Path) -> list[Path]:
    if path.is_dir():
        files = [path / name for name in images_in(path)]
        if not files:
            raise UserError(f"--images {path}: there is no photo in this folder")
        return files
    if not path.is_file():
        raise UserError(f"--images {path} does not exist; give photos, or folders of photos")
    return [path]


def _on_validation_set(
    trained: TrainedModel, models: Sequence[nn.Module]
) -> tuple[int, list[Detections], dict[str, tuple[float | None, float | None]]]:
    hint = "verify with photos instead: --images PHOTOS"
    try:
        plan = plan_run(
            trained.cfg, trained.folder.name, eval_only=True, weights=str(trained.weights)
        )
    except UserError as e:
        raise UserError(f"{e} (or {hint})") from e
    if plan.classes != list(trained.classes):
        raise UserError(
            f"the validation set has the classes {', '.join(plan.classes)}, but the model has"
            f" {', '.join(trained.classes)}; {hint}"
        )
    assert plan.built
    cfg = plan.built.cfg
    suite = Suite(cfg.dataloader.val, cfg.evaluators, intervals=False, resamples=0)
    with _quiet():
        evaluations = [suite.evaluate(model) for model in models]
    images, detections, results = 0, [], {}
    for ours, theirs in zip(*evaluations, strict=True):
        found = [e.detections or NO_DETECTIONS for e in (ours, theirs)]
        detections.append([replace(part, image=part.image + images) for part in found])
        images += len(ours.records)
        results |= {
            key: (_finite(value), _finite(theirs.results[key]))
            for key, value in ours.results.items()
            if key.endswith("/AP")
        }
    return images, [joined([pair[i] for pair in detections]) for i in (0, 1)], results


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tables of both evaluations, which are nearly equal."""
    evaluation = logging.getLogger("d2ext.evaluation")
    before = evaluation.level
    evaluation.setLevel(logging.WARNING)
    try:
        yield
    finally:
        evaluation.setLevel(before)


def _failures(record: ExportRecord) -> Iterator[str]:
    limits = record.tolerances
    for name, (torch, onnx) in record.results.items():
        if torch is not None and (onnx is None or abs(torch - onnx) > limits["AP"]):
            yield (
                f"{name} is {_number(onnx)} in onnxruntime and {_number(torch)} in torch, which"
                f" differ by more than {limits['AP']} points"
            )
    if record.within < limits["within"]:
        yield (
            f"only {record.within:.2%} of the objects are within {limits['boxes']} px,"
            f" {limits['scores']:g} of score and {limits['masks']} of mask IoU, less than"
            f" {limits['within']:.0%}"
        )


def _largest(values: np.ndarray) -> float:
    return float(values.max(initial=0))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
