"""Generated photos with annotations for the configs in this folder."""

import json
import os
from pathlib import Path

import numpy as np
from detectron2.data.datasets import register_coco_instances
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 96, 64
CLASSES = {3: "ball", 7: "crate"}  # as in COCO, ids are neither contiguous nor start at 0
STUFF = ["things", "sky", "grass"]


def write_photos(root: Path, num_train: int = 6, num_val: int = 2) -> None:
    """Write photos of a ball and a crate, and annotations for each task, to root/tiny.

    `<split>.json` has boxes and outlines, `people_<split>.json` a person with three keypoints in
    place of the crate, and `stuff_<split>/` maps of `STUFF` (255: ignored).

    Args:
        root: Existing folder.
        num_train: Number of training photos.
        num_val: Number of validation photos.
    """
    generator = np.random.default_rng(0)
    for split, count in (("train", num_train), ("val", num_val)):
        photos, stuff = root / "tiny" / split, root / "tiny" / f"stuff_{split}"
        photos.mkdir(parents=True)
        stuff.mkdir()
        images, objects, people = [], [], []
        for number in range(1, count + 1):
            name = f"photo_{number}.jpg"
            horizon, x, y = (int(n) for n in generator.integers((20, 8, 24), (32, 20, 32)))
            pixels = generator.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            pixels[:horizon, :, 2] += 120
            pixels[horizon:, :, 1] += 120
            photo = Image.fromarray(pixels)
            labels = Image.new("L", photo.size, 2)
            ball, crate = (x, y, x + 24, y + 24), (x + 44, y - 6, x + 68, y + 28)
            for image, sky, thing in ((photo, None, (250, 250, 40)), (labels, 1, 0)):
                draw = ImageDraw.Draw(image)
                if sky is not None:
                    draw.rectangle((0, 0, WIDTH, horizon - 1), fill=sky)
                draw.ellipse(ball, fill=thing)
                draw.rectangle(crate, fill=thing if sky is not None else (200, 60, 20))
            labels.paste(255, (0, HEIGHT - 2, WIDTH, HEIGHT))
            photo.save(photos / name, quality=95)
            labels.save(stuff / name.replace(".jpg", ".png"))
            images.append(dict(id=number, file_name=name, height=HEIGHT, width=WIDTH))
            for category, box in zip(CLASSES, (ball, crate), strict=True):
                objects.append(_object(len(objects) + 1, number, category, box))
            person = _object(number, number, 1, crate)
            left, top, right, bottom = crate
            middle = (left + right) / 2
            person["keypoints"] = [
                middle,
                top + 3,
                2,
                left + 2,
                bottom - 3,
                2,
                right - 2,
                bottom,
                1,
            ]
            person["num_keypoints"] = 3
            people.append(person)
        categories = [dict(id=i, name=name) for i, name in CLASSES.items()]
        _write(root / "tiny" / f"{split}.json", images, objects, categories)
        names = ["head", "left_foot", "right_foot"]
        categories = [dict(id=1, name="person", keypoints=names, skeleton=[[1, 2], [1, 3]])]
        _write(root / "tiny" / f"people_{split}.json", images, people, categories)


def register_photos() -> None:
    """Register tiny_train and tiny_val, as projects with yacs configs do; $DETECTRON2_DATASETS."""
    root = os.path.join(os.environ["DETECTRON2_DATASETS"], "tiny")
    for split in ("train", "val"):
        register_coco_instances(f"tiny_{split}", {}, f"{root}/{split}.json", f"{root}/{split}")


def _object(number: int, image: int, category: int, box: tuple[int, ...]) -> dict:
    left, top, right, bottom = box
    middle, side = (left + right) / 2, (top + bottom) / 2
    if category == 3:  # a diamond in the ball
        outline = [middle, top, right, side, middle, bottom, left, side]
    else:
        outline = [left, top, right, top, right, bottom, left, bottom]
    size = [left, top, right - left, bottom - top]
    common = dict(id=number, image_id=image, category_id=category, iscrowd=0)
    return common | dict(bbox=size, area=size[2] * size[3], segmentation=[outline])


def _write(path: Path, images: list, annotations: list, categories: list) -> None:
    content = dict(images=images, annotations=annotations, categories=categories)
    path.write_text(json.dumps(content))
