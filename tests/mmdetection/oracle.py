"""Compare models with what MMDetection 3.3 computes, as recorded in the folder oracle/.

Each folder in it belongs to one of MMDetection's models; oracle/README.md describes the files.
Weights are not stored: `fill` makes the same ones again from the tensors' names and shapes.
"""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2.modeling.proposal_generator.rpn as rpn
import detectron2.modeling.roi_heads.roi_heads as roi_heads
import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor, nn

from d2ext.checkpoint.weights.initial import load_weights
from d2ext.checkpoint.weights.mmdetection import from_mmdetection, to_mmdetection
from d2ext.config.load import load_config
from d2ext.config.mmdetection.importer import import_config
from tests.mmdetection.fill import fill, read_rows

FOLDER = Path(__file__).with_name("oracle")
CONFIGS = Path(__file__).parents[1] / "config" / "mmdetection" / "configs"
# The recorded models have fewer proposals and RoIs than the configs, so that the files stay small.
REDUCED = [
    "model.proposal_generator.pre_nms_topk=[300,300]",
    "model.proposal_generator.post_nms_topk=[150,100]",
    "model.roi_heads.batch_size_per_image=64",
    "model.roi_heads.num_classes=80",
]
CLASSES = tuple(f"class {i}" for i in range(80))

Arrays = dict[str, np.ndarray]


def meta(name: str) -> dict[str, Any]:
    """Return the facts about a recorded model: `mean`, `std`, `channel_order`, `config`, ..."""
    return json.loads((FOLDER / name / "meta.json").read_text(encoding="utf-8"))


def weights(name: str) -> dict[str, Tensor]:
    """Return the tensors of a recorded model under MMDetection's names (takes seconds)."""
    arrays = fill(read_rows(FOLDER / name / "state_dict.tsv"), meta(name)["caffe"])
    return {key: torch.as_tensor(array) for key, array in arrays.items()}


def shapes(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of each tensor of a recorded model, by MMDetection's name."""
    return {
        key: (shape, dtype) for key, shape, dtype in read_rows(FOLDER / name / "state_dict.tsv")
    }


def checkpoint(name: str, path: Path, more: Mapping[str, Any] | None = None) -> Path:
    """Write a recorded model's checkpoint as MMDetection 3.x does, with 80 class names.

    Args:
        name: Name of the recorded model.
        path: File to write.
        more: Other metadata, such as `cfg`, the text of the config.
    """
    meta = {"dataset_meta": {"classes": CLASSES}, **(more or {})}
    content = {"meta": meta, "state_dict": weights(name)}
    torch.save(content, path)
    return path


def loaded(config: Any, name: str, folder: Path) -> nn.Module:
    """Build a model with the weights of a recorded one.

    Args:
        config: Section `model` of a config.
        name: Name of the recorded model.
        folder: Folder for the checkpoint, which is deleted again.
    """
    model = instantiate(config)
    path = checkpoint(name, folder / "mm.pth")
    load_weights(model, str(path), whole=True, classes=CLASSES)
    path.unlink()
    return model


def imported(name: str, folder: Path) -> nn.Module:
    """Build a model from MMDetection's config of a recorded one, with its weights."""
    file = folder / "imported.py"
    import_config(CONFIGS / meta(name)["config"], output=file)
    return loaded(load_config(file, REDUCED).model, name, folder)


def inputs(name: str) -> Arrays:
    """Return the recorded images and ground truth."""
    return _arrays(name, "inputs")


def outputs(name: str) -> Arrays:
    """Return what MMDetection computed."""
    return _arrays(name, "outputs")


def batch(name: str, images: Iterable[int] = (0, 1)) -> list[dict[str, Any]]:
    """Return recorded images as the input of a Detectron2 model, in the model's channel order."""
    found = []
    for i in images:
        rgb = inputs(name)[f"image{i}"]
        image = rgb if meta(name)["channel_order"] == "RGB" else rgb[..., ::-1]
        height, width = image.shape[:2]
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        found.append({"image": tensor, "height": height, "width": width})
    return found


def ground_truth(name: str, image: int, masks: str = "") -> Instances:
    """Return the objects of a recorded image.

    Args:
        name: Name of the recorded model.
        image: Number of the image.
        masks: "polygon", "bitmap", or "" for none.
    """
    data = inputs(name)
    height, width = data[f"image{image}"].shape[:2]
    boxes = torch.from_numpy(data[f"boxes{image}"])
    found = Instances((height, width), gt_boxes=Boxes(boxes))
    found.gt_classes = torch.from_numpy(data[f"labels{image}"])
    if masks == "polygon":
        polygons: list[list[np.ndarray]] = [[] for _ in boxes]
        points = np.split(
            data[f"polygon_xy{image}"], np.cumsum(2 * data[f"polygon_rows{image}"][:, 1])
        )
        for (number, _), polygon in zip(data[f"polygon_rows{image}"], points, strict=False):
            polygons[number].append(polygon)
        found.gt_masks = PolygonMasks(polygons)
    elif masks == "bitmap":
        bits = np.unpackbits(data[f"bitmaps{image}"], axis=1)[:, : height * width]
        bitmaps = bits.reshape(len(boxes), height, width).astype(bool)
        found.gt_masks = BitMasks(torch.from_numpy(bitmaps))
    return found


def proposals(name: str, image: int) -> Instances:
    """Return the training proposals that MMDetection's RoI head got for an image."""
    out = outputs(name)
    found = Instances(inputs(name)[f"image{image}"].shape[:2])
    found.proposal_boxes = Boxes(torch.from_numpy(out[f"train_proposals{image}"]))
    scores = torch.from_numpy(out[f"train_proposal_scores{image}"])
    found.objectness_logits = torch.logit(scores)
    return found


def losses(name: str) -> dict[str, float]:
    """Return MMDetection's losses, summed over the levels, by its names."""
    out, found = outputs(name), {}
    for key, value in zip(out["train_loss_names"], out["train_loss_values"], strict=True):
        stem, _, level = key.rpartition(".")
        key = stem if level.isdecimal() else key
        found[key] = found.get(key, 0.0) + float(value)
    return found


def without_chance(patch: pytest.MonkeyPatch) -> None:
    """Make Detectron2 sample as the recorded MMDetection did.

    Of a list of n, the k elements floor(i * n / k) are chosen, and objects come before proposals.
    """

    def subsample(labels: Tensor, count: int, positive_fraction: float, background: int) -> Any:
        positive = torch.nonzero((labels != -1) & (labels != background)).flatten()
        negative = torch.nonzero(labels == background).flatten()
        positives = min(len(positive), int(count * positive_fraction))
        negatives = min(len(negative), count - positives)
        return _spread(positive, positives), _spread(negative, negatives)

    def add(objects: Any, found: Sequence[Instances]) -> list[Instances]:
        new = []
        for mine, theirs in zip(objects, found, strict=True):
            boxes = mine.gt_boxes if isinstance(mine, Instances) else mine
            both = Instances(theirs.image_size)
            both.proposal_boxes = Boxes.cat([boxes, theirs.proposal_boxes])
            certain = torch.full((len(boxes),), 20.0)
            both.objectness_logits = torch.cat([certain, theirs.objectness_logits])
            new.append(both)
        return new

    patch.setattr(rpn, "subsample_labels", subsample)
    patch.setattr(roi_heads, "subsample_labels", subsample)
    patch.setattr(roi_heads, "add_ground_truth_to_proposals", add)


def assert_names_and_shapes(name: str, model: nn.Module) -> None:
    """Check that a model has the tensors of MMDetection's checkpoint, and no others.

    The counts of batches in BatchNorm layers are not used and not compared.
    """
    theirs = from_mmdetection({key: torch.empty(shape) for key, (shape, _) in shapes(name).items()})
    unused = "num_batches_tracked"
    found = {key: x.shape for key, x in model.state_dict().items() if not key.endswith(unused)}
    assert {key: x.shape for key, x in theirs.items() if not key.endswith(unused)} == found


def assert_map(name: str, stage: str, maps: Sequence[Tensor], tolerance: float = 1e-5) -> float:
    """Compare feature maps at the recorded places, relative to each map's largest value there.

    Args:
        name: Name of the recorded model.
        stage: Prefix of the recorded arrays, such as "fpn".
        maps: The maps of each level, for images 0 and 1.
        tolerance: Allowed relative difference.

    Returns:
        The largest relative difference.
    """
    out, worst = outputs(name), 0.0
    for i, mine in enumerate(maps):
        key = f"{stage}{i}"
        assert list(mine.shape) == out[f"{key}_shape"].tolist(), key
        values = mine.detach().reshape(-1)[torch.from_numpy(out[f"{key}_index"])]
        worst = max(worst, _relative(values, out[f"{key}_value"]))
        mean, std = out[f"{key}_mean_std"]
        assert float(mine.detach().double().mean()) == pytest.approx(mean, abs=1e-4 * std), key
    assert f"{key[: len(stage)]}{len(maps)}_index" not in out, f"{stage} has more levels"
    assert worst <= tolerance, f"{stage} differs by {worst:.1e}"
    return worst


def assert_array(name: str, key: str, mine: Tensor, tolerance: float = 1e-5) -> float:
    """Compare a tensor with a recorded array, relative to its largest value.

    Returns:
        The relative difference.
    """
    theirs = outputs(name)[key]
    assert mine.shape == theirs.shape, key
    worst = _relative(mine.detach(), theirs)
    assert worst <= tolerance, f"{key} differs by {worst:.1e}"
    return worst


def assert_proposals(name: str, results: Sequence[Instances]) -> tuple[float, float]:
    """Compare the proposals of images 0 and 1: boxes to 0.01 pixels, scores to 1e-4.

    Returns:
        The largest differences of boxes (pixels) and scores.
    """
    out, worst = outputs(name), np.zeros(2)
    for i, mine in enumerate(results):
        boxes, scores = mine.proposal_boxes.tensor, mine.objectness_logits.sigmoid()
        theirs = out[f"proposals{i}"], out[f"proposal_scores{i}"]
        worst = np.maximum(worst, _paired(boxes, scores, None, *theirs, None)[1:])
    return tuple(worst.tolist())


def assert_detections(
    name: str, prefix: str, results: Sequence[Instances]
) -> tuple[float, float, float]:
    """Compare detections: boxes to 0.01 pixels, scores to 1e-4, labels, and 99.9 % of mask pixels.

    Detections whose scores are equal to 1e-4 may have another order.

    Args:
        name: Name of the recorded model.
        prefix: "det_" for images 0 and 1, "det_rescaled_" for image 1 alone on 294 x 362 pixels.
        results: Detections of each image, with `pred_masks` if the model has masks.

    Returns:
        The largest differences of boxes (pixels) and scores, and the share of differing mask
        pixels (in the 30 detections of highest score, whose masks are recorded).
    """
    out, worst = outputs(name), np.zeros(3)
    for i, mine in enumerate(results):
        boxes, scores, labels = (out[f"{prefix}{k}{i}"] for k in ("boxes", "scores", "labels"))
        pairs, *differences = _paired(
            mine.pred_boxes.tensor, mine.scores, mine.pred_classes, boxes, scores, labels
        )
        wrong = 0.0
        if f"{prefix}masks{i}" in out:
            masks = mine.pred_masks[pairs].numpy()
            count, height, width = out[f"{prefix}mask_shape{i}"]
            assert masks.shape == (count, height, width)
            bits = np.unpackbits(out[f"{prefix}masks{i}"], axis=1)[:, : height * width]
            recorded = bits.reshape(-1, height, width).astype(bool)
            wrong = (masks[: len(recorded)] != recorded).sum() / recorded.sum()
            areas = out[f"{prefix}mask_areas{i}"]
            assert np.abs(masks.sum((1, 2)) - areas).sum() <= 1e-3 * areas.sum()
        assert wrong <= 1e-3, f"{prefix}{i}: {wrong:.2%} of the mask pixels differ"
        worst = np.maximum(worst, [*differences, wrong])
    return tuple(worst.tolist())


def assert_losses(mine: dict[str, Tensor], theirs: dict[str, float]) -> float:
    """Compare losses of the same names to 1e-4 relative; return the largest relative difference."""
    assert mine.keys() == theirs.keys()
    worst = max(abs(float(mine[k].detach()) - v) / abs(v) for k, v in theirs.items())
    assert worst <= 1e-4, {k: (float(mine[k].detach()), v) for k, v in theirs.items()}
    return worst


def assert_gradients(
    name: str, model: nn.Module, prefix: str = "train_", part: str = "", tolerance: float = 1e-4
) -> float:
    """Compare the norm of each parameter's gradient, relative to itself, and check all values.

    Scale and shift of frozen BatchNorms, which only MMDetection trains, are not compared: they are
    buffers here.

    Args:
        name: Name of the recorded model.
        model: Model after the backward pass of the sum of all losses.
        prefix: Prefix of the recorded arrays.
        part: Beginning of the names in MMDetection; "" compares the whole model.
        tolerance: Allowed relative difference.

    Returns:
        The largest relative difference.
    """
    out = outputs(name)
    norms = dict(zip(out[f"{prefix}grad_names"], out[f"{prefix}grad_norms"], strict=True))
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    mine, unknown = to_mmdetection(gradients)
    assert not unknown and all(gradient.isfinite().all() for gradient in mine.values())
    parameters = (".weight", ".bias")  # to_mmdetection adds statistics
    mine = {k: x for k, x in mine.items() if k.startswith(part) and k.endswith(parameters)}
    trained = to_mmdetection(dict(model.named_parameters()))[0].keys()
    frozen = to_mmdetection(model.state_dict())[0].keys() - trained
    expected = {k for k in norms if k.startswith(part)} - frozen
    assert mine.keys() == expected
    worst = {
        key: abs(float(gradient.double().norm()) - norms[key]) / (norms[key] or 1.0)
        for key, gradient in mine.items()
    }
    key = max(worst, key=worst.__getitem__)
    assert worst[key] <= tolerance, f"the gradient of {key} differs by {worst[key]:.1e}"
    return worst[key]


def report(name: str, **differences: float | Sequence[float]) -> None:
    """Print the largest differences of a stage, for the table in the documentation (pytest -s)."""
    for stage, values in differences.items():
        listed = [values] if isinstance(values, float) else values
        print(f"\n{name} {stage}: {' / '.join(f'{value:.1e}' for value in listed)}")


@functools.cache
def _arrays(name: str, file: str) -> Arrays:
    with np.load(FOLDER / name / f"{file}.npz") as content:
        return dict(content)


def _spread(values: Tensor, count: int) -> Tensor:
    return values[torch.tensor([i * len(values) // count for i in range(count)], dtype=torch.long)]


def _relative(mine: Tensor, theirs: np.ndarray) -> float:
    return float(np.abs(mine.numpy() - theirs).max() / np.abs(theirs).max())


def _paired(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    their_boxes: np.ndarray,
    their_scores: np.ndarray,
    their_labels: np.ndarray | None,
) -> tuple[list[int], float, float]:
    """Find for each recorded box the same one here.

    Returns:
        Their indices, and the largest differences of boxes and scores.
    """
    assert boxes.shape == their_boxes.shape
    apart = np.abs(boxes.numpy()[None] - their_boxes[:, None]).max(2)
    wrong = np.abs(scores.numpy()[None] - their_scores[:, None])
    if labels is not None and their_labels is not None:
        apart = np.where(labels.numpy()[None] == their_labels[:, None], apart, np.inf)
    pairs = np.where(wrong <= 1e-4, apart, np.inf).argmin(1)
    rows = np.arange(len(pairs))
    assert sorted(pairs) == rows.tolist(), "other boxes, labels or scores"
    assert apart[rows, pairs].max() <= 0.01
    return pairs.tolist(), float(apart[rows, pairs].max()), float(wrong[rows, pairs].max())
