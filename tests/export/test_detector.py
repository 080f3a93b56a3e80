"""The detector for export equals Detectron2's models in torch, bit for bit."""

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.modeling import GeneralizedRCNN
from PIL import Image
from timm.layers import StdConv2dSame, create_pool2d

import d2ext
from d2ext.config.num_classes import with_num_classes
from d2ext.errors import UserError
from d2ext.export.detector import build_detector, nms
from d2ext.export.layers import prepared
from d2ext.predict.predictor import load_trained
from tests.detectron2_style.tiny_models import shrink_rcnn, shrink_retinanet
from tests.export.conftest import STOCK
from tests.export.models import spread_outputs

SIZES = [(160, 120), (96, 224), (100, 100), (1, 1), (3, 300)]


def config_of(name):
    """Return the config of a tiny model: of Detectron2 (common/models/...), or a recipe of ours."""
    if name.startswith("common/"):
        return model_zoo.get_config(name).model
    return d2ext.get_config(name).model


def of_classes(model, agnostic):
    """Let a Mask R-CNN predict boxes and masks for each class, or the same for all."""
    model.roi_heads.box_predictor.cls_agnostic_bbox_reg = agnostic
    model.roi_heads.mask_head.num_classes = 1 if agnostic else 2


def average_probabilities(model):
    model.roi_heads.average_logits = False


def sigmoid_scores(model):
    model.roi_heads.box_predictor.use_sigmoid_ce = True


MODELS = {
    "mask": ("common/models/mask_rcnn_fpn.py", lambda model: of_classes(model, False)),
    "mask, class-agnostic": (
        "common/models/mask_rcnn_fpn.py",
        lambda model: of_classes(model, True),
    ),
    "sigmoid": ("common/models/mask_rcnn_fpn.py", sigmoid_scores),
    "faster": ("faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco.py", None),
    "cascade": ("common/models/cascade_rcnn.py", None),
    "cascade of MMDetection": ("cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py", None),
    "cascade, probabilities": (
        "cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py",
        average_probabilities,
    ),
    "retinanet": ("common/models/retinanet.py", None),
    "retinanet of MMDetection": ("retinanet/retinanet_r50_fpn_1x_coco.py", None),
}


def built(name):
    """Return a tiny model with random weights, whose outputs differ between places."""
    config, change = MODELS[name]
    model = config_of(config)
    is_retinanet = "retinanet" in name
    (shrink_retinanet if is_retinanet else shrink_rcnn)(model)
    if change:
        change(model)
    torch.manual_seed(0)
    model = instantiate(model)
    image = torch.from_numpy(photo(160, 160).transpose(2, 0, 1).copy())
    spread_outputs(model, [{"image": image}])
    return model


def photo(height, width, seed=0):
    """Return a photo-like image, uint8 (H, W, 3): blurred noise, without ties."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def detected(model, image):
    """Return Detectron2's boxes, scores, classes and masks, in pixels of the input."""
    sample = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}
    with torch.inference_mode():
        if isinstance(model, GeneralizedRCNN):
            (found,) = model.inference([sample], do_postprocess=False)
        else:
            images = model.preprocess_image([sample])
            features = model.backbone(images.tensor)
            features = [features[f] for f in model.head_in_features]
            (found,) = model.forward_inference(images, features, model.head(features))
    masks = [found.pred_masks[:, 0]] if found.has("pred_masks") else []
    return [found.pred_boxes.tensor, found.scores, found.pred_classes, *masks]


def ordered(found):
    """Return detections as arrays, with those of equal scores in a defined order."""
    boxes, scores, *others = (part.numpy() for part in found)
    order = np.lexsort((*boxes.T, -scores))
    return [part[order] for part in (boxes, scores, *others)]


@pytest.mark.parametrize("name", MODELS)
def test_results_are_equal_bit_for_bit(name):
    model = built(name)
    detector = build_detector(model).eval()
    counts = []
    for height, width in SIZES:
        image = photo(height, width)
        expected = detected(model, image)
        with torch.inference_mode():
            found = detector(torch.from_numpy(image))
        assert len(found) == len(expected) == 3 + bool(detector.mask_size)
        for ours, theirs in zip(ordered(found), ordered(expected), strict=True):
            assert np.array_equal(ours, theirs), (name, height, width)
        counts.append(len(expected[1]))
    assert max(counts) > 10


@pytest.mark.parametrize("name", ["mask", "cascade of MMDetection", "retinanet"])
def test_no_object_is_an_empty_result(name):
    model = built(name)
    detector = build_detector(model).eval()
    detector.score_threshold = 2.0
    with torch.inference_mode():
        found = detector(torch.from_numpy(photo(64, 96)))
    assert [len(part) for part in found] == [0] * len(found) and found[0].shape == (0, 4)


def test_preparation_only_rounds(trained, real_balloon):
    """Norms are folded and paddings made constant; a model's results stay, and it as well."""
    model = load_trained(trained / "config.yaml", None, STOCK).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    new = prepared(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    kinds = {type(module).__name__ for module in new.modules()}
    assert not kinds & {"FrozenBatchNormAct2d", "Conv2dSame"}
    for height, width in ((320, 224), (64, 64)):
        image = torch.from_numpy(photo(height, width).transpose(2, 0, 1).copy())[None].float()
        with torch.inference_mode():
            for ours, theirs in zip(
                new.backbone(image).values(), model.backbone(image).values(), strict=True
            ):
                assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("keypoint_rcnn/keypoint_rcnn_r50_caffe_fpn_ms_90k_coco.py", "has a keypoint head"),
        ("scnet/scnet_r50_fpn_1x_coco.py", "the model is a SCNet"),
        ("common/models/mask_rcnn_c4.py", "the ROI heads is a Res5ROIHeads"),
    ],
)
def test_other_architectures_are_refused(config, words):
    model = instantiate(with_num_classes(config_of(config), 80))
    with pytest.raises(UserError, match=f"cannot be exported: .*{words}.*; Faster, Mask and"):
        build_detector(model)


def test_padding_that_depends_on_the_size_is_refused():
    """The exporter would compute formulas of the size indefinitely."""
    model = built("faster")
    model.backbone.bottom_up.stem.pool = create_pool2d("max", 3, 2, padding="same")
    with pytest.raises(
        UserError, match=r"exported: backbone\.bottom_up\.stem\.pool is a MaxPool2d"
    ):
        prepared(model)


def test_standardized_convolutions_may_have_constant_padding():
    """Only those with a stride depend on the size of the image."""
    model = built("faster")
    model.backbone.bottom_up.stem.pool = StdConv2dSame(64, 64, 3)
    prepared(model)
    model.backbone.bottom_up.stem.pool = StdConv2dSame(64, 64, 3, stride=2)
    with pytest.raises(UserError, match=r"stem\.pool is a StdConv2dSame"):
        prepared(model)


def test_nms_has_the_semantics_of_onnx():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 10]])
    scores = torch.tensor([[0.5, 0.9, 0.2, 0.1], [0.1, 0.0, 0.7, 0.9]])
    kept = nms(boxes[None], scores[None], 0.5, 5, 0.1)
    assert kept.tolist() == [[0, 0, 1], [0, 0, 2], [0, 1, 3], [0, 1, 2]]
    assert nms(boxes[None], scores[None], 0.5, 1, 0.1).tolist() == [[0, 0, 1], [0, 1, 3]]
    assert nms(boxes[None, :0], scores[None, :, :0], 0.5, 1, 0.1).shape == (0, 3)
