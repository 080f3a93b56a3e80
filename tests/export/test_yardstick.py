"""Exported models of the usual size are as close to Detectron2 as it is to itself.

With random weights, rounding decides about some of 300 objects. The yardstick is Detectron2's model
with weights in the channels_last layout, which computes the same sums in another order.
"""

import copy

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from torch import nn

import d2ext
from d2ext.config.num_classes import with_num_classes
from d2ext.data.loading.image_io import read_photo
from d2ext.evaluation.predictions import detections_of, outputs_of
from d2ext.export.detector import build_detector
from d2ext.export.layers import prepared
from d2ext.export.onnx_file import write_onnx
from d2ext.export.verify import compare
from d2ext.predict.onnx_model import OnnxModel
from tests.export.models import spread_outputs
from tests.export.test_onnx import info_of

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

CONFIGS = [
    "mask_rcnn/mask_rcnn_r50_caffe_fpn_1x_coco.py",
    "faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco.py",
    "cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py",
    "retinanet/retinanet_r50_fpn_1x_coco.py",
]
SMALLEST_SCORE, MOST = 0.02, 300
CLOSE, NEAR = (0.01, 1e-3), (1.0, 0.01)  # pixels and score


def calibrated(config, samples):
    """Return a model with random weights whose features keep their scale in the first photo."""
    settings = with_num_classes(d2ext.get_config(config).model, 80)
    for part in (settings.backbone.bottom_up.stem, settings.backbone.bottom_up.stages):
        part.norm = "BN"
    if "roi_heads" in settings:
        for name in ("box_predictor", "box_predictors"):
            for predictor in _listed(settings.roi_heads.get(name, [])):
                predictor.test_score_thresh, predictor.test_topk_per_image = SMALLEST_SCORE, MOST
    else:
        settings.test_score_thresh, settings.max_detections_per_image = SMALLEST_SCORE, MOST
    torch.manual_seed(0)
    model = instantiate(settings)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    model.train()
    with torch.no_grad():
        model.backbone(model.preprocess_image(samples[:1]).tensor)
    spread_outputs(model, samples[:1])
    return model


def _listed(part):
    return part if "_target_" not in part else [part]


def detections(model, samples):
    with torch.inference_mode():
        outputs = [next(outputs_of(model, [sample])) for sample in samples]
    return [detections_of(0, output["instances"].to("cpu")) for output in outputs]


@pytest.mark.parametrize("config", CONFIGS)
def test_objects_agree_as_those_of_another_memory_layout(config, real_balloon, tmp_path):
    files = sorted((real_balloon / "val").glob("*.jpg"))[:2]
    photos = [np.ascontiguousarray(read_photo(file, "BGR")[:480, :640]) for file in files]
    photos.append(photos[0][:100, :100])
    samples = [{"image": torch.from_numpy(p.transpose(2, 0, 1).copy())} for p in photos]
    model = calibrated(config, samples)
    detector = build_detector(prepared(model)).eval()
    write_onnx(detector, info_of(detector), tmp_path / "model.onnx")
    exported = OnnxModel(tmp_path / "model.onnx")
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    expected, *alternatives = (detections(each, samples) for each in (model, other, exported))
    shares = []
    for found in alternatives:
        close = near = total = 0
        for ours, theirs in zip(expected, found, strict=True):
            pairs = compare(ours, theirs)
            total += pairs.objects
            close += ((pairs.boxes <= CLOSE[0]) & (pairs.scores <= CLOSE[1])).sum()
            near += ((pairs.boxes <= NEAR[0]) & (pairs.scores <= NEAR[1])).sum()
        shares.append((close / total, near / total))
    (yardstick, _), (share, near) = shares
    print(f"{config}: {total} objects, channels_last {yardstick:.3f}, onnxruntime {share:.3f}")
    assert total > 100 and share >= yardstick - 0.05 and near >= 0.98
