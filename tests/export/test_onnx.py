"""An exported file gives the results of the model in torch, and contains only what it should."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from d2ext.errors import UserError
from d2ext.evaluation.predictions import detections_of, outputs_of
from d2ext.export import verify
from d2ext.export.detector import build_detector
from d2ext.export.export import export_model, prove
from d2ext.export.layers import prepared
from d2ext.export.metadata import describe
from d2ext.export.onnx_file import write_onnx
from d2ext.export.verify import compare
from d2ext.predict.onnx_info import ModelInfo, Provenance, from_metadata, to_metadata
from d2ext.predict.onnx_model import OnnxModel
from d2ext.predict.predictor import load_trained
from tests.conftest import REPO
from tests.export.conftest import STOCK
from tests.export.test_detector import built, photo

slow = pytest.mark.slow


def info_of(detector, precision="float32"):
    return ModelInfo(
        architecture=detector.architecture,
        classes=["a", "b"],
        channels="BGR",
        short_edge=160,
        max_size=400,
        score_threshold=detector.score_threshold,
        nms_threshold=detector.nms_threshold,
        max_objects=detector.max_objects,
        mask_size=detector.mask_size,
        precision=precision,
        provenance=Provenance(versions={"d2ext": "0"}),
    )


def both(model, exported, image):
    """Return the detections of both models in an image, uint8 (H, W, 3)."""
    sample = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}
    found = []
    with torch.inference_mode():
        for each in (model, exported):
            (output,) = outputs_of(each, [sample])
            found.append(detections_of(0, output["instances"].to("cpu")))
    return found


def assert_equal(model, exported, images, pixels=0.005, score=1e-4):
    """Check that objects are the same; one in a hundred may come and go."""
    for image in images:
        found = compare(*both(model, exported, image))
        assert found.alone <= found.objects / 100, image.shape
        within = (found.boxes <= pixels) & (found.scores <= score)
        assert within.sum() >= 0.99 * len(within), (image.shape, found)
        if found.masks is not None and len(found.masks):
            assert np.quantile(found.masks, 0.9) < 0.02


@pytest.fixture(scope="module")
def trained_model(spread_run):
    return load_trained(spread_run / "config.yaml", None, STOCK)


@slow
def test_lite0_equals_torch(trained_model, exported, real_balloon):
    """Portrait, landscape, 100 pixels, no object, 1 x 1, 3000 pixels, and real photos."""
    from d2ext.data.loading.image_io import read_photo

    photos = [read_photo(f, "RGB") for f in sorted((real_balloon / "val").glob("*.jpg"))[:2]]
    sizes = [(960, 640), (640, 960), (100, 100), (33, 70), (1, 1), (2000, 3000)]
    images = [*photos, *(photo(*size) for size in sizes), np.zeros((640, 480, 3), np.uint8)]
    model = OnnxModel(exported / "model.onnx")
    assert_equal(trained_model.model, model, images)


@slow
@pytest.mark.parametrize(
    "name",
    [
        "cascade of MMDetection",
        *(
            pytest.param(name, marks=pytest.mark.nightly)
            for name in (
                *("faster", "mask, class-agnostic", "cascade"),
                *("retinanet", "retinanet of MMDetection"),
            )
        ),
    ],
)
def test_other_architectures_equal_torch(name, tmp_path):
    model = built(name)
    detector = build_detector(prepared(model)).eval()
    write_onnx(detector, info_of(detector), tmp_path / "model.onnx")
    exported = OnnxModel(tmp_path / "model.onnx")
    sizes = [(160, 120), (96, 224), (100, 100), (1, 1)]
    assert_equal(model, exported, [photo(*size) for size in sizes])


@slow
def test_the_file_names_its_origin_but_no_path(exported, spread_run, trained_model):
    content = (exported / "model.onnx").read_bytes()
    for part in (REPO, Path.home(), spread_run, Path(torch.__file__).parents[1], "/tmp/"):
        assert str(part).encode() not in content
    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    info = from_metadata({p.key: p.value for p in model.metadata_props}, "model.onnx")
    assert (info.architecture, info.classes, info.channels) == ("Mask R-CNN", ["balloon"], "RGB")
    assert (info.short_edge, info.max_size, info.mask_size) == (640, 1280, 28)
    assert info.provenance.weights == "model_final.pth" and not info.provenance.averaged
    assert info.provenance.config == "mask_rcnn_lite0_fpn_balloon.py"
    described = describe(trained_model, build_detector(trained_model.model))
    described.provenance.created = info.provenance.created
    assert described == info


@slow
def test_the_proof_is_beside_the_file_and_in_the_run(exported, spread_run):
    proof = json.loads((exported / "model.json").read_text())
    assert proof["file"] == "model.onnx" and proof["failures"] == []
    assert proof["images"] == 2 and proof["objects"] > 10 and proof["within"] >= 0.99
    for torch_ap, onnx_ap in proof["results"].values():
        assert abs(torch_ap - onnx_ap) <= 0.1
    assert set(proof["results"]) == {f"balloon_val/coco/{t}/AP" for t in ("bbox", "segm")}
    (export,) = json.loads((spread_run / "export.json").read_text())["exports"]
    written = export["file"]  # before the fixture moved the folder
    assert export == proof | {"file": written} and Path(written).name == "model.onnx"
    assert written in (spread_run / "report.html").read_text()
    assert (exported / "run_onnx.py").read_bytes() == (
        REPO / "d2ext/export/run_onnx.py"
    ).read_bytes()


@slow
def test_a_file_that_differs_is_kept_as_unverified(
    exported, trained_model, real_balloon, tmp_path, monkeypatch
):
    """The tolerances are lowered; the AP of a model with other weights would differ as well."""
    unverified = tmp_path / "model.onnx.unverified"
    shutil.copy(exported / "model.onnx", unverified)
    strict = {**verify.TOLERANCES["float32"], "boxes": -1}
    monkeypatch.setattr(verify, "TOLERANCES", {"float32": strict})
    photos = verify.Photos(trained_model.cfg, sorted((real_balloon / "val").glob("*.jpg"))[:1])
    proof = prove(trained_model.model, unverified, tmp_path / "model.onnx", photos)
    assert len(proof.failures) == 1 and "only 0.00% of the objects" in proof.failures[0]
    assert unverified.exists() and not (tmp_path / "model.onnx").exists()
    written = json.loads((tmp_path / "model.onnx.unverified.json").read_text())
    assert written["file"] == unverified.name and written["failures"] == proof.failures
    monkeypatch.undo()
    (tmp_path / "run_onnx.py").mkdir()
    with pytest.raises(UserError, match="cannot write .*run_onnx.py"):
        prove(trained_model.model, unverified, tmp_path / "model.onnx", photos)
    assert not (tmp_path / "model.onnx").exists()
    (tmp_path / "run_onnx.py").rmdir()
    assert prove(trained_model.model, unverified, tmp_path / "model.onnx", photos).failures == []
    assert sorted(os.listdir(tmp_path)) == ["model.json", "model.onnx", "run_onnx.py"]


@slow
def test_half_precision_and_the_page(spread_run, exported, real_balloon, tmp_path):
    """A page takes weights at half precision; the run's report leads to it."""
    run = shutil.copytree(spread_run, tmp_path / "run")
    photos = sorted((real_balloon / "val").glob("*.jpg"))[:3]
    page = run / "page.html"
    assert export_model(run / "config.yaml", page=page, images=photos)
    file = run / "export" / "model_float16.onnx"
    assert file.stat().st_size < 0.55 * (exported / "model.onnx").stat().st_size
    assert OnnxModel(file).info.precision == "float16"
    assert page.stat().st_size < 21_000_000
    export = json.loads((run / "export.json").read_text())["exports"][-1]
    assert (export["file"], export["page"]) == ("export/model_float16.onnx", "page.html")
    assert export["results"] == {} and export["images"] == 3
    assert 0.005 < export["boxes"] and export["within"] >= 0.9
    assert '<a href="page.html">' in (run / "report.html").read_text()


def test_metadata_is_read_as_it_was_written():
    info = ModelInfo(
        architecture="RetinaNet",
        classes=["Löwe", 'a "b"'],
        channels="BGR",
        short_edge=800,
        max_size=1333,
        score_threshold=0.05,
        nms_threshold=0.5,
        max_objects=100,
        mask_size=0,
        provenance=Provenance(run="mine", averaged=True, versions={"torch": "2"}),
    )
    entries = to_metadata(info)
    assert entries["short_edge"] == "800" and json.loads(entries["classes"]) == info.classes
    assert from_metadata(entries | {"later": "1"}, "m.onnx") == info
    for change, words in (
        ({"d2ext_format": "2"}, "m.onnx has version 2 of the exported format"),
        ({"classes": "3"}, "m.onnx has damaged metadata"),
        ({"classes": "["}, "m.onnx has damaged metadata"),
    ):
        with pytest.raises(UserError, match=words):
            from_metadata(entries | change, "m.onnx")
    with pytest.raises(UserError, match="was not exported by d2ext"):
        from_metadata({}, "m.onnx")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataloader.val.mapper.augmentations=[]", "augmentations is empty"),
        ("dataloader.val.mapper.augmentations[0].short_edge_length=[96,128]", r"\[96, 128\]"),
        ("dataloader.val.mapper.image_format=L", "image_format is L"),
        ("+dataloader.val.mapper.decode=scaled", "decode is not exact"),
        ("+dataloader.val.mapper.augmentations[0].interp=3", "does not resize bilinearly"),
        ("+data.tiles=64", "data.tiles=64, but exported models see entire photos"),
    ],
)
def test_other_inputs_are_refused(trained, override, words):
    one = load_trained(trained / "config.yaml", None, [override, *STOCK])
    with pytest.raises(UserError, match=f"cannot be exported: .*{words}"):
        describe(one, build_detector(one.model))


class Untranslatable(nn.Module):
    """A detector with an operator that ONNX does not have."""

    def forward(self, image):
        pixels = image.float().mean(2)
        return torch.linalg.svdvals(pixels), pixels, pixels


class OutOfMemory(nn.Module):
    def forward(self, image):
        raise MemoryError("out of memory")


@pytest.mark.parametrize(
    ("detector", "words"),
    [
        (Untranslatable(), "the model cannot be exported: .*svd.*; Faster, Mask and"),
        (OutOfMemory(), "this process ran out of memory"),
    ],
)
def test_errors_of_the_exporter_are_one_line(detector, words, tmp_path):
    info = ModelInfo(
        architecture="Faster R-CNN",
        classes=["a"],
        channels="RGB",
        short_edge=160,
        max_size=400,
        score_threshold=0.05,
        nms_threshold=0.5,
        max_objects=10,
        mask_size=0,
    )
    with pytest.raises(UserError, match=words) as e:
        write_onnx(detector, info, tmp_path / "model.onnx")
    assert "\n" not in str(e.value) and not (tmp_path / "model.onnx").exists()


def test_averaged_weights_are_exported(trained, tmp_path):
    """They are those that an evaluation uses."""
    run = shutil.copytree(trained, tmp_path / "run")
    weights = run / "model_final.pth"
    weights.with_name(f"{weights.name}.sha256").unlink()
    content = torch.load(weights, weights_only=True)
    content["ema"] = {key: value * 2 for key, value in content["model"].items()}
    torch.save(content, weights)
    one = load_trained(run / "config.yaml", str(weights), STOCK)
    key = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(one.model.state_dict()[key], content["ema"][key])
    info = describe(one, build_detector(one.model))
    assert info.provenance.averaged and info.provenance.weights == "model_final.pth"
