"""MMDetection's CornerNet checkpoint in our model gives the same numbers."""

import logging
from logging.handlers import BufferingHandler

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances

from d2ext import get_config
from d2ext.checkpoint.weights.initial import load_weights
from d2ext.checkpoint.weights.mmdetection import to_mmdetection
from d2ext.modeling.backbones.hourglass import HourglassNet
from d2ext.modeling.cornernet import (
    CornerNet,
    Corners,
    corner_pool,
    corner_targets,
    decode,
    gaussian_radius,
    soft_nms,
)
from tests.mmdetection import oracle

NAME = "cornernet_hourglass104"
RECIPE = "cornernet/cornernet_hourglass104_mstest_32x3_210e_coco.py"
SIZE = (255, 255)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Return the recipe's model with the checkpoint's weights, and what the log says of them."""
    model = instantiate(get_config(RECIPE, ["model.num_classes=80"]).model)
    path = oracle.checkpoint(NAME, tmp_path_factory.mktemp("weights") / "mm.pth")
    logger, handler = logging.getLogger("d2ext"), BufferingHandler(100)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    load_weights(model, str(path), whole=True, classes=oracle.CLASSES)
    logger.removeHandler(handler)
    logger.setLevel(level)
    path.unlink()
    return model, [record.getMessage() for record in handler.buffer]


@pytest.fixture
def model(loaded):
    """Return the model; its gradients and running statistics are reset after the test."""
    model = loaded[0]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield model
    model.zero_grad()
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])


@pytest.mark.slow
def test_the_recipe_s_model_loads_the_whole_checkpoint(loaded):
    """Every tensor of the model is in the file, and every tensor of the file is used.

    The counters of the BatchNorms do not matter.
    """
    model, lines = loaded
    mine, theirs = (
        [name for name in names if not name.endswith("num_batches_tracked")]
        for names in (model.state_dict(), oracle.shapes(NAME))
    )
    (line,) = [line for line in lines if line.startswith("Loaded ")]
    count = len(mine)
    assert line.startswith(f"Loaded {count} of the model's {count} tensors from ")
    assert count == len(theirs) and not any("Unused" in line for line in lines)


def _images(model, *names):
    arrays = [oracle.inputs(NAME)[name].transpose(2, 0, 1) for name in names]
    images = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
    return [(image - model.pixel_mean) / model.pixel_std for image in images]


def _objects(image):
    data = oracle.inputs(NAME)
    found = Instances(SIZE, gt_boxes=Boxes(torch.from_numpy(data[f"boxes{image}"])))
    found.gt_classes = torch.from_numpy(data[f"labels{image}"])
    return found


@torch.no_grad()
def test_corner_pooling_is_equal():
    """Running maxima from the bottom up, from above, from the right and from the left."""
    out = oracle.outputs(NAME)
    given = torch.from_numpy(out["pool_in"])
    for name, dim, reverse in (
        ("top", 2, True),
        ("bottom", 2, False),
        ("left", 3, True),
        ("right", 3, False),
    ):
        assert np.array_equal(corner_pool(given, dim, reverse).numpy(), out[f"pool_{name}"])


def test_targets_are_equal():
    out, worst = oracle.outputs(NAME), 0.0
    for prefix, images in (("frozen_", (0, 1)), ("frozen_empty_second_", (0, 2))):
        shape = out[f"{prefix}topleft_heatmap_shape"].tolist()
        both = corner_targets([_objects(i) for i in images], shape, SIZE, min_overlap=0.3)
        for name, mine in zip(("topleft", "bottomright"), both, strict=True):
            for part, tensor in (("heatmap", mine.heat), ("offset", mine.offset)):
                key = f"{prefix}{name}_{part}"
                expected = np.zeros(out[f"{key}_shape"], np.float32)
                expected.reshape(-1)[out[f"{key}_index"]] = out[f"{key}_value"]
                worst = max(worst, float(np.abs(tensor.numpy() - expected).max()))
                assert worst < 1e-5, key
    sizes, radii = out["radius_sizes"], out["radius"]
    assert [gaussian_radius(*size, 0.3) for size in sizes] == [int(r) for r in radii]
    oracle.report(NAME, targets=worst)


@pytest.mark.slow
@torch.no_grad()
def test_maps_and_detections_are_equal(model):
    model.eval()
    out = oracle.outputs(NAME)
    batch = torch.stack(_images(model, "image0", "image1"))
    features = model.backbone(batch)
    pairs = model.predict_corners(batch)
    differences = {"backbone": oracle.assert_map(NAME, "backbone", list(features.values()))}
    for kind, short in enumerate(("tl", "br")):
        for field, name in (("heat", "heat"), ("embedding", "emb"), ("offset", "off")):
            maps = [getattr(pair[kind], field) for pair in pairs]
            key = f"{short}_{name}"
            differences[key] = oracle.assert_map(NAME, key, maps)
    worst = np.zeros(2)
    for i in (0, 1):
        pair = tuple(Corners(*(part[i : i + 1] for part in corners)) for corners in pairs[-1])
        boxes, scores, classes = decode(pair, SIZE, corners=100, max_distance=0.5)
        assert scores.numpy() == pytest.approx(out[f"decoded_scores{i}"], abs=1e-4)
        scores, kept = soft_nms(boxes, scores, classes)
        best = boxes[kept][:100], scores[:100], classes[kept][:100]
        worst = np.maximum(worst, _differences(best, f"det_{{}}{i}"))
    oracle.report(NAME, **differences, detections=worst.tolist())


@pytest.mark.slow
@torch.no_grad()
def test_detections_of_whole_photos_are_equal(model):
    """With the photo on a canvas, as it is and joined with the mirrored one."""
    model.eval()
    photo = _images(model, "test_image")[0]
    assert model.test_flip
    for key, detector in (("tta", model), ("test", model.with_tta([1.0], flip=False))):
        found = detector.detect(photo)
        parts = found.pred_boxes.tensor, found.scores, found.pred_classes
        oracle.report(NAME, **{f"photo {key}": _differences(parts, f"{key}_{{}}")})


def _differences(found, key):
    """Compare detections; return the largest differences of boxes (pixels) and scores."""
    out = oracle.outputs(NAME)
    boxes, scores, classes = (part.numpy() for part in found)
    assert classes.tolist() == out[key.format("labels")].tolist()
    worst = [
        float(np.abs(mine - out[key.format(name)]).max())
        for name, mine in (("boxes", boxes), ("scores", scores))
    ]
    assert worst[0] <= 0.01 and worst[1] <= 1e-4
    return worst


LOSSES = {"heat": "det_loss", "offset": "off_loss", "pull": "pull_loss", "push": "push_loss"}


@pytest.mark.parametrize(
    ("prefix", "images"),
    [
        pytest.param("frozen_", (0, 1), marks=pytest.mark.slow),
        pytest.param("frozen_empty_second_", (0, 2), marks=pytest.mark.nightly),
        pytest.param("train_", (0, 1), marks=pytest.mark.nightly),
    ],
)
def test_losses_and_gradients_are_equal(model, prefix, images):
    """The norms use their statistics, or those of the batch; an image may have no objects."""
    out = oracle.outputs(NAME)
    model.train(prefix == "train_")
    batch = torch.stack(_images(model, *(f"image{i}" for i in images)))
    mine = model.losses(model.predict_corners(batch), [_objects(i) for i in images], SIZE)
    recorded = dict(zip(out[f"{prefix}loss_names"], out[f"{prefix}loss_values"], strict=True))
    theirs = {
        f"loss_{ours}": sum(float(v) for k, v in recorded.items() if k.startswith(name))
        for ours, name in LOSSES.items()
    }
    sum(mine.values()).backward()
    # With statistics of 8 values per channel, rounding grows: noise of 1e-7 in the images changes
    # the norm of a gradient by up to 2.5e-3.
    tolerance = 5e-3 if prefix == "train_" else 1e-4
    differences = {
        "losses": oracle.assert_losses(mine, theirs),
        "gradients": oracle.assert_gradients(NAME, model, prefix, tolerance=tolerance),
    }
    if prefix == "train_":
        differences["running"] = _running_difference(model)
    oracle.report(f"{NAME} {prefix}", **differences)


def _running_difference(model):
    """Compare mean and standard deviation of each running statistic, relative to the larger one."""
    tensors, _ = to_mmdetection(model.state_dict())
    names = [name for name in oracle.shapes(NAME) if "running_" in name]
    mine = np.array(
        [
            [float(t.double().mean()), float(t.double().std(correction=0))]
            for t in (tensors[name] for name in names)
        ]
    )
    theirs = oracle.outputs(NAME)["train_running"]
    difference = (np.abs(mine - theirs) / np.abs(theirs).max(axis=1, keepdims=True)).max()
    assert difference <= 1e-5
    return float(difference)


def _small_model(**options):
    """Return a model with one class, two small hourglasses and seeded weights, in training."""
    torch.manual_seed(1)
    checkpointing = options.get("activation_checkpointing", False)
    return CornerNet(
        backbone=HourglassNet([8, 8, 12], [1, 1, 2], activation_checkpointing=checkpointing),
        num_classes=1,
        pixel_mean=[0.0] * 3,
        pixel_std=[50.0] * 3,
        **options,
    ).train()


def _small_batch():
    """Return an image with two objects, and one without."""
    torch.manual_seed(0)
    both = Instances((64, 64), gt_boxes=Boxes([[4.0, 8, 40, 60], [30.0, 2, 62, 21]]))
    both.gt_classes = torch.zeros(2, dtype=torch.long)
    nothing = Instances((64, 64), gt_boxes=Boxes(torch.zeros(0, 4)))
    nothing.gt_classes = torch.zeros(0, dtype=torch.long)
    return [{"image": 50 * torch.randn(3, 64, 64), "instances": x} for x in (both, nothing)]


def test_activation_checkpointing_changes_nothing():
    """Losses, gradients and running statistics are the same, and less is stored."""
    found, stored = [], []

    def count(tensor):
        stored[-1] += tensor.numel()
        return tensor

    for checkpointing in (False, True):
        model = _small_model(activation_checkpointing=checkpointing)
        stored.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            losses = model(_small_batch())
        sum(losses.values()).backward()
        gradients = [p.grad for p in model.parameters()]
        found.append([*losses.values(), *gradients, *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert stored[1] < 0.5 * stored[0]


def test_gradients_are_finite_and_agree_with_double_precision():
    """Without objects, too; float64 is compared with float32 and with finite differences."""
    gradients = {}
    for dtype in (torch.float32, torch.float64):
        model = _small_model().to(dtype)
        batch = [{**x, "image": x["image"].to(dtype)} for x in _small_batch()]
        sum(model(batch).values()).backward()
        gradients[dtype] = {name: p.grad for name, p in model.named_parameters()}
        assert all(torch.isfinite(grad).all() for grad in gradients[dtype].values())
    for name, exact in gradients[torch.float64].items():
        error = (gradients[torch.float32][name] - exact).abs().max()
        assert error <= 1e-3 * exact.abs().max() + 1e-6, name


@pytest.mark.parametrize(("dim", "reverse"), [(2, True), (2, False), (3, True), (3, False)])
def test_gradients_of_corner_pooling(dim, reverse):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: corner_pool(x, dim, reverse), (x,))


@pytest.mark.parametrize("loss", ["heat", "offset", "pull", "push"])
def test_gradients_of_the_losses(loss):
    """They are compared with finite differences in double precision."""
    model, (objects, nothing) = _small_model(), (x["instances"] for x in _small_batch())
    torch.manual_seed(2)
    # For each kind of corner: heat, embedding, offset; away from the kinks of the losses.
    maps = [
        torch.randn(2, channels, 16, 16, dtype=torch.float64).mul(0.3).requires_grad_()
        for channels in (1, 1, 2) * 2
    ]

    def value(*maps):
        pair = Corners(*maps[:3]), Corners(*maps[3:])
        return model.losses([pair], [objects, nothing], (64, 64))[f"loss_{loss}"]

    assert value(*maps).detach() > 0
    assert torch.autograd.gradcheck(value, maps, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_saturated_half_precision_maps(dtype):
    """Mixed precision changes the maps, but not how the losses are computed from them."""
    model, objects = _small_model(), [x["instances"] for x in _small_batch()]
    targets = corner_targets(objects, (2, 1, 16, 16), (64, 64), model.min_overlap)
    maps = []
    for target in targets:  # corners have the score of logit 9, but also other cells a high one
        heat = torch.full((2, 1, 16, 16), -12.0)
        heat[target.heat == 1] = 9
        heat[1, 0, 5, 5] = 12
        maps += [heat, torch.full((2, 1, 16, 16), 0.25), torch.full((2, 2, 16, 16), 0.5)]
    found = []
    for kind in (dtype, torch.float64):
        given = [x.to(kind).requires_grad_() for x in maps]
        losses = model.losses([(Corners(*given[:3]), Corners(*given[3:]))], objects, (64, 64))
        sum(losses.values()).backward()
        assert all(x.grad.isfinite().all() for x in given)
        found.append(losses)
    half, exact = found
    assert half["loss_heat"] > 1
    for name, loss in half.items():
        assert float(loss.detach()) == pytest.approx(float(exact[name].detach()), rel=1e-3), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_training_has_finite_losses_and_gradients(dtype):
    model = _small_model()
    for heads in model.heads.values():
        for head in heads:
            torch.nn.init.constant_(head.heat[1].bias, 12.0)  # as certain as a trained model
    with torch.autocast("cpu", dtype=dtype):
        losses = model(_small_batch())
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 300)])
def test_tiny_photos_at_small_scales(size):
    detector = _small_model().eval().with_tta([0.4, 1.0], flip=True)
    (found,) = detector([{"image": torch.zeros(3, *size)}])
    assert found["instances"].image_size == size
