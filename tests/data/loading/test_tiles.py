"""Samples of tiles equal those of photos that were cut into files."""

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from PIL import Image

from d2ext.config.tiles import TileOptions
from d2ext.data.loading.loader import build_loss_loader, build_train_loader
from d2ext.data.loading.mapper import Mapper
from d2ext.data.loading.tiles import mapper_of_tiles
from d2ext.data.tiles.records import Tiles
from d2ext.seeding import generators_seeded
from tests.painted import record_of

OPTIONS = TileOptions(64, 0.25, 0.1)
AUGMENTATIONS = [
    T.ResizeShortestEdge([48, 56, 80], sample_style="choice"),
    T.RandomFlip(),
    T.RandomCrop("absolute", (40, 40)),
]


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """Return the record of a photo of 100 x 150 pixels with three objects and a label map."""
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (100, 150, 3), dtype=np.uint8)
    masks = np.zeros((3, 100, 150), bool)
    masks[0, 10:50, 20:70] = masks[1, 45:60, 5:145] = masks[2, 90:99, 140:149] = True
    record = record_of(pixels, list(masks), [0, 1, 1], tmp_path / "photo.png")
    labels = tmp_path / "labels.png"
    Image.fromarray(generator.integers(0, 9, (100, 150), dtype=np.uint8)).save(labels)
    return {**record, "sem_seg_file_name": str(labels)}


def _cut_files(tile, folder):
    """Return the record of a tile as that of a photo of its own."""
    made = dict(tile)
    for key in ("file_name", "sem_seg_file_name"):
        with Image.open(tile[key]) as image:
            image.crop(tile["tile"]).save(folder / f"cut_{key}.png")
        made[key] = str(folder / f"cut_{key}.png")
    for key in ("tile", "photo_size", "photo_tiles"):
        del made[key]
    return made


def _mapper(**options):
    return Mapper(
        True,
        augmentations=AUGMENTATIONS,
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        **options,
    )


@pytest.mark.parametrize("options", [{}, {"cache": True}, {"decode": "scaled"}], ids=str)
def test_samples_are_those_of_cut_files(photo, tmp_path, options):
    mapper, plain = _mapper(**options), _mapper()
    for i, tile in enumerate(Tiles([photo], OPTIONS)):
        samples = []
        for made, record in ((mapper, tile), (plain, _cut_files(tile, tmp_path))):
            with generators_seeded(i):
                samples.append(made(record))
        ours, theirs = samples
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
        a, b = ours["instances"], theirs["instances"]
        assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor) and len(a) == len(b)
        assert torch.equal(a.gt_classes, b.gt_classes)
        if len(a):
            assert torch.equal(a.gt_masks.tensor, b.gt_masks.tensor)


def test_a_photo_of_another_size_is_an_error(photo):
    tile = {**Tiles([photo], OPTIONS)[0], "photo_size": [100, 149]}
    loader = build_loss_loader([tile], _mapper(), num_workers=0)
    with pytest.raises(Exception, match="150, 100.*149, 100"):
        next(iter(loader))


def test_detectron2s_mapper_is_replaced(photo):
    tiles = Tiles([photo], OPTIONS)
    options = dict(
        is_train=True,
        augmentations=[T.RandomFlip(prob=1.0, horizontal=True)],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        recompute_boxes=True,
    )
    theirs = DatasetMapper(**options)
    made = mapper_of_tiles(theirs, tiles)
    assert type(made) is Mapper and mapper_of_tiles(theirs, [photo]) is theirs
    expected = Mapper(**options)(tiles[0])
    sample = made(tiles[0])
    assert torch.equal(sample["image"], expected["image"])
    boxes, others = (s["instances"].gt_boxes.tensor for s in (sample, expected))
    assert torch.equal(boxes, others) and len(boxes) == 2


class _Own(DatasetMapper):
    """A mapper of another project, which may do anything with the photo."""


def test_a_mapper_of_others_is_refused(photo):
    mapper = _Own(True, augmentations=[], image_format="RGB")
    options = dict(num_workers=0, seed=0, reference_batch_size=1, reference_world_size=1)
    with pytest.raises(Exception, match=r"data\.tiles: the mapper _Own does not read tiles; set"):
        build_train_loader(Tiles([photo], OPTIONS), mapper, total_batch_size=1, **options)


def test_workers_change_no_sample(photo):
    tiles = Tiles([photo], OPTIONS)
    batches = []
    for workers in (0, 2):
        loader = build_train_loader(
            tiles,
            _mapper(),
            total_batch_size=2,
            num_workers=workers,
            seed=3,
            reference_batch_size=2,
            reference_world_size=1,
            start_iter=2,
        )
        iterator = iter(loader)
        batches.append([next(iterator) for _ in range(4)])
    for ours, theirs in zip(*batches, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a["tile"] == b["tile"] and torch.equal(a["image"], b["image"])
