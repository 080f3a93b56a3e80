"""A tiny balloon dataset for tests: some of the checkout's photos, scaled down."""

import itertools
import json
from pathlib import Path

from PIL import Image, ImageDraw

from d2ext.data.prepare.balloon import PHOTOS

ANNOTATIONS = "via_region_data.json"


def write_balloons(root: Path, num_train: int, num_val: int, long_side: int = 160) -> None:
    """Write photos of several balloons and their VIA annotations to root/{train,val}.

    Args:
        root: Folder to create.
        num_train: Number of training photos.
        num_val: Number of validation photos.
        long_side: Longer side of each photo in pixels.
    """
    for split, count in (("train", num_train), ("val", num_val)):
        source, folder = PHOTOS / split, root / split
        folder.mkdir(parents=True)
        several = (
            (key, entry)
            for key, entry in json.loads((source / ANNOTATIONS).read_text()).items()
            if len(entry["regions"]) > 2
        )
        entries = dict(itertools.islice(several, count))
        for entry in entries.values():
            with Image.open(source / entry["filename"]) as photo:
                scale = long_side / max(photo.size)
                size = [round(side * scale) for side in photo.size]
                photo.resize(size).save(folder / entry["filename"])
            for region in entry["regions"].values():
                shape = region["shape_attributes"]
                for axis in ("all_points_x", "all_points_y"):
                    shape[axis] = [(value + 0.5) * scale - 0.5 for value in shape[axis]]
        (folder / ANNOTATIONS).write_text(json.dumps(entries))


def write_label_maps(json_file: Path, folder: Path) -> None:
    """Write a label map for each photo of a COCO file: the class of its objects, and 100 elsewhere.

    Args:
        json_file: Annotations, with polygons.
        folder: Folder of the maps, which have the names of the photos.
    """
    content = json.loads(json_file.read_text())
    classes = [category["id"] for category in content["categories"]]
    folder.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        labels = Image.new("L", (image["width"], image["height"]), 100)
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                label = classes.index(annotation["category_id"])
                for outline in annotation["segmentation"]:
                    ImageDraw.Draw(labels).polygon(outline, fill=label)
        labels.save(folder / Path(image["file_name"]).with_suffix(".png"))
