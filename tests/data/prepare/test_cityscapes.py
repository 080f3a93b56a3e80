"""The check of Cityscapes' layout matches what Detectron2 reads."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest
from detectron2.data import Metadata, MetadataCatalog

from d2ext.data.datasets.register import register_datasets
from d2ext.data.prepare.cityscapes import check_cityscapes, require_cityscapes
from d2ext.errors import UserError

TINY = {"train": 2, "val": 1}


def test_complete_layout_is_described(tiny_cityscapes: Path) -> None:
    line = check_cityscapes(tiny_cityscapes, TINY)
    assert line == f"{tiny_cityscapes}/cityscapes holds 2 + 1 images with their fine annotations"


def test_missing_files_are_reported_with_their_archives(
    tiny_cityscapes: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"holds 0 of 2,975 images.*\n.*gtFine_trainvaltest.zip"):
        check_cityscapes(tmp_path)
    shutil.copytree(tiny_cityscapes, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match="leftImg8bit/train holds 2 of 2,975 images"):
        check_cityscapes(tmp_path)
    ground_truth = tmp_path / "cityscapes" / "gtFine" / "val" / "town"
    (ground_truth / "town_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(
        UserError, match=r"^\S+gtFine/val lacks 1 files, the first is town/.*_labelIds.png"
    ):
        check_cityscapes(tmp_path, TINY)


def test_dataset_of_detectron2_is_checked_before_reading(
    tiny_cityscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def metadata(root: Path) -> Metadata:
        folders = [f"{root}/cityscapes/{kind}/train/" for kind in ("leftImg8bit", "gtFine")]
        one = Metadata(evaluator_type="cityscapes_instance", image_dir=folders[0])
        return one.set(gt_dir=folders[1])

    require_cityscapes(metadata(tiny_cityscapes))
    require_cityscapes(MetadataCatalog.get("coco_2017_train"))
    with pytest.raises(UserError, match="train holds no images; put .*d2ext prepare cityscapes"):
        require_cityscapes(metadata(tmp_path))
    monkeypatch.setitem(sys.modules, "cityscapesscripts", None)  # hides it from imports
    for check in (
        lambda: require_cityscapes(metadata(tiny_cityscapes)),
        lambda: check_cityscapes(tiny_cityscapes, TINY),
    ):
        with pytest.raises(UserError, match="not installed: pip install cityscapesscripts"):
            check()


def test_main_branch_of_detectron2_finds_the_labels() -> None:
    register_datasets({})
    theirs = importlib.import_module(
        "deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels"
    )
    assert theirs.name2label["car"].id == 26
