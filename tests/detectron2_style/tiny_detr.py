"""A DETR-like model with its own mapper, matcher and criterion, laid out as in detrex."""

import copy

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou


class DetrMapper:
    """Read, resize and, half of the time, crop a photo.

    Args:
        augmentation: Augmentations without a crop.
        augmentation_with_crop: Augmentations of the other half of the photos.
        is_train: Whether samples contain objects.
        img_format: RGB or BGR.
    """

    def __init__(self, augmentation, augmentation_with_crop, is_train=True, img_format="RGB"):
        self.augmentation = augmentation
        self.augmentation_with_crop = augmentation_with_crop
        self.is_train = is_train
        self.img_format = img_format

    def __call__(self, dataset_dict):
        """Return a sample with `image` and, for training, `instances`."""
        dataset_dict = copy.deepcopy(dataset_dict)
        image = detection_utils.read_image(dataset_dict["file_name"], format=self.img_format)
        detection_utils.check_image_size(dataset_dict, image)
        crops = self.augmentation_with_crop is not None and np.random.rand() > 0.5
        augmentations = self.augmentation_with_crop if crops else self.augmentation
        image, transforms = T.apply_transform_gens(augmentations, image)
        shape = image.shape[:2]
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        annotations = dataset_dict.pop("annotations", [])
        if self.is_train:
            annotations = [
                detection_utils.transform_instance_annotations(annotation, transforms, shape)
                for annotation in annotations
                if not annotation.get("iscrowd", 0)
            ]
            instances = detection_utils.annotations_to_instances(annotations, shape)
            dataset_dict["instances"] = detection_utils.filter_empty_instances(instances)
        return dataset_dict


class GreedyMatcher(nn.Module):
    """Assign a query to each object, the cheapest pair first.

    Args:
        num_classes: Number of classes.
        cost_class: Weight of the class probability.
        cost_bbox: Weight of the L1 distance of boxes.
    """

    def __init__(self, num_classes, cost_class=1.0, cost_bbox=5.0):
        super().__init__()
        self.num_classes, self.cost_class, self.cost_bbox = num_classes, cost_class, cost_bbox

    @torch.no_grad()
    def forward(self, logits, boxes, classes, targets):
        """Return the queries of an image's objects, int64 (N,).

        Args:
            logits: Class logits (Q, num_classes).
            boxes: Normalized boxes (Q, 4), as center and size.
            classes: Classes of the objects (N,).
            targets: Boxes of the objects (N, 4).
        """
        assert logits.shape[1] == self.num_classes
        cost = self.cost_bbox * torch.cdist(boxes, targets, p=1)
        cost -= self.cost_class * logits.sigmoid()[:, classes]
        queries = torch.zeros(len(targets), dtype=torch.int64, device=boxes.device)
        for _ in range(len(targets)):
            query, target = divmod(int(cost.argmin()), len(targets))
            queries[target] = query
            cost[query], cost[:, target] = torch.inf, torch.inf
        return queries


class SetCriterion(nn.Module):
    """Compute the losses of matched queries.

    Args:
        num_classes: Number of classes.
        matcher: Module that assigns queries to objects.
        weight_dict: Weight of each loss.
    """

    def __init__(self, num_classes, matcher, weight_dict):
        super().__init__()
        self.num_classes, self.matcher, self.weight_dict = num_classes, matcher, weight_dict

    def forward(self, logits, boxes, targets):
        """Return weighted losses by name.

        Args:
            logits: Class logits (B, Q, num_classes).
            boxes: Normalized boxes (B, Q, 4), as center and size.
            targets: For each image, the classes (N,) and boxes (N, 4) of its objects.
        """
        wanted = torch.zeros_like(logits)
        l1, giou = boxes.sum() * 0, boxes.sum() * 0
        for i, (classes, objects) in enumerate(targets):
            queries = self.matcher(logits[i], boxes[i], classes, objects)
            wanted[i, queries, classes] = 1
            l1 = l1 + F.l1_loss(boxes[i, queries], objects, reduction="sum")
            corners = [box_convert(b, "cxcywh", "xyxy") for b in (boxes[i, queries], objects)]
            giou = giou + (1 - generalized_box_iou(*corners).diag()).sum()
        count = max(sum(len(classes) for classes, _ in targets), 1)
        assert wanted.shape[2] == self.num_classes
        losses = {
            "loss_class": F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum"),
            "loss_bbox": l1,
            "loss_giou": giou,
        }
        return {name: loss / count * self.weight_dict[name] for name, loss in losses.items()}


class TinyDetr(nn.Module):
    """Predict a set of objects from a ResNet's last feature map.

    Args:
        backbone: A backbone that returns `res5`.
        transformer: A transformer that attends from queries to the feature map.
        embed_dim: Width of the transformer.
        num_classes: Number of classes.
        num_queries: Number of objects that are predicted for each photo.
        criterion: Module that computes the losses.
        pixel_mean: Mean of each channel.
        pixel_std: Standard deviation of each channel.
        device: Device of the inputs.
    """

    def __init__(
        self,
        backbone,
        transformer,
        embed_dim,
        num_classes,
        num_queries,
        criterion,
        pixel_mean,
        pixel_std,
        device="cuda",
    ):
        super().__init__()
        self.backbone, self.transformer, self.criterion = backbone, transformer, criterion
        self.num_classes, self.device = num_classes, device
        self.input_proj = nn.Conv2d(backbone.output_shape()["res5"].channels, embed_dim, 1)
        self.position = nn.Conv2d(2, embed_dim, 1)
        self.query_embed = nn.Embedding(num_queries, embed_dim)
        self.class_embed = nn.Linear(embed_dim, num_classes)
        self.bbox_embed = nn.Linear(embed_dim, 4)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, batched_inputs):
        """Return losses in training, otherwise `instances` for each photo."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = ImageList.from_tensors([(x - self.pixel_mean) / self.pixel_std for x in images])
        features = self.input_proj(self.backbone(images.tensor)["res5"])
        rows, columns = (
            torch.linspace(-1, 1, side, device=features.device) for side in features.shape[2:]
        )
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        memory = (features + self.position(grid[None])).view(*features.shape[:2], -1)
        queries = self.query_embed.weight[None].expand(len(images), -1, -1)
        decoded = self.transformer(memory.permute(0, 2, 1), queries)
        logits, boxes = self.class_embed(decoded), self.bbox_embed(decoded).sigmoid()
        sizes = [torch.tensor((w, h, w, h), device=boxes.device) for h, w in images.image_sizes]
        if self.training:
            targets = []
            for sample, size in zip(batched_inputs, sizes, strict=True):
                instances = sample["instances"].to(self.device)
                objects = box_convert(instances.gt_boxes.tensor, "xyxy", "cxcywh") / size
                targets.append((instances.gt_classes, objects))
            return self.criterion(logits, boxes, targets)
        results = []
        for i, sample in enumerate(batched_inputs):
            scores, classes = logits[i].sigmoid().max(1)
            found = Instances(images.image_sizes[i])
            found.pred_boxes = Boxes(box_convert(boxes[i], "cxcywh", "xyxy") * sizes[i])
            found.scores, found.pred_classes = scores, classes
            height, width = sample.get("height"), sample.get("width")
            results.append({"instances": detector_postprocess(found, height, width)})
        return results
