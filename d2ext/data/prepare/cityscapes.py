"""Check Cityscapes, which requires a login to download and a separate package to read."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2ext.errors import UserError
from d2ext.invocation import command

_IMAGES = {"train": 2975, "val": 500}
_SUFFIX = "_leftImg8bit.png"
_ANNOTATIONS = ("_gtFine_polygons.json", "_gtFine_instanceIds.png", "_gtFine_labelIds.png")


def check_cityscapes(root: str | Path, images: Mapping[str, int] = _IMAGES) -> str:
    """Check root/cityscapes/{leftImg8bit,gtFine}/<split>/<city>, the layout that Detectron2 reads.

    Args:
        root: Folder of the datasets, $DETECTRON2_DATASETS.
        images: Number of images by split.

    Returns:
        A line that says how many images the folder holds.

    Raises:
        UserError: Images, annotations or the package that reads them are missing.
    """
    folder = Path(root) / "cityscapes"
    lacking = []
    for split, expected in images.items():
        photos, ground_truth = folder / "leftImg8bit" / split, folder / "gtFine" / split
        lacking += _lacking(photos, ground_truth, expected)
    if lacking:
        raise UserError(
            f"{'; '.join(lacking)}.\nLog in at https://www.cityscapes-dataset.com/downloads, fetch"
            " leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, and unpack both there:"
            f" unzip -d {folder} leftImg8bit_trainvaltest.zip; unzip -d {folder}"
            " gtFine_trainvaltest.zip"
        )
    _require_package()
    counts = " + ".join(f"{n:,}" for n in images.values())
    return f"{folder} holds {counts} images with their fine annotations"


def require_cityscapes(metadata: Any) -> None:
    """Check that Detectron2 can read one of its Cityscapes datasets.

    Args:
        metadata: Detectron2's metadata of the dataset; datasets other than Cityscapes are ignored.

    Raises:
        UserError: Annotations or the package that reads them are missing, or there are no images.
    """
    if metadata.get("evaluator_type") != "cityscapes_instance":
        return
    _require_package()
    if lacking := _lacking(Path(metadata.image_dir), Path(metadata.gt_dir), None):
        raise UserError(
            f"{'; '.join(lacking)}; put Cityscapes there ({command('prepare')} cityscapes"
            " says how), or set the environment variable DETECTRON2_DATASETS to the folder that"
            " holds it"
        )


def name_labels() -> None:
    """Alias the package to the internal name that Detectron2's main branch imports it by.

    This is the case since commit 4823082a of Detectron2; no public package has that name.
    """
    theirs = "deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels"
    if theirs not in sys.modules and importlib.util.find_spec("cityscapesscripts"):
        sys.modules[theirs] = importlib.import_module("cityscapesscripts.helpers.labels")


def _require_package() -> None:
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise UserError(
            "the package with which Detectron2 reads Cityscapes is not installed: pip install"
            " cityscapesscripts"
        )


def _lacking(photos: Path, ground_truth: Path, expected: int | None) -> list[str]:
    """Describe the files that a split lacks; it needs `expected` images, or at least one."""
    names = {name for name in _files(photos) if name.endswith(_SUFFIX)}
    lacking = []
    if expected is not None and len(names) != expected:
        lacking.append(f"{photos} holds {len(names):,} of {expected:,} images")
    elif not names:
        lacking.append(f"{photos} holds no images")
    found, stems = _files(ground_truth), {name.removesuffix(_SUFFIX) for name in names}
    for suffix in _ANNOTATIONS:
        if absent := sorted(stem + suffix for stem in stems if stem + suffix not in found):
            lacking.append(f"{ground_truth} lacks {len(absent):,} files, the first is {absent[0]}")
    return lacking


def _files(folder: Path) -> set[str]:
    """Return `<city>/<file>` for each file in the subfolders of a folder."""
    if not folder.is_dir():
        return set()
    return {
        os.path.join(city.name, name)
        for city in os.scandir(folder)
        if city.is_dir()
        for name in os.listdir(city)
    }
