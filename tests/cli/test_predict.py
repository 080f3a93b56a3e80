"""Test tools/predict.py: from photos, folders and videos to pictures and COCO files."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from d2ext.predict.writers import remove_leftovers
from tests.cli.test_terminal import on_a_terminal
from tests.conftest import REPO, checkout_env


@pytest.fixture
def photos(tiny_root, tmp_path):
    """Return a folder of three tiny photos, one of them in a subfolder, and one broken file."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    # Two photos of the same size, so that a batch needs no padding.
    names = {"a.jpg": "15717689633_5f7f78c28e_k", "b.jpg": "17178818589_16e58fc1e5_k"}
    names["sub/a.jpg"] = "18849792632_aad23ad513_k"
    for target, name in names.items():
        shutil.copy(tiny_root / "balloon" / "train" / f"{name}.jpg", folder / target)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff none")
    return folder


@pytest.fixture
def predict(run_tool, trained, tmp_path):
    """Run the tool with the weights of `trained` and without a score threshold."""

    def run(*args):
        flags = ["--config-file", trained / "config.yaml", "--weights", "last"]
        flags += ["--output", tmp_path / "out", "--score-threshold", "0"]
        return run_tool("predict", *flags, *args)

    return run


def test_a_folder_gets_pictures_and_coco_files(predict, photos, tmp_path):
    """Each photo gets its pictures; the broken one is skipped and reported."""
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
    # The splash is gray outside the objects.
    first = [r["segmentation"] for r in results if r["image_id"] == 1]
    inside = pycocotools.mask.decode(pycocotools.mask.merge(first)).astype(bool)
    splash = np.asarray(Image.open(out / "splash" / "a.jpg")).astype(int)
    assert np.ptp(splash[~inside], axis=-1).mean() < 8  # JPEG blurs colors at the edges
    with Image.open(next((out / "cutouts").glob("a_0_balloon.png"))) as cut:
        assert cut.mode == "RGBA"


def test_evaluate_accepts_the_files(predict, photos, run_tool, tmp_path):
    """The image ids in predictions.json match images.json."""
    (photos / "broken.jpg").unlink()
    assert predict(photos, "--no-overlays").status == 0
    out = tmp_path / "out"
    assert not (out / "overlays").exists()
    files = out / "predictions.json", "--dataset", out / "images.json"
    assert run_tool("evaluate", *files).status == 0


def film(path, photo, frames=5):
    """Write a video with `frames` copies of the photo at 10 frames per second."""
    frame = cv2.imread(str(photo))
    size = frame.shape[1], frame.shape[0]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, size)
    for _ in range(frames):
        writer.write(frame)
    writer.release()
    return path


def test_a_video_becomes_images_and_a_drawn_video(predict, photos, tmp_path):
    """Each frame is an image in the files; videos in a folder are found, hidden ones ignored."""
    made = film(photos / "sub" / "film.MP4", photos / "a.jpg")
    shutil.copy(made, photos / "sub" / ".hidden.mp4")
    assert predict(photos / "sub").status == 0
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    frames = [f"{made}#{k}" for k in range(5)]
    assert [i["file_name"] for i in images] == [str(photos / "sub" / "a.jpg"), *frames]
    drawn = cv2.VideoCapture(str(tmp_path / "out" / "overlays" / "film.webm"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and drawn.get(cv2.CAP_PROP_FPS) == 10
    codec = int(drawn.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little")
    assert codec == b"VP80"  # browsers can play it
    good, frame = drawn.read()
    assert good and frame.shape == (images[1]["height"], images[1]["width"], 3)


def test_frames_of_a_video_do_not_overwrite_photos_in_a_folder_of_its_name(
    predict, photos, tmp_path
):
    inputs = tmp_path / "both"
    for folder in ("a", "b"):
        (inputs / folder).mkdir(parents=True)
    shutil.copy(photos / "a.jpg", inputs / "a" / "1.jpg")
    for name in ("a.mp4", "b.mp4", "b/clip.mp4"):
        film(inputs / name, photos / "a.jpg", 1)
    assert predict(inputs).status == 0
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert sorted(i["output_name"] for i in images) == ["a/1", "a_2/0", "b/0", "b/clip/0"]


def test_damaged_videos_are_reported(predict, photos, tmp_path):
    """A truncated video is processed up to its end; one without frames is skipped."""
    whole = film(tmp_path / "film.avi", photos / "a.jpg", 24)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (tmp_path / "none.mp4").write_bytes(b"none")
    done = predict(whole, cut, tmp_path / "none.mp4", *"--no-overlays --score-threshold 1".split())
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    read = len(images) - 24
    assert done.status == 1 and 4 < read < 21
    message = f"cut.avi is cut off at frame {read} of 24; the frames before that were processed"
    assert message in done.stdout
    assert "none.mp4 cannot be read" in done.stdout and "film.avi is" not in done.stdout


def test_tables_and_masks_agree_with_the_predictions(predict, photos, tmp_path):
    """A later call without the flags removes the tables and the masks."""
    (photos / "broken.jpg").unlink()
    made = film(tmp_path / "film.mp4", photos / "a.jpg", 2)
    done = predict(photos, made, "--csv", "--masks", "--no-overlays", "--cutouts")
    assert done.status == 0, done
    out = tmp_path / "out"
    results = json.loads((out / "predictions.json").read_text())
    images = json.loads((out / "images.json").read_text())["images"]
    names = {i["id"]: i["file_name"] for i in images}
    rows = list(csv.DictReader((out / "detections.csv").read_text().splitlines()))
    assert [r["file_name"] for r in rows] == [names[r["image_id"]] for r in results]
    for row, r in zip(rows, results, strict=True):
        assert row["class"] == "balloon"
        assert float(row["score"]) == pytest.approx(r["score"], abs=1e-3)
        box = [float(row[key]) for key in ("x", "y", "width", "height")]
        assert box == pytest.approx(r["bbox"], abs=0.01)
        assert float(row["area"]) == pycocotools.mask.area(r["segmentation"])
    counts = list(csv.DictReader((out / "counts.csv").read_text().splitlines()))
    assert [c["file_name"] for c in counts] == list(names.values())
    assert [c["output_name"] for c in counts] == [i["output_name"] for i in images]
    for image, count in zip(images, counts, strict=True):
        mine = [r for r in results if r["image_id"] == image["id"]]
        assert count["objects"] == count["balloon"] == str(len(mine))
        _, _, frame = image["file_name"].partition("#")
        path = Path("film", frame) if frame else Path(image["file_name"]).relative_to(photos)
        assert image["output_name"] == str(path.with_suffix(""))
        labels = np.asarray(Image.open(out / "masks" / path.with_suffix(".png")))
        assert labels.shape == (image["height"], image["width"]) and labels.dtype == np.uint16
        own = [pycocotools.mask.decode(r["segmentation"]).astype(bool) for r in mine]
        assert np.array_equal(labels > 0, np.any(own, axis=0))
        assert (labels[own[0]] == 1).all()  # the highest score is on top
    assert f"{len(results)} objects (balloon {len(results)})" in done.stdout
    assert predict(photos).status == 0
    assert not [p for p in ("detections.csv", "counts.csv", "masks") if (out / p).exists()]


def test_skipped_files_are_reported(predict, photos, tmp_path):
    """Every file is either read or listed in the log and in images.json."""
    import pillow_heif

    for path in photos.rglob("*.jpg"):
        if path.name != "a.jpg":
            path.unlink()
    photo = Image.open(photos / "a.jpg")
    pillow_heif.from_pillow(photo).save(photos / "b.HEIC")
    for name in ("c.avif", "d.gif", "e.tiff", "f.webp"):
        photo.save(photos / name)
    (photos / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (photos / "empty.mp4").touch()
    (photos / "notes.txt").touch()
    (photos / "raw.CR3").touch()
    done = predict(photos, "--no-overlays", "--score-threshold", "1")
    assert done.status == 1
    written = json.loads((tmp_path / "out" / "images.json").read_text())
    names = [Path(i["file_name"]).name for i in written["images"]]
    assert names == ["a.jpg", "b.HEIC", "c.avif", "d.gif", "e.tiff", "f.webp", "a.jpg"]
    skipped = {Path(s["file_name"]).name: s["reason"] for s in written["skipped"]}
    assert list(skipped) == ["IMG_1.HEIC", "empty.mp4", "notes.txt", "raw.CR3"]
    assert all("cannot be read" in skipped[name] for name in ("IMG_1.HEIC", "empty.mp4"))
    assert "no suffix of an image or a video" in skipped["raw.CR3"]
    assert "IMG_1.HEIC cannot be read" in done.stdout and "empty.mp4 cannot be" in done.stdout
    assert "Skipped files that are neither images nor videos: .cr3 (1), .txt (1)" in done.stdout


@pytest.mark.parametrize("more", [(), ("--batch-size", "2"), ("--options", "+data.tiles=5000")])
def test_photos_too_narrow_to_be_resized_are_skipped(predict, photos, tmp_path, more):
    """The others keep their ids and, up to last digits in another batch, their predictions."""
    seen = []
    for _ in range(2):
        done = predict(photos, "--no-overlays", *more)
        files = (tmp_path / "out" / f"{name}.json" for name in ("images", "predictions"))
        seen.append([json.loads(file.read_text()) for file in files])
        Image.new("RGB", (5000, 1)).save(photos / "aa.png")
    assert done.status == 1 and "aa.png cannot be read and is skipped: an image of" in done.stdout
    (before, expected), (index, rows) = seen
    assert index["images"] == before["images"] and len(rows) == len(expected)
    for row, same in zip(rows, expected, strict=True):
        assert row["image_id"] == same["image_id"]
        assert row["bbox"] == pytest.approx(same["bbox"], abs=1e-3)
    assert {row["image_id"] for row in rows} == {1, 2, 3}
    assert [Path(s["file_name"]).name for s in index["skipped"]] == ["aa.png", "broken.jpg"]


def test_photos_over_the_pixel_limit_are_reported_with_the_fix(predict, photos, monkeypatch):
    monkeypatch.setenv("D2EXT_MAX_IMAGE_PIXELS", "99")
    done = predict(photos / "a.jpg")
    assert done.status == 1
    assert "pixels, more than the limit of 99; cut it into smaller files" in done.stdout


def test_output_names_match_files_to_their_pictures(predict, photos, tmp_path):
    """They are unique even if files differ only in their suffix, also in a second call."""
    for name in ("b.jpg", "broken.jpg", "sub/a.jpg"):
        (photos / name).unlink()
    for name in ("a.png", "a.tga"):
        Image.open(photos / "a.jpg").resize((40, 30)).save(photos / name)
    flags = photos, "--masks", "--csv", "--output", photos / "out"
    assert predict(*flags).status == 0
    assert predict(*flags).status == 0
    out = photos / "out"
    written = json.loads((out / "images.json").read_text())
    assert written["skipped"] == []
    names = {Path(i["file_name"]).name: i["output_name"] for i in written["images"]}
    assert names == {"a.jpg": "a", "a.png": "a_2", "a.tga": "a_3"}
    for table in ("detections.csv", "counts.csv"):
        rows = list(csv.DictReader((out / table).read_text().splitlines()))
        assert rows and all(names[Path(r["file_name"]).name] == r["output_name"] for r in rows)
    for image in written["images"]:
        with Image.open(out / "masks" / f"{image['output_name']}.png") as mask:
            assert mask.size == (image["width"], image["height"])


def test_images_with_the_same_name_do_not_overwrite_each_other(predict, photos, tmp_path):
    done = predict(photos / "a.jpg", photos / "sub" / "a.jpg")
    assert done.status == 0
    assert sorted(p.name for p in (tmp_path / "out" / "overlays").iterdir()) == ["a.jpg", "a_2.jpg"]


def test_invalid_arguments_are_one_line_errors(predict, trained, photos, run_tool, tmp_path):
    """The exit status is 2, and nothing is written."""
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


def test_the_number_of_processes_is_checked(predict, photos, tmp_path, monkeypatch):
    """As in a training, a GPU is needed for each of them, unless they run on the CPU."""
    done = predict(photos, "--num-gpus", "0")
    assert done.status == 2 and "--num-gpus and --num-machines must be at least 1" in done.stderr
    monkeypatch.setenv("D2EXT_PLAN_GPUS", "1")
    done = predict(photos, "--num-gpus", "2", "--options", "train.device=cuda")
    assert done.status == 2 and "--num-gpus 2 is more than this machine has" in done.stderr
    assert not (tmp_path / "out").exists()


def test_several_processes_have_the_errors_of_one(predict, photos, tmp_path):
    """Inputs and the output folder are checked before the processes start."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    cases = [
        (["nowhere"], "error: nowhere does not exist"),
        ([photos], f"error: --output {tmp_path / 'out'} is not empty and does not hold earlier"),
        ([film(tmp_path / "a.mp4", photos / "a.jpg"), "--rank", "uncertain"], "is a video, but"),
    ]
    for args, words in cases:
        done = predict(*args, "--num-gpus", "2")
        assert done.status == 2 and words in done.stderr and "rank 1" not in done.stderr, done
        assert done.stderr == predict(*args).stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_earlier_predictions_are_replaced(predict, photos, tmp_path):
    """The log says so, they are not taken as input, and other files stay."""
    out = tmp_path / "out"
    first = predict(photos / "a.jpg")
    assert first.status == 0 and "are replaced" not in first.stdout
    (out / "mine.txt").write_text("mine")
    done = predict(tmp_path, "--splash", "--no-overlays")
    assert done.status == 1  # the broken photo
    assert f"Replacing the earlier predictions in {out}" in done.stdout
    assert sorted(p.name for p in (out / "splash").rglob("*.jpg")) == ["a.jpg", "a.jpg", "b.jpg"]
    assert not (out / "overlays").exists() and (out / "mine.txt").read_text() == "mine"


def test_files_of_other_running_predictions_stay(predict, photos, tmp_path):
    """Neither a second prediction nor the end of one with several processes deletes them."""
    out, exchange = tmp_path / "out", tmp_path / "out" / ".d2ext_ranks.1"
    assert predict(photos / "a.jpg").status == 0
    (tmp_path / "out" / ".d2ext_ranks.2").mkdir()
    for name in (".predictions.json.11.tmp", ".predictions.json.22.tmp", ".d2ext_ranks.2/0.pid"):
        (out / name).write_text("22")
    assert predict(photos / "a.jpg").status == 0
    exchange.mkdir()
    (exchange / "0.pid").write_text("11")
    remove_leftovers(out, exchange)
    hidden = {str(path.relative_to(out)) for path in out.rglob(".*")}
    assert hidden == {".predictions.json.22.tmp", ".d2ext_ranks.2"}
    assert (out / ".d2ext_ranks.2" / "0.pid").exists()


@pytest.mark.parametrize("file", ["images.json", "overlays/mine.jpg"])
def test_an_output_folder_with_other_files_is_refused(predict, photos, tmp_path, file):
    """Nothing in it changes, not even a user's own images.json."""
    mine = tmp_path / "out" / file
    mine.parent.mkdir(parents=True)
    mine.write_text('{"images": [], "info": {"description": "my photos"}}')
    before = mine.read_text()
    done = predict(photos / "a.jpg")
    assert done.status == 2 and "is not empty and does not hold earlier predictions" in done.stderr
    assert "another --output" in done.stderr
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [mine]
    assert mine.read_text() == before


def test_an_output_that_is_a_file_is_refused(predict, photos, tmp_path):
    """The file stays as it is."""
    (tmp_path / "out").write_text("mine")
    done = predict(photos)
    assert done.status == 2 and "out is not a directory" in done.stderr
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("below", ["", "sub"])
def test_inputs_inside_the_output_are_an_error(predict, photos, below):
    """They are not silently ignored."""
    done = predict(photos / below, "--output", photos)
    assert done.status == 2 and f"{photos / below} is in --output {photos}" in done.stderr


def test_a_picture_that_cannot_be_written_is_named(predict, photos, tmp_path):
    """The error is one line, and the next call can use the folder."""
    out = tmp_path / "out"
    (photos / "sub" / "a.jpg").rename(photos / "sub" / "c.jpg")
    (tmp_path / "more" / "a.jpg").mkdir(parents=True)
    shutil.move(photos / "sub" / "c.jpg", tmp_path / "more" / "a.jpg" / "c.jpg")
    done = predict(photos / "a.jpg", tmp_path / "more")
    assert done.status == 2 and "Traceback" not in done.stderr
    picture, folder = out / "overlays" / "a.jpg" / "c.jpg", out / "overlays" / "a.jpg"
    assert f"cannot write {picture}: {folder} is not a directory" in done.stderr
    assert not (out / "predictions.json").exists()
    (photos / f"{'b' * 250}.jpg").symlink_to(photos / "b.jpg")
    done = predict(photos / f"{'b' * 250}.jpg", "--cutouts")
    assert done.status == 2 and "bb_0_balloon.png: File name too long" in done.stderr


def test_annotations_and_a_ranking_for_the_next_photos_to_label(predict, photos, tmp_path):
    """They hold each readable photo; a second call refuses to overwrite the annotations."""
    out = tmp_path / "out"
    flags = [photos, "--annotations", "coco", "--rank", "uncertain", "--no-overlays"]
    done = predict(*flags)
    assert done.status == 1 and "broken.jpg cannot be read" in done.stdout
    content = json.loads((out / "coco.json").read_text())
    assert [i["file_name"] for i in content["images"]] == ["a.jpg", "b.jpg", "sub/a.jpg"]
    results = json.loads((out / "predictions.json").read_text())
    counted = re.search(r"coco.json: 3 photos, (\d+) objects, ([0-9.]+) points per", done.stdout)
    assert int(counted[1]) == len(content["annotations"])
    shown = [r for r in results if pycocotools.mask.area(r["segmentation"])]
    for r, a in zip(shown, content["annotations"], strict=True):
        assert (a["image_id"], a["score"]) == (r["image_id"], round(r["score"], 4))
        drawn = pycocotools.mask.frPyObjects(a["segmentation"], *r["segmentation"]["size"])
        merged = [pycocotools.mask.merge(drawn)]
        assert pycocotools.mask.iou(merged, [r["segmentation"]], [0])[0, 0] >= 0.95
    ranked = (out / "rank.txt").read_text().splitlines()
    assert sorted(ranked) == [str(photos / name) for name in ("a.jpg", "b.jpg", "sub/a.jpg")]
    assert [row["file_name"] for row in json.loads((out / "rank.json").read_text())] == ranked
    assert all(name in done.stdout for name in ranked)
    done = predict(*flags)
    assert done.status == 2 and f"{out / 'coco.json'} exists and may contain" in done.stderr
    assert (out / "rank.txt").exists()


@pytest.mark.parametrize("flags", [("--annotations", "via"), ("--rank", "uncertain")])
def test_annotations_and_rankings_of_videos_are_refused(predict, photos, tmp_path, flags):
    """The video may be in a folder; nothing is written."""
    made = film(photos / "sub" / "film.mp4", photos / "a.jpg", 2)
    done = predict(photos, *flags)
    assert done.status == 2 and f"{made} is a video, but --annotations and" in done.stderr
    assert "ffmpeg -i film.mp4" in done.stderr and not (tmp_path / "out").exists()


def test_a_terminal_shows_progress(trained, photos, tmp_path):
    """There is one bar for the images and one for the frames of each video."""
    (photos / "broken.jpg").unlink()
    made = film(tmp_path / "film.mp4", photos / "a.jpg")
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(REPO / "tools/predict.py"),
        str(photos),
        str(made),
    ]
    command += ["--config-file", str(trained / "config.yaml"), "--weights", "last"]
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    shown, status = on_a_terminal([*command, "--output", str(tmp_path / "out")], env)
    assert status == 0, shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"images \S+ 3/3 ", plain) and re.search(r"film\.mp4 \S+ 5/5 ", plain), plain


_PEAKS = """
import re, sys
from pathlib import Path
import d2ext
from d2ext.predict.writers import predict_files
certain = "model.roi_heads.box_predictor.test_score_thresh=0.99"
predictor = d2ext.Predictor.from_config(sys.argv[1], "last", [certain])
for n in 20, 200:
    predict_files(predictor, [sys.argv[2]] * n, Path(sys.argv[3]) / str(n))
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(trained, tmp_path):
    """The pixels of 180 more images would take 166 MB."""
    Image.new("RGB", (640, 480), (90, 90, 200)).save(tmp_path / "photo.jpg")
    arguments = [trained / "config.yaml", tmp_path / "photo.jpg", tmp_path / "out"]
    command = [sys.executable, "-c", _PEAKS, *map(str, arguments)]
    done = subprocess.run(command, env=checkout_env(), capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split())  # kB
    assert many - few < 50_000
