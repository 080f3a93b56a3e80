"""A COCO dataset with label maps, for models with a semantic branch."""

import json

import pytest

from d2ext.config.load import load_config
from d2ext.data.datasets.declare import coco_dataset
from d2ext.data.records.records import columns_of


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
    dataset = coco_dataset(
        str(coco / "coco.json"), str(coco / "photos"), label_root=str(coco / "maps")
    )
    records = dataset.load()
    assert records[0]["file_name"] == str(coco / "photos" / "a" / "1.jpg")
    assert records[0]["sem_seg_file_name"] == str(coco / "maps" / "a" / "1.png")
    assert columns_of(records).widths.tolist() == [8]


def test_a_semantic_branch_is_off_for_your_own_data(repo, coco):
    """An override turns it on again."""
    config = coco / "scnet.py"
    config.write_text(
        "import d2ext\n"
        '_recipe = d2ext.get_config("mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py")\n'
        '_recipe.model = d2ext.get_config("common/models/scnet_fpn.py").model\n'
        "globals().update(_recipe)\n"
    )
    own = [f"data.train.json={coco / 'coco.json'}", f"data.train.images={coco}"]
    assert load_config(config).model.roi_heads.semantic is True
    cfg = load_config(config, own)
    assert cfg.model.roi_heads.semantic is False
    assert any("has no label maps" in line for line in cfg.origin.changes)
    insisting = load_config(config, [*own, "model.roi_heads.semantic=True"])
    assert insisting.model.roi_heads.semantic is True
