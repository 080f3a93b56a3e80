"""The layers that replace Detectron2's on CPUs compute the same results."""

import copy

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame, FrozenBatchNormAct2d
from torch import nn

from d2ext.modeling.cpu.fast_layers import use_fast_layers
from d2ext.modeling.cpu.folded_norm import fold_norms
from d2ext.modeling.cpu.onednn import use_onednn
from d2ext.modeling.cpu.relu6 import save_relu6_output
from d2ext.modeling.cpu.sampled_rpn import SampledRPN
from d2ext.modeling.roi_align import BagROIAlign

MODELS = ["mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py", "balloon/mask_rcnn_lite0_fpn_balloon.py"]


@pytest.fixture(scope="module", params=MODELS)
def model(request, repo):
    """Return an untrained model with random norm statistics, so that norms are not identities."""
    torch.manual_seed(0)
    cfg = LazyConfig.load(str(repo / "configs" / request.param)).model
    cfg.roi_heads.num_classes = 3
    made = instantiate(cfg)
    for name, buffer in made.named_buffers():
        if "running_mean" in name:
            buffer.normal_(0, 0.1)
        if "running_var" in name:
            buffer.uniform_(0.8, 1.25)
    return made


def _batch():
    generator = torch.Generator().manual_seed(1)
    batch = []
    for height, width in ((96, 128), (128, 96)):
        found = Instances((height, width))
        boxes = torch.tensor([[10.0, 12, 60, 70], [40, 20, 90, 90], [0, 0, 20, 16]])
        found.gt_boxes, found.gt_classes = Boxes(boxes), torch.tensor([0, 2, 1])
        found.gt_masks = PolygonMasks(
            [[[x0, y0, x1, y0, x1, y1]] for x0, y0, x1, y1 in boxes.tolist()]
        )
        image = torch.rand(3, height, width, generator=generator) * 255
        batch.append({"image": image, "instances": found, "height": height, "width": width})
    batch[1]["instances"] = batch[1]["instances"][:0]  # an image without objects
    return batch


def _fast(model):
    fast = copy.deepcopy(model)
    use_fast_layers(fast)
    return fast


def _step(model, proposals=None):
    """Return losses, numbers, gradients and proposals; the heads get `proposals`, if given.

    An untrained model's proposals have nearly equal scores, so that rounding decides which of them
    are suppressed.
    """
    model.train()
    rpn, made = model.proposal_generator, []
    predict = rpn.predict_proposals
    rpn.predict_proposals = lambda *args: made.append(predict(*args)) or proposals or made[0]
    torch.manual_seed(2)
    with EventStorage() as storage:
        losses = model(_batch())
        sum(losses.values()).backward()
        numbers = {name: value for name, (value, _) in storage.latest().items()}
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    del rpn.predict_proposals
    return losses, numbers, gradients, made[0]


def test_losses_and_gradients_are_unchanged(model):
    fast = _fast(model)
    assert any(isinstance(m, SampledRPN) for m in fast.modules())
    assert sum(isinstance(m, BagROIAlign) for m in fast.modules()) == 8
    expected, theirs, of_theirs, proposals = _step(model)
    losses, numbers, gradients, ours = _step(fast, proposals)
    for image, reference in zip(ours, proposals, strict=True):
        assert len(image) == pytest.approx(len(reference), abs=len(reference) // 20)
    assert losses.keys() == expected.keys() and numbers == pytest.approx(theirs)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == of_theirs.keys()
    for name, gradient in of_theirs.items():
        off = (gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert off < 5e-3, name  # rounding flips a few ReLUs


def test_detections_and_weights_are_unchanged(model):
    fast, batch = _fast(model).eval(), _batch()
    assert list(fast.state_dict()) == list(model.state_dict())
    assert list(copy.deepcopy(fast).state_dict()) == list(model.state_dict())  # as in the EMA
    with torch.no_grad():
        for found, expected in zip(fast(batch), model.eval()(batch), strict=True):
            found, expected = found["instances"], expected["instances"]
            assert len(found) == len(expected) > 0
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(
                found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-3, atol=0.1
            )


def test_folded_norms_follow_changed_weights(model):
    fast = _fast(model).eval()
    other = {k: v + 0.01 * (v.dtype.is_floating_point) for k, v in model.state_dict().items()}
    fast.load_state_dict(other)
    changed = copy.deepcopy(model).eval()
    changed.load_state_dict(other)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for name, feature in changed.backbone(image).items():
            torch.testing.assert_close(
                fast.backbone(image)[name], feature, rtol=1e-3, atol=1e-3, msg=name
            )


def test_relu6_saves_only_its_output():
    """The gradient matches torch's, also at 0 and 6, but no copy of the input is saved."""
    numbers = torch.tensor([-1.0, 0.0, 1e-30, 3.0, 6.0, 7.0, torch.nan])
    made, kept = [], []
    for change in (lambda _: None, save_relu6_output):
        layer = nn.Sequential(nn.ReLU6(inplace=True))
        change(layer)
        x = numbers.clone().requires_grad_()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.data_ptr()) or t, lambda t: t
        ):
            y = layer(x * 1)
        y.backward(torch.arange(1.0, 8))
        made.append((y.detach(), x.grad))
        kept.append(y.data_ptr() in saved)
    torch.testing.assert_close(made[1], made[0], equal_nan=True, rtol=0, atol=0)
    assert kept == [False, True]


SMALL = st.integers(1, 4)


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 14), st.integers(1, 14)), st.integers(1, 6), SMALL, SMALL)
def test_uneven_padding_without_a_copy(size, kernel, stride, dilation):
    """Outputs and gradients match timm's, which pads first, for all sizes."""
    conv = Conv2dSame(2, 4, kernel, stride, dilation=dilation, groups=2, bias=False).double()
    norm = FrozenBatchNormAct2d(4, apply_act=False).double()
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    plain = nn.Sequential(conv, norm)
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    x = torch.rand(2, 2, *size, dtype=torch.double, requires_grad=True)
    made, expected = folded(x), plain(x)
    torch.testing.assert_close(made, expected)
    weight = torch.rand_like(expected)
    of_made, of_expected = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (made, expected))
    torch.testing.assert_close(of_made, of_expected)


@pytest.mark.parametrize("shape", [(64, 1024), (3, 5, 1024), (2, 1024), (0, 1024)])
def test_linear_layers_are_unchanged(shape):
    """Outputs and gradients match torch's for large, small and empty batches of any dimension."""
    plain = nn.Linear(1024, 1024)
    changed = copy.deepcopy(plain)
    use_onednn(changed)
    inputs = torch.rand(shape)
    made = []
    for layer in (plain, changed):
        x = inputs.clone().requires_grad_()
        y = layer(x)
        (y.view(-1) * torch.linspace(-1, 1, y.numel())).sum().backward()
        made.append((y.detach(), x.grad, layer.weight.grad, layer.bias.grad))
    torch.testing.assert_close(made[1], made[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layer", "changes"), [((1024, 1024), True), ((1024, 81), False)])
def test_only_wide_linear_layers_are_given_to_onednn(layer, changes):
    net = nn.Linear(*layer)
    use_onednn(net)
    assert ("aten::mkldnn_convolution" in _operators(net, torch.rand(512, 1024))) == changes


@pytest.fixture
def threads():
    """Restore torch's number of threads afterwards."""
    number = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(number)


@pytest.mark.parametrize("number", [1, 2])
def test_convolutions_of_one_pixel_are_unchanged(threads, number):
    threads(number)
    net = nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1, stride=2), nn.Conv2d(8, 8, 3))
    changed = copy.deepcopy(net)
    use_onednn(changed)
    x = torch.rand(1, 8, 60, 60).to(memory_format=torch.channels_last)
    torch.testing.assert_close(changed(x), net(x), rtol=1e-4, atol=1e-5)
    assert list(changed.state_dict()) == list(net.state_dict())


def test_one_thread_leaves_convolutions_of_one_pixel_to_onednn(threads):
    threads(1)
    conv = nn.Conv2d(8, 16, 1)
    use_onednn(conv)
    assert "aten::mkldnn_convolution" in _operators(conv, torch.rand(1, 8, 60, 60))


def _operators(layer, x):
    """Return the names of the operators that a forward pass calls."""
    with torch.profiler.profile() as profile, torch.no_grad():
        layer(x)
    return {event.name for event in profile.events()}
