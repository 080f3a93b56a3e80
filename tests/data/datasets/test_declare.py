"""Datasets declared in a config."""

import json

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from d2ext.data.datasets.declare import Dataset, coco_dataset, via_dataset
from d2ext.data.datasets.register import counts_of, register_datasets
from d2ext.data.formats.coco import read_coco, to_coco
from d2ext.errors import UserError
from d2ext.evaluation.instances import detection_columns, ground_truth_columns
from d2ext.evaluation.predictions import write_predictions
from d2ext.files import write_json


def _declare(root, **changes):
    folder = root / "balloon" / "val"
    fields = dict(
        json_file=str(folder / "via_region_data.json"), image_root=str(folder), classes=["balloon"]
    )
    return L(via_dataset)(**fields | changes)


def no_dataset(**_):
    return 3


def test_a_declared_dataset_is_in_detectron2_s_catalogs(tiny_root):
    declaration = _declare(tiny_root, palette=[[1, 2, 3]])
    register_datasets({"catalog_a": declaration})
    records = DatasetCatalog.get("catalog_a")
    assert len(records) == 2
    assert all(a["bbox_mode"] is BoxMode.XYXY_ABS for r in records for a in r["annotations"])
    assert MetadataCatalog.get("catalog_a").thing_classes == ["balloon"]
    assert MetadataCatalog.get("catalog_a").thing_colors == [(1, 2, 3)]
    register_datasets({"catalog_a": declaration})  # again: nothing happens


def test_coco_gives_the_same_dataset(tiny_root, tmp_path):
    register_datasets({"catalog_b": _declare(tiny_root)})
    records = DatasetCatalog.get("catalog_b")
    write_json(tmp_path / "a.json", to_coco(records, ["balloon"], "/"))
    declaration = L(coco_dataset)(json_file=str(tmp_path / "a.json"), image_root="/")
    register_datasets({"catalog_c": declaration})
    again = DatasetCatalog.get("catalog_c")
    assert MetadataCatalog.get("catalog_c").thing_classes == ["balloon"]
    boxes = [[a["bbox"] for a in r["annotations"]] for r in records]
    assert [[a["bbox"] for a in r["annotations"]] for r in again] == [
        [pytest.approx(box) for box in image] for image in boxes
    ]


def test_results_use_the_category_ids_of_the_file(tiny_root, tmp_path):
    """Both our results and those of Detectron2's evaluator do."""
    register_datasets({"catalog_k": _declare(tiny_root)})
    content = to_coco(DatasetCatalog.get("catalog_k"), ["balloon"], "/")
    content["categories"] = [{"id": 7, "name": "balloon"}, {"id": 3, "name": "kite"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 7
    write_json(tmp_path / "a.json", content)
    declaration = L(coco_dataset)(
        json_file=str(tmp_path / "a.json"), image_root="/", classes=["balloon"]
    )
    register_datasets({"catalog_l": declaration})
    records = DatasetCatalog.get("catalog_l")
    DatasetCatalog.get("catalog_l")  # again: nothing happens
    assert MetadataCatalog.get("catalog_l").thing_dataset_id_to_contiguous_id == {7: 0}

    found = [
        {"image_id": r["image_id"], "category_id": 0, "bbox": [1, 1, 9, 9], "score": 0.5}
        for r in records
    ]
    ground_truth = ground_truth_columns(records, ["balloon"])
    for name, category_id in (("catalog_l", 7), ("catalog_k", 1)):
        write_predictions(
            name, detection_columns(ground_truth, found), ground_truth.image_ids, tmp_path
        )
        written = json.loads((tmp_path / f"{name}.json").read_text())
        assert written == [{**result, "category_id": category_id} for result in found]

    evaluator = COCOEvaluator("catalog_l", tasks=["bbox"], distributed=False)
    evaluator.reset()
    for record in records:
        instances = Instances((record["height"], record["width"]))
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]])
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.ones(len(boxes))
        instances.pred_classes = torch.zeros(len(boxes), dtype=torch.long)
        evaluator.process([record], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_the_error_for_a_missing_annotation_file_names_the_fix(tmp_path):
    declaration = _declare(tmp_path)
    register_datasets({"catalog_m": declaration})
    with pytest.raises(UserError) as e:
        DatasetCatalog.get("catalog_m")
    assert declaration.json_file in str(e.value) and "data.root" in str(e.value)
    assert "or run d2ext prepare balloon --root DIR" in str(e.value)
    assert str(e.value).endswith("data.root=DIR")
    coco = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    with pytest.raises(UserError, match="run d2ext prepare coco --root DIR and .* data.root=DIR$"):
        read_coco(coco, tmp_path)
    register_datasets({"catalog_n": _declare(tmp_path, json_file=str(tmp_path / "mine.json"))})
    with pytest.raises(UserError, match="mine.json does not exist; check the path") as e:
        DatasetCatalog.get("catalog_n")
    assert "prepare_data" not in str(e.value)


def test_invalid_declarations_are_errors(tiny_root):
    register_datasets({"catalog_d": _declare(tiny_root)})
    with pytest.raises(UserError, match="catalog_d is declared twice"):
        register_datasets({"catalog_d": _declare(tiny_root, classes=["kite"])})
    with pytest.raises(UserError, match="'a.b' contains a dot"):
        register_datasets({"a.b": _declare(tiny_root)})
    with pytest.raises(UserError, match="datasets.catalog_e.*unexpected"):
        register_datasets({"catalog_e": _declare(tiny_root, color=3)})
    with pytest.raises(UserError, match="not a d2ext Dataset"):
        register_datasets({"catalog_f": L(no_dataset)()})
    with pytest.raises(UserError, match=r"give a list, such as \[balloon\]"):
        register_datasets({"catalog_g": _declare(tiny_root, classes="balloon")})
    assert "catalog_e" not in DatasetCatalog.list()


def test_a_function_inside_the_config_is_refused(tmp_path):
    from detectron2.config import LazyConfig

    (tmp_path / "c.py").write_text(
        "from detectron2.config import LazyCall as L\n"
        "def mine():\n    return 3\n"
        "datasets = dict(catalog_i=L(mine)())\n"
    )
    with pytest.raises(UserError, match="mine cannot be imported.*not in the config file"):
        register_datasets(LazyConfig.load(str(tmp_path / "c.py")).datasets)
    with pytest.raises(UserError, match="catalog_j is not an L"):
        register_datasets({"catalog_j": "/data/train.json"})


def test_a_custom_dataset_function(tiny_root):
    register_datasets({"catalog_h": L(own_dataset)(size=7)})
    assert DatasetCatalog.get("catalog_h")[0]["height"] == 7


def own_dataset(size):
    """Return a dataset, like a function in a user's module."""
    return Dataset(lambda: [dict(file_name="a", image_id=1, height=size, width=1)], ["thing"])


def test_a_file_may_change_between_two_loads(tmp_path):
    """Its counts change, although Detectron2's metadata may not."""
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}],
        "annotations": [box, {**box, "bbox": [1, 1, 0, 5]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    write_json(tmp_path / "a.json", content)
    register_datasets({"catalog_o": _coco(tmp_path)})
    for left_out in ({"without a box of positive size": 1}, {}):
        DatasetCatalog.get("catalog_o")
        assert counts_of("catalog_o") == {"left_out": left_out}
        write_json(tmp_path / "a.json", content | {"annotations": [box]})


def _coco(folder):
    return L(coco_dataset)(json_file=str(folder / "a.json"), image_root=str(folder))
