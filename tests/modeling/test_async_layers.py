"""The layers that wait less often for a GPU compute the same results as Detectron2's."""

import copy

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fake_cuda import FakeCuda
from d2ext._compat import set_class
from d2ext.engine.nonfinite import FiniteLossGuard
from d2ext.engine.trainer import Trainer
from d2ext.launch.signals import StopSignals
from d2ext.modeling.gpu.fast_layers import use_async_layers
from d2ext.modeling.gpu.polygons import indexed
from tests.detectron2_style.tiny_models import CHANNELS, shrink_rcnn, shrink_retinanet
from tests.tiny_models import batch, smaller

R50 = "mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py"
LITE0 = "balloon/mask_rcnn_lite0_fpn_balloon.py"


@pytest.fixture(scope="module", params=[LITE0, R50])
def model(request, repo):
    torch.manual_seed(0)
    cfg = LazyConfig.load(str(repo / "configs" / request.param)).model
    smaller(cfg)
    return instantiate(cfg).train()


def _async(model):
    made = copy.deepcopy(model)
    use_async_layers(made)
    return made


def _step(model, images):
    """Return losses, gradients and logged numbers of a step."""
    torch.manual_seed(2)
    # TorchScript rewrites RetinaNet's focal loss after its first call, with another rounding.
    with EventStorage() as storage, torch.jit.optimized_execution(False):
        losses = model(batched_inputs=images)
        sum(losses.values()).backward()
        numbers = {name: value for name, (value, _) in storage.latest().items()}
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses = {name: loss.item() for name, loss in losses.items()}
    return losses, gradients, numbers


def _images():
    images = batch(3)
    images[1]["instances"] = images[1]["instances"][:0]  # an image without objects
    images[2]["image"] = images[2]["image"][:, :50, :70]
    images[2]["instances"] = Instances((50, 70), **images[2]["instances"].get_fields())
    return images


def test_losses_gradients_and_numbers_are_unchanged(model):
    changed = _async(model)
    assert list(changed.state_dict()) == list(model.state_dict())
    losses, gradients, numbers = _step(changed, _images())
    expected, of_expected, logged = _step(model, _images())
    assert losses == expected
    assert gradients.keys() == of_expected.keys()
    assert all(torch.equal(gradients[name], g) for name, g in of_expected.items())
    assert numbers.keys() == logged.keys() and numbers == pytest.approx(logged)


OTHERS = [
    ("cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py", shrink_rcnn),
    ("keypoint_rcnn/keypoint_rcnn_r50_caffe_fpn_ms_90k_coco.py", shrink_rcnn),
    ("retinanet/retinanet_r50_fpn_1x_coco.py", shrink_retinanet),
]


@pytest.mark.parametrize(("config", "shrink"), OTHERS)
def test_other_models_are_unchanged(repo, config, shrink):
    """They contain layers that are replaced, and others that use the same samples."""
    cfg = LazyConfig.load(str(repo / "configs" / config)).model
    shrink(cfg)
    if "keypoint" in config:
        cfg.roi_heads.keypoint_head.input_shape.channels = CHANNELS
        cfg.roi_heads.keypoint_head.conv_dims = [CHANNELS]
    torch.manual_seed(0)
    model = instantiate(cfg).train()
    images = batch(2)
    for sample in images:
        objects = sample["instances"]
        objects.gt_classes %= 2
        if "keypoint" in config:
            inside = objects.gt_boxes.get_centers()[:, None] + 9 * torch.rand(3, 17, 2)
            objects.gt_keypoints = Keypoints(torch.cat((inside, torch.full((3, 17, 1), 2)), 2))
    changed = _async(model)
    pairs = zip(changed.modules(), model.modules(), strict=True)
    assert any(type(a) is not type(b) for a, b in pairs)
    losses, gradients, numbers = _step(changed, images)
    expected, of_expected, logged = _step(model, images)
    assert losses == expected and all(losses.values())
    assert gradients.keys() == of_expected.keys()
    assert all(torch.equal(gradients[name], g) for name, g in of_expected.items())
    assert numbers.keys() == logged.keys() and numbers == pytest.approx(logged)


@pytest.mark.parametrize("model", [LITE0], indirect=True)
@pytest.mark.parametrize(
    "padding", [{"padding_constraints": {"square_size": 128}}, {"size_divisibility": 64}]
)
def test_other_paddings_of_the_images(model, padding):
    padded = copy.deepcopy(model)
    padded.backbone.__class__ = type("PaddedFPN", (type(model.backbone),), padding)
    losses, gradients, _ = _step(_async(padded), _images())
    expected, of_expected, _ = _step(padded, _images())
    assert losses == expected != _step(model, _images())[0]
    assert all(torch.equal(gradients[name], g) for name, g in of_expected.items())


def test_detections_are_unchanged(model):
    images = batch(1)
    with torch.no_grad():
        (found,), (expected,) = (m.eval()(images) for m in (_async(model), copy.deepcopy(model)))
    found, expected = found["instances"], expected["instances"]
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_masks, expected.pred_masks)


def test_bitmasks_and_numbers_without_objects(model):
    images = batch(2)
    for sample in images:
        masks = BitMasks.from_polygon_masks(sample["instances"].gt_masks, 64, 96)
        sample["instances"].gt_masks = masks
    assert _step(_async(model), images)[0] == _step(model, images)[0]
    for sample in images:
        sample["instances"] = sample["instances"][:0]
    losses, _, numbers = _step(_async(model), images)
    expected, _, logged = _step(model, images)
    assert losses == expected and numbers == pytest.approx(logged)


@pytest.mark.parametrize("model", [LITE0], indirect=True)
def test_labels_of_a_failed_forward_pass_are_forgotten(model):
    """The proposal network, called by itself, labels its own ground truth."""
    changed, (sample,) = _async(model), batch(1)
    stocks = copy.deepcopy(model)

    def losses_of(model):
        torch.manual_seed(2)
        with EventStorage(), torch.no_grad():
            images = model.preprocess_image([sample])
            features = model.backbone(images.tensor)
            _, losses = model.proposal_generator(images, features, [sample["instances"][:1]])
        return losses

    with pytest.raises(RuntimeError, match="Expected"), EventStorage():
        changed([{**sample, "image": sample["image"][:, None]}])
    assert losses_of(changed) == losses_of(stocks)


@pytest.mark.parametrize("model", [LITE0], indirect=True)
def test_other_mask_heads_get_the_masks_of_each_proposal(model):
    class OwnMaskHead(MaskRCNNConvUpsampleHead):
        def forward(self, x, instances):
            areas.append([found.gt_masks.area() for found in instances])
            return super().forward(x, instances)

    made, areas = copy.deepcopy(model), []
    set_class(made.roi_heads.mask_head, OwnMaskHead)
    losses = _step(_async(made), batch(2))[0]
    assert losses == _step(made, batch(2))[0]
    assert all(map(torch.equal, *areas))


def _training(model, images):
    """Train for one step; return its losses."""
    guarded = FiniteLossGuard(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, fused=True)
    trainer = Trainer(guarded, optimizer, [images], [], seed=3)
    trainer.train(0, 1, StopSignals())
    return {n: value for n, (value, _) in trainer.storage.latest().items() if "loss" in n}


def _trained_on_gpu(model, n):
    """Return losses of a step with n images on a GPU, and how often the host waited for it."""
    with FakeCuda() as gpu:
        on_gpu = _async(model).to("cuda")
        images = batch(n)
        for sample in images:
            sample["image"] = sample["image"].pin_memory()  # by the loader
        gpu.reset()
        return _training(on_gpu, images), gpu.waits


def test_objects_are_sent_to_a_gpu_without_a_wait():
    (sample,) = batch(1)
    objects = sample["instances"]
    objects.gt_masks = BitMasks.from_polygon_masks(objects.gt_masks, 64, 96)
    objects.gt_keypoints = Keypoints(torch.rand(3, 5, 3))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, samples):
            assert not gpu.waits
            sent = samples[0]["instances"]
            for name in ("gt_boxes", "gt_masks", "gt_keypoints"):
                found, expected = sent.get(name).tensor, objects.get(name).tensor
                assert found.is_cuda and torch.equal(found.cpu(), expected)
            assert sent.gt_classes.is_cuda and sent.gt_ids.tolist() == [0, 1, 2]
            return {"loss": self.weight * 1}

    with FakeCuda() as gpu:
        model = Model().to("cuda")
        objects.gt_ids = torch.arange(3).to("cuda")  # of a loader of your own
        sample["image"] = sample["image"].pin_memory()
        gpu.reset()
        assert _training(model, [sample])["loss"] == 1


@pytest.mark.slow
def test_a_step_on_a_gpu_equals_that_on_the_cpu(model):
    assert _trained_on_gpu(model, 2)[0] == _training(copy.deepcopy(model), batch(2))


@pytest.mark.slow
@pytest.mark.parametrize("model", [R50], indirect=True)
def test_a_step_waits_less_often_for_a_gpu(model):
    """A step of Detectron2 waits 44 + 24 n times for n images (tests/test_fake_cuda.py)."""
    for n in (1, 2, 4):
        waits = _trained_on_gpu(model, n)[1]
        assert waits.total() == 18 + 17 * n, waits


coordinate = st.floats(-50, 150, width=32)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(coordinate, min_size=6, max_size=12), max_size=3), min_size=1, max_size=4
    ),
    st.lists(st.tuples(coordinate, coordinate, st.floats(0, 90), st.floats(0, 90)), max_size=5),
    st.sampled_from([7, 28]),
)
def test_mask_targets_are_those_of_polygon_masks(polygons, rows, size):
    polygons = [[np.array(p[: len(p) // 2 * 2]) for p in parts] for parts in polygons]
    masks = PolygonMasks(polygons)
    boxes = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in rows]).view(-1, 4)
    objects = torch.arange(len(rows)) % len(polygons)
    found = indexed(masks, objects)
    expected = masks[objects]
    assert len(found) == len(expected)
    if len(rows):
        expected = expected.crop_and_resize(boxes, size)
        assert torch.equal(found.crop_and_resize(boxes, size), expected)
