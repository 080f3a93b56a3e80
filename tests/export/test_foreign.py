"""Configs of Detectron2 and imported ones are exported like d2ext's recipes."""

import json

import onnx
import pytest
import torch
from detectron2.config import instantiate

from d2ext.config.load import load_config
from d2ext.config.mmdetection.importer import import_config
from d2ext.config.num_classes import with_num_classes
from d2ext.export.detector import build_detector
from d2ext.export.export import export_model
from d2ext.export.metadata import describe
from d2ext.export.verify import ValidationSet, verify
from d2ext.predict.predictor import load_trained
from tests.conftest import REPO
from tests.export.conftest import STOCK
from tests.export.models import spread_outputs
from tests.export.test_detector import photo

CONFIGS = REPO / "tests/detectron2_style/configs"
IMPORTED = REPO / "tests/config/mmdetection/configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
# A module that makes an imported recipe small, and lets it read the photos of `style`.
SMALL = """
from tests.detectron2_style.photos import register_photos
from tests.detectron2_style.tiny_models import shrink_rcnn
from .recipe import dataloader, evaluators, lr_multiplier, model, optimizer, train

register_photos()
shrink_rcnn(model)
datasets = {}
dataloader.train.dataset.names = "tiny_train"
dataloader.val.dataset.names = "tiny_val"
dataloader.val.mapper.augmentations[0].short_edge_length = 64
dataloader.val.num_workers = 0
"""
MODELS = ["mask_rcnn.py", "mask_rcnn.yaml", "imported.py"]


@pytest.fixture(params=MODELS)
def foreign(request, style, tmp_path):
    """Return a config, overrides for it, and random weights that find objects."""
    config, options = tmp_path / request.param, []
    if request.param == "imported.py":
        import_config(IMPORTED, output=tmp_path / "recipe.py")
        config.write_text(SMALL)
    else:
        config = CONFIGS / request.param
    if config.suffix == ".yaml":
        options = ["train.yacs_setup=[tests.detectron2_style.photos.register_photos]"]
        options += ["model.config.TEST.DETECTIONS_PER_IMAGE=20"]
    torch.manual_seed(0)
    model = instantiate(with_num_classes(load_config(config, options).model, 2))
    image = torch.from_numpy(photo(64, 96).transpose(2, 0, 1).copy())
    spread_outputs(model, [{"image": image}])
    weights = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict(), "classes": ["ball", "crate"]}, weights)
    return config, options, weights


def test_input_and_validation_set_are_those_of_the_config(foreign):
    config, options, weights = foreign
    trained = load_trained(config, weights, [*options, *STOCK])
    info = describe(trained, build_detector(trained.model))
    channels = "RGB" if config.name == "imported.py" else "BGR"
    assert (info.channels, info.short_edge, info.max_size) == (channels, 64, 1333)
    assert info.classes == ["ball", "crate"] and info.provenance.config == config.name
    proof = verify(trained.model, trained.model, ValidationSet(trained), info, weights)
    assert proof.failures == [] and proof.images == 2 and proof.objects > 2
    assert proof.alone == proof.boxes == proof.scores == 0 and proof.within == 1
    assert set(proof.results) == {f"tiny_val/coco/{task}/AP" for task in ("bbox", "segm")}


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("foreign", ["mask_rcnn.yaml"], indirect=True)
def test_it_is_exported(foreign, tmp_path):
    config, options, weights = foreign
    assert export_model(config, str(weights), options, output=tmp_path / "out" / "model.onnx")
    proof = json.loads((tmp_path / "out" / "model.json").read_text())
    assert proof["images"] == 2 and proof["objects"] > 2 and len(proof["results"]) == 2
    entries = {p.key: p.value for p in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert json.loads(entries["provenance"])["config"] == config.name
