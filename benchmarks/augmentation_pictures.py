"""Draw the pictures of docs/augmentation.md: balloon photos under each preset and each class.

    python benchmarks/augmentation_pictures.py

Writes docs/augmentation_presets.jpg and docs/augmentation_classes.jpg. The draws are seeded.
"""

from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, PolygonMasks
from PIL import Image, ImageDraw, ImageFont

from d2ext import load_config
from d2ext.config.augmentation import with_augmentation
from d2ext.data.datasets.class_mapping import register_run_datasets
from d2ext.seeding import generators_seeded

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "configs/balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py"
PHOTOS = ("17178818589_16e58fc1e5_k.jpg", "321888854_3723b6f10b_b.jpg")
CELL, LINE, GAP = (208, 156), 20, 6  # width and height of a picture, height of a title, pixels
COLORS = [(220, 20, 60), (20, 120, 220), (240, 160, 0), (0, 160, 90), (150, 60, 200)]
OURS = "d2ext.data.loading.augment."
SIZE = [200, 240]
CLASSES = {
    "color.ColorJitter": {},
    "color.PhotoMetricDistortion": {},
    "quality.RandomBlur": {"sigma": [1.5, 2]},
    "quality.RandomJpeg": {"quality": [5, 10]},
    "quality.RandomNoise": {"std": [15, 20]},
    "affine.RandomRotateShear": {"pad_value": [128, 128, 128]},
    "quarter_turn.RandomQuarterTurn": {},
    "scale.LargeScaleJitter": {"size": [240, 320], "scale": [0.5, 2]},
    "object_crop.ObjectCrop": {"size": SIZE},
    "center_crop.CenterCropPad": {"crop_size": SIZE, "pad_value": [128, 128, 128], "border": 40},
    "copy_paste.CopyPaste": {"prob": 1},
    "pipeline.AlbumentationsPipeline": {
        "transforms": [{"_target_": "albumentations.GridDistortion", "p": 1.0}]
    },
}


def samples(augmentation: Any, count: int) -> list[dict]:
    """Return samples of the photos in turn, under a value of `data.augmentation`."""
    cfg = load_config(RECIPE, ["dataloader.train.mapper.augmentations[0].short_edge_length=240"])
    cfg.data.augmentation = augmentation
    cfg = with_augmentation(cfg)
    register_run_datasets(cfg, None)
    every = {Path(r["file_name"]).name: r for r in DatasetCatalog.get("balloon_train")}
    records = [every[name] for name in PHOTOS]
    mapper = instantiate(cfg.dataloader.train.mapper)
    paste = instantiate(cfg.dataloader.train.get("copy_paste"))
    made = []
    for i in range(count):
        with generators_seeded(1, i):
            sample, source = mapper(records[i % 2]), mapper(records[(i + 1) % 2])
            # As in the loader, but from the other photo instead of a random one.
            pasted = paste is not None and np.random.random() < paste.prob
            made.append(paste(sample, source) if pasted else sample)
    return made


def pasted(count: int) -> list[dict]:
    """Return samples of the class CopyPaste alone, which is not an entry of the list."""
    plain = samples("none", 2)
    paste = instantiate({"_target_": f"{OURS}copy_paste.CopyPaste"})
    made = []
    for i in range(count):
        with generators_seeded(3, i):
            made.append(paste(plain[i % 2], plain[(i + 1) % 2]))
    return made


def drawn(sample: dict) -> Image.Image:
    """Draw a sample with its masks and boxes, at the size of a cell."""
    photo = sample["image"].numpy().transpose(1, 2, 0)[..., ::-1].astype(float)  # BGR
    objects, boxes = sample["instances"], []
    masks = objects.gt_masks if len(objects) else []
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *photo.shape[:2])
    for i, mask in enumerate(masks):
        color = np.array(COLORS[i % len(COLORS)])
        photo[mask.numpy()] = 0.55 * photo[mask.numpy()] + 0.45 * color
        boxes.append(objects.gt_boxes.tensor[i].tolist())
    picture = Image.fromarray(photo.astype(np.uint8))
    factor = min(CELL[0] / picture.width, CELL[1] / picture.height)
    picture = picture.resize([round(side * factor) for side in picture.size])
    draw = ImageDraw.Draw(picture)
    for i, box in enumerate(boxes):
        corners = [value * factor for value in box]
        draw.rectangle(corners, outline=COLORS[i % len(COLORS)])
    return picture


def sheet(rows: list[tuple[str, list[dict]]], across: int) -> Image.Image:
    """Arrange titled groups of samples, `across` groups side by side."""
    wide = len(rows[0][1]) * (CELL[0] + GAP)
    down = -(-len(rows) // across)
    page = Image.new("RGB", (across * wide + GAP, down * (CELL[1] + LINE + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=14)
    for k, (title, made) in enumerate(rows):
        left, top = GAP + k % across * wide, GAP + k // across * (CELL[1] + LINE + GAP)
        draw.text((left, top), title, "black", font)
        for i, sample in enumerate(made):
            page.paste(drawn(sample), (left + i * (CELL[0] + GAP), top + LINE))
    return page


def main() -> None:
    """Write both pictures."""
    presets = [(name, samples(name, 4)) for name in ("none", "light", "strong", "aerial")]
    sheet(presets, 1).save(ROOT / "docs/augmentation_presets.jpg", quality=80)
    classes = []
    for name, arguments in CLASSES.items():
        entry = {"_target_": f"{OURS}{name}", **arguments}
        made = pasted(2) if "CopyPaste" in name else samples([entry], 2)
        classes.append((name, made))
    sheet(classes, 2).save(ROOT / "docs/augmentation_classes.jpg", quality=80)


if __name__ == "__main__":
    main()
