"""Translate the section `model` of an MMDetection config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from d2ext.config.check import target_name
from d2ext.config.mmdetection.draft import Call, Code, Draft, Interpolation
from d2ext.config.mmdetection.fields import Fields
from d2ext.errors import UserError

# Files of ours by (type of the detector, kind of the backbone).
_FILES = {
    ("FasterRCNN", "fpn"): "faster_rcnn_fpn_pytorch",
    ("MaskRCNN", "fpn"): "mask_rcnn_fpn_pytorch",
    ("CascadeRCNN", "fpn"): "cascade_rcnn_fpn_pytorch",
    ("CascadeRCNN with masks", "fpn"): "cascade_mask_rcnn_fpn_pytorch",
    ("RetinaNet", "fpn"): "retinanet_fpn_pytorch",
    ("FasterRCNN", "c4"): "faster_rcnn_c4",
    ("MaskRCNN", "c4"): "mask_rcnn_c4",
    ("FasterRCNN", "dc5"): "faster_rcnn_dc5",
}
_SHARED_LAYERS = {  # convolutions and fully connected layers of their box heads
    "Shared2FCBBoxHead": (0, 2),
    "Shared4Conv1FCBBoxHead": (4, 1),
}
_IOU_LOSSES = {"GIoULoss": "giou", "DIoULoss": "diou"}
_OWN_IOU_LOSSES = {"IoULoss": "iou", "BoundedIoULoss": "bounded_iou", "CIoULoss": "ciou"}
_SAME = "the same in Detectron2"
_PARTS = ("backbone", "neck", "rpn_head", "roi_head", "bbox_head")
# Fields of these parts with one value here. Others that nothing here reads are None or False.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "base_channels": 64,
    "stem_channels": 64,
    "stage_with_dcn": (False, False, False, False),
    "with_cls": True,
    "with_reg": True,
    "predict_box_type": "hbox",
    "cls_predictor_cfg": {"type": "Linear"},
    "reg_predictor_cfg": {"type": "Linear"},
    "predictor_cfg": {"type": "Conv"},
    "reduction": "mean",
}
_HARMLESS = {
    "with_cp": "has no effect on the results",
    "zero_init_residual": "affects only values before training",
    "init_cfg": "affects only values before training",
}


@dataclass
class _Model:
    """The model that is written: a file of ours, and what differs from it."""

    draft: Draft
    config: Any  # DictConfig

    def set(self, path: str, value: Any, default: Any = None) -> str:
        """Assign a value unless the file has it.

        Args:
            path: Field in the section `model`.
            value: Its value.
            default: Value in Detectron2 of a field that the file does not have.

        Returns:
            The assignment, for the table.
        """
        from omegaconf import OmegaConf

        path = path.lstrip(".")
        found = OmegaConf.select(self.config, path, default=default)
        if OmegaConf.is_config(found):
            found = OmegaConf.to_container(found)
        if _plain(found) != _plain(value):
            self.draft.set(f"model.{path}", value)
        return f"model.{path}={_shown(value)}"

    def set_class(self, path: str, target: str) -> None:
        """Change the class of a module: `path._target_ = target`, with an import of the class."""
        from omegaconf import OmegaConf

        field = f"{path}._target_".lstrip(".")
        if target_name(OmegaConf.select(self.config, field)) != target:
            self.draft.set(f"model.{field}", self.imported(target))

    def imported(self, target: str) -> Code:
        """Import a class, and return its name."""
        module, _, name = target.rpartition(".")
        self.draft.use(module, name)
        return Code(name)

    def delete(self, path: str) -> None:
        """Remove a field."""
        self.draft.delete(f"model.{path}")


# Our copies of the weights that MMDetection's configs start from.
_INITIAL_WEIGHTS = {
    "torchvision://resnet50": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    "torchvision://resnet101": "detectron2://ImageNetPretrained/torchvision/R-101.pkl",
    "torchvision://resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "torchvision://resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
    "torchvision://resnet152": "https://download.pytorch.org/models/resnet152-394f9c45.pth",
    "open-mmlab://detectron2/resnet50_caffe": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "open-mmlab://detectron2/resnet101_caffe": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
    "open-mmlab://detectron2/resnext101_32x8d": (
        "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"
    ),
    "open-mmlab://resnext101_32x4d": (
        "https://download.openmmlab.com/pretrain/third_party/resnext101_32x4d-a5af3160.pth"
    ),
    "open-mmlab://resnext101_64x4d": (
        "https://download.openmmlab.com/pretrain/third_party/resnext101_64x4d-ee2c6f71.pth"
    ),
}


def translate_model(model: Fields, draft: Draft) -> None:
    """Write the section `model`, and record what became of each field that is known.

    Args:
        model: Their section `model`, in the spelling of MMDetection 3.x.
        draft: The config that is written.

    Raises:
        UserError: The model cannot be built here.
    """
    from d2ext.config.recipes import get_config

    kind, detector = _backbone_kind(model), model.type
    if detector == "CascadeRCNN" and model.section("roi_head").get("mask_head"):
        detector += " with masks"
    name = _FILES.get((detector, kind))
    if name is None:
        supported = "FasterRCNN, MaskRCNN, CascadeRCNN and RetinaNet with an FPN, FasterRCNN with"
        known = any(known.startswith(detector) for known, _ in _FILES)
        backbone = f" with {_backbone_words(kind)}" if known else ""
        raise UserError(
            f"{model.name('type')}={model.get('type')}{backbone} is not supported; d2ext imports"
            f" {supported} C4 or DC5, and MaskRCNN with C4"
        )
    caffe = model.section("backbone").get("style") == "caffe"
    if caffe and detector in ("FasterRCNN", "MaskRCNN"):
        name = name.removesuffix("_pytorch")
    recipe = f"common/models/{name}.py"
    draft.start("model", recipe)
    ours = _Model(draft, get_config(recipe).model)
    model.became("type", recipe)
    _translate_preprocessor(model.section("data_preprocessor"), ours)
    start_level = model.section("neck").get("start_level", 0)
    _translate_backbone(model.section("backbone"), ours, kind, start_level)
    channels = _translate_neck(model, ours) if kind == "fpn" else None
    if detector == "RetinaNet":
        _translate_retinanet(model, ours, channels)
    else:
        _translate_rpn(model, ours)
        _translate_roi_head(model, ours, kind)
    for part in _PARTS:
        if model.name(part) not in model.rows:
            _refuse_unknown(model.section(part))


def initial_weights(model: Fields) -> str:
    """Return the weights that the backbone starts from, and record what became of their field.

    Args:
        model: Their section `model`.

    Returns:
        Value for `train.init_checkpoint`; "" for a backbone that starts at random.
    """
    backbone = model.section("backbone")
    init, found = backbone.section("init_cfg"), ""
    if init.type == "Pretrained":
        found = _INITIAL_WEIGHTS.get(_needed(init, "checkpoint"), _needed(init, "checkpoint"))
        if "://" in found and found.partition("://")[0] not in ("http", "https", "detectron2"):
            _unsupported(init, "checkpoint", ", ".join(_INITIAL_WEIGHTS) + ", addresses and files")
    if init.type in ("Pretrained", ""):
        backbone.became("init_cfg", f"train.init_checkpoint={found}")
    return found


def _backbone_kind(model: Fields) -> str:
    if model.section("neck"):
        return "fpn"
    shared = model.section("roi_head").section("shared_head")
    return "c4" if shared else "dc5"


def _backbone_words(kind: str) -> str:
    return {"fpn": "an FPN", "c4": "a shared head (C4)", "dc5": "no neck (DC5)"}[kind]


def _translate_preprocessor(f: Fields, ours: _Model) -> None:
    """Translate mean, std, channel order and padding."""
    if "type" not in f:
        raise UserError(
            "no normalization found in the config (img_norm_cfg or data_preprocessor); add"
            " model.data_preprocessor with mean, std and bgr_to_rgb"
        )
    _require(f, type="DetDataPreprocessor")
    rgb = bool(f.get("bgr_to_rgb", False))
    f.became(["bgr_to_rgb", "rgb_to_bgr"], ours.set("input_format", "RGB" if rgb else "BGR"))
    f.became("mean", ours.set("pixel_mean", list(f.get("mean") or [0.0, 0.0, 0.0])))
    f.became("std", ours.set("pixel_std", list(f.get("std") or [1.0, 1.0, 1.0])))
    if f.get("pad_size_divisor", 1) == 32:
        f.became("pad_size_divisor", "the multiple of our backbones")
    else:
        f.differs("pad_size_divisor", "sizes are padded to a multiple of 32")
    f.unused(["pad_mask", "mask_pad_value"], "masks are not padded here")
    _expect(f, pad_value=0)
    for augment in f.sections("batch_augments"):
        if augment.type == "BatchFixedSizePad":
            text = "batches are padded to their largest image, not to a fixed size"
            augment.differs(["type", "size"], text)
            augment.unused("pad_mask", "masks are not padded here")


def _translate_backbone(f: Fields, ours: _Model, kind: str, start_level: int) -> None:
    """Translate a ResNet or ResNeXt; its initial weights are `train.init_checkpoint`."""
    path = "backbone.bottom_up" if kind == "fpn" else "backbone"
    if f.type not in ("ResNet", "ResNeXt"):
        _unsupported(f, "type", "ResNet and ResNeXt")
    depth = _needed(f, "depth")
    depths = (18, 34, 50, 101, 152) if f.type == "ResNet" else (50, 101, 152)
    if depth not in depths:
        _unsupported(f, "depth", ", ".join(map(str, depths)))
    if kind == "dc5" and depth != 50:
        _unsupported(f, "depth", "50 for a DC5 model")
    layout = {
        "fpn": {"num_stages": 4, "strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)},
        "c4": {"num_stages": 3, "strides": (1, 2, 2), "dilations": (1, 1, 1)},
        "dc5": {"num_stages": 4, "strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
    }[kind]
    _require(f, **layout)
    indices = {"fpn": (0, 1, 2, 3), "c4": (2,), "dc5": (3,)}[kind]
    _require(f, out_indices=indices)
    norm = _translate_norm(f, ours)
    caffe = f.get("style", "pytorch") == "caffe"
    freeze_at = f.get("frozen_stages", -1) + 1
    groups = f.get("groups", 1)
    if f.type == "ResNeXt" and groups > 1:
        if caffe or kind != "fpn":
            _unsupported(f, "type", "ResNeXts of style pytorch with an FPN")
        resnext = {
            "depth": depth,
            "groups": groups,
            "width_per_group": f.get("base_width", 4),
            "freeze_at": freeze_at,
            "out_features": [f"res{i}" for i in range(2 + start_level, 6)],
        }
        if norm != "FrozenBN":
            resnext["norm"] = norm
        call = Call("d2ext.modeling.backbones.resnext.build_resnext", resnext)
        text = ours.set(path, call)
        f.became(["type", "depth", "groups", "base_width", "frozen_stages", "style"], text)
    else:
        _translate_resnet(f, ours, path, depth, caffe, freeze_at, norm)
    f.unused("with_cp", "has no effect on the results")


def _translate_resnet(
    f: Fields, ours: _Model, path: str, depth: int, caffe: bool, freeze_at: int, norm: Any
) -> None:
    """Translate a ResNet, whose stages are one call, or a call each in a DC5 model."""
    f.became("frozen_stages", ours.set(f"{path}.freeze_at", freeze_at))
    dilated = tuple(f.get("out_indices", ())) == (3,)
    stages = [f"{path}.stages[{i}]" for i in range(4)] if dilated else [f"{path}.stages"]
    text = f"model.{path}" if dilated else ours.set(f"{path}.stages.depth", depth)
    f.became(["type", "depth"], text)
    for part in [f"{path}.stem", *stages]:
        ours.set(f"{part}.norm", norm)
    if depth < 50:
        ours.delete(f"{path}.stages.stride_in_1x1")
        f.unused("style", "a ResNet of this depth has no 1x1 convolutions")
    else:
        for part in stages:
            f.became("style", ours.set(f"{part}.stride_in_1x1", caffe))


def _translate_norm(f: Fields, ours: _Model) -> Any:
    """Record what became of the norm of a backbone, and return ours."""
    norm_cfg = f.section("norm_cfg")
    kind, fixed = _norm(f) or "BN", f.get("norm_eval", True)
    trained = bool(norm_cfg.get("requires_grad", True))
    norm: Any = kind
    if kind in ("BN", "SyncBN") and fixed:
        norm = "FrozenBN"
        if trained:
            norm = ours.imported("d2ext.modeling.norms.FixedStatisticsBatchNorm")
    names = ["norm_cfg", "norm_eval"]
    if trained or norm == "FrozenBN":
        f.became(names, norm if isinstance(norm, str) else norm.text)
    else:
        f.differs(names, f"{norm}: scale and shift are trained")
    return norm


def _translate_neck(model: Fields, ours: _Model) -> int:
    """Translate an FPN; return its channels."""
    f = model.section("neck")
    if f.type != "FPN":
        _unsupported(f, "type", "FPN")
    channels = _needed(f, "out_channels")
    text = ours.set("backbone.out_channels", channels)
    f.became(["type", "out_channels"], text)
    depth = _needed(model.section("backbone"), "depth")
    widths = (64, 128, 256, 512) if depth < 50 else (256, 512, 1024, 2048)
    _require(f, in_channels=widths)
    f.became("norm_cfg", ours.set("backbone.norm", _norm(f), default=""))
    _require(f, end_level=-1, upsample_cfg={"mode": "nearest"})
    _translate_extra_levels(model, f, ours, widths[-1])
    return channels


def _translate_extra_levels(model: Fields, f: Fields, ours: _Model, top: int) -> None:
    """Translate the levels of an FPN that a ResNet does not have."""
    start, outs = f.get("start_level", 0), f.get("num_outs")
    extra = f.get("add_extra_convs", False)
    extra = "on_input" if extra is True else extra
    names = ["start_level", "num_outs", "add_extra_convs", "relu_before_extra_convs"]
    if (start, outs, extra) == (0, 5, False):
        block: Any = Call("detectron2.modeling.backbone.fpn.LastLevelMaxPool")
    elif (start, outs) == (1, 5) and extra in ("on_input", "on_output"):
        on_input = extra == "on_input"
        arguments = {
            "in_channels": top if on_input else f.get("out_channels"),
            "out_channels": Interpolation("${..out_channels}"),
        }
        if not on_input:
            arguments["in_feature"] = "p5"
        if f.get("relu_before_extra_convs", False):
            target = "detectron2.modeling.backbone.fpn.LastLevelP6P7"
        else:
            target = "d2ext.modeling.backbones.extra_levels.LinearP6P7"
        block = Call(target, arguments)
    else:
        raise UserError(
            f"{f.path}: start_level={start}, num_outs={outs} and add_extra_convs={extra} are not"
            " supported; d2ext imports FPNs of P2 to P6 without additional convolutions, and of"
            " P3 to P7 with add_extra_convs='on_input' or 'on_output'"
        )
    levels = [f"res{i}" for i in range(2 + start, 6)]
    ours.set("backbone.in_features", levels)
    f.became(names, ours.set("backbone.top_block", block))
    if start == 1 and model.type != "RetinaNet":
        ours.set("backbone.bottom_up.out_features", levels)


def _translate_rpn(model: Fields, ours: _Model) -> None:
    """Translate a region proposal network: its head, training and proposals."""
    f, path = model.section("rpn_head"), "proposal_generator"
    if f.type == "FCOSHead":
        _replace_fcos(model, f, ours)
    elif f.type == "RPNHead":
        _translate_rpn_head(f, ours, path)
    else:
        _unsupported(f, "type", "RPNHead")
    ours.set_class(path, "d2ext.modeling.rpn.ValidAnchorRPN")
    training = model.section("train_cfg").section("rpn")
    _translate_assigner(training.section("assigner"), ours, f"{path}.anchor_matcher")
    _translate_sampler(training.section("sampler"), ours, path, objects=False)
    border = training.get("allowed_border", 0)
    text = ours.set(f"{path}.anchor_boundary_thresh", border, default=-1)
    training.became("allowed_border", text)
    _expect(training, pos_weight=-1)
    training.unused("debug", "MMDetection does not use it")

    test = model.section("test_cfg").section("rpn")
    train = model.section("train_cfg").section("rpn_proposal") or test
    for theirs, field, default in [
        ("nms_pre", "pre_nms_topk", 2000),
        ("max_per_img", "post_nms_topk", 1000),
    ]:
        pair = (train.get(theirs, default), test.get(theirs, default))
        text = ours.set(f"{path}.{field}", pair)
        train.became(theirs, text)
        test.became(theirs, text)
    iou = _translate_nms(test, ours, f"{path}.nms_thresh", default=0.7)
    if train.section("nms").get("iou_threshold") == iou and train.section("nms").type == "nms":
        train.became("nms", f"model.{path}.nms_thresh={iou}")
    else:
        train.differs("nms", f"NMS with IoU {iou}, as at test time")
    for proposals in (train, test):
        _expect(proposals, min_bbox_size=0, nms_across_levels=False)
        proposals.unused(["nms_post", "max_num"], "MMDetection uses max_per_img")


def _translate_rpn_head(f: Fields, ours: _Model, path: str) -> None:
    f.became("type", f"model.{path}")
    width, inside, convs = (
        _needed(f, "in_channels"),
        f.get("feat_channels", 256),
        f.get("num_convs", 1),
    )
    text = ours.set(f"{path}.head.in_channels", width)
    f.became("in_channels", text)
    if (inside, convs) != (width, 1):
        text = ours.set(f"{path}.head.conv_dims", [inside] * convs)
    f.became(["feat_channels", "num_convs"], text)
    _translate_anchors(f.section("anchor_generator"), ours, path, f"{path}.in_features")
    _translate_coder(f.section("bbox_coder"), ours, f"{path}.box2box_transform")
    _require(f.section("loss_cls"), type="CrossEntropyLoss", use_sigmoid=True)
    _translate_box_loss(f, ours, path)
    _translate_loss_weights(f, ours, path, "loss_rpn_cls", "loss_rpn_loc")
    _require(f, num_classes=1)


def _replace_fcos(model: Fields, f: Fields, ours: _Model) -> None:
    """Use an RPN where MMDetection has FCOS as the source of proposals."""
    path, strides = "proposal_generator", f.get("strides", (4, 8, 16, 32, 64))
    ours.set(f"{path}.in_features", [f"p{int(math.log2(stride))}" for stride in strides])
    ours.set(f"{path}.anchor_generator.sizes", [[8 * stride] for stride in strides])
    ours.set(f"{path}.anchor_generator.strides", list(strides))
    model.differs("rpn_head", "an RPN with 3 anchors of 8 x stride instead of FCOS")


def _translate_anchors(f: Fields, ours: _Model, path: str, levels: str) -> None:
    """Translate an anchor generator.

    Args:
        f: Their anchor generator.
        ours: The model that is written.
        path: Our module that has the head and the anchor generator.
        levels: Our field with the names of the feature maps.
    """
    _require(f, type="AnchorGenerator")
    _require(f, center_offset=0, scale_major=True)
    scales = f.get("scales")
    if scales is None:
        count, base = _needed(f, "scales_per_octave"), _needed(f, "octave_base_scale")
        scales = [base * 2 ** (i / count) for i in range(count)]
    strides, ratios = list(_needed(f, "strides")), list(_needed(f, "ratios"))
    sizes = [[stride * scale for scale in scales] for stride in strides]
    text = ours.set(f"{path}.anchor_generator.sizes", sizes)
    f.became(["scales", "scales_per_octave", "octave_base_scale"], text)
    f.became("strides", ours.set(f"{path}.anchor_generator.strides", strides))
    f.became("ratios", ours.set(f"{path}.anchor_generator.aspect_ratios", ratios))
    ours.set(f"{path}.head.num_anchors", len(scales) * len(ratios))
    if len(strides) > 1:
        ours.set(levels, [f"p{int(math.log2(stride))}" for stride in strides])


def _translate_coder(f: Fields, ours: _Model, path: str) -> None:
    """Translate a box coder: Detectron2 multiplies by weights where MMDetection divides by std."""
    _require(f, type="DeltaXYWHBBoxCoder", target_means=(0, 0, 0, 0))
    weights = [1 / std for std in f.get("target_stds", (1, 1, 1, 1))]
    f.became("target_stds", ours.set(f"{path}.weights", weights))
    _expect(f, clip_border=True, add_ctr_clamp=False)
    f.unused("ctr_clamp", "it is used with add_ctr_clamp only")


def _translate_box_loss(f: Fields, ours: _Model, path: str) -> None:
    """Translate the loss of the boxes of a head."""
    loss, decoded = f.section("loss_bbox"), f.get("reg_decoded_bbox", False)
    is_iou = loss.type in _IOU_LOSSES or loss.type in _OWN_IOU_LOSSES
    if decoded != is_iou:
        which = "IoU losses" if decoded else f"{loss.type}, which needs decoded boxes"
        _unsupported(f, "reg_decoded_bbox", f"{not decoded} for {which}")
    if loss.type in ("L1Loss", "SmoothL1Loss"):
        beta = loss.get("beta", 1.0) if loss.type == "SmoothL1Loss" else 0.0
        loss.became(["type", "beta"], ours.set(f"{path}.smooth_l1_beta", beta, default=0.0))
    elif loss.type in _IOU_LOSSES:
        name = _IOU_LOSSES[loss.type]
        loss.became("type", ours.set(f"{path}.box_reg_loss_type", name, default="smooth_l1"))
        _require(loss, eps=1e-6)
    elif loss.type in _OWN_IOU_LOSSES and "box_predictor" in path:
        ours.set_class(path, "d2ext.modeling.box_losses.IoULossOutputLayers")
        name = _OWN_IOU_LOSSES[loss.type]
        loss.became("type", ours.set(f"{path}.box_reg_loss_type", name, default="smooth_l1"))
        bounded = loss.type == "BoundedIoULoss"
        _require(loss, mode="log", linear=False, beta=0.2, eps=1e-3 if bounded else 1e-6)
    else:
        supported = ["L1Loss", "SmoothL1Loss", *_IOU_LOSSES]
        if "box_predictor" in path:
            supported += _OWN_IOU_LOSSES
        _unsupported(loss, "type", ", ".join(supported))
    f.became("reg_decoded_bbox", f"model.{path}")


def _translate_loss_weights(
    f: Fields, ours: _Model, path: str, classification: str, boxes: str
) -> None:
    """Translate the weights of the two losses of a head."""
    sections = {classification: f.section("loss_cls"), boxes: f.section("loss_bbox")}
    weights = {name: loss.get("loss_weight", 1.0) for name, loss in sections.items()}
    text = _SAME
    if set(weights.values()) != {1.0}:
        text = ours.set(f"{path}.loss_weight", weights)
    for loss in sections.values():
        loss.became("loss_weight", text)


def _translate_assigner(f: Fields, ours: _Model, path: str) -> None:
    """Translate the assignment of anchors or proposals to objects."""
    _require(f, type="MaxIoUAssigner")
    positive, negative = _needed(f, "pos_iou_thr"), _needed(f, "neg_iou_thr")
    if not isinstance(negative, int | float):
        _unsupported(f, "neg_iou_thr", "a number")
    if f.get("match_low_quality", True):
        arguments = {
            "negative": negative,
            "positive": positive,
            "min_positive": f.get("min_pos_iou", 0.0),
        }
        matcher = Call("d2ext.modeling.matcher.MaxIoUMatcher", arguments)
    else:
        several = negative != positive
        arguments = {
            "thresholds": [negative, positive] if several else [positive],
            "labels": [0, -1, 1] if several else [0, 1],
            "allow_low_quality_matches": False,
        }
        matcher = Call("detectron2.modeling.matcher.Matcher", arguments)
    text = ours.set(path, matcher)
    f.became(["pos_iou_thr", "neg_iou_thr", "min_pos_iou", "match_low_quality"], text)
    _expect(f, ignore_iof_thr=-1, gt_max_assign_all=True)
    _expect(f, iou_calculator={"type": "BboxOverlaps2D"})
    f.unused(["gpu_assign_thr", "ignore_wrt_candidates"], "has no effect on the results")


def _translate_sampler(f: Fields, ours: _Model, path: str, objects: bool) -> None:
    """Translate the sampling of anchors or proposals.

    Args:
        f: Their sampler.
        ours: The model that is written.
        path: Our module that samples.
        objects: Whether it samples the objects too, as proposals.
    """
    if f.type == "RandomSampler":
        f.became("type", f"model.{path}")
    else:
        f.differs("type", f"proposals are sampled at random, without {f.type}")
    f.became("num", ours.set(f"{path}.batch_size_per_image", _needed(f, "num")))
    f.became("pos_fraction", ours.set(f"{path}.positive_fraction", _needed(f, "pos_fraction")))
    _expect(f, neg_pos_ub=-1)
    added = f.get("add_gt_as_proposals", True)
    if objects:
        text = ours.set(f"{path}.proposal_append_gt", added, default=True)
        f.became("add_gt_as_proposals", text)
    else:
        _expect(f, add_gt_as_proposals=False)


def _translate_nms(f: Fields, ours: _Model, path: str, default: float) -> float:
    """Translate non-maximum suppression; return its IoU."""
    nms = f.section("nms")
    iou = nms.get("iou_threshold", default)
    text = ours.set(path, iou, default=default)
    if nms.type == "nms":
        nms.became(["type", "iou_threshold"], text)
    else:
        nms.differs("type", f"plain NMS with IoU {iou} instead of {nms.type}")
        nms.became("iou_threshold", text)
    nms.unused(["max_num", "split_thr"], "has no effect on the results")
    return iou


def _translate_roi_head(model: Fields, ours: _Model, kind: str) -> None:
    """Translate the heads of proposals: boxes and masks, in one stage or in three."""
    f, path = model.section("roi_head"), "roi_heads"
    cascade = model.type == "CascadeRCNN"
    _require(f, type="CascadeRoIHead" if cascade else "StandardRoIHead")
    pooler = f"{path}.pooler" if kind == "c4" else f"{path}.box_pooler"
    _translate_pooler(f.section("bbox_roi_extractor"), ours, pooler, f"{path}.box_in_features")
    if kind == "c4":
        _translate_shared_head(f.section("shared_head"), ours, f"{path}.res5")
    heads = f.sections("bbox_head")
    stages = model.section("train_cfg").sections("rcnn")
    if cascade:
        _require(f, num_stages=3)
        if len(heads) != 3 or len(stages) != 3:
            raise UserError(
                f"{f.path}: {len(heads)} bbox_head and {len(stages)} train_cfg.rcnn for 3 stages;"
                " give one per stage"
            )
        weights = _needed(f, "stage_loss_weights")
        text = ours.set(f"{path}.stage_loss_weights", weights, default=[1, 0.5, 0.25])
        f.became("stage_loss_weights", text)
    classes = heads[0].get("num_classes", 80)
    test = model.section("test_cfg").section("rcnn")
    for i, (head, stage) in enumerate(zip(heads, stages, strict=True)):
        box_head = f"{path}.box_heads[{i}]" if cascade else f"{path}.box_head"
        predictor = f"{path}.box_predictors[{i}]" if cascade else f"{path}.box_predictor"
        matcher = f"{path}.proposal_matchers[{i}]" if cascade else f"{path}.proposal_matcher"
        _check_classes(head, classes)
        head.became("num_classes", ours.set(f"{path}.num_classes", classes) if i == 0 else _SAME)
        _translate_box_head(head, ours, box_head, predictor, kind)
        _translate_assigner(stage.section("assigner"), ours, matcher)
        if i == 0:
            _translate_sampler(stage.section("sampler"), ours, path, objects=True)
        else:
            _expect(stage, sampler=_needed(stages[0], "sampler"))
        _expect(stage, pos_weight=-1)
        stage.unused("debug", "MMDetection does not use it")
        _translate_test(test, ours, predictor)
    if f.get("mask_head"):
        _translate_masks(model, ours, classes, kind)


def _translate_test(test: Fields, ours: _Model, path: str) -> None:
    """Translate the selection of detections."""
    test.became("score_thr", ours.set(f"{path}.test_score_thresh", test.get("score_thr", 0.05)))
    _translate_nms(test, ours, f"{path}.test_nms_thresh", default=0.5)
    text = ours.set(f"{path}.test_topk_per_image", test.get("max_per_img", 100), default=100)
    test.became("max_per_img", text)
    _expect(test, mask_thr_binary=0.5, min_bbox_size=0)


def _translate_pooler(f: Fields, ours: _Model, path: str, levels: str) -> None:
    """Translate an extractor of the features of boxes."""
    _require(f, type="SingleRoIExtractor")
    layer, strides = f.section("roi_layer"), _needed(f, "featmap_strides")
    _require(layer, type="RoIAlign")
    aligned = layer.get("aligned", True)
    text = ours.set(f"{path}.pooler_type", "ROIAlignV2" if aligned else "ROIAlign")
    layer.became("aligned", text)
    layer.became("output_size", ours.set(f"{path}.output_size", _needed(layer, "output_size")))
    text = ours.set(f"{path}.sampling_ratio", layer.get("sampling_ratio", 0))
    layer.became("sampling_ratio", text)
    _require(layer, pool_mode="avg")
    f.became("out_channels", "the channels of the features")
    f.became("featmap_strides", ours.set(f"{path}.scales", [1 / stride for stride in strides]))
    if len(strides) > 1:
        first = int(math.log2(strides[0]))
        ours.set(levels, [f"p{first + i}" for i in range(len(strides))])
        # Boxes of fewer than 2 x finest_scale pixels use the first level.
        ours.set(f"{path}.canonical_level", first + 2, default=4)
        size = 4 * f.get("finest_scale", 56)
        f.became("finest_scale", ours.set(f"{path}.canonical_box_size", size, default=224))


def _translate_shared_head(f: Fields, ours: _Model, path: str) -> None:
    """Translate res5 of a C4 model, which is the head of each box."""
    _require(f, type="ResLayer", stage=3, stride=2, dilation=1)
    if _needed(f, "depth") < 50:
        _unsupported(f, "depth", "50, 101 and 152")
    f.became("depth", f"model.{path}")
    ours.set(f"{path}.norm", _translate_norm(f, ours))
    f.became("style", ours.set(f"{path}.stride_in_1x1", f.get("style", "pytorch") == "caffe"))
    f.became(["init_cfg", "pretrained"], "train.init_checkpoint")


def _translate_box_head(f: Fields, ours: _Model, head: str, predictor: str, kind: str) -> None:
    """Translate the classification and regression of boxes."""
    if kind == "c4":
        _require(f, type="BBoxHead", with_avg_pool=True)
        f.became(["in_channels", "roi_feat_size"], "the features of res5")
    else:
        if f.type not in _SHARED_LAYERS:
            _unsupported(f, "type", " and ".join(_SHARED_LAYERS))
        convs, fcs = _SHARED_LAYERS[f.type]
        f.became("in_channels", ours.set(f"{head}.input_shape.channels", _needed(f, "in_channels")))
        size, width = f.get("roi_feat_size", 7), f.get("fc_out_channels", 1024)
        ours.set(f"{head}.input_shape.height", size)
        f.became("roi_feat_size", ours.set(f"{head}.input_shape.width", size))
        text = ours.set(f"{head}.conv_dims", [f.get("conv_out_channels", 256)] * convs)
        f.became("conv_out_channels", text)
        text = ours.set(f"{head}.fc_dims", [width] * fcs)
        f.became(["type", "fc_out_channels"], text)
        ours.set(f"{predictor}.input_shape.channels", width)
        f.became("norm_cfg", ours.set(f"{head}.conv_norm", _norm(f), default=""))
    _require(f, with_avg_pool=kind == "c4")
    _translate_coder(f.section("bbox_coder"), ours, f"{predictor}.box2box_transform")
    agnostic = bool(f.get("reg_class_agnostic", False))
    text = ours.set(f"{predictor}.cls_agnostic_bbox_reg", agnostic, default=False)
    f.became("reg_class_agnostic", text)
    loss = f.section("loss_cls")
    _require(loss, type="CrossEntropyLoss", use_sigmoid=False)
    _translate_box_loss(f, ours, predictor)
    _translate_loss_weights(f, ours, predictor, "loss_cls", "loss_box_reg")


def _translate_masks(model: Fields, ours: _Model, classes: int, kind: str) -> None:
    """Translate mask heads."""
    f, path = model.section("roi_head"), "roi_heads"
    resolution = 14
    if kind == "c4":
        f.became("mask_roi_extractor", f"model.{path}.pooler")
    else:
        extractor = f.section("mask_roi_extractor")
        resolution = _needed(extractor.section("roi_layer"), "output_size")
        levels = f"{path}.mask_in_features"
        _translate_pooler(extractor, ours, f"{path}.mask_pooler", levels)
    cascade = model.type == "CascadeRCNN"
    heads = f.sections("mask_head")
    if cascade and len(heads) == 1:
        heads *= 3
    for i, head in enumerate(heads):
        to = f"{path}.mask_head[{i}]" if cascade else f"{path}.mask_head"
        _check_classes(head, classes)
        head.became("num_classes", f"model.{path}.num_classes={classes}")
        _require(head, type="FCNMaskHead", conv_kernel_size=3, class_agnostic=False)
        if kind != "c4":
            text = ours.set(f"{to}.input_shape.channels", _needed(head, "in_channels"))
            ours.set(f"{to}.input_shape.height", resolution)
            ours.set(f"{to}.input_shape.width", resolution)
            head.became("in_channels", text)
        head.became("in_channels", "the features of res5")
        width = head.get("conv_out_channels", 256)
        text = ours.set(f"{to}.conv_dims", [width] * (head.get("num_convs", 4) + 1))
        head.became(["num_convs", "conv_out_channels"], text)
        _require(head, upsample_cfg={"type": "deconv", "scale_factor": 2})
        _expect(head, roi_feat_size=14)
        loss = head.section("loss_mask")
        _require(loss, type="CrossEntropyLoss", use_mask=True)
        weight = loss.get("loss_weight", 1.0)
        loss.became("loss_weight", ours.set(f"{to}.loss_weight", weight, default=1.0))
    for stage in model.section("train_cfg").sections("rcnn"):
        size = 14 if kind == "c4" else 2 * resolution
        if stage.get("mask_size") != size:
            _unsupported(stage, "mask_size", f"{size}, the size of the predicted masks")
        stage.became("mask_size", f"{size}, the size of the predicted masks")


def _translate_retinanet(model: Fields, ours: _Model, channels: int | None) -> None:
    """Translate the head, the training and the detections of RetinaNet."""
    f = model.section("bbox_head")
    _require(f, type="RetinaHead", in_channels=channels)
    f.became("num_classes", ours.set("num_classes", _needed(f, "num_classes")))
    for i in range(5):
        ours.set(f"head.input_shape[{i}].channels", channels)
    dims = [f.get("feat_channels", 256)] * f.get("stacked_convs", 4)
    f.became(["feat_channels", "stacked_convs"], ours.set("head.conv_dims", dims))
    _translate_anchors(f.section("anchor_generator"), ours, "", "head_in_features")
    _translate_coder(f.section("bbox_coder"), ours, "box2box_transform")
    loss = f.section("loss_cls")
    _require(loss, type="FocalLoss", use_sigmoid=True)
    for theirs, default in [("gamma", 2.0), ("alpha", 0.25)]:
        text = ours.set(f"focal_loss_{theirs}", loss.get(theirs, default))
        loss.became(theirs, text)
    _translate_box_loss(f, ours, "")
    for part in (loss, f.section("loss_bbox")):
        _expect(part, loss_weight=1.0)
    train, test = model.section("train_cfg"), model.section("test_cfg")
    _translate_assigner(train.section("assigner"), ours, "anchor_matcher")
    _expect(train.section("sampler"), type="PseudoSampler")
    _expect(train, allowed_border=-1, pos_weight=-1)
    train.unused("debug", "MMDetection does not use it")
    text = ours.set("test_topk_candidates", test.get("nms_pre", 1000), default=1000)
    test.became("nms_pre", text)
    text = ours.set("test_score_thresh", test.get("score_thr", 0.05), default=0.05)
    test.became("score_thr", text)
    _translate_nms(test, ours, "test_nms_thresh", default=0.5)
    text = ours.set("max_detections_per_image", test.get("max_per_img", 100), default=100)
    test.became("max_per_img", text)
    _expect(test, min_bbox_size=0)


def _refuse_unknown(f: Fields) -> None:
    """Raise a UserError for a field that nobody looked at, unless it leaves the model as it is."""
    for name, value in f.items():
        path = f.name(name)
        if path in f.rows or path == "model.backbone.init_cfg":  # `initial_weights` reads that one
            continue
        if any(row.startswith(f"{path}.") for row in f.rows):
            for section in f.sections(name):
                _refuse_unknown(section)
        elif (name == "init_cfg" and f.section(name).type == "Pretrained") or (
            name == "pretrained" and value
        ):
            f.differs(name, "these weights are not loaded; set train.init_checkpoint")
        elif name in _HARMLESS:
            f.unused(name, _HARMLESS[name])
        elif name in _DEFAULTS:
            _require(f, **{name: _DEFAULTS[name]})
        elif value in (None, False, (), [], {}):
            f.became(name, _SAME)
        else:
            _unsupported(f, name, f"{f.type} without {name}" if f.type else f"None for {name}")


def _norm(f: Fields) -> str:
    """Return the norm of a part, "" for none; raise a UserError for one that ours cannot be."""
    norm_cfg = f.section("norm_cfg")
    _require(norm_cfg, **{"num_groups": 32, "eps": 1e-5, "momentum": 0.1})
    supported = ("", "BN", "SyncBN", "GN")
    if norm_cfg.type not in supported or (norm_cfg.type == "GN" and "num_groups" not in norm_cfg):
        _unsupported(norm_cfg, "type", "BN, SyncBN and GN with 32 groups")
    return norm_cfg.type


def _check_classes(head: Fields, classes: int) -> None:
    """Raise a UserError if the heads of a model have different numbers of classes."""
    if head.get("num_classes", 80) != classes:
        raise UserError(
            f"{head.name('num_classes')}={head.get('num_classes', 80)}, but the first box head has"
            f" {classes}; give all heads the same number"
        )


def _expect(f: Fields, **supported: Any) -> None:
    """Record fields that have one value here: any other value is a difference."""
    for name, value in supported.items():
        if name in f and _plain(f[name]) == _plain(value):
            f.became(name, _SAME)
        else:
            f.differs(name, f"{name} is {value} here")


def _require(f: Fields, **supported: Any) -> None:
    """Record fields that have one value here, and raise a UserError for any other value."""
    for name, value in supported.items():
        if name != "type" and _plain(f.get(name, value)) != _plain(value):
            _unsupported(f, name, str(value))
        if name == "type" and f.type != value:
            _unsupported(f, name, str(value))
        f.became(name, _SAME)


def _needed(f: Fields, name: str) -> Any:
    """Return the value of a field that MMDetection has no default for."""
    if f.get(name) is None:
        raise UserError(f"{f.name(name)} is missing; MMDetection has no default for it")
    return f[name]


def _unsupported(f: Fields, name: str, supported: str) -> NoReturn:
    """Raise a UserError for a value that the import does not support."""
    raise UserError(f"{f.name(name)}={f.get(name)} is not supported; d2ext imports {supported}")


def _shown(value: Any) -> str:
    """Return a value as the table shows it."""
    if not isinstance(value, Call):
        return str(value)
    arguments = ", ".join(f"{name}={part}" for name, part in value.arguments.items())
    return f"{value.target.rpartition('.')[2]}({arguments})"


def _plain(value: Any) -> Any:
    """Return a value of which equal ones compare equal: calls as dicts, tuples as lists."""
    if isinstance(value, Call):
        value = {"_target_": value.target, **value.arguments}
    if isinstance(value, Mapping):
        plain = {name: _plain(part) for name, part in value.items()}
        if "_target_" in plain:
            plain["_target_"] = target_name(plain["_target_"])
        return plain
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
