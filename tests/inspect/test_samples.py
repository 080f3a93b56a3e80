"""The samples shown for a split are those that a run uses."""

import itertools

import numpy as np
import pytest
import torch

from d2ext.config.augmentation import with_augmentation
from d2ext.config.load import load_config
from d2ext.data.datasets.register import unregister_datasets
from d2ext.engine.builders import build_train_loader
from d2ext.errors import UserError
from d2ext.inspect.samples import open_split
from tests.conftest import LITE0


@pytest.fixture
def load(repo, tiny):
    """Yield a function that loads the CPU recipe (multi-scale, crops, flips) for tiny data."""
    yield lambda *more: load_config(repo / LITE0, [*tiny, *more])
    unregister_datasets()


def _equal(a, b):
    for x, y in zip(
        a["instances"].gt_masks.polygons, b["instances"].gt_masks.polygons, strict=True
    ):
        assert all(np.array_equal(p, q) for p, q in zip(x, y, strict=True))
    assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
    return torch.equal(a["image"], b["image"]) and a["file_name"] == b["file_name"]


@pytest.mark.parametrize("start", [0, 3, 13])
def test_train_samples_equal_those_of_a_training(load, start):
    cfg = load("train.reference_batch_size=4", "train.accumulate=2", "train.seed=5")
    split = open_split(cfg, "train", start)
    assert split.images == 6  # so that a second epoch begins within the samples
    shown = list(itertools.islice(split.pairs(), 9))
    loader = build_train_loader(cfg, start_iter=0)
    trained = list(itertools.islice(itertools.chain.from_iterable(loader), start, start + 9))
    assert len(trained) == 9
    for (record, sample), other in zip(shown, trained, strict=True):
        assert _equal(sample, other)
        assert record["file_name"] == sample["file_name"] and "annotations" in record
    other_seed = next(open_split(load("train.seed=6"), "train", start).pairs())[1]
    assert not torch.equal(other_seed["image"], trained[0]["image"])


def test_samples_of_a_preset_are_those_of_a_training(load):
    """Including the objects that are pasted, whose photo is named."""
    cfg = load("data.augmentation=strong", "train.seed=2")
    shown = [s for _, s in itertools.islice(open_split(cfg, "train", 3).pairs(), 8)]
    loader = build_train_loader(with_augmentation(cfg), start_iter=0)
    trained = list(itertools.islice(itertools.chain.from_iterable(loader), 3, 11))
    for sample, other in zip(shown, trained, strict=True):
        assert torch.equal(sample["image"], other["image"])
        assert sample.get("pasted_from") == other.get("pasted_from")
    assert 0 < sum("pasted_from" in sample for sample in shown) < 8
    plain = [
        s for _, s in itertools.islice(open_split(load("train.seed=2"), "train", 3).pairs(), 8)
    ]
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(shown, plain, strict=True))
    val = [list(open_split(c, "val").pairs()) for c in (cfg, load())]
    assert all(torch.equal(a["image"], b["image"]) for (_, a), (_, b) in zip(*val, strict=True))


def test_val_samples_are_those_of_an_evaluation_with_ground_truth(load):
    cfg = load()
    split = open_split(cfg, "val")
    from detectron2.config import instantiate

    loader = list(itertools.chain.from_iterable(instantiate(cfg.dataloader.val)))
    shown = [sample for _, sample in split.pairs()]
    assert len(shown) == len(loader) == split.images == 2
    for sample, other in zip(shown, loader, strict=True):
        assert torch.equal(sample["image"], other["image"]) and "instances" not in other
        assert len(sample["instances"]) and sample["instances"].has("gt_masks")
    assert [s["file_name"] for _, s in open_split(cfg, "test", 1).pairs()] == [
        shown[1]["file_name"]
    ]


def test_images_are_not_read_without_the_mapper(load, monkeypatch):
    split = open_split(load(), "val")
    monkeypatch.setattr("detectron2.data.detection_utils.read_image", None)
    assert [sample for _, sample in split.pairs(mapped=False)] == [None, None]


@pytest.mark.parametrize(
    ("split", "override", "words"),
    [
        ("train", "dataloader.train.dataset.names=baloon_train", "did you mean 'balloon_train'"),
        ("val", "dataloader.val.dataset.names=null", "dataloader.val.dataset.names is empty"),
        ("val", "dataloader.val=null", "dataloader.val has no dataset"),
        ("train", "data.root=/nowhere", "annotation file /nowhere.* does not exist"),
        ("train", "dataloader.train.mapper.augmentations[1].crop_type=x", "cannot be built"),
    ],
)
def test_invalid_configs_are_errors(load, split, override, words):
    with pytest.raises(UserError, match=words):
        open_split(load(override), split)
