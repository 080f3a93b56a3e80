"""The overview that a run writes of its datasets, including unreadable ones."""

import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from d2ext.engine.overview import summary, write_overview
from d2ext.run_dir.schema import DatasetOverview

CLASSES = ["balloon", "kite", "unseen"]


@pytest.fixture
def registered(tmp_path):
    """Register photos as the dataset "kites" and yield their records."""
    folder = tmp_path / "photos"
    folder.mkdir()
    records = []
    for i in range(30):
        w, h = 100 + i, 80
        Image.new("RGB", (w, h), (90, 120, 200)).save(folder / f"{i}.jpg")
        kite = [20, 10, 60, 10, 60, 50]
        annotations = [
            {"bbox": [20, 10, 40, 40], "category_id": 1, "segmentation": [kite]},
            {"bbox": [5, 5, 99, 79], "category_id": 0, "area": 9216.0},
            {"bbox": [5, 5, 99, 79], "category_id": 0, "iscrowd": 1, "area": 1.0},
        ]
        for a in annotations:
            a["bbox_mode"] = BoxMode.XYWH_ABS
        if i == 29:
            annotations = []
        record = {"file_name": str(folder / f"{i}.jpg"), "image_id": i, "width": w, "height": h}
        records.append({**record, "annotations": annotations})
    DatasetCatalog.register("kites", lambda: records)
    MetadataCatalog.get("kites").set(thing_classes=CLASSES)
    yield records
    DatasetCatalog.remove("kites")
    MetadataCatalog.remove("kites")


def test_summary_has_counts_and_sizes(registered):
    assert summary(registered, CLASSES) == DatasetOverview(
        images=30,
        objects=58,
        classes=[("balloon", 29, 29), ("kite", 29, 29), ("unseen", 0, 0)],
        width=(100, 114, 129),
        height=(80, 80, 80),
        object_sizes={"small": 29, "medium": 0, "large": 29},  # triangles of 800 pixels
        measured=30,
    )
    many = summary(registered * 100, CLASSES)
    assert (many.images, many.measured) == (3000, 1000)
    assert 900 < many.object_sizes["large"] <= 1000
    empty = summary([], CLASSES)
    assert (empty.width, empty.measured, empty.objects) == (None, 0, 0)


def test_write_overview_writes_json_and_contact_sheet(registered, tmp_path):
    write_overview(["kites"], ["kites"], tmp_path)
    content = json.loads((tmp_path / "overview" / "kites.json").read_text())
    assert content["objects"] == 58
    with Image.open(tmp_path / "overview" / "kites.jpg") as sheet:
        assert sheet.size == (6 * 296 + 16, 4 * 226 + 16)
        pixels = np.asarray(sheet).astype(int)
    assert (np.ptp(pixels, axis=2) > 120).sum() > 1000  # outlines
    write_overview(["kites"], [], tmp_path / "tested")
    assert [f.name for f in (tmp_path / "tested" / "overview").iterdir()] == ["kites.json"]


def test_an_unreadable_image_is_skipped(registered, tmp_path, caplog):
    registered[:] = registered[:3]
    with open(registered[1]["file_name"], "wb") as f:
        f.write(b"\xff\xd8\xff")
    with caplog.at_level(logging.WARNING, "d2ext"):
        write_overview(["kites"], ["kites"], tmp_path)
    assert f"{registered[1]['file_name']} is not in the contact sheet" in caplog.text
    with Image.open(tmp_path / "overview" / "kites.jpg") as sheet:
        assert sheet.size == (2 * 296 + 16, 226 + 16)


def test_an_unreadable_dataset_is_only_a_warning(registered, tmp_path, caplog):
    registered[0]["annotations"][0]["bbox_mode"] = BoxMode.XYWHA_ABS
    with caplog.at_level(logging.WARNING, "d2ext"):
        write_overview(["kites", "unknown"], ["kites"], tmp_path)
    assert "No overview of kites: UserError:" in caplog.text
    assert "No overview of unknown" in caplog.text
    assert not (tmp_path / "overview").exists()
