"""The layers that wait less often for a GPU compute the same results as Detectron2's."""

import copy

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import BitMasks, Instances, PolygonMasks
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fake_cuda import FakeCuda
from d2ext.engine.deferred_storage import DeferredStorage
from d2ext.engine.nonfinite import FiniteLossGuard
from d2ext.engine.trainer import Trainer
from d2ext.launch.signals import StopSignals
from d2ext.modeling.gpu.fast_layers import use_async_layers
from d2ext.modeling.gpu.polygons import indexed
from tests.tiny_models import batch, smaller

R50 = "mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py"
LITE0 = "balloon/mask_rcnn_lite0_fpn_balloon.py"


@pytest.fixture(scope="module", params=[LITE0, pytest.param(R50, marks=pytest.mark.slow)])
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
    with DeferredStorage() as storage:
        losses = model(images)
        sum(losses.values()).backward()
        values = storage.values_of(list(losses.values()))
        numbers = {name: value for name, (value, _) in storage.latest().items()}
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return dict(zip(losses, values, strict=True)), gradients, numbers


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


def test_detections_are_unchanged(model):
    images = batch(1)
    with torch.no_grad():
        (found,), (expected,) = (m.eval()(images) for m in (_async(model), copy.deepcopy(model)))
    found, expected = found["instances"], expected["instances"]
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.pred_masks, expected.pred_masks)


@pytest.mark.slow
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


def _training(model, images, steps=1):
    """Train on the images; return the losses of each step."""
    found = []
    model = FiniteLossGuard(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, fused=True)
    trainer = Trainer(model, optimizer, [images] * steps, [], seed=3)
    trainer.train(0, steps, StopSignals())
    for name, history in trainer.storage.histories().items():
        found.append((name, history.values()[-1][0]))
    return {name: value for name, value in found if "loss" in name}


@pytest.mark.slow
def test_steps_on_a_gpu_equal_those_on_the_cpu_and_wait_less(model):
    """A step of Detectron2 waits 44 + 24 n times for n images (tests/test_fake_cuda.py)."""
    for n in (1, 2, 4):
        expected = _training(copy.deepcopy(model), batch(n))
        with FakeCuda() as gpu:
            on_gpu = _async(model).to("cuda")
            images = batch(n)
            for sample in images:
                sample["image"] = sample["image"].pin_memory()
            gpu.reset()
            losses = _training(on_gpu, images)
            assert gpu.waits.total() <= 18 + 17 * n, gpu.waits
        assert losses == expected


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


def test_numbers_are_read_with_the_losses():
    with FakeCuda() as gpu, DeferredStorage(5) as storage:
        losses = [torch.tensor(float(i)).to("cuda") for i in range(3)]
        gpu.reset()
        with storage.name_scope("stage0"):
            storage.put_scalar("accuracy", losses[1] / 2)
        storage.put_scalar("undefined", losses[0] / 0)
        storage.put_scalar("plain", 3)
        assert list(storage.latest()) == ["plain"] and not gpu.waits
        storage.iter = 6
        assert storage.values_of(losses) == [0, 1, 2]
        assert gpu.waits.total() == 1
    assert storage.latest() == {"plain": (3, 5), "stage0/accuracy": (0.5, 5)}
