"""Test-time augmentation: merge the detections of an image at several sizes and flipped."""

import copy
from typing import Any

from detectron2.config import get_cfg
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA
from torch import nn

from d2ext.errors import UserError


def with_tta(model: nn.Module, min_sizes: list[int], max_size: int, flip: bool) -> nn.Module:
    """Wrap a model in Detectron2's test-time augmentation; inputs and outputs stay the same.

    The boxes of all versions go through one non-maximum suppression; masks are averaged.

    Args:
        model: GeneralizedRCNN with standard heads.
        min_sizes: Short sides in pixels.
        max_size: Maximum of the long side in pixels.
        flip: Add mirrored images.

    Raises:
        UserError: There are no sizes.
        AssertionError, AttributeError: The model is of another type.
    """
    if not min_sizes:
        raise UserError("dataloader.tta.min_sizes=[]: give short sides in pixels, such as [800]")
    heads: Any = model.roi_heads
    predictor = heads.box_predictor
    if isinstance(predictor, nn.ModuleList):  # a cascade
        predictor = predictor[-1]
    # Detectron2's class reads a yacs config.
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = heads.mask_on
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = heads.num_classes
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = predictor.test_nms_thresh
    cfg.TEST.DETECTIONS_PER_IMAGE = predictor.test_topk_per_image
    mapper = DatasetMapperTTA(min_sizes=list(min_sizes), max_size=max_size, flip=flip)
    return GeneralizedRCNNWithTTA(cfg, model, mapper)


def untransformed(loader_cfg: Any) -> Any:
    """Return a copy of a test loader's config without resizing, which the augmentation does."""
    cfg = copy.deepcopy(loader_cfg)  # keeps its parent, which interpolations need
    if "augmentations" in (cfg.get("mapper") or {}):
        cfg.mapper.augmentations = []
    return cfg
