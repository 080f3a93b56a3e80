"""Test-time augmentation: merge the detections of an image at several sizes and flipped."""

import copy
from collections.abc import Mapping
from typing import Any

from detectron2.config import get_cfg
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA
from torch import nn

from d2ext.errors import UserError


def with_tta(model: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """Return a model with test-time augmentation; inputs and outputs stay the same.

    Args:
        model: A model with a method `with_tta`, such as CornerNet, or a GeneralizedRCNN with
            standard heads.
        options: Section `dataloader.tta`: arguments of that method, or `min_sizes`, `max_size` and
            `flip`.

    Raises:
        UserError: There are no sizes.
        AssertionError, AttributeError, TypeError: The options are for another model, or its type is
            not supported.
    """
    own = getattr(model, "with_tta", None)
    return own(**options) if own else _wrapped(model, **options)


def _wrapped(model: nn.Module, min_sizes: list[int], max_size: int, flip: bool) -> nn.Module:
    """Wrap a model in Detectron2's test-time augmentation.

    The boxes of all versions go through one non-maximum suppression; masks are averaged.

    Args:
        model: GeneralizedRCNN with standard heads.
        min_sizes: Short sides in pixels.
        max_size: Maximum of the long side in pixels.
        flip: Add mirrored images.
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
