"""A COCO dataset with label maps, for models with a semantic branch."""

import json

import pytest
from detectron2.data import DatasetCatalog
from omegaconf import OmegaConf

from d2ext.config.load import load_config
from d2ext.data.datasets.declare import coco_dataset
from d2ext.data.datasets.register import register_datasets, unregister_datasets
from d2ext.data.records.records import columns_of
from d2ext.errors import UserError
from d2ext.preflight.model_fields import check_annotations


@pytest.fixture
def coco(tmp_path):
    images = [{"id": 1, "file_name": "a/1.jpg", "width": 8, "height": 6}]
    box = {"bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0, "segmentation": [[1, 1, 5, 1, 5, 5]]}
    content = {
        "images": images,
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **box}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return tmp_path


def test_each_record_names_the_map_of_its_photo(coco):
    (coco / "maps").mkdir()
    dataset = coco_dataset(
        str(coco / "coco.json"), str(coco / "photos"), label_root=str(coco / "maps")
    )
    records = dataset.load()
    assert records[0]["file_name"] == str(coco / "photos" / "a" / "1.jpg")
    assert records[0]["sem_seg_file_name"] == str(coco / "maps" / "a" / "1.png")
    assert columns_of(records).widths.tolist() == [8]


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("maps", "check label_root, or train without"),
        ("coco/stuffthingmaps/train2017", r"prepare.* coco --stuff --root DIR and"),
    ],
)
def test_a_missing_folder_of_maps_is_an_error_only_for_a_semantic_branch(repo, coco, folder, words):
    root = str(coco / folder)
    call = {"_target_": "d2ext.data.datasets.declare.coco_dataset", "label_root": root}
    call |= {"json_file": str(coco / "coco.json"), "image_root": str(coco / "photos")}
    register_datasets(OmegaConf.create({"without_maps": call}))
    try:
        records = DatasetCatalog.get("without_maps")
        assert "sem_seg_file_name" not in records[0]
        cfg = load_config(repo / "configs/scnet/scnet_r50_fpn_1x_coco.py")
        with pytest.raises(UserError, match=f"folder {root} does not exist; .*{words}") as e:
            list(check_annotations(cfg, "without_maps", records, ["cat"]))
        assert "\n" not in str(e.value)
        cfg.model.roi_heads.semantic = False
        assert list(check_annotations(cfg, "without_maps", records, ["cat"])) == []
    finally:
        unregister_datasets()


def test_a_semantic_branch_is_off_for_your_own_data(repo, coco):
    """An override turns it on again."""
    config = repo / "configs/scnet/scnet_r50_fpn_1x_coco.py"
    own = [f"data.train.json={coco / 'coco.json'}", f"data.train.images={coco}"]
    assert load_config(config).model.roi_heads.semantic is True
    cfg = load_config(config, own)
    assert cfg.model.roi_heads.semantic is False
    assert any("has no label maps" in line for line in cfg.origin.changes)
    insisting = load_config(config, [*own, "model.roi_heads.semantic=True"])
    assert insisting.model.roi_heads.semantic is True
    assert not any("label maps" in line for line in insisting.origin.changes)
