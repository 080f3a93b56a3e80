"""Make Detectron2's models small, as a project would do it in a module of its own."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from omegaconf import ListConfig

CHANNELS = 16


def tiny_stages(norm, strides=(1, 2, 2, 2)):
    """Return stages of one block each, with 8, 16, ... channels after a stem with 8."""
    channels = [8 << i for i in range(len(strides))]
    return [
        ResNet.make_stage(
            BasicBlock,
            1,
            stride_per_block=[stride],
            in_channels=before,
            out_channels=after,
            norm=norm,
        )
        for stride, before, after in zip(strides, [8, *channels], channels, strict=False)
    ]


def shrink_resnet(resnet, norm="FrozenBN"):
    """Change the config of a ResNet in place."""
    resnet.stem.out_channels = 8
    resnet.stem.norm = norm
    resnet.stages = L(tiny_stages)(norm=norm)


def shrink_rcnn(model, norm="FrozenBN"):
    """Change the config of an R-CNN with an FPN, and two classes, in place."""
    if "bottom_up" in model.backbone:
        shrink_resnet(model.backbone.bottom_up, norm)
        model.pixel_std = [57.375, 57.120, 58.395]
    model.backbone.out_channels = CHANNELS
    rpn = model.proposal_generator
    rpn.head.in_channels = CHANNELS
    rpn.anchor_generator.sizes = [[8], [16], [24], [32], [48]]
    rpn.batch_size_per_image = 32
    rpn.pre_nms_topk = (50, 50)
    rpn.post_nms_topk = (20, 20)
    heads = model.roi_heads
    heads.num_classes = 2
    heads.batch_size_per_image = 16
    box_heads = heads.box_heads if "box_heads" in heads else [heads.box_head]
    predictors = heads.box_predictors if "box_heads" in heads else [heads.box_predictor]
    for head, predictor in zip(box_heads, predictors, strict=True):
        head.input_shape.channels = CHANNELS
        head.fc_dims = [CHANNELS]
        predictor.input_shape.channels = CHANNELS
        predictor.test_score_thresh = 0.0
    if "mask_head" in heads:
        masks = heads.mask_head
        for head in masks if isinstance(masks, ListConfig) else [masks]:
            head.input_shape.channels = CHANNELS
            head.conv_dims = [CHANNELS, CHANNELS]


def shrink_retinanet(model):
    """Change the config of a RetinaNet, with two classes, in place."""
    shrink_resnet(model.backbone.bottom_up)
    model.backbone.out_channels = CHANNELS
    model.backbone.top_block.in_channels = 64
    for shape in model.head.input_shape:
        shape.channels = CHANNELS
    model.head.conv_dims = [CHANNELS]
    sizes = (8, 16, 24, 32, 48)
    model.anchor_generator.sizes = [[size, size * 1.26, size * 1.59] for size in sizes]
    model.pixel_std = [57.375, 57.120, 58.395]
    model.num_classes = 2
    model.test_score_thresh = 0.0
