"""Check Open Images, whose photos take half a terabyte, in the folders that MMDetection uses."""

import os
from collections.abc import Mapping
from pathlib import Path

from d2ext.data.prepare.download import format_bytes
from d2ext.errors import UserError

_SERVER = "https://storage.googleapis.com/openimages"
_ANNOTATIONS = {  # file: URL
    "oidv6-train-annotations-bbox.csv": f"{_SERVER}/v6/oidv6-train-annotations-bbox.csv",
    "validation-annotations-bbox.csv": f"{_SERVER}/v5/validation-annotations-bbox.csv",
    "class-descriptions-boxable.csv": f"{_SERVER}/v5/class-descriptions-boxable.csv",
    "bbox_labels_600_hierarchy.json": f"{_SERVER}/2018_04/bbox_labels_600_hierarchy.json",
}
_IMAGES = {"train": 1_743_042, "validation": 41_620}


def check_open_images(root: str | Path, images: Mapping[str, int] = _IMAGES) -> str:
    """Check root/OpenImages/{annotations,OpenImages/train,OpenImages/validation}.

    A part of the photos is enough.

    Args:
        root: Folder of the datasets, $DETECTRON2_DATASETS.
        images: Number of images of the whole dataset, by split.

    Returns:
        A line that says how many photos the folders hold, and the size of the annotations.

    Raises:
        UserError: An annotation file is missing or empty, or a split has no photos.
    """
    folder = Path(root) / "OpenImages"
    annotations, photos = folder / "annotations", folder / "OpenImages"
    sizes = {name: _size(annotations / name) for name in _ANNOTATIONS}
    counts = {name: _count(photos / name) for name in images}
    todo = [
        f"  curl -C - -O --output-dir {annotations} --create-dirs {_ANNOTATIONS[name]}"
        for name, size in sizes.items()
        if not size
    ]
    todo += [
        f"  aws s3 --no-sign-request sync s3://open-images-dataset/{name} {photos / name}"
        for name, count in counts.items()
        if not count
    ]
    if todo:
        lacking = [f"annotations/{name}" for name, size in sizes.items() if not size]
        lacking += [f"photos in OpenImages/{name}" for name, count in counts.items() if not count]
        raise UserError(
            f"{folder} lacks {', '.join(lacking)}. The training photos take 513 GB, those for"
            " validation 12 GB; a part of them is enough, which the tool downloader.py of"
            f" {_SERVER}/web/download_v7.html fetches. Fetch what is missing, for example with"
            " these commands, and run this again:\n" + "\n".join(todo)
        )
    held = ", ".join(f"{counts[name]:,} of {total:,} {name}" for name, total in images.items())
    total = format_bytes(sum(sizes.values()))
    return f"{folder} holds {held} photos and {total} of annotations"


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _count(folder: Path) -> int:
    """Count the JPEG files in a folder and its direct subfolders."""
    if not folder.is_dir():
        return 0
    subfolders = [entry.path for entry in os.scandir(folder) if entry.is_dir()]
    return sum(
        name.lower().endswith(".jpg")
        for place in (str(folder), *subfolders)
        for name in os.listdir(place)
    )
