"""Checks Cityscapes, which only its registered users may download."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from d2ext.errors import UserError

_IMAGES = {"train": 2975, "val": 500}
_SUFFIX = "_leftImg8bit.png"
_ANNOTATIONS = ("_gtFine_polygons.json", "_gtFine_instanceIds.png", "_gtFine_labelIds.png")


def check_cityscapes(root: str | Path, images: Mapping[str, int] = _IMAGES) -> str:
    """Checks the layout that Detectron2 reads, root/cityscapes/{leftImg8bit,gtFine}/<split>/<city>.

    Args:
        root: the folder of data sets, $DETECTRON2_DATASETS.
        images: number of images by split.

    Returns:
        A line that says what is there.

    Raises:
        UserError: images or their annotations are missing, or the package that reads them.
    """
    folder = Path(root) / "cityscapes"
    lacking = []
    for split, expected in images.items():
        photos, truth = folder / "leftImg8bit" / split, folder / "gtFine" / split
        names = {p for p in _files(photos) if p.endswith(_SUFFIX)}
        if len(names) != expected:
            lacking.append(f"{photos} holds {len(names):,} of {expected:,} images")
        stems = {name.removesuffix(_SUFFIX) for name in names}
        found = _files(truth)
        for suffix in _ANNOTATIONS:
            absent = sorted(stem + suffix for stem in stems if stem + suffix not in found)
            if absent:
                lacking.append(f"{truth} lacks {len(absent):,} files such as {absent[0]}")
    if lacking:
        raise UserError(
            f"{'; '.join(lacking)}.\nLog in at https://www.cityscapes-dataset.com/downloads, fetch"
            " leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, and unpack both there:"
            f" unzip -d {folder} leftImg8bit_trainvaltest.zip; unzip -d {folder}"
            " gtFine_trainvaltest.zip"
        )
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise UserError(
            f"{folder} is complete, but the package that Detectron2 reads it with is not"
            " installed: pip install cityscapesscripts"
        )
    counts = " + ".join(f"{n:,}" for n in images.values())
    return f"{folder} holds {counts} images with their fine annotations"


def _files(folder: Path) -> set[str]:
    """`<city>/<file>` of all files in the folders of a folder."""
    if not folder.is_dir():
        return set()
    return {
        os.path.join(city.name, name)
        for city in os.scandir(folder)
        if city.is_dir()
        for name in os.listdir(city)
    }
