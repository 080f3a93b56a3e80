"""A region proposal network that computes its loss only at the sampled anchors.

Only 256 anchors per image contribute to the loss, but the backward pass of Detectron2's RPN covers
every position of every level. Here the head runs everywhere without gradients, for the proposals,
and a second time with gradients on the 3 x 3 pixels around each sampled anchor. Losses and
gradients are the same, but summed in another order.
"""

import torch
from detectron2.layers import Conv2d
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from d2ext._compat import set_class
from d2ext.modeling.rpn import ValidAnchorRPN


class SampledRPN(RPN):
    """Detectron2's RPN for a `StandardRPNHead` with one 3 x 3 convolution."""

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return proposals and losses, like Detectron2's RPN."""
        if not self.training:
            return super().forward(images, features, gt_instances)
        levels = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(levels)
        labels, boxes = self.label_and_sample_anchors(anchors, gt_instances)
        losses = self._losses(levels, anchors, torch.stack(labels), boxes)
        with torch.no_grad():
            logits, deltas = self.rpn_head(levels)
            logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
            dim = self.anchor_generator.box_dim
            deltas = [
                x.permute(0, 2, 3, 1).reshape(len(x), -1, dim) for x in deltas
            ]  # A * `dim` numbers for each position
            return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    def _losses(
        self, levels: list[Tensor], anchors: list[Boxes], labels: Tensor, boxes: list[Tensor]
    ) -> dict[str, Tensor]:
        """Return RPN's losses; labels (N, anchors) are -1 for anchors that are not sampled."""
        image, anchor = torch.nonzero(labels >= 0, as_tuple=True)
        logits, deltas = self._predict(levels, anchors, image, anchor)
        # Detectron2's losses need the same anchors for each image: all sampled ones, where those of
        # other images are labeled -1, so that they are ignored.
        own = image, torch.arange(len(image), device=image.device)
        all_labels = labels.new_full((len(labels), len(image)), -1)
        all_labels[own] = labels[image, anchor]
        all_logits = logits.new_zeros(all_labels.shape).index_put(own, logits)
        all_deltas = deltas.new_zeros((*all_labels.shape, deltas.shape[1])).index_put(own, deltas)
        sampled = type(anchors[0]).cat(anchors)[anchor]
        return self.losses(
            [sampled], [all_logits], list(all_labels), [all_deltas], [b[anchor] for b in boxes]
        )

    def _predict(
        self, levels: list[Tensor], anchors: list[Boxes], image: Tensor, anchor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the head's logits (S,) and deltas (S, 4) for S anchors of the given images."""
        head, first, patches, order = self.rpn_head, 0, [], []
        a = self.anchor_generator.num_anchors[0]
        for feature, of_level in zip(levels, anchors, strict=True):
            here = torch.nonzero((anchor >= first) & (anchor < first + len(of_level)))[:, 0]
            place = (anchor[here] - first) // a
            patches.append(_patches(feature, image[here], place))
            order.append(here)
            first += len(of_level)
        order = torch.cat(order)
        hidden = head.conv.activation(
            F.conv2d(torch.cat(patches), head.conv.weight, head.conv.bias)
        )
        rows = torch.arange(len(order), device=order.device)
        which = anchor[order] % a  # levels start at multiples of `a`, so the offset does not matter
        logits = head.objectness_logits(hidden).flatten(1)[rows, which]
        deltas = head.anchor_deltas(hidden).view(len(order), a, -1)[rows, which]
        back = torch.argsort(order)
        return logits[back], deltas[back]


class SampledValidAnchorRPN(SampledRPN, ValidAnchorRPN):
    """A `ValidAnchorRPN` that computes its losses in this way."""


_SAMPLED = {RPN: SampledRPN, ValidAnchorRPN: SampledValidAnchorRPN}


def _patches(feature: Tensor, image: Tensor, place: Tensor) -> Tensor:
    """Return the 3 x 3 pixels (S, C, 3, 3) around positions y W + x of (N, C, H, W), 0 outside."""
    n, c, height, width = feature.shape
    around = torch.arange(-1, 2, device=feature.device)
    y = (place // width)[:, None, None] + around[:, None]
    x = (place % width)[:, None, None] + around
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = (image[:, None, None] * height + y) * width + x
    rows = feature.permute(0, 2, 3, 1).reshape(n * height * width, c)
    pixels = F.embedding(torch.where(inside, index, 0), rows)
    return (pixels * inside[..., None]).permute(0, 3, 1, 2)


def sample_rpn(model: nn.Module) -> None:
    """Replace a model's RPN in place if it has the standard head; keep all state dict keys."""
    for module in model.modules():
        if type(module) in _SAMPLED and type(module.rpn_head) is StandardRPNHead:
            conv = module.rpn_head.conv
            if isinstance(conv, Conv2d) and conv.norm is None and conv.kernel_size == (3, 3):
                set_class(module, _SAMPLED[type(module)])
