"""The files and records of an export, whether it passes or fails."""

import json
import os
import shutil

import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from d2ext.config.load import load_config
from d2ext.config.num_classes import with_num_classes
from d2ext.errors import UserError
from d2ext.evaluation.predictions import detections_of
from d2ext.export import export, verify
from d2ext.export.export import export_model
from d2ext.predict.onnx_model import OnnxModel
from tests.conftest import REPO
from tests.export.models import spread_outputs
from tests.export.pages import write_model
from tests.export.test_detector import photo

FASTER = REPO / "tests/detectron2_style/configs/faster_rcnn.py"


@pytest.fixture
def run(style, tmp_path):
    """Return a run directory and the arguments that export its averaged, random weights."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    torch.manual_seed(0)
    model = instantiate(with_num_classes(load_config(FASTER).model, 2))
    sample = {"image": torch.from_numpy(photo(64, 96).transpose(2, 0, 1).copy())}
    spread_outputs(model, [sample])
    averaged = model.state_dict()
    last = {key: torch.zeros_like(value) for key, value in averaged.items()}
    weights = folder / "model_final.pth"
    torch.save({"model": last, "ema": averaged, "classes": ["ball", "crate"]}, weights)
    return folder, [FASTER, str(weights), [f"train.output_dir={folder}"]], (model, sample)


@pytest.fixture
def once(monkeypatch, tmp_path):
    """Translate the model only for the first export of each precision."""
    write = export.write_onnx

    def write_or_copy(detector, info, file):
        kept = tmp_path / f"{info.precision}.onnx"
        if not kept.exists():
            write(detector, info, kept)
        file.parent.mkdir(exist_ok=True)
        shutil.copy(kept, file)

    monkeypatch.setattr(export, "write_onnx", write_or_copy)


def exports(folder):
    return json.loads((folder / "export.json").read_text())["exports"]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_later_export_replaces_the_earlier_one(
    run, once, d2ext_command, monkeypatch, style, tmp_path
):
    folder, (config, weights, options), (model, sample) = run
    photos = ["--images", tmp_path / "tiny" / "val"]
    command = ["export", config, "--weights", weights, *options]
    strict = {**verify.TOLERANCES["float32"], "scores": -1}
    with monkeypatch.context() as patch:
        patch.setattr(verify, "TOLERANCES", {"float32": strict})
        done = d2ext_command(*command, *photos)
    assert done.status == 1 and "is kept as" in done.stdout
    out = folder / "export"
    assert sorted(os.listdir(out)) == ["model.onnx.unverified", "model.onnx.unverified.json"]
    assert [e["file"] for e in exports(folder)] == ["export/model.onnx.unverified"]
    done = d2ext_command(*command)
    assert done.status == 0 and "bbox/AP: AP" in done.stdout, done.stderr
    assert "Augmentations used" not in done.stdout and "Serializing" not in done.stdout
    assert sorted(os.listdir(out)) == ["model.json", "model.onnx", "run_onnx.py"]
    assert [e["file"] for e in exports(folder)] == ["export/model.onnx"]
    found = OnnxModel(out / "model.onnx")([sample])[0]["instances"]
    with torch.no_grad():
        expected = model.eval()([sample])[0]["instances"]
    pairs = verify.compare(detections_of(0, expected), detections_of(0, found))
    assert len(pairs.boxes) > 2 and pairs.alone <= 1  # of the averaged weights


@pytest.fixture
def constant(monkeypatch):
    """Write a model with constant outputs, which saves a minute, in place of the trained one."""
    loose = {**verify.TOLERANCES["float32"], "within": 0}
    monkeypatch.setattr(verify, "TOLERANCES", {"float32": loose})

    def write(detector, info, file):
        write_model(file, provenance=info.provenance)

    monkeypatch.setattr(export, "write_onnx", write)


def fail(arguments, **options):
    """Export a model that fails its verification."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(verify.TOLERANCES["float32"], "within", 2)
        assert not export_model(*arguments, **options)


def test_a_page_stays_in_the_report(run, constant, tmp_path):
    """Until it is removed, or other weights are exported; a page that fails leaves the proof."""
    folder, (config, weights, options), _ = run
    arguments = config, weights, options
    (folder / "export").mkdir()
    photos = [tmp_path / "tiny" / "val"]
    with pytest.raises(UserError, match="cannot write"):
        export_model(*arguments, page=folder / "run.json" / "page.html", images=photos)
    (proof,) = exports(folder)
    assert proof["failures"] == [] and "page" not in proof
    assert export_model(*arguments, page=folder / "page.html", images=photos)
    assert export_model(*arguments, half=True, images=photos)
    (proof,) = exports(folder)
    assert (proof["file"], proof["page"]) == ("export/model_float16.onnx", "page.html")
    content = torch.load(weights, weights_only=True)
    torch.save(content | {"iteration": 9}, folder / "other.pth")
    assert export_model(config, str(folder / "other.pth"), options, half=True, images=photos)
    assert "page" not in exports(folder)[0]
    assert export_model(*arguments, page=folder / "page.html", images=photos)
    (folder / "page.html").unlink()
    assert export_model(*arguments, half=True, images=photos)
    assert "page" not in exports(folder)[0]


def test_a_failed_export_leaves_the_earlier_one(run, constant, tmp_path):
    """Its file, proof and page stay beside those of the failure, until an export passes."""
    folder, arguments, _ = run
    (folder / "export").mkdir()
    photos = {"images": [tmp_path / "tiny" / "val"]}
    assert export_model(*arguments, page=folder / "page.html", **photos)
    for _ in range(2):
        fail(arguments, half=True, **photos)
        passed, failed = exports(folder)
        assert (passed["file"], passed["page"]) == ("export/model_float16.onnx", "page.html")
        assert (folder / passed["file"]).is_file() and passed["failures"] == []
        assert failed["file"] == f"{passed['file']}.unverified" and failed["failures"]
    assert export_model(*arguments, half=True, **photos)
    assert [(e["file"], e["page"]) for e in exports(folder)] == [(passed["file"], "page.html")]


def test_mistakes_are_found_before_the_model_is_translated(run, monkeypatch, tmp_path):
    folder, arguments, _ = run
    monkeypatch.setattr(export, "write_onnx", None)  # is not called
    with pytest.raises(UserError, match="--images .*absent does not exist"):
        export_model(*arguments, images=[tmp_path / "absent"])
    for name in ("model.onnx", "run_onnx.py", "model.json"):
        (tmp_path / "out" / name).mkdir(parents=True)
        with pytest.raises(UserError, match=f"cannot write .*{name}: it is a folder"):
            export_model(*arguments, output=tmp_path / "out" / "model.onnx")
        (tmp_path / "out" / name).rmdir()
    with pytest.raises(UserError, match="cannot write .*run: it is a folder"):
        export_model(*arguments, page=folder)
    shutil.rmtree(tmp_path / "tiny")
    with pytest.raises(UserError, match="verify with photos instead: --images PHOTOS"):
        export_model(*arguments)


def test_nothing_is_left_if_a_photo_cannot_be_read(run, constant, tmp_path):
    folder, arguments, _ = run
    (folder / "export").mkdir()
    thin = tmp_path / "thin.png"
    Image.new("RGB", (5000, 1)).save(thin)
    with pytest.raises(UserError, match=r"thin.png cannot be read: .*; give other --images"):
        export_model(*arguments, images=[thin])
    assert os.listdir(folder / "export") == []
    fail(arguments, images=[tmp_path / "tiny" / "val"])
    assert len(os.listdir(folder / "export")) == 2
    with pytest.raises(UserError, match="cannot be read"):
        export_model(*arguments, images=[thin])
    assert os.listdir(folder / "export") == []
