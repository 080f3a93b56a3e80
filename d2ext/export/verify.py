"""Compare an exported model with the model in torch, on the same images."""

import copy
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
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.registry import locate
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from d2ext.data.formats.images import images_in
from d2ext.errors import UserError, config_errors
from d2ext.evaluation.instances import Detections
from d2ext.evaluation.predictions import NO_DETECTIONS, joined, predict
from d2ext.evaluation.suite import Suite, test_sets
from d2ext.predict.onnx_info import ModelInfo
from d2ext.predict.predictor import TrainedModel
from d2ext.preflight.plan import plan_run
from d2ext.run_dir.schema import ExportRecord
from d2ext.terminal import progress
from d2ext.text import plural

logger = logging.getLogger(__name__)

# By precision. Differences are those of boxes in pixels of the resized image that the model sees,
# of scores, and of masks (1 - IoU), which at least the share `within` of all objects must not
# exceed: an object near a threshold or a tie may come and go. `AP` is in points; at half precision
# it varies with the few photos of a small validation set (docs/deploying.md).
TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "float32": {"boxes": 0.05, "scores": 1e-3, "masks": 0.05, "within": 0.99, "AP": 0.1},
    "float16": {"boxes": 3.0, "scores": 0.02, "masks": 0.2, "within": 0.9, "AP": 0.5},
}
_LEAST_IOU = 0.5  # of two boxes that can be the same object


@dataclass(frozen=True)
class _Found:
    """Results of a model: detections, (height, width) of each image, and AP by name."""

    detections: Detections
    sizes: Sequence[tuple[int, int]]
    results: Mapping[str, float | None]


class Photos:
    """Photos to compare two models on; without annotations, there is no AP.

    Args:
        cfg: Config of the model.
        paths: Photos, and folders of photos.

    Raises:
        UserError: A path does not exist, or a folder has no photos.
    """

    def __init__(self, cfg: Any, paths: Sequence[Path]):
        self._files = [file for path in paths for file in _photos_of(path)]
        with _quiet(), config_errors("dataloader.val.mapper"):
            self._mapper = instantiate(cfg.dataloader.val.mapper)

    def __str__(self) -> str:
        return plural(len(self._files), "photo")

    def run(self, model: nn.Module, name: str) -> _Found:
        """Run a model, and show its progress under a name.

        Raises:
            UserError: A photo cannot be read or resized.
        """
        sizes: list[tuple[int, int]] = []

        def batches() -> Iterator[list[dict[str, Any]]]:
            for i, file in enumerate(self._files):
                try:
                    sample = self._mapper({"file_name": str(file), "image_id": i})
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
                    raise UserError(f"{file} cannot be read: {e}; give other --images") from e
                sizes.append((sample["height"], sample["width"]))
                yield [sample]

        with progress(name, len(self._files)) as advance:
            found = predict(model, batches(), range(len(self._files)), advance)
        return _Found((found and found.detections) or NO_DETECTIONS, sizes, {})


class ValidationSet:
    """The config's `dataloader.val`, to compare two models on.

    Args:
        trained: Model whose config is used.

    Raises:
        UserError: The data cannot be read, or has other classes than the model.
    """

    def __init__(self, trained: TrainedModel):
        hint = "verify with photos instead: --images PHOTOS"
        cfg = copy.deepcopy(trained.cfg)
        # An evaluation uses `test`, to which `val` refers in Detectron2's configs.
        OmegaConf.update(cfg, "dataloader.test", cfg.dataloader.val, merge=False, force_add=True)
        cfg.evaluators = _metrics(cfg.evaluators or {})
        try:
            plan = plan_run(cfg, trained.folder.name, eval_only=True, weights=str(trained.weights))
        except UserError as e:
            raise UserError(f"{e} (or {hint})") from e
        if plan.classes != list(trained.classes):
            raise UserError(
                f"the validation set has the classes {', '.join(plan.classes)}, but the model has"
                f" {', '.join(trained.classes)}; {hint}"
            )
        assert plan.built
        loader = plan.built.cfg.dataloader.test
        self._count = sum(plan.datasets[name].images or 0 for name in test_sets(loader))
        with _quiet():
            self._suite = Suite(loader, plan.built.cfg.evaluators, intervals=False, resamples=0)

    def __str__(self) -> str:
        images = plural(self._count, "image")
        return f"{images} of the validation set; --images PHOTOS compares on photos instead"

    def run(self, model: nn.Module, name: str) -> _Found:
        """Run a model, and show its progress under a name."""
        with _quiet(), progress(name, self._count) as advance:
            evaluations = self._suite.evaluate(model, advance)
        parts, sizes, results = [], [], {}
        for one in evaluations:
            found = one.detections or NO_DETECTIONS
            parts.append(replace(found, image=found.image + len(sizes)))
            sizes += [(record["height"], record["width"]) for record in one.records]
            numbers = one.results.items()
            results |= {key: _finite(value) for key, value in numbers if key.endswith("/AP")}
        return _Found(joined(parts), sizes, results)


@dataclass(frozen=True)
class _Differences:
    """Differences of the objects that two models find; the arrays are those of the pairs."""

    objects: int
    alone: int
    boxes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None


def verify(
    model: nn.Module,
    exported: nn.Module,
    images: Photos | ValidationSet,
    info: ModelInfo,
    file: Path,
) -> ExportRecord:
    """Run both models on the same images, and compare what they find.

    Args:
        model: Model in torch.
        exported: Exported model, with the same inputs and outputs.
        images: Images to run on.
        info: Metadata of the exported model.
        file: File of the exported model.

    Returns:
        The differences; `failures` says which tolerances are exceeded.

    Raises:
        UserError: A photo cannot be read.
    """
    torch, onnx = images.run(model, "torch"), images.run(exported, "onnxruntime")
    found = compare(*(_resized(run, info) for run in (torch, onnx)))
    limits = TOLERANCES[info.precision]
    within = (found.boxes <= limits["boxes"]) & (found.scores <= limits["scores"])
    if found.masks is not None:
        within &= found.masks <= limits["masks"]
    compared = found.alone + len(within)
    record = ExportRecord(
        file=str(file),
        precision=info.precision,
        bytes=file.stat().st_size,
        images=len(torch.sizes),
        objects=found.objects,
        alone=found.alone,
        boxes=_largest(found.boxes),
        scores=_largest(found.scores),
        masks=None if found.masks is None else _largest(found.masks),
        within=float(within.sum() / compared) if compared else 0.0,
        tolerances=dict(limits),
        results={key: (value, onnx.results[key]) for key, value in torch.results.items()},
        weights_sha256=info.provenance.weights_sha256,
    )
    record.failures = list(_failures(record, compared, compared - int(within.sum())))
    return record


def lines(record: ExportRecord) -> list[str]:
    """Return the proof as lines for the terminal."""
    masks = "" if record.masks is None else f", masks by {record.masks:.2g} (1 - IoU)"
    results = [
        f"{name}: AP {_number(torch)} in torch, {_number(onnx)} in onnxruntime"
        for name, (torch, onnx) in record.results.items()
    ]
    counts = f"{plural(record.images, 'image')}, {plural(record.objects, 'object')}"
    return [
        *(results or ["AP was not compared: it needs annotations and a metric that returns it"]),
        f"{counts}, {record.alone} found by one model only;"
        f" boxes differ by at most {record.boxes:.2g} px of the resized image, scores by"
        f" {record.scores:.1g}{masks}; {record.within:.2%} within the tolerances",
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


def _photos_of(path: Path) -> list[Path]:
    if path.is_dir():
        files = [path / name for name in images_in(path)]
        if not files:
            raise UserError(f"--images {path}: there is no photo in this folder")
        return files
    if not path.is_file():
        raise UserError(f"--images {path} does not exist; give photos, or folders of photos")
    return [path]


def _metrics(evaluators: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of `evaluators`; Detectron2's evaluators need masks of entire images."""
    kept: dict[str, Any] = {}
    for key, entry in evaluators.items():
        if entry is not None and "_target_" not in entry:  # those of a test set
            entry = _metrics(entry)
        elif entry is not None:
            target = entry["_target_"]
            target = locate(target) if isinstance(target, str) else target
            if isinstance(target, type) and issubclass(target, DatasetEvaluator):
                entry = None
        kept[key] = entry
    return kept


def _resized(found: _Found, info: ModelInfo) -> Detections:
    """Return detections with boxes in pixels of the resized images that the model sees."""
    scales = [min(info.short_edge / min(size), info.max_size / max(size)) for size in found.sizes]
    detections = found.detections
    return replace(detections, boxes=detections.boxes * np.array(scales)[detections.image, None])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Detectron2, and the tables of both evaluations, which are nearly equal."""
    loggers = [logging.getLogger(name) for name in ("d2ext.evaluation", "detectron2")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def _failures(record: ExportRecord, compared: int, outside: int) -> Iterator[str]:
    """Yield the tolerances that are exceeded; one object at a threshold may always differ."""
    limits = record.tolerances
    for name, (torch, onnx) in record.results.items():
        if torch is not None and (onnx is None or abs(torch - onnx) > limits["AP"]):
            yield (
                f"{name} is {_number(onnx)} in onnxruntime and {_number(torch)} in torch, which"
                f" differ by more than {limits['AP']} points"
            )
    if not compared:
        yield (
            f"neither model finds an object in {plural(record.images, 'image')}, so nothing is"
            " proved; give photos in which it finds objects: --images PHOTOS"
        )
    elif record.within < limits["within"] and (outside > 1 or outside == compared):
        yield (
            f"only {record.within:.2%} of the objects are within {limits['boxes']} px of the"
            f" resized image, {limits['scores']:g} of score and {limits['masks']} of mask IoU,"
            f" fewer than {limits['within']:.0%}"
        )


def _largest(values: np.ndarray) -> float:
    return float(values.max(initial=0))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
