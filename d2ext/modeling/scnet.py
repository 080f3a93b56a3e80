"""SCNet (Vu et al., AAAI 2021, https://arxiv.org/abs/2012.10150), over Cascade R-CNN.

Figure 2(c) of the paper shows the architecture: the box branches B of a cascade, and one mask
branch M. Both training and inference give M the samples of the last box stage (sample consistency).
The feature relay FR passes features of the last box branch to M, and the global context branch G
adds a vector that describes the image to the features of all regions. The figure omits the semantic
branch, which is that of Hybrid Task Cascade (Chen et al., CVPR 2019,
https://arxiv.org/abs/1901.07518). Constants are those of MMDetection's configs/scnet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import Conv2d, ConvTranspose2d
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, select_foreground_proposals
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from d2ext.errors import UserError
from d2ext.modeling.cascade import CascadeROIHeads

IGNORED = 255  # label of pixels without a class


class ResidualPair(nn.Module):
    """Two 3x3 convolutions added to their input, without normalization."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = Conv2d(channels, channels, 3, padding=1)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x`."""
        return x + self.conv2(F.relu(self.conv1(x)))


class SemanticHead(nn.Module):
    """Predict a class for each pixel at one level of an FPN, and features for the regions.

    This is the semantic branch of Hybrid Task Cascade, with residual pairs as its convolutions.
    """

    def __init__(
        self,
        in_features: Sequence[str],
        level: str,
        channels: int = 256,
        num_labels: int = 183,
        loss_weight: float = 0.2,
    ):
        """Build the head.

        Args:
            in_features: Names of the feature maps that are fused.
            level: The one whose resolution the result has.
            channels: Channels of the feature maps.
            num_labels: Number of classes of things and stuff together.
            loss_weight: Weight of the loss.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.level = level
        self.num_labels = num_labels
        self.loss_weight = loss_weight
        self.laterals = nn.ModuleList(
            Conv2d(channels, channels, 1, activation=F.relu) for _ in in_features
        )
        self.convs = nn.Sequential(ResidualPair(channels), ResidualPair(channels))
        self.embedding = Conv2d(channels, channels, 1, activation=F.relu)
        self.predictor = Conv2d(channels, num_labels, 1)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (N, classes, H, W) and features (N, channels, H, W) at the level's size."""
        size = features[self.level].shape[2:]
        fused: Any = 0
        for name, lateral in zip(self.in_features, self.laterals, strict=True):
            x = features[name]
            if x.shape[2:] != size:
                x = F.interpolate(x, size, mode="bilinear", align_corners=True)
            fused = fused + lateral(x)
        fused = self.convs(fused)
        return self.predictor(fused), self.embedding(fused)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy, averaged over all pixels, ignored ones included.

        Args:
            logits: Shape (N, classes, H, W).
            labels: Labels of the batch's pixels, shape (N, height, width); 255 is ignored.
        """
        small = F.interpolate(labels[:, None].float(), logits.shape[2:], mode="nearest")
        targets = small.squeeze(1).long()
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        return losses.mean() * self.loss_weight


class GlobalContextHead(nn.Module):
    """Predict which classes an image contains, and a vector that describes it: branch G."""

    def __init__(
        self, in_feature: str, num_classes: int, channels: int = 256, loss_weight: float = 3.0
    ):
        """Build the head.

        Args:
            in_feature: Name of the feature map.
            num_classes: Number of classes of objects.
            channels: Channels of the feature map.
            loss_weight: Weight of the loss.
        """
        super().__init__()
        self.in_feature = in_feature
        self.loss_weight = loss_weight
        self.convs = nn.Sequential(ResidualPair(channels), ResidualPair(channels))
        self.predictor = nn.Linear(channels, num_classes)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (N, classes) and vectors (N, channels)."""
        vectors = self.convs(features[self.in_feature]).mean(dim=(2, 3))
        return self.predictor(vectors), vectors

    def loss(self, logits: Tensor, targets: Sequence[Instances]) -> Tensor:
        """Return the binary cross entropy, whose target is 1 for the classes in the image."""
        present = torch.zeros_like(logits)
        for row, objects in zip(present, targets, strict=True):
            row[objects.gt_classes] = 1
        return F.binary_cross_entropy_with_logits(logits, present) * self.loss_weight


class FeatureRelayHead(nn.Module):
    """Turn a box head's vector into features for the mask head: feature relay FR."""

    def __init__(self, in_channels: int = 1024, channels: int = 256, size: int = 7):
        """Build the head.

        Args:
            in_channels: Length of the vector.
            channels: Channels of the result.
            size: Half of the result's width and height.
        """
        super().__init__()
        self.shape = (channels, size, size)
        self.fc = nn.Linear(in_channels, channels * size * size)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (R, channels, 2 * size, 2 * size) for vectors (R, in_channels)."""
        relayed = self.fc(x).view(-1, *self.shape)
        return F.interpolate(relayed, scale_factor=2, mode="bilinear", align_corners=True)


class SCNetMaskHead(BaseMaskRCNNHead):
    """Mask head of residual pairs, branch M; loss and inference are Detectron2's."""

    def __init__(self, num_classes: int, channels: int = 256, num_pairs: int = 6, **kwargs: Any):
        """Build the head.

        Args:
            num_classes: Number of classes.
            channels: Channels of the regions' features.
            num_pairs: Number of residual pairs.
            **kwargs: Arguments of Detectron2's BaseMaskRCNNHead, such as `loss_weight`.
        """
        super().__init__(**kwargs)
        self.convs = nn.Sequential(*(ResidualPair(channels) for _ in range(num_pairs)))
        self.deconv = ConvTranspose2d(channels, channels, 2, stride=2)
        self.predictor = Conv2d(channels, num_classes, 1)

    def layers(self, x: Tensor) -> Tensor:
        """Return logits (R, classes, 28, 28) for features (R, channels, 14, 14)."""
        return self.predictor(F.relu(self.deconv(self.convs(x))))


class ContextPooler(nn.Module):
    """Pool the features of regions, and add the semantic features and the image's context."""

    def __init__(self, pooler: ROIPooler, semantic_pooler: ROIPooler | None):
        """Build the pooler.

        Args:
            pooler: Pooler of the FPN's levels.
            semantic_pooler: Pooler of the semantic features, whose result is averaged to the size
                of the other's; None without semantic features.
        """
        super().__init__()
        self.pooler = pooler
        self.semantic_pooler = semantic_pooler

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
        """Return the features of all regions.

        Args:
            features: The levels, then the semantic features if there are any, then the context,
                shape (N, channels).
            boxes: Regions of each image.
        """
        *levels, context = features
        semantic = levels.pop() if self.semantic_pooler else None
        pooled = self.pooler(levels, boxes)
        if self.semantic_pooler:
            aligned = self.semantic_pooler([semantic], boxes)
            pooled = pooled + F.adaptive_avg_pool2d(aligned, pooled.shape[2:])
        counts = torch.tensor([len(b) for b in boxes], device=context.device)
        return pooled + context.repeat_interleave(counts, dim=0)[:, :, None, None]


class SCNetROIHeads(CascadeROIHeads):
    """Cascade ROI heads with SCNet's four additions.

    These are sample consistency, feature relay and global context (Figure 2(c)), and the semantic
    branch.
    """

    def __init__(
        self,
        *,
        semantic: bool,
        semantic_head: nn.Module,
        semantic_pooler: ROIPooler,
        context_head: nn.Module,
        relay_head: nn.Module,
        mask_head: nn.Module,
        mask_loss_weight: float = 1.75,
        box_pooler: ROIPooler,
        mask_pooler: ROIPooler,
        box_in_features: Sequence[str],
        mask_in_features: Sequence[str],
        **kwargs: Any,
    ):
        """Build the heads.

        Args:
            semantic: Whether the semantic branch is used; it needs labels of all pixels.
            semantic_head: A `SemanticHead`.
            semantic_pooler: Pooler of the semantic features.
            context_head: A `GlobalContextHead`.
            relay_head: A `FeatureRelayHead`.
            mask_head: The only mask head.
            mask_loss_weight: Weight of its loss, the sum of the stages' weights.
            box_pooler: Pooler for the box heads.
            mask_pooler: Pooler for the mask head.
            box_in_features: Levels of the FPN for the box heads.
            mask_in_features: Levels of the FPN for the mask head.
            **kwargs: Arguments of `CascadeROIHeads`.
        """
        added = ["semantic", "context"] if semantic else ["context"]
        pooler = semantic_pooler if semantic else None
        super().__init__(
            box_in_features=[*box_in_features, *added],
            mask_in_features=[*mask_in_features, *added],
            box_pooler=ContextPooler(box_pooler, pooler),
            mask_pooler=ContextPooler(mask_pooler, pooler),
            mask_head=mask_head,  # one for all stages
            **kwargs,
        )
        self.semantic_head = semantic_head if semantic else None
        self.context_head = context_head
        self.relay_head = relay_head
        self.mask_loss_weight = mask_loss_weight

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        labels: Tensor | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return the last stage's samples with losses, or detections.

        Args:
            images: The batch.
            features: Feature maps by name.
            proposals: Proposals of each image.
            targets: Objects of each image, in training.
            labels: Labels of the pixels, shape (N, height, width), in training with the semantic
                branch.
        """
        known, class_logits, pixel_logits = self._with_additions(features)
        if not self.training:
            return super().forward(images, known, proposals)
        assert targets is not None
        losses = {"loss_context": self.context_head.loss(class_logits, targets)}
        if self.semantic_head is not None:
            losses["loss_semantic"] = self.semantic_head.loss(pixel_logits, labels)
        samples, found = super().forward(images, known, proposals, targets)
        return samples, losses | found | self._last_mask_losses(known, samples)

    def forward_with_given_boxes(
        self, features: Mapping[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Set the masks of detections, like StandardROIHeads.

        Args:
            features: Feature maps by name. Test-time augmentation passes those of the backbone,
                and `forward` adds the context and the semantic features.
            instances: Detections of each image.
        """
        if "context" not in features:
            features, _, _ = self._with_additions(features)
        return super().forward_with_given_boxes(features, instances)

    def _with_additions(
        self, features: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Return the features with context and semantic features, and both heads' logits."""
        class_logits, context = self.context_head(features)
        known = {**features, "context": context}
        pixel_logits = None
        if self.semantic_head is not None:
            pixel_logits, known["semantic"] = self.semantic_head(features)
        return known, class_logits, pixel_logits

    def _mask_losses(
        self, features: dict[str, Tensor], samples: list[Instances], stage: int
    ) -> dict[str, Tensor]:
        """Return no loss, because only the last stage's samples train the mask head."""
        return {}

    def _last_mask_losses(
        self, features: dict[str, Tensor], samples: list[Instances]
    ) -> dict[str, Tensor]:
        positive, _ = select_foreground_proposals(samples, self.num_classes)
        pooled = self._mask_features(features, [x.proposal_boxes for x in positive])
        losses = self.mask_head(pooled, positive)
        return {name: loss * self.mask_loss_weight for name, loss in losses.items()}

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Set the masks of detections."""
        if not self.mask_on:  # the first pass of test-time augmentation
            return instances
        pooled = self._mask_features(features, [x.pred_boxes for x in instances])
        return self.mask_head(pooled, instances)

    def _mask_features(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """Return the mask head's input: pooled features, and what the last box head relays."""
        levels = [features[name] for name in self.box_in_features]
        relayed = self.relay_head(self.box_head[-1](self.box_pooler(levels, boxes)))
        return self._pool_masks(features, boxes) + relayed


class SCNet(GeneralizedRCNN):
    """Generalized R-CNN that gives the labels of pixels (`sem_seg`) to its ROI heads."""

    def forward(self, batched_inputs: list[dict]) -> Any:
        """Return losses in training, otherwise `instances` for each image; see GeneralizedRCNN."""
        if not self.training:
            return self.inference(batched_inputs)
        labels = None
        if self.roi_heads.semantic_head is not None:
            number = self.roi_heads.semantic_head.num_labels
            maps = [_label_map(x, number).to(self.device) for x in batched_inputs]
            labels = ImageList.from_tensors(maps, self.backbone.size_divisibility, IGNORED).tensor
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, targets)
        _, found = self.roi_heads(images, features, proposals, targets, labels)
        return {**found, **losses}


def _label_map(sample: Mapping[str, Any], num_labels: int) -> Tensor:
    """Return the label map of a sample; raise a UserError if it is missing or has other labels."""
    photo = sample.get("file_name", "an image")
    if "sem_seg" not in sample:
        raise UserError(
            f"{photo} has no label map, but model.roi_heads.semantic=True; add sem_seg_file_name to"
            " its record, or set model.roi_heads.semantic=False"
        )
    labels = sample["sem_seg"]
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= num_labels))]
    if len(wrong):
        raise UserError(
            f"the label map of {photo} has the label {int(wrong[0])}; give 0 to {num_labels - 1},"
            f" or {IGNORED} for none, or set model.roi_heads.semantic_head.num_labels"
        )
    return labels
