"""PISA: prime sample attention (Cao et al., CVPR 2020, https://arxiv.org/abs/1904.04821).

Three changes of a Faster R-CNN's training; inference is unchanged. ISR-N samples negatives by their
importance and weights them, ISR-P weights the positives' classification loss (sections 3.2 and
4.1), and CARL adds a box loss that is weighted by the classification score (section 4.2).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.structures.boxes import matched_pairwise_iou
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torch.nn import functional as F

_WEIGHT = "classification_weight"
_OBJECT = "object_index"


class PISAROIHeads(StandardROIHeads):
    """Standard ROI heads that sample negatives by importance-based sample reweighting (ISR-N).

    The box predictor must be a `PISAOutputLayers`.
    """

    def __init__(
        self,
        *,
        isr_n_gamma: float = 0.5,
        isr_n_beta: float = 0.0,
        isr_n_score_threshold: float = 0.05,
        isr_n_iou_threshold: float = 0.5,
        **kwargs,
    ):
        """Build the heads.

        Args:
            isr_n_gamma: Exponent of a negative's weight, gamma in equation (2).
            isr_n_beta: Smallest weight before the exponent, beta in equation (2).
            isr_n_score_threshold: Negatives whose foreground scores are at most this have no rank;
                they are sampled at random if there are too few others.
            isr_n_iou_threshold: IoU of predicted boxes that puts negatives into one group.
            **kwargs: Arguments of Detectron2's StandardROIHeads.
        """
        super().__init__(**kwargs)
        self.isr_n_gamma = isr_n_gamma
        self.isr_n_beta = isr_n_beta
        self.isr_n_score_threshold = isr_n_score_threshold
        self.isr_n_iou_threshold = isr_n_iou_threshold

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return proposals and losses in training, otherwise detections; see StandardROIHeads."""
        if not self.training:
            return super().forward(images, features, proposals, targets)
        assert targets is not None
        proposals = self.sample_by_importance(features, proposals, targets)
        losses = self._forward_box(features, proposals)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    @torch.no_grad()
    def sample_by_importance(
        self,
        features: Mapping[str, Tensor],
        proposals: list[Instances],
        targets: Sequence[Instances],
    ) -> list[Instances]:
        """Match proposals with objects, and sample positives at random and negatives by ISR-N.

        Args:
            features: Feature maps of the batch by name.
            proposals: Proposals of each image.
            targets: Objects of each image.

        Returns:
            The sampled proposals of each image, positives first, with the fields of
            `label_and_sample_proposals`, the weight of their classification loss and the index of
            their object.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled = []
        for i, (candidates, objects) in enumerate(zip(proposals, targets, strict=True)):
            overlaps = pairwise_iou(objects.gt_boxes, candidates.proposal_boxes)
            matches, matched = self.proposal_matcher(overlaps)
            classes = torch.full_like(matches, self.num_classes)
            if len(objects):
                classes = torch.where(matched == 1, objects.gt_classes[matches], classes)
                classes[matched == -1] = -1  # neither object nor background
            positives, _ = subsample_labels(
                classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
            )
            negatives = torch.nonzero(classes == self.num_classes).flatten()
            kept, weights = self._rank_negatives(
                [features[name][i : i + 1] for name in self.box_in_features],
                candidates.proposal_boxes[negatives],
                self.batch_size_per_image - len(positives),
            )
            chosen = torch.cat([positives, negatives[kept]])
            samples = candidates[chosen]
            samples.gt_classes = classes[chosen]
            samples.set(_WEIGHT, torch.cat([weights.new_ones(len(positives)), weights]))
            samples.set(_OBJECT, matches[chosen])
            if len(objects):
                for name, values in objects.get_fields().items():
                    if name.startswith("gt_") and not samples.has(name):
                        samples.set(name, values[matches[chosen]])
            sampled.append(samples)
        return sampled

    def _rank_negatives(
        self, features: Sequence[Tensor], boxes: Boxes, number: int
    ) -> tuple[Tensor, Tensor]:
        """Choose negatives of one image: those that the model takes for objects, by hierarchy.

        Args:
            features: Feature maps of the image alone.
            boxes: All negatives.
            number: How many to choose at most.

        Returns:
            Indices of the chosen negatives, by falling importance, and the weight of each one.
        """
        number = min(number, len(boxes))
        if not number:
            return torch.zeros(0, dtype=torch.long, device=boxes.device), boxes.tensor.new_zeros(0)
        pooled = self.box_pooler(features, [boxes])
        logits, deltas = self.box_predictor(self.box_head(pooled))
        background = torch.full((len(boxes),), self.num_classes, device=logits.device)
        losses = F.cross_entropy(logits, background, reduction="none")
        scores, classes = logits.softmax(dim=1)[:, :-1].max(dim=1)
        valid = torch.nonzero(scores > self.isr_n_score_threshold).flatten()
        invalid = torch.nonzero(scores <= self.isr_n_score_threshold).flatten()
        if not len(valid):
            chosen = torch.randperm(len(boxes), device=logits.device)[:number]
            return chosen, logits.new_ones(number)
        predicted = self.box_predictor.box2box_transform.apply_deltas(
            _of_class(deltas, classes)[valid], boxes.tensor[valid]
        )
        ranks = nms_match_ranks(predicted, scores[valid], self.isr_n_iou_threshold)
        # All group heads by score, then all seconds, and so on (section 3.2).
        importance = len(valid) - ranks + scores[valid]
        kept = valid[importance.argsort(descending=True, stable=True)[:number]]
        others = invalid[torch.randperm(len(invalid), device=logits.device)]
        chosen = torch.cat([kept, others[: number - len(kept)]])
        most = max(number, len(valid))
        u = (most - torch.arange(len(chosen), device=logits.device)) / most  # equation (1)
        u[len(kept) :] = u[len(kept) - 1]
        weights = _weights(u, self.isr_n_beta, self.isr_n_gamma)
        return chosen, _with_same_sum(weights, losses[chosen])


class PISAOutputLayers(FastRCNNOutputLayers):
    """Box predictor whose losses are PISA's: ISR-P, and CARL as `loss_carl`."""

    def __init__(
        self,
        input_shape,
        *,
        isr_p_gamma: float = 2.0,
        isr_p_beta: float = 0.0,
        carl_k: float = 1.0,
        carl_b: float = 0.2,
        **kwargs,
    ):
        """Build the layers.

        Args:
            input_shape: Shape of the input features.
            isr_p_gamma: Exponent of a positive's weight, gamma in equation (2).
            isr_p_beta: Smallest weight before the exponent, beta in equation (2).
            carl_k: Exponent of a score in CARL, k in section 4.2.
            carl_b: Share of a positive's CARL weight that does not depend on its score, b in
                section 4.2.
            **kwargs: Arguments of Detectron2's FastRCNNOutputLayers.
        """
        super().__init__(input_shape, **kwargs)
        self.isr_p_gamma = isr_p_gamma
        self.isr_p_beta = isr_p_beta
        self.carl_k = carl_k
        self.carl_b = carl_b

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """Return `loss_cls`, `loss_box_reg` and `loss_carl`.

        Args:
            predictions: Logits, shape (N, classes + 1), and deltas, (N, classes x 4 or 4).
            proposals: Samples of `PISAROIHeads`, N over all images.
        """
        logits, deltas = predictions
        found = super().losses(predictions, proposals)  # also logs the accuracy
        classes = torch.cat([p.gt_classes for p in proposals])
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        objects = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        weights = torch.cat([p.get(_WEIGHT) for p in proposals])
        losses = F.cross_entropy(logits, classes, reduction="none")
        positives = torch.nonzero((classes >= 0) & (classes < self.num_classes)).flatten()
        carl = logits.sum() * 0
        if len(positives):
            mine = _of_class(deltas[positives], classes[positives])
            with torch.no_grad():
                predicted = self.box2box_transform.apply_deltas(mine, boxes[positives])
                overlaps = matched_pairwise_iou(Boxes(predicted), Boxes(objects[positives]))
                ranked = self._rank_positives(
                    overlaps, classes[positives], _objects(proposals)[positives]
                )
                same_sum = _with_same_sum(ranked, losses[positives])
                weights[positives] = same_sum.to(weights.dtype)
            targets = self.box2box_transform.get_deltas(boxes[positives], objects[positives])
            scores = logits[positives].softmax(dim=1)
            scores = scores.gather(1, classes[positives, None]).squeeze(1)
            v = (self.carl_b + (1 - self.carl_b) * scores) ** self.carl_k
            v = v * len(positives) / v.sum()  # c in section 4.2, with gradient
            regression = smooth_l1_loss(mine, targets, self.smooth_l1_beta)
            carl = (regression * v[:, None]).sum() / len(classes)
        found["loss_cls"] = (losses * weights).sum() / (weights > 0).sum().clamp(min=1)
        found["loss_cls"] = found["loss_cls"] * self.loss_weight.get("loss_cls", 1.0)
        return {**found, "loss_carl": carl * self.loss_weight.get("loss_carl", 1.0)}

    def _rank_positives(self, overlaps: Tensor, classes: Tensor, objects: Tensor) -> Tensor:
        """Return the weights of ISR-P before their normalization, equations (1) and (2).

        Positives are ranked by IoU, first among those of one object (IoU-HLR, section 3.2): all
        best ones of the objects of a class precede all second ones.

        Args:
            overlaps: IoU of each positive's predicted box with its object, shape (N,).
            classes: Class of each positive.
            objects: A number for each positive's object, different for all objects of the batch.
        """
        most = int(classes.bincount().max())
        in_object = _ranks_in_groups(overlaps, objects)
        in_class = _ranks_in_groups(overlaps + most - in_object, classes)
        return _weights((most - in_class) / most, self.isr_p_beta, self.isr_p_gamma)


def nms_match_ranks(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Group boxes as NMS does, and return the rank of each box in its group.

    The free box with the highest score opens a group, which takes all free boxes whose IoU with it
    is at least the threshold; the group's ranks follow the scores, from 0.

    Args:
        boxes: Shape (N, 4), x0 y0 x1 y1.
        scores: Shape (N,).
        iou_threshold: Smallest IoU with the first box of a group.
    """
    order = scores.argsort(descending=True, stable=True)
    sorted_boxes = Boxes(boxes[order])
    close = (pairwise_iou(sorted_boxes, sorted_boxes) >= iou_threshold).cpu().numpy()
    free = np.ones(len(order), dtype=bool)
    sorted_ranks = np.zeros(len(order), dtype=np.int64)
    for i in range(len(order)):
        if free[i]:
            free[i] = False
            members = np.flatnonzero(close[i] & free)
            free[members] = False
            sorted_ranks[members] = np.arange(1, len(members) + 1)
    ranks = torch.empty(len(order), dtype=torch.long, device=boxes.device)
    ranks[order] = torch.from_numpy(sorted_ranks).to(boxes.device)
    return ranks


def _objects(proposals: Sequence[Instances]) -> Tensor:
    """Return a number for the object of each sample, unique in the batch.

    MMDetection's numbers repeat from the third image on, so that it may take two objects for one.
    """
    numbers, first = [], 0
    for samples in proposals:
        indices = samples.get(_OBJECT)
        numbers.append(indices + first)
        first += int(indices.max()) + 1 if len(indices) else 0
    return torch.cat(numbers)


def _ranks_in_groups(values: Tensor, groups: Tensor) -> Tensor:
    """Return the rank of each value in its group, from 0 for the largest one."""
    order = values.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    sizes = groups.unique(return_counts=True)[1]
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - starts
    return ranks


def _of_class(deltas: Tensor, classes: Tensor) -> Tensor:
    """Return each row's four deltas for its class; they may be shared by all classes."""
    per_class = deltas.view(len(deltas), -1, 4)
    if per_class.shape[1] == 1:
        return per_class[:, 0]
    return per_class[torch.arange(len(deltas), device=deltas.device), classes]


def _weights(u: Tensor, beta: float, gamma: float) -> Tensor:
    """Return the weights of equation (2)."""
    return ((1 - beta) * u + beta) ** gamma


def _with_same_sum(weights: Tensor, losses: Tensor) -> Tensor:
    """Scale weights so that the sum of the losses does not change, as in section 4.1.

    Weights of losses that are all 0 are returned unchanged.
    """
    total = (losses * weights).sum()
    return weights * torch.where(total > 0, losses.sum() / total, 1.0)
