"""Pasted pixels, masks, boxes and keypoints equal those computed pixel by pixel."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, Keypoints
from PIL import Image

from d2ext.data.loading.augment.copy_paste import CopyPaste
from d2ext.data.loading.loader import build_train_loader
from d2ext.data.loading.mapper import Mapper
from d2ext.errors import UserError


def _sample(rng, name, shape, count):
    """Return a sample of random rectangles, each with a keypoint in a random place."""
    height, width = shape
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    boxes, points = [], []
    for i in range(count):
        x0, y0 = rng.integers(0, width), rng.integers(0, height)
        x1, y1 = rng.integers(x0, width) + 1, rng.integers(y0, height) + 1
        masks[i, y0:y1, x0:x1] = True
        boxes.append([x0, y0, x1, y1])
        points.append([[rng.integers(0, width) + 0.5, rng.integers(0, height) + 0.5, 2]])
    objects = Instances(shape)
    objects.gt_boxes = Boxes(torch.tensor(np.array(boxes, float).reshape(-1, 4)).float())
    objects.gt_classes = torch.from_numpy(rng.integers(0, 5, count))
    if count:
        objects.gt_masks = BitMasks(masks)
        objects.gt_keypoints = Keypoints(torch.tensor(np.array(points)).float())
    image = torch.from_numpy(rng.integers(0, 256, (3, *shape)).astype(np.uint8))
    return {
        "file_name": name,
        "image": image,
        "instances": objects,
        "sem_seg": image[0].long() % 7,
    }


def _draws(seed, shape, source_shape, count):
    """Return the offset and the objects that are drawn."""
    np.random.seed(seed)
    free = np.array(shape) - source_shape
    offset = np.random.randint(np.minimum(free, 0), np.maximum(free, 0) + 1)
    return offset, np.random.random(count) < 0.5


def _reference(sample, source, offset, drawn, min_visible):
    """Return the image, label map and a list of (class, mask, keypoint), pixel by pixel."""
    image, labels = sample["image"].clone(), sample["sem_seg"].clone()
    height, width = image.shape[1:]
    target_masks = sample["instances"].gt_masks.tensor.clone() if len(sample["instances"]) else []
    hidden = np.zeros((height, width), bool)
    pasted = []
    for i in np.flatnonzero(drawn):
        mask = source["instances"].gt_masks.tensor[i]
        moved = [
            (y, x)
            for y, x in (torch.nonzero(mask).numpy() + offset).tolist()
            if 0 <= y < height and 0 <= x < width
        ]
        if not moved or len(moved) < min_visible * int(mask.sum()):
            continue
        new = torch.zeros(height, width, dtype=torch.bool)
        for y, x in moved:
            new[y, x] = hidden[y, x] = True
            image[:, y, x] = source["image"][:, y - offset[0], x - offset[1]]
            labels[y, x] = source["sem_seg"][y - offset[0], x - offset[1]]
        x, y, _ = source["instances"].gt_keypoints.tensor[i, 0].tolist()
        x, y = x + offset[1], y + offset[0]
        point = [x, y, 2] if 0 <= x <= width and 0 <= y <= height else [0, 0, 0]
        pasted.append((int(source["instances"].gt_classes[i]), new, point))
    objects = []
    for i, mask in enumerate(target_masks):
        left = mask & ~torch.from_numpy(hidden)
        if left.sum() == 0 or left.sum() < min_visible * mask.sum():
            continue
        x, y, _ = sample["instances"].gt_keypoints.tensor[i, 0].tolist()
        point = [x, y, 1 if hidden[int(y), int(x)] else 2]
        objects.append((int(sample["instances"].gt_classes[i]), left, point))
    return image, labels, objects + pasted, bool(pasted)


@pytest.mark.parametrize("min_visible", [0, 0.3, 1])
@pytest.mark.parametrize(
    ("shape", "source_shape"),
    [
        ((12, 15), (12, 15)),
        ((12, 15), (7, 20)),
        ((9, 8), (12, 11)),
        ((20, 21), (9, 8)),
        ((1, 1),) * 2,
    ],
)
def test_samples_equal_a_slow_reference(shape, source_shape, min_visible):
    changed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sample = _sample(rng, "a.jpg", shape, seed % 4)
        source = _sample(rng, "b.jpg", source_shape, seed % 5)
        before = sample["image"].clone()
        offset, drawn = _draws(seed, shape, source_shape, seed % 5)
        np.random.seed(seed)
        made = CopyPaste(min_visible=min_visible)(sample, source)
        image, labels, objects, pasted = _reference(sample, source, offset, drawn, min_visible)
        assert made.get("pasted_from") == (["b.jpg"] if pasted else None)
        assert torch.equal(sample["image"], before)
        if not pasted:
            assert made is sample
            continue
        changed += 1
        found = made["instances"]
        assert torch.equal(made["image"], image) and torch.equal(made["sem_seg"], labels)
        assert found.image_size == shape and len(found) == len(objects)
        assert found.gt_classes.tolist() == [label for label, _, _ in objects]
        for i, (_, mask, point) in enumerate(objects):
            assert torch.equal(found.gt_masks.tensor[i], mask)
            assert found.gt_keypoints.tensor[i, 0].tolist() == point
            ys, xs = torch.nonzero(mask, as_tuple=True)
            box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert found.gt_boxes.tensor[i].tolist() == box
    assert changed


def test_boxes_of_objects_cut_by_the_border_fit_their_masks():
    """A triangle whose lower half is outside of the image."""
    rows, columns = np.mgrid[:20, :20]
    triangle = torch.from_numpy(columns <= rows)
    objects = Instances((20, 20))
    objects.gt_boxes = Boxes(torch.tensor([[0.0, 0, 20, 20]]))
    objects.gt_classes = torch.tensor([0])
    objects.gt_masks = BitMasks(triangle[None])
    source = {"file_name": "b", "image": torch.zeros(3, 20, 20).byte(), "instances": objects}
    sample = _sample(np.random.default_rng(0), "a", (8, 20), 0)
    pasted = 0
    for seed in range(20):
        np.random.seed(seed)
        made = CopyPaste(min_visible=0)(sample, source)
        for box, mask in zip(made["instances"].gt_boxes, _masks(made), strict=True):
            pasted += 1
            ys, xs = torch.nonzero(mask, as_tuple=True)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert pasted


def _masks(sample):
    return sample["instances"].gt_masks.tensor if len(sample["instances"]) else []


def test_objects_without_masks_are_named():
    sample = _sample(np.random.default_rng(0), "a.jpg", (5, 5), 1)
    sample["instances"].remove("gt_masks")
    with pytest.raises(UserError, match="copy-paste needs masks; set .*copy_paste=null"):
        CopyPaste()(sample, sample)


@pytest.mark.parametrize("field", ["prob", "min_visible"])
def test_shares_are_checked(field):
    with pytest.raises(ValueError, match=f"{field}=1.5: give a share"):
        CopyPaste(**{field: 1.5})


def _record(folder, i):
    """Write a photo of one color with a square."""
    file = folder / f"{i}.png"
    Image.new("RGB", (30, 30), (10 + 20 * i,) * 3).save(file)
    corners = [4.0, 5, 14, 5, 14, 16, 4, 16]
    annotation = {
        "bbox": [4, 5, 14, 16],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "segmentation": [corners],
    }
    crowd = {**annotation, "iscrowd": 1, "bbox": [0, 0, 3, 3], "category_id": 1}
    return {"file_name": str(file), "height": 30, "width": 30, "annotations": [annotation, crowd]}


def _loader(records, prob, num_workers=0, start_iter=0, bad_images="stop"):
    mapper = Mapper(True, augmentations=[], image_format="BGR", use_instance_mask=True)
    return build_train_loader(
        records,
        mapper,
        total_batch_size=4,
        num_workers=num_workers,
        seed=3,
        reference_batch_size=4,
        reference_world_size=1,
        start_iter=start_iter,
        bad_images=bad_images,
        copy_paste=CopyPaste(prob),
    )


def _samples(loader, steps):
    batches = iter(loader)
    return [sample for _ in range(steps) for sample in next(batches)]


def test_the_share_of_samples_and_workers_and_resume(tmp_path):
    records = [_record(tmp_path, i) for i in range(6)]
    whole = _samples(_loader(records, 0.5), 40)
    # Half of the samples, and of these half of the draws of a source's only object.
    assert 20 < sum("pasted_from" in sample for sample in whole) < 60
    assert all((s["instances"].gt_classes == 0).all() for s in whole)  # no crowd
    sources = [(s["file_name"], file) for s in whole for file in s.get("pasted_from", [])]
    assert all(file != source for file, source in sources)
    assert {source for _, source in sources} == {record["file_name"] for record in records}
    alone = _samples(_loader(records[:1], 1), 5)
    assert any("pasted_from" in sample for sample in alone)
    for expected, other in (
        (whole[:20], _samples(_loader(records, 0.5, num_workers=2), 5)),
        (whole[12:20], _samples(_loader(records, 0.5, num_workers=1, start_iter=3), 2)),
    ):
        for a, b in zip(expected, other, strict=True):
            assert a["file_name"] == b["file_name"] and torch.equal(a["image"], b["image"])
            assert a.get("pasted_from") == b.get("pasted_from")
    assert not any("pasted_from" in sample for sample in _samples(_loader(records, 0), 5))


def test_a_source_that_cannot_be_read_is_replaced_and_reported(tmp_path):
    records = [_record(tmp_path, i) for i in range(3)]
    (tmp_path / "1.png").write_bytes(b"no image")
    loader = _loader(records, 1, bad_images="skip")
    samples = _samples(loader, 10)
    files = {file for sample in samples for file in sample.get("pasted_from", [])}
    assert files == {records[0]["file_name"], records[2]["file_name"]}
    (message,) = loader.replaced
    assert "1.png cannot be read" in message
    with pytest.raises(UserError, match=r"1\.png cannot be read"):
        _samples(_loader(records, 1), 10)


def test_replaced_images_and_their_replaced_sources_are_counted(tmp_path):
    records = [_record(tmp_path, i) for i in range(8)]
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    loader = _loader(records, 1, bad_images="skip")
    assert len(_samples(loader, 5)) == 20 < loader.replaced.total()
