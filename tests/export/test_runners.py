"""`d2ext predict` with the run, with the exported file, and run_onnx.py find the same."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import onnx
import pycocotools.mask as mask_util
import pytest
from PIL import Image

import d2ext
from d2ext.errors import UserError
from d2ext.evaluation.offline import evaluate_files
from d2ext.export.detector import build_detector
from d2ext.export.layers import prepared
from d2ext.export.onnx_file import write_onnx
from tests.conftest import REPO
from tests.export.conftest import STOCK
from tests.export.test_detector import built, photo
from tests.export.test_onnx import info_of

# The three packages that run_onnx.py needs, and what those bring along.
PACKAGES = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime")
BROUGHT = ("flatbuffers", "google", "packaging")

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """Return the Python of an environment with numpy, Pillow and onnxruntime alone.

    The packages are links to those of this environment, so that no network is needed.
    """
    venv = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    folders = [Path(sysconfig.get_path("purelib"))]
    for line in (line for file in folders[0].glob("*.pth") for line in file.read_text().split()):
        folders += [Path(line)] if Path(line).is_dir() else []
    for name in (*PACKAGES, *BROUGHT):
        found = [folder / name for folder in folders if (folder / name).exists()]
        if found:
            (site / name).symlink_to(found[0])
    python = venv / "bin" / "python"
    code = "import numpy, PIL, onnxruntime, importlib.util as u; print(u.find_spec('torch'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr
    return python


def run_onnx(python, folder, *arguments):
    """Run the runner beside a model."""
    command = [python, folder / "run_onnx.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


@pytest.fixture
def odd_photos(real_balloon, tmp_path):
    """Return a folder of photos, each of which is special."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    photos = [Image.open(f).convert("RGB") for f in sorted((real_balloon / "val").glob("*.jpg"))]
    photo = photos[0]
    photo.save(folder / "plain.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers rotate the photo by 90 degrees
    photo.save(folder / "turned.jpg", exif=exif)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("L").save(folder / "gray.png")
    deep = np.asarray(photo.convert("L")).astype(np.uint16) * 100 + 1000
    Image.fromarray(deep).save(folder / "deep.png")
    photo.convert("RGBA").save(folder / "alpha.png")
    photo.quantize(64).save(folder / "palette.png")
    photos[1].save(folder / "inner" / "plain.webp", lossless=True)
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    Image.new("RGB", (320, 200)).save(folder / "black.png")
    (folder / "broken.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:3000])
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_bytes(b"")
    return folder


def predictions(folder):
    rows = json.loads((folder / "predictions.json").read_text())
    index = json.loads((folder / "images.json").read_text())
    return rows, index


def assert_same(ours, theirs, pixels, score, mask_pixels):
    """Check that two folders have the same objects in the same order; return their number."""
    (a, one), (b, other) = predictions(ours), predictions(theirs)
    assert one["images"] == other["images"] and one["categories"] == other["categories"]
    skipped = ([s["file_name"] for s in index["skipped"]] for index in (one, other))
    ours, theirs = ([f for f in files if not f.endswith(".txt")] for files in skipped)
    assert ours == theirs
    assert [(r["image_id"], r["category_id"]) for r in a] == [
        (r["image_id"], r["category_id"]) for r in b
    ]
    for x, y in zip(a, b, strict=True):
        assert np.abs(np.subtract(x["bbox"], y["bbox"])).max() <= pixels
        assert abs(x["score"] - y["score"]) <= score
        differs = mask_util.decode(x["segmentation"]) != mask_util.decode(y["segmentation"])
        assert differs.sum() <= mask_pixels
    return len(a)


@slow
def test_all_three_find_the_same(
    spread_run, exported, odd_photos, clean_python, d2ext_command, tmp_path
):
    """Check photos of all kinds: the same image ids and names, and a broken file is skipped."""
    arguments = [odd_photos, "--score-threshold", "0.2", "--output"]
    torch = d2ext_command(
        "predict", spread_run, *arguments, tmp_path / "torch", "--options", *STOCK
    )
    onnx_ = d2ext_command("predict", exported / "model.onnx", *arguments, tmp_path / "onnx")
    runner = run_onnx(clean_python, exported, *arguments, tmp_path / "runner")
    usual = d2ext_command("predict", spread_run, *arguments, tmp_path / "usual")
    assert (torch.status, onnx_.status, runner.returncode) == (1, 1, 1), runner.stderr
    assert usual.status == 1, usual.stderr
    assert "broken.jpg cannot be read and is skipped" in runner.stderr
    assert "skipped 1 files that are not images" in runner.stderr
    count = assert_same(tmp_path / "onnx", tmp_path / "torch", 0.01, 1e-4, 3)
    same = assert_same(tmp_path / "runner", tmp_path / "onnx", 1e-4, 1e-6, 1)
    assert_same(tmp_path / "runner", tmp_path / "usual", 0.01, 1e-4, 3)  # with faster layers
    assert count == same > 10
    for folder in ("onnx", "runner"):
        names = sorted(f.name for f in (tmp_path / folder / "overlays").rglob("*.jpg"))
        assert names == sorted(f.name for f in (tmp_path / "torch/overlays").rglob("*.jpg"))


@slow
def test_the_runner_has_the_ap_of_predict_without_torch(
    spread_run, exported, real_balloon, clean_python, d2ext_command, tmp_path
):
    annotations = tmp_path / "val.json"
    done = d2ext_command(
        *("convert", "via", real_balloon / "val" / "via_region_data.json"),
        *("--images", real_balloon / "val", "--output", annotations),
        *("--classes", "balloon"),
    )
    assert done.status == 0, done.stderr
    found = {}
    photos = real_balloon / "val"
    arguments = ["--score-threshold", "0.05", "--no-overlays", "--output"]
    runner = run_onnx(clean_python, exported, photos, *arguments, tmp_path / "runner")
    assert runner.returncode == 0, runner.stderr
    predict = d2ext_command("predict", spread_run, photos, *arguments, tmp_path / "predict")
    assert predict.status == 0, predict.stderr
    ids = {i["file_name"]: i["id"] for i in json.loads(annotations.read_text())["images"]}
    for name in ("runner", "predict"):
        rows, index = predictions(tmp_path / name)
        by_id = {i["id"]: ids[Path(i["file_name"]).name] for i in index["images"]}
        rows = [row | {"image_id": by_id[row["image_id"]]} for row in rows]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        out = tmp_path / f"{name}_ap.json"
        evaluate_files([tmp_path / f"{name}.json"], annotations, ["coco"], out=out, resamples=0)
        found[name] = json.loads(out.read_text())
    for key in ("coco/bbox/AP", "coco/segm/AP"):
        assert found["runner"][key] == pytest.approx(found["predict"][key], abs=0.01)


@slow
def test_extreme_photos(spread_run, exported, clean_python, d2ext_command, tmp_path):
    """100 megapixels are read; a photo whose short side would vanish is skipped."""
    large = tmp_path / "large"
    large.mkdir()
    Image.linear_gradient("L").resize((10_000, 10_000)).convert("RGB").save(large / "a.jpg")
    predict = d2ext_command(
        "predict", exported / "model.onnx", large, "--no-overlays", "--output", tmp_path / "onnx"
    )
    runner = run_onnx(
        clean_python, exported, large, "--no-overlays", "--output", tmp_path / "runner"
    )
    torch = d2ext_command(
        *("predict", spread_run, large, "--no-overlays", "--output", tmp_path / "torch"),
        *("--options", *STOCK),
    )
    assert predict.status == runner.returncode == torch.status == 0, runner.stderr
    assert_same(tmp_path / "runner", tmp_path / "onnx", 1e-3, 1e-6, 5)
    # 10,000 pixels become 640, so that differences are 16 times those in smaller photos.
    assert_same(tmp_path / "onnx", tmp_path / "torch", 0.16, 1e-4, 50)
    thin = tmp_path / "thin.png"
    Image.new("RGB", (5000, 1)).save(thin)
    why = "an image of 5000 x 1 pixels cannot be resized"
    for model in (exported / "model.onnx", spread_run):
        done = d2ext_command("predict", model, thin, "--output", tmp_path / "thin")
        assert done.status == 1 and why in done.stdout + done.stderr
    runner = run_onnx(clean_python, exported, thin, "--output", tmp_path / "thin_runner")
    assert runner.returncode == 1 and why in runner.stderr


@slow
def test_files_that_cannot_be_run(exported, clean_python, d2ext_command, real_balloon, tmp_path):
    """Each is an error of one line, in predict and in the runner."""
    photo = sorted((real_balloon / "val").glob("*.jpg"))[0]
    content = (exported / "model.onnx").read_bytes()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content[: len(content) // 2])
    other = tmp_path / "other.onnx"
    model = onnx.load(exported / "model.onnx")
    for entry in model.metadata_props:
        if entry.key == "d2ext_format":
            entry.value = "2"
    onnx.save(model, other)
    plain = tmp_path / "plain.onnx"
    del model.metadata_props[:]
    onnx.save(model, plain)
    for file, words in (
        (broken, "cannot be read"),
        (other, "has version 2 of the exported format"),
        (plain, "was not exported by d2ext"),
        (tmp_path / "absent.onnx", "no such file"),
    ):
        done = d2ext_command("predict", file, photo, "--output", tmp_path / "out")
        assert done.status == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"error: {file}") and words in done.stderr
        with pytest.raises(UserError, match=words):
            d2ext.Predictor.from_onnx(file)
        runner = run_onnx(
            clean_python, exported, photo, "--model", file, "--output", tmp_path / "out"
        )
        assert runner.returncode == 1 and runner.stderr.count("\n") == 1
        assert runner.stderr.startswith(f"error: {file}"), runner.stderr
    assert not (tmp_path / "out").exists()


@slow
def test_many_objects_and_none_shown(exported, clean_python, real_balloon, tmp_path):
    """The largest number that the model returns, and no object above the threshold."""
    photo = sorted((real_balloon / "val").glob("*.jpg"))[0]
    every = d2ext.Predictor.from_onnx(exported / "model.onnx", score_threshold=0)(photo)
    for threshold in ("0", "1.0"):
        out = tmp_path / threshold
        done = run_onnx(
            clean_python, exported, photo, "--score-threshold", threshold, "--output", out
        )
        assert done.returncode == 0, done.stderr
        rows, _ = predictions(out)
        assert len(rows) == (len(every.scores) if threshold == "0" else 0)
        assert [r["score"] for r in rows] == every.scores[: len(rows)].tolist()
    assert len(every.scores) == 300


@slow
@pytest.mark.parametrize("name", ["mask", pytest.param("retinanet", marks=pytest.mark.nightly)])
def test_no_object_in_the_graph(name, clean_python, d2ext_command, tmp_path):
    """Outputs are empty in onnxruntime, as in torch."""
    detector = build_detector(prepared(built(name))).eval()
    detector.score_threshold = 1.0
    write_onnx(detector, info_of(detector), tmp_path / "model.onnx")
    shutil.copy(REPO / "d2ext/export/run_onnx.py", tmp_path)
    Image.fromarray(photo(160, 120)).save(tmp_path / "photo.png")
    arguments = [tmp_path / "photo.png", "--score-threshold", "0", "--output"]
    done = d2ext_command("predict", tmp_path / "model.onnx", *arguments, tmp_path / "predict")
    runner = run_onnx(clean_python, tmp_path, *arguments, tmp_path / "runner")
    assert done.status == runner.returncode == 0, runner.stderr + done.stderr
    for folder in ("predict", "runner"):
        rows, index = predictions(tmp_path / folder)
        assert rows == [] and len(index["images"]) == 1


@slow
def test_from_onnx_takes_classes_and_thresholds(exported, real_balloon):
    photo = sorted((real_balloon / "val").glob("*.jpg"))[0]
    predictor = d2ext.Predictor.from_onnx(exported / "model.onnx", 0.2, ["balloon"])
    assert predictor.classes == ["balloon"]
    one, two = predictor.predict([photo, photo], batch_size=2)
    assert len(one.scores) and (one.scores >= 0.2).all()
    assert np.array_equal(one.boxes, two.boxes) and one.masks.shape[0] == len(one.scores)
    with pytest.raises(UserError, match="the model has no class 'ball'"):
        d2ext.Predictor.from_onnx(exported / "model.onnx", keep=["ball"])


@slow
def test_the_runner_needs_one_model_and_photos(exported, tmp_path):
    """Each is an error of one line with the remedy."""
    shutil.copy(exported / "run_onnx.py", tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, words in (
        ([tmp_path], "0 .onnx files beside this program; give --model FILE"),
        ([tmp_path / "absent", "--model", exported / "model.onnx"], "does not exist; give images"),
        ([empty, "--model", exported / "model.onnx"], f"no image in {empty}"),
    ):
        done = run_onnx(sys.executable, tmp_path, *arguments, "--output", tmp_path / "out")
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and words in done.stderr


@slow
def test_the_commands_of_the_page(exported, real_balloon, tmp_path, monkeypatch):
    """The program in docs/deploying.md finds what a predictor finds."""
    (code,) = re.findall(
        r"^```python\n(.*?)^```$",
        (REPO / "docs/deploying.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    photo = sorted((real_balloon / "val").glob("*.jpg"))[0]
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").symlink_to(photo)
    Path("model.onnx").symlink_to(exported / "model.onnx")
    found: dict = {}
    exec(code, found)
    expected = d2ext.Predictor.from_onnx("model.onnx", score_threshold=0)(photo)
    assert np.array_equal(found["scores"], expected.scores)
    height, width = expected.image.shape[:2]
    boxes = found["boxes"].clip(0, [width, height, width, height])
    assert np.abs(boxes - expected.boxes).max() < 1e-3


def test_a_model_file_needs_no_weights_or_options(d2ext_command, tmp_path):
    for more in (["--weights", "last"], ["--options", "train.device=cpu"]):
        done = d2ext_command("predict", "model.onnx", tmp_path, *more)
        assert done.status == 2 and more[0] in done.stderr, done.stderr


def test_export_without_weights_is_an_error(trained, d2ext_command, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "run.json"):
        shutil.copy(trained / name, run)
    done = d2ext_command("export", run)
    assert done.status == 2 and done.stderr.count("\n") == 1, done.stderr
    assert shlex.quote(str(run)) in done.stderr and not (run / "export").exists()


def test_a_missing_package_is_an_error_with_the_fix(trained, d2ext_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = d2ext_command("export", trained)
    assert done.status == 2
    assert done.stderr.endswith("pip install 'd2ext[export]'\n")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'd2ext\[export\]'"):
        d2ext.Predictor.from_onnx("model.onnx")
