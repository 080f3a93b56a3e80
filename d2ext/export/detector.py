"""A detector that `torch.onnx.export` can translate, over the trained layers of a Detectron2 model.

Detectron2's own `forward` branches on data and burns sizes into the graph. The modules here run
the same layers on one image of any size, and compute proposals, pooled features and the final
selection with operations whose shapes do not depend on data, except for those of `d2ext::nms`. In
torch, the result is that of Detectron2, bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch import retinanet
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from torch import Tensor, nn

from d2ext.errors import UserError
from d2ext.modeling import cascade
from d2ext.modeling.box_losses import IoULossOutputLayers
from d2ext.modeling.pisa import PISAOutputLayers, PISAROIHeads
from d2ext.modeling.retinanet import RetinaNet
from d2ext.modeling.rpn import ValidAnchorRPN

EXPORTED = "Faster, Mask and Cascade R-CNN with an RPN, and RetinaNet"

# Exact types: a subclass may compute other results.
_RPNS = (RPN, ValidAnchorRPN)
_HEADS = (StandardROIHeads, PISAROIHeads, CascadeROIHeads, cascade.CascadeROIHeads)
_CASCADES = (CascadeROIHeads, cascade.CascadeROIHeads)
_PREDICTORS = (FastRCNNOutputLayers, IoULossOutputLayers, PISAOutputLayers)
_RETINANETS = (retinanet.RetinaNet, RetinaNet)
_TRANSFORMS = (Box2BoxTransform,)

_LOWEST = -1e30  # below every logit
_INVALID = -2e30  # logit of an invalid proposal


@torch.library.custom_op("d2ext::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou: float, most: int, least: float) -> Tensor:
    """Return the boxes that non-maximum suppression keeps, as ONNX's NonMaxSuppression does.

    As an operator with the signature of ONNX, it contains the score threshold, the loop over
    classes and the limit, whose results would be further shapes that depend on data.

    Args:
        boxes: (B, N, 4) x0, y0, x1, y1.
        scores: (B, C, N).
        iou: A box is dropped if its IoU with a better one of its class is above this.
        most: Largest number of boxes for each of the B sets and C classes.
        least: Only scores above this are considered.

    Returns:
        (kept, 3), int64: indices of the set, the class and the box. Those of a set and class are in
        descending order of their scores.
    """
    kept = []
    for b in range(scores.shape[0]):
        for c in range(scores.shape[1]):
            considered = torch.nonzero(scores[b, c] > least)[:, 0]
            best = torchvision.ops.nms(boxes[b, considered], scores[b, c, considered], iou)[:most]
            box = considered[best]
            kept.append(torch.stack((torch.full_like(box, b), torch.full_like(box, c), box), 1))
    return torch.cat(kept) if kept else boxes.new_empty((0, 3), dtype=torch.int64)


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, most: int, least: float) -> Tensor:
    count = torch.library.get_ctx().new_dynamic_size(min=0)
    return boxes.new_empty((count, 3), dtype=torch.int64)


def build_detector(model: nn.Module) -> "RCNNDetector | RetinaNetDetector":
    """Return a detector for one image, which shares the model's layers.

    Args:
        model: Faster, Mask or Cascade R-CNN, or RetinaNet, in evaluation mode.

    Raises:
        UserError: The model has another architecture, or a part that cannot be exported.
    """
    if type(model) in _RETINANETS:
        return RetinaNetDetector(model)
    _check_type(model, (GeneralizedRCNN,), "the model")
    return RCNNDetector(model)


class _Input(nn.Module):
    """Normalize an image and pad it, as Detectron2's `preprocess_image` does."""

    def __init__(self, model: nn.Module):
        super().__init__()
        if (model.backbone.padding_constraints or {}).get("square_size", 0) > 0:
            raise _not_exported("the backbone pads images to squares")
        self.divisor = model.backbone.size_divisibility or 1
        self.register_buffer("mean", model.pixel_mean)
        self.register_buffer("std", model.pixel_std)

    def forward(self, image: Tensor) -> Tensor:
        planes = (image.permute(2, 0, 1) - self.mean) / self.std
        height, width = image.shape[:2]
        n = self.divisor
        down, right = (height + n - 1) // n * n - height, (width + n - 1) // n * n - width
        return nn.functional.pad(planes[None], (0, right, 0, down))


class _Anchors(nn.Module):
    """Compute the anchors with given indices, instead of a grid of all of them."""

    def __init__(self, generator: nn.Module, level: int):
        super().__init__()
        _check_type(generator, (DefaultAnchorGenerator,), "the anchor generator")
        self.register_buffer("cells", list(generator.cell_anchors)[level])
        self.stride = generator.strides[level]
        self.offset = generator.offset * self.stride

    def forward(self, index: Tensor, width: Any) -> Tensor:
        """Return anchors (N, 4) of a feature map that is `width` pixels wide."""
        count = len(self.cells)
        place = index // count
        row = place // width
        column = place - row * width  # the exporter does not translate `%` with a symbolic width
        x, y = (self.offset + self.stride * v.float() for v in (column, row))
        return torch.stack((x, y, x, y), 1) + self.cells[index - place * count]


class _Pooler(nn.Module):
    """Detectron2's ROIPooler for the boxes of one image."""

    def __init__(self, pooler: nn.Module, names: Sequence[str]):
        super().__init__()
        _check_type(pooler, (ROIPooler,), "the pooler")
        self.pooler = pooler
        self.names = list(names)

    def forward(self, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
        levels = [features[name] for name in self.names]
        poolers = self.pooler.level_poolers
        rois = torch.cat((torch.zeros_like(boxes[:, :1]), boxes), 1)
        if len(levels) == 1:
            return poolers[0](levels[0], rois)
        assigned = self._levels(boxes)
        parts, order = [], []
        for i, (level, pooler) in enumerate(zip(levels, poolers, strict=True)):
            here = torch.nonzero(assigned == i)[:, 0]
            parts.append(pooler(level, rois[here]))
            order.append(here)
        return torch.cat(parts)[torch.argsort(torch.cat(order))]

    def _levels(self, boxes: Tensor) -> Tensor:
        """Return the feature level of each box: equation 1 of the FPN paper."""
        of = self.pooler
        size = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        level = torch.floor(of.canonical_level + torch.log2(size / of.canonical_box_size + 1e-8))
        return level.clamp(of.min_level, of.max_level).to(torch.int64) - of.min_level


class _Proposals(nn.Module):
    """The proposals of Detectron2's RPN for one image."""

    def __init__(self, rpn: nn.Module):
        super().__init__()
        _check_type(rpn, _RPNS, "the proposal generator")
        _check_type(rpn.box2box_transform, _TRANSFORMS, "the box transform")
        self.rpn = rpn
        self.anchors = nn.ModuleList(
            _Anchors(rpn.anchor_generator, i) for i in range(len(rpn.in_features))
        )

    def forward(self, features: dict[str, Tensor], image: Tensor) -> Tensor:
        """Return the boxes of the proposals (R, 4), in descending order of their scores."""
        rpn = self.rpn
        before, after = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]
        kept_boxes, kept_scores = [], []
        levels = [features[name] for name in rpn.in_features]
        for anchors, logits, deltas in zip(self.anchors, *rpn.rpn_head(levels), strict=True):
            scores = logits[0].permute(1, 2, 0).flatten()
            deltas = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            scores, index = scores.topk(torch.sym_min(scores.shape[0], before))
            boxes = rpn.box2box_transform.apply_deltas(
                deltas[index], anchors(index, logits.shape[3])
            )
            boxes = _clipped(boxes, image)
            sides = boxes[:, 2:] - boxes[:, :2]
            valid = (sides > rpn.min_box_size).all(1)
            scores = torch.where(valid, scores, _INVALID)
            kept = nms(boxes[None], scores[None, None], rpn.nms_thresh, after, _LOWEST)[:, 2]
            kept_boxes.append(boxes[kept])
            kept_scores.append(scores[kept])
        boxes, scores = torch.cat(kept_boxes), torch.cat(kept_scores)
        return boxes[scores.topk(torch.sym_min(scores.shape[0], after)).indices]


class RCNNDetector(nn.Module):
    """Faster, Mask and Cascade R-CNN for one image.

    Args:
        model: Detectron2's GeneralizedRCNN.

    Attributes:
        architecture: Name of the architecture, as in the file's metadata.
        score_threshold: Lowest score of the results.
        nms_threshold: IoU of two boxes of a class above which the lower is dropped.
        max_objects: Largest number of results.
        mask_size: Height and width of the masks; 0 without masks.

    Raises:
        UserError: A part of the model cannot be exported.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        heads = model.roi_heads
        _check_type(heads, _HEADS, "the ROI heads")
        if heads.keypoint_on:
            raise _not_exported("the model has a keypoint head")
        self.input = _Input(model)
        self.backbone = model.backbone
        self.proposals = _Proposals(model.proposal_generator)
        self.box_pooler = _Pooler(heads.box_pooler, heads.box_in_features)
        is_cascade = type(heads) in _CASCADES
        stages = zip(heads.box_head, heads.box_predictor, strict=True) if is_cascade else None
        pairs = stages or [(heads.box_head, heads.box_predictor)]
        self.box_heads, self.box_predictors = map(nn.ModuleList, zip(*pairs, strict=True))
        for predictor in self.box_predictors:
            _check_type(predictor, _PREDICTORS, "the box predictor")
            _check_type(predictor.box2box_transform, _TRANSFORMS, "the box transform")
        self.agnostic = self.box_predictors[-1].bbox_pred.out_features == 4
        if is_cascade and not self.agnostic:
            raise _not_exported("the cascade predicts a box for each class")
        self.is_ours = type(heads) is cascade.CascadeROIHeads
        self.averages_logits = self.is_ours and heads.average_logits
        last = self.box_predictors[-1]
        self.num_classes = last.num_classes
        self.score_threshold = last.test_score_thresh
        self.nms_threshold = last.test_nms_thresh
        self.max_objects = last.test_topk_per_image
        if self.max_objects < 0:  # no limit
            self.max_objects = self.num_classes * model.proposal_generator.post_nms_topk[False]
        self.mask_size = 0
        if heads.mask_on:
            self.mask_pooler = _Pooler(heads.mask_pooler, heads.mask_in_features)
            several = isinstance(heads.mask_head, nn.ModuleList)
            self.mask_heads = nn.ModuleList(heads.mask_head if several else [heads.mask_head])
            for head in self.mask_heads:
                _check_type(head, (MaskRCNNConvUpsampleHead,), "the mask head")
            self.mask_size = 2 * heads.mask_pooler.output_size[0]
        plain = "Mask R-CNN" if heads.mask_on else "Faster R-CNN"
        self.architecture = "Cascade R-CNN" if is_cascade else plain

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the detections in an image.

        Args:
            image: uint8 (H, W, 3), in the model's order of channels.

        Returns:
            Boxes (N, 4), x0, y0, x1, y1 in pixels of `image`; scores (N,), in descending order;
            classes (N,), int64; with a mask head, probabilities of the masks (N, M, M).
        """
        features = self.backbone(self.input(image))
        boxes = self.proposals(features, image)
        stages = []
        for head, predictor in zip(self.box_heads, self.box_predictors, strict=True):
            if stages:
                boxes = _clipped(boxes, image)
            logits, deltas = predictor(head(self.box_pooler(features, boxes)))
            boxes = predictor.box2box_transform.apply_deltas(deltas, boxes)
            stages.append(logits)
        found = self._selected(_clipped(boxes.reshape(-1, 4), image), self._scores(stages))
        return (*found, self._masks(features, found[0], found[2])) if self.mask_size else found

    def _scores(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the scores (R, C) of the classes, without that of the background."""
        if self.averages_logits:
            scores = self._probabilities(sum(stages) / len(stages))
        elif self.is_ours:
            mean = torch.log(sum(x.softmax(1) for x in stages) / len(stages))
            scores = self._probabilities(mean)
        elif len(stages) > 1:
            scores = sum(map(self._probabilities, stages)) * (1.0 / len(stages))
        else:
            scores = self._probabilities(stages[0])
        return scores[:, :-1]

    def _probabilities(self, logits: Tensor) -> Tensor:
        sigmoid = self.box_predictors[-1].use_sigmoid_ce
        return logits.sigmoid() if sigmoid else logits.softmax(-1)

    def _selected(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes, scores and classes that remain after non-maximum suppression."""
        settings = self.nms_threshold, self.max_objects, self.score_threshold
        if self.agnostic:
            kept = nms(boxes[None], scores.T[None], *settings)
            classes, rows = kept[:, 1], kept[:, 2]
            boxes = boxes[rows]
        else:
            of_class = boxes.reshape(-1, self.num_classes, 4).transpose(0, 1)
            kept = nms(of_class, scores.T[:, None], *settings)
            classes, rows = kept[:, 0], kept[:, 2]
            boxes = of_class[classes, rows]
        scores, best = _best(scores[rows, classes], self.max_objects)
        return boxes[best], scores, classes[best]

    def _masks(self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor) -> Tensor:
        pooled = self.mask_pooler(features, boxes)
        stages = [_mask_probabilities(head.layers(pooled), classes) for head in self.mask_heads]
        return sum(stages) / len(stages) if self.is_ours else stages[0]


class RetinaNetDetector(nn.Module):
    """RetinaNet for one image; the attributes are those of `RCNNDetector`.

    Args:
        model: Detectron2's RetinaNet, or d2ext's.

    Raises:
        UserError: A part of the model cannot be exported.
    """

    architecture = "RetinaNet"
    mask_size = 0

    def __init__(self, model: nn.Module):
        super().__init__()
        _check_type(model.box2box_transform, _TRANSFORMS, "the box transform")
        self.input = _Input(model)
        self.backbone, self.head = model.backbone, model.head
        self.names = list(model.head_in_features)
        self.transform = model.box2box_transform
        self.anchors = nn.ModuleList(
            _Anchors(model.anchor_generator, i) for i in range(len(self.names))
        )
        self.candidates = model.test_topk_candidates
        self.num_classes = model.num_classes
        self.score_threshold = model.test_score_thresh
        self.nms_threshold = model.test_nms_thresh
        self.max_objects = model.max_detections_per_image
        self.clips_first = type(model) is RetinaNet

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and classes, as `RCNNDetector` does.

        Those of Detectron2's RetinaNet may end outside of the image.
        """
        features = self.backbone(self.input(image))
        all_boxes, all_scores, all_classes = [], [], []
        outputs = self.head([features[name] for name in self.names])
        for anchors, logits, deltas in zip(self.anchors, *outputs, strict=True):
            width = logits.shape[3]
            scores = logits[0].unflatten(0, (-1, self.num_classes)).permute(2, 3, 0, 1)
            deltas = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            scores = scores.flatten().sigmoid()
            scores, index = scores.topk(torch.sym_min(scores.shape[0], self.candidates))
            anchor = index // self.num_classes
            all_boxes.append(self.transform.apply_deltas(deltas[anchor], anchors(anchor, width)))
            all_scores.append(scores)
            all_classes.append(index - anchor * self.num_classes)
        boxes, scores, classes = map(torch.cat, (all_boxes, all_scores, all_classes))
        if self.clips_first:
            boxes = _clipped(boxes, image)
            scores = torch.where((boxes[:, 2:] > boxes[:, :2]).all(1), scores, -1.0)
        of_class = classes == torch.arange(self.num_classes)[:, None]
        by_class = torch.where(of_class, scores, -1.0)
        kept = nms(
            boxes[None], by_class[None], self.nms_threshold, self.max_objects, self.score_threshold
        )[:, 2]
        scores, best = _best(scores[kept], self.max_objects)
        return boxes[kept][best], scores, classes[kept][best]


def _clipped(boxes: Tensor, image: Tensor) -> Tensor:
    """Clip boxes (N, 4) to an image (H, W, 3)."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = boxes.unbind(1)
    x0, x1 = (v.clamp(0, width) for v in (x0, x1))
    y0, y1 = (v.clamp(0, height) for v in (y0, y1))
    return torch.stack((x0, y0, x1, y1), 1)


def _best(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the highest scores in descending order, and their indices."""
    return scores.topk(torch.sym_min(scores.shape[0], most))


def _mask_probabilities(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the masks (N, M, M) of the given classes, from logits (N, C, M, M)."""
    if logits.shape[1] == 1:
        return logits[:, 0].sigmoid()
    return logits[torch.arange(classes.shape[0]), classes].sigmoid()


def _check_type(part: Any, types: Sequence[type], name: str) -> None:
    if type(part) not in types:
        raise _not_exported(f"{name} is a {type(part).__name__}")


def _not_exported(why: str) -> UserError:
    return UserError(f"the model cannot be exported: {why}; {EXPORTED} can")
