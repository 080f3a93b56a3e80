"""CornerNet: objects as paired corners (Law and Deng, ECCV 2018, https://arxiv.org/abs/1808.01244).

Each hourglass predicts, for top-left and for bottom-right corners, a heat map per class, an
embedding that pairs the corners of an object, and the offset that downsampling loses. Sections,
equations and figures are those of the paper on arXiv.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.layers import Conv2d
from detectron2.modeling import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn import functional as F

from d2ext.errors import UserError
from d2ext.modeling.backbones.hourglass import conv, recomputed

_PRIOR = 0.1  # initial score of every corner, as in the focal loss's paper
_EPS = 1e-12
_CORNERS = ("top_left", "bottom_right")


class Corners(NamedTuple):
    """Predictions of one hourglass for one kind of corner (figure 4).

    Attributes:
        heat: Logits, shape (N, classes, H, W).
        embedding: Shape (N, 1, H, W).
        offset: Offset x, y of the corner from its cell, in cells, shape (N, 2, H, W).
    """

    heat: Tensor
    embedding: Tensor
    offset: Tensor


class Targets(NamedTuple):
    """Targets for one kind of corner (section 3.2).

    Attributes:
        heat: 1 at corners, and less near them, shape (N, classes, H, W).
        offset: Equation (2), shape (N, 2, H, W).
        cells: For each image the cell of each object's corner, as y * W + x.
    """

    heat: Tensor
    offset: Tensor
    cells: list[Tensor]


def corner_pool(x: Tensor, dim: int, reverse: bool) -> Tensor:
    """Return the running maximum along a dimension, equations (6) and (7).

    Args:
        x: Shape (N, C, H, W).
        dim: 2 for columns or 3 for rows.
        reverse: Whether the maximum runs from the end: from the bottom up, or from right to left.
    """
    if reverse:
        return x.flip(dim).cummax(dim).values.flip(dim)
    return x.cummax(dim).values


class CornerPooling(nn.Module):
    """The corner pooling module of section 3.4: the first part of figure 7, and the next layer.

    A residual block pools along edges, and a convolution follows.
    """

    def __init__(self, channels: int, reverse: bool):
        """Build the module.

        Args:
            channels: Channels of input and output.
            reverse: Whether it pools for top-left corners, whose edges are below and to the right.
        """
        super().__init__()
        self.reverse = reverse
        self.vertical = conv(channels, 128, 3)
        self.horizontal = conv(channels, 128, 3)
        self.pooled = conv(128, channels, 3, activation=None)
        self.shortcut = conv(channels, channels, 1, activation=None)
        self.output = conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x`."""
        vertical = corner_pool(self.vertical(x), 2, self.reverse)
        horizontal = corner_pool(self.horizontal(x), 3, self.reverse)
        return self.output(F.relu(self.pooled(vertical + horizontal) + self.shortcut(x)))


class CornerHead(nn.Module):
    """The prediction module of figure 7, for one kind of corner and one feature map."""

    def __init__(self, channels: int, num_classes: int, reverse: bool):
        """Build the head.

        Args:
            channels: Channels of the feature map.
            num_classes: Number of classes.
            reverse: As in `CornerPooling`.
        """
        super().__init__()
        self.pooling = CornerPooling(channels, reverse)
        self.heat = _branch(channels, num_classes)
        self.embedding = _branch(channels, 1)
        self.offset = _branch(channels, 2)
        nn.init.constant_(self.heat[1].bias, float(np.log(_PRIOR / (1 - _PRIOR))))

    def forward(self, x: Tensor) -> Corners:
        """Return the predictions for a feature map of shape (N, channels, H, W)."""
        pooled = self.pooling(x)
        return Corners(self.heat(pooled), self.embedding(pooled), self.offset(pooled))


def _branch(channels: int, outputs: int) -> nn.Sequential:
    first = Conv2d(channels, channels, 3, padding=1, activation=F.relu)
    return nn.Sequential(first, Conv2d(channels, outputs, 1))


class CornerNet(nn.Module):
    """The detector, with the interface of Detectron2's meta-architectures."""

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "RGB",
        min_overlap: float = 0.3,
        embedding_weight: float = 0.1,
        test_corners: int = 100,
        test_max_distance: float = 0.5,
        test_topk_per_image: int = 100,
        test_scales: Sequence[float] = (1.0,),
        test_flip: bool = False,
        activation_checkpointing: bool = False,
    ):
        """Build the detector.

        Args:
            backbone: Returns feature maps of one stride; each gets heads and losses, and the last
                one is used for detections.
            num_classes: Number of classes.
            pixel_mean: Mean of the three channels, for pixels from 0 to 255.
            pixel_std: Standard deviation of the three channels.
            input_format: RGB or BGR, the order of the channels.
            min_overlap: IoU with the object that a box with both corners off by the radius of the
                targets still has.
            embedding_weight: Weight of the pull and push losses, alpha and beta in equation (8).
            test_corners: Number of corners of each kind that are paired.
            test_max_distance: Largest difference of the embeddings of a pair.
            test_topk_per_image: Largest number of detections.
            test_scales: Factors by which an image is resized; detections of all sizes are joined.
            test_flip: Whether detections also come from the mirrored image.
            activation_checkpointing: Whether training stores only the input of each head, and
                computes the rest a second time in the backward pass.
        """
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.input_format = input_format
        shapes = backbone.output_shape()
        self.features = list(shapes)
        self.heads = nn.ModuleDict()
        for corner in _CORNERS:
            self.heads[corner] = nn.ModuleList(
                CornerHead(shape.channels, num_classes, corner == "top_left")
                for shape in shapes.values()
            )
        self.min_overlap = min_overlap
        self.embedding_weight = embedding_weight
        self.test_corners = test_corners
        self.test_max_distance = test_max_distance
        self.test_topk_per_image = test_topk_per_image
        self.test_scales = list(test_scales)
        self.test_flip = test_flip
        self.activation_checkpointing = activation_checkpointing
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping]) -> dict[str, Tensor] | list[dict]:
        """Return losses in training, otherwise `instances` for each image.

        Args:
            batched_inputs: Detectron2's inputs: `image` of shape (3, H, W), `instances` in
                training, and the `height` and `width` of the results.
        """
        images = [self._normalized(x["image"]) for x in batched_inputs]
        if self.training:
            batch = ImageList.from_tensors(images).tensor
            objects = [x["instances"].to(self.device) for x in batched_inputs]
            return self.losses(self.predict_corners(batch), objects, batch.shape[2:])
        found = []
        for x, image in zip(batched_inputs, images, strict=True):
            detections = self.detect(image)
            size = x.get("height", image.shape[1]), x.get("width", image.shape[2])
            found.append({"instances": detector_postprocess(detections, *size)})
        return found

    def with_tta(self, scales: Sequence[float], flip: bool) -> "CornerNet":
        """Return a model with the same weights that detects at other scales, for `--tta`.

        Args:
            scales: Like `test_scales`.
            flip: Like `test_flip`.

        Raises:
            UserError: There are no scales.
        """
        if not scales:
            raise UserError("dataloader.tta.scales=[]: give factors, such as [1.0]")
        model = copy.copy(self)
        model.test_scales, model.test_flip = list(scales), flip
        return model

    def predict_corners(self, batch: Tensor) -> list[tuple[Corners, Corners]]:
        """Return the top-left and bottom-right corners of each feature map.

        Args:
            batch: Normalized images, shape (N, 3, H, W).
        """
        features = self.backbone(batch)
        maps = [features[name] for name in self.features]
        top_left, bottom_right = (self.heads[corner] for corner in _CORNERS)
        return [
            (self._predicted(top_left[i], x), self._predicted(bottom_right[i], x))
            for i, x in enumerate(maps)
        ]

    def losses(
        self,
        corners: Sequence[tuple[Corners, Corners]],
        objects: Sequence[Instances],
        size: Sequence[int],
    ) -> dict[str, Tensor]:
        """Return the losses of equation (8), each summed over the feature maps.

        They are computed in float32 or float64, also if mixed precision gives other maps: scores
        near 0 and 1 are not distinguishable from them in less.

        Args:
            corners: Result of `predict_corners`.
            objects: `gt_boxes` and `gt_classes` of each image.
            size: Height and width of the batch in pixels.
        """
        shape = corners[0][0].heat.shape
        targets = corner_targets(objects, shape, size, self.min_overlap)
        sums: dict[str, Tensor] = {}
        for pair in corners:
            pair = _precise(pair[0]), _precise(pair[1])
            found = {
                "loss_heat": sum(map(_focal_loss, pair, targets)) / 2,
                "loss_offset": sum(map(_offset_loss, pair, targets)) / 2,
            }
            pull, push = _embedding_losses(pair, targets)
            found["loss_pull"] = pull * self.embedding_weight
            found["loss_push"] = push * self.embedding_weight
            for name, loss in found.items():
                sums[name] = sums.get(name, 0) + loss
        return sums

    def detect(self, image: Tensor) -> Instances:
        """Return the detections of one image, in its pixels.

        As in section 4.2, the image keeps its resolution. It is centered on a canvas whose sides
        are the next numbers that end with seven ones in binary. Boxes are not clipped.

        Args:
            image: Normalized image, shape (3, H, W).
        """
        parts = []
        for scale in self.test_scales:
            scaled = image if scale == 1 else _resized(image, scale)
            back = image.shape[2] / scaled.shape[2], image.shape[1] / scaled.shape[1]
            for mirrored in (False, True) if self.test_flip else (False,):
                boxes, *others = self._decoded(scaled.flip(2) if mirrored else scaled)
                if mirrored:
                    boxes[:, [0, 2]] = scaled.shape[2] - boxes[:, [2, 0]]
                parts.append((boxes * boxes.new_tensor([*back, *back]), *others))
        boxes, scores, classes = (torch.cat(values) for values in zip(*parts, strict=True))
        if len(parts) > 1:
            boxes, scores, classes = self._best(boxes, scores, classes)
        found = Instances((image.shape[1], image.shape[2]))
        found.pred_boxes = Boxes(boxes)
        found.scores = scores
        found.pred_classes = classes
        return found

    def _predicted(self, head: nn.Module, x: Tensor) -> Corners:
        if self.activation_checkpointing and self.training:
            return recomputed(head, head, x)
        return head(x)

    def _normalized(self, image: Tensor) -> Tensor:
        return (image.to(self.device) - self.pixel_mean) / self.pixel_std

    def _decoded(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = image.shape[1:]
        canvas = image.new_zeros(1, 3, height | 127, width | 127)  # zero is the mean color
        top, left = canvas.shape[2] // 2 - height // 2, canvas.shape[3] // 2 - width // 2
        canvas[0, :, top : top + height, left : left + width] = image
        pair = self.predict_corners(canvas)[-1]
        boxes, scores, classes = decode(
            pair, canvas.shape[2:], self.test_corners, self.test_max_distance, (top, left)
        )
        return self._best(boxes, scores, classes)

    def _best(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
        scores, kept = soft_nms(boxes, scores, classes)
        kept, scores = kept[: self.test_topk_per_image], scores[: self.test_topk_per_image]
        return boxes[kept], scores, classes[kept]


def _resized(image: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def gaussian_radius(height: float, width: float, min_overlap: float) -> int:
    """Return how far both corners of a box may move so that the IoU keeps a minimum, in cells.

    The smallest of three cases: both corners inward, both outward, or one of each (section 3.2).

    Args:
        height: Height of the box in cells.
        width: Width of the box in cells.
        min_overlap: The IoU.
    """
    area, around = height * width, height + width
    # Each is the smaller root r of a quadratic equation, IoU(r) = min_overlap.
    shifted = _smaller_root(1, -around, area * (1 - min_overlap) / (1 + min_overlap))
    inside = _smaller_root(4, -2 * around, (1 - min_overlap) * area)
    outside = _larger_root(4 * min_overlap, 2 * min_overlap * around, (min_overlap - 1) * area)
    return max(0, int(min(shifted, inside, outside)))


def _smaller_root(a: float, b: float, c: float) -> float:
    return (-b - np.sqrt(b * b - 4 * a * c)) / (2 * a)


def _larger_root(a: float, b: float, c: float) -> float:
    return (-b + np.sqrt(b * b - 4 * a * c)) / (2 * a)


def corner_targets(
    objects: Sequence[Instances], shape: Sequence[int], size: Sequence[int], min_overlap: float
) -> tuple[Targets, Targets]:
    """Return the targets for top-left and bottom-right corners (section 3.2).

    Args:
        objects: `gt_boxes` in pixels and `gt_classes` of each image.
        shape: Shape of a heat map: images, classes, H, W.
        size: Height and width of the batch in pixels.
        min_overlap: As in `gaussian_radius`.
    """
    number, _, height, width = shape
    scale = np.array([width / size[1], height / size[0]], dtype=np.float32)
    heat = np.zeros((2, *shape), dtype=np.float32)
    offset = np.zeros((2, number, 2, height, width), dtype=np.float32)
    cells: tuple[list[Tensor], list[Tensor]] = ([], [])
    for i, instances in enumerate(objects):
        # Corner, object, x and y.
        points = (
            instances.gt_boxes.tensor.cpu().numpy().reshape(-1, 2, 2).transpose(1, 0, 2) * scale
        )
        at = np.minimum(points, [width - 1, height - 1]).astype(np.int64)
        extents = np.ceil(points[1] - points[0])
        classes = instances.gt_classes.tolist()
        for (w, h), label, *corners in zip(extents, classes, *at, strict=True):
            radius = gaussian_radius(h, w, min_overlap)
            for kind, (x, y) in enumerate(corners):
                _draw_gaussian(heat[kind, i, label], x, y, radius)
        for kind in range(2):
            x, y = at[kind].T
            # With a repeated cell, numpy keeps the last value.
            offset[kind, i, :, y, x] = points[kind] - at[kind]
            cells[kind].append(torch.from_numpy(y * width + x))
    device = objects[0].gt_boxes.device
    heats, offsets = torch.from_numpy(heat).to(device), torch.from_numpy(offset).to(device)
    found = (
        Targets(heats[kind], offsets[kind], [c.to(device) for c in cells[kind]])
        for kind in range(2)
    )
    top_left, bottom_right = found
    return top_left, bottom_right


def _draw_gaussian(heat: np.ndarray, x: int, y: int, radius: int) -> None:
    """Raise a map to a Gaussian around a cell (section 3.2).

    Sigma is a third of the radius, which includes half of the cell.
    """
    sigma = (2 * radius + 1) / 6
    line = np.arange(-radius, radius + 1)
    values = np.exp(-(line[:, None] ** 2 + line[None] ** 2) / (2 * sigma * sigma))
    values[values < np.finfo(np.float32).eps] = 0
    top, left = max(0, y - radius), max(0, x - radius)
    part = heat[top : y + radius + 1, left : x + radius + 1]
    rows, columns = top - y + radius, left - x + radius
    patch = values[rows : rows + part.shape[0], columns : columns + part.shape[1]]
    np.maximum(part, patch, out=part, casting="same_kind")


def _precise(corners: Corners) -> Corners:
    return Corners(*(x.to(torch.promote_types(x.dtype, torch.float32)) for x in corners))


def _focal_loss(corners: Corners, targets: Targets) -> Tensor:
    """Return the focal loss of equation (1), averaged over the corners."""
    scores = corners.heat.sigmoid()
    is_corner = targets.heat == 1
    at_corners = -(scores + _EPS).log() * (1 - scores) ** 2
    elsewhere = -(1 - scores + _EPS).log() * scores**2 * (1 - targets.heat) ** 4
    losses = torch.where(is_corner, at_corners, elsewhere)
    return losses.sum() / is_corner.sum().clamp(min=1)


def _offset_loss(corners: Corners, targets: Targets) -> Tensor:
    """Return the smooth L1 loss of equation (3), averaged over the cells that hold corners."""
    holds_corner = (targets.heat == 1).any(dim=1, keepdim=True)
    losses = F.smooth_l1_loss(corners.offset, targets.offset, reduction="none")
    return (losses * holds_corner).sum() / holds_corner.sum().clamp(min=1)


def _embedding_losses(
    pair: tuple[Corners, Corners], targets: tuple[Targets, Targets]
) -> tuple[Tensor, Tensor]:
    """Return the pull and push losses of equations (4) and (5), summed over the images."""
    maps = [corners.embedding.flatten(1) for corners in pair]
    pull = push = maps[0].sum() * 0
    for i, cells in enumerate(zip(targets[0].cells, targets[1].cells, strict=True)):
        count = len(cells[0])
        if not count:
            continue
        first, second = (values[i][at] for values, at in zip(maps, cells, strict=True))
        mean = (first + second) / 2
        pull = pull + ((first - mean) ** 2 + (second - mean) ** 2).sum() / count
        if count > 1:
            margins = F.relu(1 - (mean[:, None] - mean[None]).abs())
            push = push + (margins.sum() - margins.diagonal().sum()) / (count * (count - 1))
    return pull, push


def decode(
    pair: tuple[Corners, Corners],
    size: Sequence[int],
    corners: int,
    max_distance: float,
    border: tuple[int, int] = (0, 0),
    candidates: int = 1000,
    kernel_size: int = 3,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pair the best corners of one image (sections 3.3 and 4.2).

    Args:
        pair: Predictions for one image, N = 1.
        size: Height and width of the input in pixels.
        corners: Number of corners of each kind to pair.
        max_distance: Largest difference of the embeddings of a pair.
        border: Rows above and columns left of the photo in the input.
        candidates: Largest number of boxes to return.
        kernel_size: Side of the neighborhood in which a corner must be the maximum.

    Returns:
        Boxes in pixels of the photo, shape (M, 4), their scores, which are the mean of the two
        corners' scores, and their classes; by falling score.
    """
    scale = torch.tensor(
        [size[1] / pair[0].heat.shape[3], size[0] / pair[0].heat.shape[2]],
        device=pair[0].heat.device,
    )
    shift = scale.new_tensor([border[1], border[0]])
    points, scores, classes, embeddings = zip(
        *(_best_corners(kind, corners, kernel_size) for kind in pair), strict=True
    )
    top_left, bottom_right = (((p * scale) - shift).clamp(min=0) for p in points)
    number, others = len(top_left), len(bottom_right)
    boxes = torch.cat(
        [
            top_left[:, None].expand(number, others, 2),
            bottom_right[None].expand(number, others, 2),
        ],
        dim=2,
    )
    valid = classes[0][:, None] == classes[1][None]
    valid &= (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
    valid &= (embeddings[0][:, None] - embeddings[1][None]).abs() <= max_distance
    means = (scores[0][:, None] + scores[1][None]) / 2
    found, labels = means[valid], classes[0][:, None].expand_as(valid)[valid]
    order = found.argsort(descending=True, stable=True)[:candidates]
    return boxes[valid][order], found[order], labels[order]


def _best_corners(
    corners: Corners, number: int, kernel_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return point in cells, score, class and embedding of the best local maxima of one image."""
    scores = corners.heat[0].sigmoid()
    peaks = F.max_pool2d(scores, kernel_size, stride=1, padding=kernel_size // 2)
    scores = scores * (peaks == scores)
    best, index = scores.flatten().topk(min(number, scores.numel()))
    classes, cells = index // scores[0].numel(), index % scores[0].numel()
    points = torch.stack([cells % scores.shape[2], cells // scores.shape[2]], dim=1)
    offsets = corners.offset[0].flatten(1)[:, cells].T
    return points + offsets, best, classes, corners.embedding[0].flatten()[cells]


def soft_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, sigma: float = 0.5, min_score: float = 0.001
) -> tuple[Tensor, Tensor]:
    """Lower the scores of boxes near better ones of their class, by a Gaussian of the IoU.

    The Gaussian penalty function of Soft-NMS: Bodla et al., ICCV 2017,
    https://arxiv.org/abs/1704.04503.

    Args:
        boxes: Shape (N, 4), x0 y0 x1 y1.
        scores: Shape (N,).
        classes: Shape (N,).
        sigma: Variance of the Gaussian.
        min_score: Boxes whose score becomes lower are dropped.

    Returns:
        Final scores, falling, and the index of the box of each one.
    """
    overlaps = pairwise_iou(Boxes(boxes), Boxes(boxes))
    overlaps[classes[:, None] != classes[None]] = 0
    factors = (-(overlaps**2) / sigma).exp().cpu().double().numpy()
    left = scores.detach().cpu().double().numpy().copy()
    kept, final = [], []
    while len(left) and (best := int(left.argmax()), left.max())[1] >= min_score:
        kept.append(best)
        final.append(left[best])
        left *= factors[best]
        left[left < min_score] = -1
        left[kept] = -1
    return scores.new_tensor(final), torch.tensor(kept, dtype=torch.long, device=boxes.device)
