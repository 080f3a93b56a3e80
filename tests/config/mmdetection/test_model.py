"""Model sections of MMDetection become models of ours, and each difference is reported."""

import copy

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import OmegaConf

from d2ext.config.load import execute_config
from d2ext.config.mmdetection.draft import Draft
from d2ext.config.mmdetection.fields import Fields
from d2ext.config.mmdetection.model import initial_weights, translate_model
from d2ext.errors import UserError

# The values of MMDetection's configs/_base_/models, in the names of 3.x.
RGB = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
BGR = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)


def _assigner(positive, negative, minimum, low_quality):
    return dict(
        type="MaxIoUAssigner",
        pos_iou_thr=positive,
        neg_iou_thr=negative,
        min_pos_iou=minimum,
        match_low_quality=low_quality,
        ignore_iof_thr=-1,
    )


def _sampler(number, fraction, objects):
    return dict(
        type="RandomSampler",
        num=number,
        pos_fraction=fraction,
        neg_pos_ub=-1,
        add_gt_as_proposals=objects,
    )


def _coder(*stds):
    return dict(type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=stds)


def _extractor(size):
    layer = dict(type="RoIAlign", output_size=size, sampling_ratio=0)
    strides = [4, 8, 16, 32]
    return dict(
        type="SingleRoIExtractor", roi_layer=layer, out_channels=256, featmap_strides=strides
    )


def _box_head(agnostic=False, stds=(0.1, 0.1, 0.2, 0.2), loss=None):
    return dict(
        type="Shared2FCBBoxHead",
        in_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=80,
        bbox_coder=_coder(*stds),
        reg_class_agnostic=agnostic,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=loss or dict(type="L1Loss", loss_weight=1.0),
    )


def _mask_head():
    loss = dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0)
    return dict(
        type="FCNMaskHead",
        num_convs=4,
        in_channels=256,
        conv_out_channels=256,
        num_classes=80,
        loss_mask=loss,
    )


def _rcnn(iou, low_quality):
    return dict(
        assigner=_assigner(iou, iou, iou, low_quality),
        sampler=_sampler(512, 0.25, True),
        mask_size=28,
        pos_weight=-1,
        debug=False,
    )


def _backbone():
    return dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
    )


def _neck(**more):
    channels = [256, 512, 1024, 2048]
    return dict(type="FPN", in_channels=channels, out_channels=256, num_outs=5, **more)


def _proposals(before, after):
    nms = dict(type="nms", iou_threshold=0.7)
    return dict(nms_pre=before, max_per_img=after, nms=nms, min_bbox_size=0)


def mask_rcnn():
    """Return Mask R-CNN R50 FPN, pytorch style, with fixed BatchNorms."""
    nms = dict(type="nms", iou_threshold=0.5)
    return dict(
        type="MaskRCNN",
        data_preprocessor=dict(
            type="DetDataPreprocessor", **RGB, pad_mask=True, pad_size_divisor=32
        ),
        backbone=_backbone(),
        neck=_neck(),
        rpn_head=dict(
            type="RPNHead",
            in_channels=256,
            feat_channels=256,
            anchor_generator=dict(
                type="AnchorGenerator",
                scales=[8],
                ratios=[0.5, 1.0, 2.0],
                strides=[4, 8, 16, 32, 64],
            ),
            bbox_coder=_coder(1.0, 1.0, 1.0, 1.0),
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        roi_head=dict(
            type="StandardRoIHead",
            bbox_roi_extractor=_extractor(7),
            bbox_head=_box_head(),
            mask_roi_extractor=_extractor(14),
            mask_head=_mask_head(),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=_assigner(0.7, 0.3, 0.3, True),
                sampler=_sampler(256, 0.5, False),
                allowed_border=-1,
                pos_weight=-1,
                debug=False,
            ),
            rpn_proposal=_proposals(2000, 1000),
            rcnn=_rcnn(0.5, True),
        ),
        test_cfg=dict(
            rpn=_proposals(1000, 1000),
            rcnn=dict(score_thr=0.05, nms=nms, max_per_img=100, mask_thr_binary=0.5),
        ),
    )


def faster_rcnn():
    """Return Faster R-CNN R50 FPN."""
    model = mask_rcnn() | dict(type="FasterRCNN")
    del model["roi_head"]["mask_head"], model["roi_head"]["mask_roi_extractor"]
    del model["train_cfg"]["rcnn"]["mask_size"]
    model["train_cfg"]["rcnn"]["assigner"]["match_low_quality"] = False
    return model


def cascade_mask_rcnn():
    """Return Cascade Mask R-CNN R50 FPN."""
    model = mask_rcnn() | dict(type="CascadeRCNN")
    loss = dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0)
    stds = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
    model["roi_head"] |= dict(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[_box_head(True, std, loss) for std in stds],
    )
    model["rpn_head"]["loss_bbox"] = dict(type="SmoothL1Loss", beta=1 / 9, loss_weight=1.0)
    model["train_cfg"]["rpn"]["allowed_border"] = 0
    model["train_cfg"]["rpn_proposal"] = _proposals(2000, 2000)
    model["train_cfg"]["rcnn"] = [_rcnn(iou, False) for iou in (0.5, 0.6, 0.7)]
    return model


def retinanet():
    """Return RetinaNet R50 FPN."""
    assigner = _assigner(0.5, 0.4, 0, True)
    del assigner["match_low_quality"]  # on by default
    return dict(
        type="RetinaNet",
        data_preprocessor=dict(type="DetDataPreprocessor", **RGB, pad_size_divisor=32),
        backbone=_backbone(),
        neck=_neck(start_level=1, add_extra_convs="on_input"),
        bbox_head=dict(
            type="RetinaHead",
            num_classes=80,
            in_channels=256,
            stacked_convs=4,
            feat_channels=256,
            anchor_generator=dict(
                type="AnchorGenerator",
                octave_base_scale=4,
                scales_per_octave=3,
                ratios=[0.5, 1.0, 2.0],
                strides=[8, 16, 32, 64, 128],
            ),
            bbox_coder=_coder(1.0, 1.0, 1.0, 1.0),
            loss_cls=dict(
                type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0
            ),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        train_cfg=dict(
            assigner=assigner,
            sampler=dict(type="PseudoSampler"),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        test_cfg=dict(
            nms_pre=1000,
            min_bbox_size=0,
            score_thr=0.05,
            nms=dict(type="nms", iou_threshold=0.5),
            max_per_img=100,
        ),
    )


def faster_rcnn_c4():
    """Return Faster R-CNN R50 C4, caffe style."""
    model, fixed = faster_rcnn(), dict(type="BN", requires_grad=False)
    del model["neck"]
    model["data_preprocessor"] |= BGR
    model["backbone"] |= dict(
        num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,), style="caffe"
    )
    model["rpn_head"] |= dict(in_channels=1024, feat_channels=1024)
    model["rpn_head"]["anchor_generator"] |= dict(scales=[2, 4, 8, 16, 32], strides=[16])
    shared = dict(type="ResLayer", depth=50, stage=3, stride=2, dilation=1, style="caffe")
    model["roi_head"] |= dict(shared_head=shared | dict(norm_cfg=fixed, norm_eval=True))
    extractor = model["roi_head"]["bbox_roi_extractor"]
    extractor |= dict(out_channels=1024, featmap_strides=[16])
    extractor["roi_layer"]["output_size"] = 14
    head = _box_head() | dict(type="BBoxHead", with_avg_pool=True, in_channels=2048)
    del head["fc_out_channels"]
    model["roi_head"]["bbox_head"] = head
    model["train_cfg"]["rpn_proposal"] = _proposals(12000, 2000)
    model["test_cfg"]["rpn"] = _proposals(6000, 1000)
    return model


def faster_rcnn_dc5():
    """Return Faster R-CNN R50 DC5, caffe style."""
    model = faster_rcnn_c4()
    del model["roi_head"]["shared_head"]
    model["backbone"] |= dict(
        num_stages=4, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_indices=(3,)
    )
    model["rpn_head"] |= dict(in_channels=2048, feat_channels=2048)
    extractor = model["roi_head"]["bbox_roi_extractor"]
    extractor["out_channels"], extractor["roi_layer"]["output_size"] = 2048, 7
    model["roi_head"]["bbox_head"] = _box_head() | dict(in_channels=2048)
    return model


def mask_rcnn_resnext():
    """Return Mask R-CNN X101-32x4d FPN."""
    model = mask_rcnn()
    model["backbone"] |= dict(type="ResNeXt", depth=101, groups=32, base_width=4)
    return model


def faster_rcnn_r18():
    """Return Faster R-CNN R18 FPN."""
    model = faster_rcnn()
    model["backbone"]["depth"] = 18
    model["neck"]["in_channels"] = [64, 128, 256, 512]
    return model


RPN = [
    "model.proposal_generator._target_ = ValidAnchorRPN",
    "model.proposal_generator.anchor_matcher = L(MaxIoUMatcher)(\n"
    "    negative=0.3, positive=0.7, min_positive=0.3\n)",
]
EIGHTY = "model.roi_heads.num_classes = 80"
# For each model, the file of ours, and the statements after it.
FAMILIES = {
    mask_rcnn: (
        "mask_rcnn_fpn_pytorch",
        [
            *RPN,
            EIGHTY,
            "model.roi_heads.proposal_matcher = L(MaxIoUMatcher)"
            "(negative=0.5, positive=0.5, min_positive=0.5)",
        ],
    ),
    faster_rcnn: ("faster_rcnn_fpn_pytorch", [*RPN, EIGHTY]),
    cascade_mask_rcnn: ("cascade_mask_rcnn_fpn_pytorch", [EIGHTY]),
    retinanet: ("retinanet_fpn_pytorch", ["model.num_classes = 80"]),
    faster_rcnn_c4: ("faster_rcnn_c4", [*RPN, EIGHTY]),
    faster_rcnn_dc5: ("faster_rcnn_dc5", [*RPN, EIGHTY]),
    mask_rcnn_resnext: ("mask_rcnn_fpn_pytorch", None),
    faster_rcnn_r18: (
        "faster_rcnn_fpn_pytorch",
        [
            "model.backbone.bottom_up.stages.depth = 18",
            "del model.backbone.bottom_up.stages.stride_in_1x1",
            *RPN,
            EIGHTY,
        ],
    ),
}


def _translated(model):
    """Return the statements of a model, and what became of each field, by its name in the model."""
    draft, fields = Draft(), Fields(model, "model")
    translate_model(fields, draft)
    rows = {row.field.removeprefix("model."): row for row in fields.outcomes()}
    return draft, rows


def _differing(rows):
    return {name: row.became for name, row in rows.items() if row.outcome == "differs"}


def _config(draft, folder):
    file = folder / "imported.py"
    file.write_text(draft.text("An imported model."))
    return execute_config(file).model


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_only_what_differs_from_our_file_is_written_and_it_builds(family, tmp_path):
    draft, rows = _translated(family())
    file, statements = FAMILIES[family]
    assert draft.lines[:2] == ["", f'model = d2ext.get_config("common/models/{file}.py").model']
    if statements is not None:
        assert draft.lines[2:] == statements
    assert not [name for name, row in rows.items() if row.outcome == "unknown"]
    assert not _differing(rows)
    with torch.device("meta"):
        built = instantiate(_config(draft, tmp_path))
    assert built.backbone.size_divisibility == 32


def test_a_resnext_has_the_groups_and_widths(tmp_path):
    draft, rows = _translated(mask_rcnn_resnext())
    net = _config(draft, tmp_path).backbone.bottom_up
    assert (net.depth, net.groups, net.width_per_group, net.freeze_at) == (101, 32, 4, 2)
    assert rows["backbone.base_width"].outcome == "set"


@pytest.mark.parametrize(
    ("field", "value", "ours", "expected"),
    [
        ("backbone.depth", 101, "backbone.bottom_up.stages.depth", 101),
        ("backbone.frozen_stages", -1, "backbone.bottom_up.freeze_at", 0),
        ("backbone.style", "caffe", "backbone.bottom_up.stages.stride_in_1x1", True),
        ("data_preprocessor.bgr_to_rgb", False, "input_format", "BGR"),
        ("rpn_head.loss_cls.loss_weight", 2.0, "proposal_generator.loss_weight.loss_rpn_cls", 2.0),
        (
            "rpn_head.anchor_generator.scales",
            [4],
            "proposal_generator.anchor_generator.sizes[0]",
            [16],
        ),
        ("rpn_head.num_convs", 2, "proposal_generator.head.conv_dims", [256, 256]),
        (
            "roi_head.bbox_head.reg_class_agnostic",
            True,
            "roi_heads.box_predictor.cls_agnostic_bbox_reg",
            True,
        ),
        ("roi_head.bbox_head.fc_out_channels", 512, "roi_heads.box_head.fc_dims", [512, 512]),
        (
            "roi_head.bbox_roi_extractor.roi_layer.aligned",
            False,
            "roi_heads.box_pooler.pooler_type",
            "ROIAlign",
        ),
        ("roi_head.mask_head.num_convs", 2, "roi_heads.mask_head.conv_dims", [256, 256, 256]),
        ("train_cfg.rpn.allowed_border", 0, "proposal_generator.anchor_boundary_thresh", 0),
        (
            "train_cfg.rpn_proposal.max_per_img",
            500,
            "proposal_generator.post_nms_topk",
            [500, 1000],
        ),
        ("train_cfg.rcnn.sampler.num", 128, "roi_heads.batch_size_per_image", 128),
        ("test_cfg.rcnn.score_thr", 0.01, "roi_heads.box_predictor.test_score_thresh", 0.01),
        ("test_cfg.rcnn.max_per_img", 300, "roi_heads.box_predictor.test_topk_per_image", 300),
    ],
)
def test_a_changed_field_becomes_ours(tmp_path, field, value, ours, expected):
    draft, rows = _translated(_changed(mask_rcnn(), {field: value}))
    assert OmegaConf.select(_config(draft, tmp_path), ours) == expected
    assert rows[field].outcome == "set"


@pytest.mark.parametrize(
    ("loss", "target", "kind"),
    [
        (dict(type="GIoULoss", loss_weight=10.0), "FastRCNNOutputLayers", "giou"),
        (dict(type="CIoULoss", loss_weight=12.0), "IoULossOutputLayers", "ciou"),
        (dict(type="BoundedIoULoss", loss_weight=10.0), "IoULossOutputLayers", "bounded_iou"),
    ],
)
def test_a_loss_of_decoded_boxes(tmp_path, loss, target, kind):
    head = {"roi_head.bbox_head.loss_bbox": loss, "roi_head.bbox_head.reg_decoded_bbox": True}
    draft, rows = _translated(_changed(faster_rcnn(), head))
    predictor = _config(draft, tmp_path).roi_heads.box_predictor
    assert str(predictor._target_).rpartition(".")[2].rstrip("'>") == target
    assert predictor.box_reg_loss_type == kind
    assert predictor.loss_weight.loss_box_reg == loss["loss_weight"]
    assert not _differing(rows)


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"backbone.norm_eval": False}, {"backbone.norm_cfg", "backbone.norm_eval"}),
        ({"test_cfg.rcnn.nms.type": "soft_nms"}, {"test_cfg.rcnn.nms.type"}),
        ({"train_cfg.rcnn.sampler.type": "OHEMSampler"}, {"train_cfg.rcnn.sampler.type"}),
        (
            {"train_cfg.rcnn.assigner.ignore_iof_thr": 0.5},
            {"train_cfg.rcnn.assigner.ignore_iof_thr"},
        ),
        ({"train_cfg.rpn_proposal.nms.iou_threshold": 0.8}, {"train_cfg.rpn_proposal.nms"}),
        ({"data_preprocessor.pad_size_divisor": 1}, {"data_preprocessor.pad_size_divisor"}),
        ({"rpn_head": dict(type="FCOSHead", strides=[8, 16, 32, 64, 128])}, {"rpn_head"}),
    ],
)
def test_what_ours_does_otherwise_is_reported(tmp_path, changes, differing):
    draft, rows = _translated(_changed(faster_rcnn(), changes))
    assert _differing(rows).keys() == differing
    _config(draft, tmp_path)


def test_weights_of_retinanets_losses_are_reported(tmp_path):
    draft, rows = _translated(_changed(retinanet(), {"bbox_head.loss_bbox.loss_weight": 2.0}))
    assert _differing(rows) == {"bbox_head.loss_bbox.loss_weight": "loss_weight is 1.0 here"}
    with torch.device("meta"):
        instantiate(_config(draft, tmp_path))


def test_batchnorm_in_training_mode_is_trained(tmp_path):
    changes = {"backbone.norm_eval": False, "backbone.norm_cfg": dict(type="SyncBN")}
    draft, rows = _translated(_changed(faster_rcnn(), changes))
    net = _config(draft, tmp_path).backbone.bottom_up
    assert net.stem.norm == net.stages.norm == "SyncBN"
    assert not _differing(rows)


@pytest.mark.parametrize("backbone", [{}, dict(type="ResNeXt", depth=50, groups=32)])
def test_scale_and_shift_are_trained_with_fixed_statistics(tmp_path, backbone):
    model = faster_rcnn()
    model["backbone"] |= backbone | dict(norm_cfg=dict(type="BN", requires_grad=True))
    draft, rows = _translated(model)
    with torch.device("meta"):
        net = instantiate(_config(draft, tmp_path).backbone.bottom_up)
    kinds = {type(module).__name__ for module in net.res3.modules() if "Norm" in str(type(module))}
    assert kinds == {"FixedStatisticsBatchNorm"}
    assert type(net.res2[0].conv1.norm).__name__ == "FrozenBatchNorm2d"
    assert not _differing(rows)


def test_unknown_fields_of_training_and_test_are_reported_as_such():
    changes = {"train_cfg.rcnn.soft": 2, "test_cfg.rcnn.flip": dict(type="Both")}
    _, rows = _translated(_changed(faster_rcnn(), changes))
    unknown = {name for name, row in rows.items() if row.outcome == "unknown"}
    assert unknown == {"train_cfg.rcnn.soft", "test_cfg.rcnn.flip.type"}


def test_fields_that_leave_the_model_as_it_is_are_fine():
    changes = {
        "backbone.dcn": None,
        "backbone.stage_with_dcn": (False, False, False, False),
        "backbone.deep_stem": False,
        "backbone.zero_init_residual": False,
        "backbone.pretrained": None,
        "backbone.plugins": [],
        "neck.conv_cfg": None,
        "neck.init_cfg": dict(type="Xavier", layer="Conv2d"),
        "rpn_head.anchor_generator.centers": None,
        "roi_head.bbox_head.with_cls": True,
        "roi_head.bbox_head.loss_cls.class_weight": None,
        "roi_head.mask_head.predictor_cfg": dict(type="Conv"),
        "roi_head.mask_head.norm_cfg": None,
    }
    _, rows = _translated(_changed(mask_rcnn(), changes))
    found = {name: row.outcome for name, row in rows.items() if name in changes}
    unused = dict.fromkeys(("backbone.zero_init_residual", "neck.init_cfg"), "unused")
    assert found == dict.fromkeys(changes, "set") | unused


def test_weights_of_one_part_are_a_difference():
    changes = {"neck.init_cfg": dict(type="Pretrained", checkpoint="fpn.pth")}
    _, rows = _translated(_changed(faster_rcnn(), changes))
    text = "these weights are not loaded; set train.init_checkpoint"
    assert _differing(rows) == {"neck.init_cfg": text}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone.dcn": dict(type="DCNv2", deform_groups=1)},
            "backbone.dcn={'type': 'DCNv2', 'deform_groups': 1} is not supported; d2ext imports"
            " ResNet without dcn",
        ),
        ({"backbone.plugins": [dict(cfg=dict(type="ContextBlock"))]}, "backbone.plugins=[{'cfg'"),
        ({"backbone.deep_stem": True}, "backbone.deep_stem=True is not supported"),
        ({"backbone.in_channels": 4}, "backbone.in_channels=4 is not supported; d2ext imports 3"),
        ({"backbone.norm_cfg": dict(type="BN", eps=0)}, "backbone.norm_cfg.eps=0 is not supported"),
        ({"neck.conv_cfg": dict(type="ConvWS")}, "neck.conv_cfg={'type': 'ConvWS'} is not"),
        ({"neck.norm_cfg": dict(type="GN", num_groups=8)}, "neck.norm_cfg.num_groups=8 is not"),
        ({"rpn_head.conv_cfg": dict(type="ConvWS")}, "rpn_head.conv_cfg={'type': 'ConvWS'} is"),
        ({"roi_head.bbox_head.with_reg": False}, "roi_head.bbox_head.with_reg=False is not"),
        ({"roi_head.bbox_head.loss_cls.class_weight": [1, 2]}, "roi_head.bbox_head.loss_cls.class"),
        (
            {"roi_head.mask_head.norm_cfg": dict(type="GN", num_groups=32)},
            "roi_head.mask_head.norm_cfg={'type': 'GN', 'num_groups': 32} is not supported; d2ext"
            " imports FCNMaskHead without norm_cfg",
        ),
        ({"roi_head.bbox_roi_extractor.roi_layer.use": "cv"}, "roi_head.bbox_roi_extractor.roi_la"),
        ({"roi_head.semantic_head": dict(type="FCN")}, "roi_head.semantic_head={'type': 'FCN'} is"),
    ],
)
def test_unknown_fields_of_the_model_are_an_error(changes, message):
    with pytest.raises(UserError) as error:
        _translated(_changed(mask_rcnn(), changes))
    assert str(error.value).startswith(f"model.{message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "FCOS"}, "model.type=FCOS is not supported; d2ext imports FasterRCNN, MaskRCNN"),
        ({"backbone.type": "SwinTransformer"}, "model.backbone.type=SwinTransformer is not supp"),
        ({"backbone.depth": 77}, "model.backbone.depth=77 is not supported; d2ext imports 18, 34"),
        ({"neck.type": "PAFPN"}, "model.neck.type=PAFPN is not supported"),
        ({"neck.num_outs": 6}, "model.neck: start_level=0, num_outs=6"),
        ({"roi_head.mask_head.num_classes": 3}, "model.roi_head.mask_head.num_classes=3, but"),
        ({"roi_head.bbox_head.type": "DIIHead"}, "model.roi_head.bbox_head.type=DIIHead is not"),
        ({"train_cfg.rcnn.mask_size": 56}, "model.train_cfg.rcnn.mask_size=56 is not supported"),
        ({"train_cfg.rcnn.sampler.num": None}, "model.train_cfg.rcnn.sampler.num is missing"),
        ({"roi_head.bbox_head.loss_bbox.type": "GIoULoss"}, "model.roi_head.bbox_head.reg_decoded"),
    ],
)
def test_what_cannot_be_built_is_an_error(changes, message):
    with pytest.raises(UserError) as error:
        _translated(_changed(mask_rcnn(), changes))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("torchvision://resnet50", "detectron2://ImageNetPretrained/torchvision/R-50.pkl"),
        (
            "open-mmlab://detectron2/resnet101_caffe",
            "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
        ),
        ("https://example.org/net.pth", "https://example.org/net.pth"),
        ("weights/net.pth", "weights/net.pth"),
    ],
)
def test_the_backbones_weights(checkpoint, expected):
    init = dict(type="Pretrained", checkpoint=checkpoint)
    fields = Fields(_changed(faster_rcnn(), {"backbone.init_cfg": init}), "model")
    assert initial_weights(fields) == expected
    assert fields.rows["model.backbone.init_cfg"].became == f"train.init_checkpoint={expected}"


def test_weights_without_a_copy_are_an_error():
    init = dict(type="Pretrained", checkpoint="open-mmlab://res2net101")
    fields = Fields(_changed(faster_rcnn(), {"backbone.init_cfg": init}), "model")
    with pytest.raises(UserError, match="init_cfg.checkpoint=open-mmlab://res2net101 is not"):
        initial_weights(fields)
    assert initial_weights(Fields(faster_rcnn(), "model")) == ""


def _changed(model, changes):
    """Return a model with some fields changed, by their dotted names."""
    model = copy.deepcopy(model)
    for field, value in changes.items():
        *parents, key = field.split(".")
        node = model
        for part in parents:
            node = node[part]
        node[key] = value
    return model
