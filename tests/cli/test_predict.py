"""tools/predict.py and d2ext.Predictor: photos, folders and videos to pictures and COCO files."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

import d2ext
from tests.conftest import LITE0, REPO


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A run of a few iterations."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    command = [sys.executable, "tools/train_net.py", "--config-file", LITE0, "--no-validate"]
    command += ["--work-dir", str(folder), "--options", *tiny]
    subprocess.run(command, cwd=REPO, check=True, capture_output=True)
    return folder


@pytest.fixture
def photos(tiny_root, tmp_path):
    """The tiny photos in a folder, one of them below it, and one that is none."""
    folder = tmp_path / "photos"
    names = sorted(p.name for p in (tiny_root / "balloon" / "train").glob("*.jpg"))[:3]
    (folder / "sub").mkdir(parents=True)
    for name, target in zip(names, ("a.jpg", "b.jpg", "sub/a.jpg"), strict=True):
        shutil.copy(tiny_root / "balloon" / "train" / name, folder / target)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff none")
    return folder


@pytest.fixture
def predict(run_tool, trained, tmp_path):
    """Runs the tool on the run's weights, with all that it finds, into `tmp_path / "out"`."""

    def run(*args):
        flags = ["--config-file", trained / "config.yaml", "--weights", "last"]
        flags += ["--output", tmp_path / "out", "--score-threshold", "0"]
        return run_tool("predict", *args, *flags)

    return run


def test_a_folder(predict, photos, tmp_path):
    """Each photo has its pictures; the broken one is named and passed over."""
    done = predict(photos, "--splash", "--cutouts", "--batch-size", "2")
    assert done.status == 1 and "broken.jpg cannot be read" in done.stdout
    out = tmp_path / "out"
    images = json.loads((out / "images.json").read_text())
    assert images["categories"] == [{"id": 1, "name": "balloon"}]
    names = [str(photos / name) for name in ("a.jpg", "b.jpg", "sub/a.jpg")]
    assert [image["file_name"] for image in images["images"]] == names
    results = json.loads((out / "predictions.json").read_text())
    assert {r["image_id"] for r in results} <= {1, 2, 3} and results
    sizes = {i["id"]: [i["height"], i["width"]] for i in images["images"]}
    for kind in ("overlays", "splash"):
        pictures = sorted(str(p.relative_to(out / kind)) for p in (out / kind).rglob("*.jpg"))
        assert pictures == ["a.jpg", "b.jpg", "sub/a.jpg"]
    assert len(list((out / "cutouts").rglob("*.png"))) == len(results)
    for r in results:
        assert r["segmentation"]["size"] == sizes[r["image_id"]] and r["category_id"] == 1
    # Grey where no object is.
    first = [r["segmentation"] for r in results if r["image_id"] == 1]
    inside = pycocotools.mask.decode(pycocotools.mask.merge(first)).astype(bool)
    splash = np.asarray(Image.open(out / "splash" / "a.jpg")).astype(int)
    assert np.ptp(splash[~inside], axis=-1).mean() < 8  # JPEG blurs colours at the edges
    cut = Image.open(next((out / "cutouts").glob("a_0_balloon.png")))
    assert cut.mode == "RGBA"


def test_the_files_are_what_evaluate_takes(predict, photos, run_tool, tmp_path):
    """The results' ids are those of images.json."""
    (photos / "broken.jpg").unlink()
    assert predict(photos, "--no-overlays").status == 0
    out = tmp_path / "out"
    assert not (out / "overlays").exists()
    files = out / "predictions.json", "--dataset", out / "images.json"
    assert run_tool("evaluate", *files).status == 0


def test_a_video(predict, photos, tmp_path):
    """Its frames are images of the files, and make up a video again."""
    frame = cv2.imread(str(photos / "a.jpg"))
    film = tmp_path / "film.mp4"
    size = frame.shape[1], frame.shape[0]
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"mp4v"), 10, size)
    for _ in range(5):
        writer.write(frame)
    writer.release()
    assert predict(film).status == 0
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [i["file_name"] for i in images] == [f"{film}#{k}" for k in range(5)]
    made = cv2.VideoCapture(str(tmp_path / "out" / "overlays" / "film.mp4"))
    assert made.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and made.get(cv2.CAP_PROP_FPS) == 10


def test_images_of_one_name(predict, photos, tmp_path):
    """Those of two folders do not overwrite one another."""
    done = predict(photos / "a.jpg", photos / "sub" / "a.jpg")
    assert done.status == 0
    assert sorted(p.name for p in (tmp_path / "out" / "overlays").iterdir()) == ["a.jpg", "a_2.jpg"]


def test_mistakes(predict, trained, photos, run_tool, tmp_path):
    """Each is one line and status 2, before anything is written."""
    (tmp_path / "empty").mkdir()
    for args, words in (
        (["nowhere"], "nowhere does not exist"),
        ([photos, "--classes", "baloon"], "did you mean 'balloon'"),
        ([tmp_path / "empty"], "no image in"),
    ):
        done = predict(*args)
        assert done.status == 2 and words in done.stderr, done
        assert not (tmp_path / "out").exists()
    flags = ["--config-file", trained / "config.yaml", "--weights", "best"]
    done = run_tool("predict", photos, *flags)
    assert done.status == 2 and "model_best.pth" in done.stderr


def test_from_python(trained, photos):
    """The same objects, whatever the batch; images are taken as they are wanted."""
    predictor = d2ext.Predictor(trained / "config.yaml", "last", score_threshold=0)
    assert predictor.classes == ["balloon"]
    images = [np.asarray(Image.open(photos / name)) for name in ("a.jpg", "b.jpg")]
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


def test_what_an_earlier_call_left(predict, photos, tmp_path):
    """Its pictures go, and are no input; a folder of somebody else's stays."""
    out = tmp_path / "out"
    (out / "overlays").mkdir(parents=True)
    (out / "overlays" / "mine.jpg").write_bytes(b"")
    assert predict(photos / "a.jpg").status == 0 and (out / "overlays" / "mine.jpg").exists()
    assert predict(tmp_path, "--splash").status == 1  # the broken photo
    assert sorted(p.name for p in (out / "splash").rglob("*.jpg")) == ["a.jpg", "a.jpg", "b.jpg"]
    assert not (out / "overlays" / "mine.jpg").exists()


def test_an_output_that_cannot_be(predict, photos, tmp_path):
    """One line; also where a picture's folder is a file."""
    (tmp_path / "out").write_text("mine")
    done = predict(photos)
    assert done.status == 2 and "is no directory" in done.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_a_run_that_was_moved(trained, photos, tmp_path):
    """Its weights are looked for beside its config, and a damaged run.json is passed over."""
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    assert str(moved) in d2ext.Predictor(moved / "config.yaml", "last").weights
    (moved / "run.json").write_text("{")
    assert d2ext.Predictor(moved / "config.yaml", "last").classes == ["balloon"]
