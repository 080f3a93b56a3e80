"""Describe a trained model in the metadata of its ONNX file.

The keys, and the inputs and outputs of the graph, are documented in `d2ext.predict.onnx_info`,
whose `from_metadata` reads them: the package `predict` runs exported models, too.
"""

import datetime
import hashlib
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from PIL import Image

from d2ext.checkpoint.weights.weight_files import has_averages
from d2ext.config.tiles import tile_options
from d2ext.data.loading.mapper import Mapper
from d2ext.errors import UserError, config_errors
from d2ext.export.detector import RCNNDetector, RetinaNetDetector
from d2ext.predict.onnx_info import ModelInfo, Provenance
from d2ext.predict.predictor import TrainedModel
from d2ext.run_dir.metadata import installed_versions, read_run_info

_FIELD = "dataloader.val.mapper"


def describe(trained: TrainedModel, detector: RCNNDetector | RetinaNetDetector) -> ModelInfo:
    """Return the metadata of a model.

    Args:
        trained: The model, its config and its weights.
        detector: Its detector for one image.

    Raises:
        UserError: Photos are cut into tiles, or the mapper of `dataloader.val` does more than
            resize, so that the file cannot describe its input.
    """
    if tiles := tile_options(trained.cfg):
        raise UserError(
            f"the model cannot be exported: data.tiles={tiles.side}, but exported models see entire"
            " photos; data.tiles=null exports it for photos of the size of a tile"
        )
    channels, resize = _input(trained.cfg)
    return ModelInfo(
        architecture=detector.architecture,
        classes=list(trained.classes),
        channels=channels,
        short_edge=_short_edge(resize),
        max_size=int(min(resize.max_size, 2**31 - 1)),
        score_threshold=float(detector.score_threshold),
        nms_threshold=float(detector.nms_threshold),
        max_objects=detector.max_objects,
        mask_size=detector.mask_size,
        provenance=_provenance(trained),
    )


def _input(cfg: Any) -> tuple[str, T.ResizeShortestEdge]:
    """Return the order of channels, and the resize of the images that are evaluated."""
    with config_errors(_FIELD):
        mapper = instantiate(cfg.dataloader.val.mapper)
    if type(mapper) not in (DatasetMapper, Mapper):
        raise _not_described(f"{_FIELD} is a {type(mapper).__name__}")
    if cfg.dataloader.val.mapper.get("decode", "exact") != "exact":
        raise _not_described(f"{_FIELD}.decode is not exact")
    augmentations = list(mapper.augmentations.augs)
    if len(augmentations) != 1 or type(augmentations[0]) is not T.ResizeShortestEdge:
        names = ", ".join(type(a).__name__ for a in augmentations) or "empty"
        raise _not_described(f"{_FIELD}.augmentations is {names}")
    if mapper.image_format not in ("RGB", "BGR"):
        raise _not_described(f"{_FIELD}.image_format is {mapper.image_format}")
    return mapper.image_format, augmentations[0]


def _short_edge(resize: T.ResizeShortestEdge) -> int:
    if resize.interp != Image.Resampling.BILINEAR:
        raise _not_described(f"{_FIELD} does not resize bilinearly")
    lengths = set(resize.short_edge_length)
    if len(lengths) != 1 or 0 in lengths:
        raise _not_described(f"{_FIELD} resizes to short_edge_length={sorted(lengths)}")
    return int(lengths.pop())


def _not_described(why: str) -> UserError:
    return UserError(
        f"the model cannot be exported: {why}; use d2ext's or Detectron2's mapper in RGB or BGR,"
        " with one ResizeShortestEdge of one length"
    )


def _provenance(trained: TrainedModel) -> Provenance:
    run = read_run_info(trained.folder)
    with open(trained.weights, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return Provenance(
        run=trained.folder.resolve().name,
        config=Path(run.config_file).name or trained.config,
        weights=trained.weights.name,
        weights_sha256=digest,
        averaged=has_averages(trained.weights),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=installed_versions(),
    )
