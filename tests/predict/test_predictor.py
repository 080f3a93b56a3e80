"""d2ext.Predictor: images to objects, and the names of their classes."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import d2ext
from d2ext.errors import UserError
from tests.conftest import LITE0, REPO

# Two of one size, which need no padding in a batch.
PHOTOS = ("15717689633_5f7f78c28e_k", "17178818589_16e58fc1e5_k")


def test_from_python(trained, tiny_root):
    """The same objects, whatever the batch; images are taken as they are wanted."""
    predictor = d2ext.Predictor(trained / "config.yaml", "last", score_threshold=0)
    assert predictor.classes == ["balloon"]
    photos = [tiny_root / "balloon" / "train" / f"{name}.jpg" for name in PHOTOS]
    images = [np.asarray(Image.open(photo)) for photo in photos]
    one, two = predictor(images)
    scores = [o["score"] for o in one.objects]
    assert scores == sorted(scores, reverse=True) and one.image is images[0]
    assert set(one.objects[0]) == {"category_id", "bbox", "score", "segmentation"}
    together = list(predictor(iter(images), batch_size=2))
    assert [len(p.objects) for p in together] == [len(one.objects), len(two.objects)]
    taken = []
    first = next(predictor(taken.append(i) or images[0] for i in range(5)))
    assert taken == [0] and len(first.objects) == len(one.objects)
    certain = d2ext.Predictor(trained / "config.yaml", "last", score_threshold=1.0)
    assert next(certain(images)).objects == []


def test_a_run_that_was_moved(trained, tmp_path):
    """Its weights are looked for beside its config, and a damaged run.json is passed over."""
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    assert str(moved) in d2ext.Predictor(moved / "config.yaml", "last").weights
    (moved / "run.json").write_text("{")
    assert d2ext.Predictor(moved / "config.yaml", "last").classes == ["balloon"]


@pytest.fixture
def alone(trained, tmp_path):
    """A model file in a folder of its own, and how to predict with it and a config without data."""
    (tmp_path / "alone").mkdir()
    file = tmp_path / "alone" / "model.pth"
    shutil.copy(trained / "model_final.pth", file)

    def predictor(*overrides):
        return d2ext.Predictor(REPO / LITE0, file, ["data.root=/nowhere", *overrides])

    predictor.file = file
    return predictor


def _save_classes(source, target, classes):
    content = torch.load(source, map_location="cpu", weights_only=True)
    torch.save({**content, "classes": classes}, target)


def test_weights_without_their_run(alone, trained, caplog):
    """Their classes are the checkpoint's own, else those that the config names, else numbers."""
    unnamed = "datasets.balloon_train.classes=null"
    caplog.set_level("INFO", "d2ext")
    _save_classes(trained / "model_final.pth", alone.file, None)  # as before there was the key
    assert alone().classes == ["balloon"] and "class 1" not in caplog.text
    assert alone(unnamed).classes == ["class 1"]
    assert "names of the classes are unknown; they are called class 1 to 1" in caplog.text
    unknown = "model.roi_heads.num_classes=null"
    with pytest.raises(UserError, match=r"unknown: .* --options model\.roi_heads\.num_classes=N"):
        alone(unnamed, unknown)
    _save_classes(trained / "model_final.pth", alone.file, ["ball"])
    assert alone(unnamed, unknown).classes == ["ball"]
    (alone.file.parent / "run.json").write_text('{"classes": ["another"]}')
    assert alone(unnamed, unknown).classes == ["ball"]
    _save_classes(trained / "model_final.pth", alone.file, None)
    assert alone(unnamed, unknown).classes == ["another"]


def test_a_config_whose_data_are_detectron2s(alone, trained):
    """Their classes are Detectron2's, and no file of them is there."""
    rows = {"box_predictor.cls_score": 9, "box_predictor.bbox_pred": 32, "mask_head.predictor": 8}
    model = torch.load(trained / "model_final.pth", map_location="cpu", weights_only=True)["model"]
    for key, value in model.items():
        for head, n in rows.items():
            if head in key:
                model[key] = value.new_zeros(n, *value.shape[1:])
    torch.save({"model": model}, alone.file)
    data = "dataloader.train.dataset.names=cityscapes_fine_instance_seg_train"
    assert alone(data, "model.roi_heads.num_classes=null").classes[:2] == ["person", "rider"]
