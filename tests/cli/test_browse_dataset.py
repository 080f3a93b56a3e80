"""Test tools/browse_dataset.py: its pages, its output folder, and its exit statuses."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import LITE0, REPO

RED, GRAY = (220, 30, 30), (120, 120, 120)


@pytest.fixture
def browse(run_tool, tmp_path):
    """Run the tool in this process, with `tmp_path / "out"` as its output folder."""

    def run(*args, config=REPO / LITE0):
        out = ["--output", tmp_path / "out"]
        done = run_tool("browse_dataset", "--config-file", config, *out, *args)
        assert not list(tmp_path.glob(".*.tmp"))
        return done

    return run


def pictures(page):
    """Return the inlined pictures of an HTML page."""
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(b)))).astype(int) for b in found]


def coco(folder, annotations, names=("thing",), size=(320, 240)):
    """Write a COCO dataset of one gray photo and return the overrides that select it.

    The photo has a red rectangle from x 40 to 100 and y 60 to 160.
    """
    w, h = size
    folder.mkdir()
    pixels = np.full((h, w, 3), GRAY, np.uint8)
    pixels[60:160, 40:100] = RED
    Image.fromarray(pixels).save(folder / "photo.png")
    content = {
        "images": [{"id": 1, "file_name": "photo.png", "width": w, "height": h}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "iscrowd": 0, "area": 6000, **a}
            for i, a in enumerate(annotations)
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
    }
    (folder / "a.json").write_text(json.dumps(content))
    fields = {"json_file": folder / "a.json", "image_root": folder}
    chosen = {f"datasets.{n}.{k}": v for n in ("coco_train", "coco_val") for k, v in fields.items()}
    chosen |= {f"datasets.{n}.classes": json.dumps(names) for n in ("coco_train", "coco_val")}
    return [f"{k}={v}" for k, v in chosen.items()]


COCO = REPO / "configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py"
BOX = {"category_id": 1, "bbox": [40, 60, 60, 100]}
OBJECT = {**BOX, "segmentation": [[40, 60, 100, 60, 100, 160, 40, 160]]}
SIZE = "dataloader.train.mapper.augmentations[0].short_edge_length=[240]"
FLIP = "+dataloader.train.mapper.augmentations[1].prob="


def test_jpeg_pages_are_reproducible_from_the_seed(browse, tmp_path, tiny):
    done = browse("--count", 9, *tiny, "train.seed=3")
    out = tmp_path / "out"
    assert done.status == 0 and not done.stderr
    assert sorted(p.name for p in out.iterdir()) == ["browse.json", "page_001.jpg", "page_002.jpg"]
    with Image.open(out / "page_001.jpg") as page:
        assert page.size == (1824, 1504)
    index = json.loads((out / "browse.json").read_text())
    assert (index["images"], index["split"], index["failures"]) == (9, "train", [])
    words = f"9 images, {index['objects']} annotated objects, {index['input_objects']} in the model"
    assert words in done.stdout and f"{out / 'page_001.jpg'} and 1 more" in done.stdout
    assert index["objects"] > 0
    first = (out / "page_001.jpg").read_bytes()
    # Flags may also come after the overrides; the same seed gives the same pictures.
    assert browse(*tiny, "--count", 9, "--seed", 3).status == 0
    assert (out / "page_001.jpg").read_bytes() == first
    assert browse(*tiny, "--seed", 4, "--count", 9).status == 0
    assert (out / "page_001.jpg").read_bytes() != first


def test_the_html_page_is_self_contained(browse, tmp_path, tiny):
    done = browse("--html", "--split", "val", "--all", *tiny)
    out = tmp_path / "out"
    assert done.status == 0 and "2 images" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["browse.json", "index.html"]
    text = (out / "index.html").read_text()
    assert not re.search(r"https?:|<script|<link(?! rel=\"icon\" href=\"data:,\")|@import", text)
    assert set(re.findall(r'src="([^"]{10})', text)) == {"data:image"}
    assert len(pictures(out / "index.html")) == 4 and text.count(">balloon</b>") > 1


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_masks_and_boxes_follow_a_flip(browse, tmp_path, image_format):
    overrides = coco(tmp_path / "data", [OBJECT])
    colors = [f"datasets.{n}.palette=[[20,200,20]]" for n in ("coco_train", "coco_val")]
    mapper = f"dataloader.train.mapper.image_format={image_format}"
    done = browse(
        *overrides, *colors, SIZE, FLIP + "1.0", mapper, "--html", "--count", 1, config=COCO
    )
    assert done.status == 0, done.stderr
    before, after = pictures(tmp_path / "out" / "index.html")
    assert before.shape == after.shape == (480, 640, 3)
    mixed = 0.6 * np.array(RED) + 0.4 * np.array([20, 200, 20])  # the color under the mask
    for picture, there, elsewhere in ((before, 140, 500), (after, 500, 140)):
        assert np.abs(picture[220, there] - mixed).max() < 30
        assert np.abs(picture[220, elsewhere] - GRAY).max() < 12
    assert 'style="left: 12.5%; top: 25.0%' in (tmp_path / "out" / "index.html").read_text()
    assert 'style="left: 68.75%; top: 25.0%' in (tmp_path / "out" / "index.html").read_text()


def test_masks_follow_a_crop(browse, tmp_path, tiny_root):
    """In crops of a quarter of the image, the mask covers exactly the red pixels that are left."""
    overrides = coco(tmp_path / "data", [OBJECT])
    recipe = tmp_path / "crop.py"
    recipe.write_text(
        f"from detectron2.config import LazyConfig, LazyCall as L\n"
        f"import detectron2.data.transforms as T\n"
        f"cfg = LazyConfig.load({str(COCO)!r})\n"
        f"globals().update(cfg)\n"
        f"dataloader.train.mapper.augmentations = [L(T.RandomCrop)(crop_type='relative',"
        f" crop_size=[0.5, 0.5])]\n"
    )
    colors = [f"datasets.{n}.palette=[[20,20,220]]" for n in ("coco_train", "coco_val")]
    done = browse(*overrides, *colors, "--html", "--count", 12, config=recipe)
    assert done.status == 0, done.stderr
    crops = pictures(tmp_path / "out" / "index.html")[1::2]
    seen = 0
    for crop in crops:
        inside = crop[:, :, 0] > crop[:, :, 1] + 60  # red, also under the mask
        blue = crop[:, :, 2] > crop[:, :, 1] + 40
        seen += inside.sum() > 2000
        assert inside.sum() < 2000 or (blue & inside).sum() > 0.9 * inside.sum()
        border = 12  # width in pixels of the line of the box
        assert (blue & ~inside).sum() <= border * 4 * max(crop.shape[:2])
    assert 2 <= seen


RLE = {"size": [240, 320], "counts": [9660, *[100, 140] * 59, 100, 52880]}


@pytest.mark.parametrize("flags", [[], ["--html"]])
def test_boxes_crowds_and_images_without_objects_are_counted(browse, tmp_path, flags):
    crowd = {**BOX, "segmentation": RLE, "iscrowd": 1}
    for name, annotations, words in (
        ("boxes", [BOX], "1 annotated objects, 1 in"),
        ("crowd", [OBJECT, crowd], "2 annotated objects, 1 in"),
        ("none", [], "0 annotated objects, 0 in"),
    ):
        overrides = coco(tmp_path / name, annotations, names=["气球 & <b>"])
        train = [
            f"dataloader.train.mapper.use_instance_mask={name != 'boxes'}",
            "dataloader.train.dataset.filter_empty=False",
        ]
        for split in ("train", "val"):
            args = [*overrides, *train, *flags, "--split", split, "--count", 1]
            done = browse(*args, config=COCO)
            assert done.status == 0 and words in done.stdout, done
            if flags and annotations:
                text = (tmp_path / "out" / "index.html").read_text()
                assert "气球 &amp; &lt;b&gt;</b>" in text
            elif not flags:
                assert "class 0 = 气球 & <b>; --html shows them" in done.stdout
        done = browse(*overrides, *flags, "--no-augmentation", "--split", "val", config=COCO)
        assert done.status == 0 and "in the model" not in done.stdout


def test_rle_masks_are_shown(browse, tmp_path):
    """They are read as bitmaps, whichever mask format the mapper is set to."""
    overrides = coco(tmp_path / "data", [{**BOX, "segmentation": RLE}])
    for flags in ([SIZE], ["--split", "val"]):
        done = browse(*overrides, *flags, config=COCO)
        assert done.status == 0, done.stderr


def test_unreadable_images_are_skipped_and_listed(browse, tmp_path, tiny_coco):
    root = tmp_path / "datasets"
    shutil.copytree(tiny_coco, root)
    photos = sorted((root / "coco" / "train2017").glob("*.jpg"))
    photos[0].write_bytes(photos[0].read_bytes()[:500])
    photos[1].write_bytes(b"")
    Image.new("RGB", (10, 10)).save(photos[2])
    for flags in ([], ["--no-augmentation"], ["--html"]):
        done = browse(f"data.root={root}", SIZE, "--all", *flags, config=COCO)
        assert done.status == 1 and "3 images" in done.stdout
        assert all(str(photo) in done.stdout for photo in photos[:3])
        assert str(photos[3]) not in done.stdout
        index = json.loads((tmp_path / "out" / "browse.json").read_text())
        assert (index["images"], len(index["failures"])) == (3, 3)
    page = (tmp_path / "out" / "index.html").read_text()
    assert photos[0].name in page.split('<ul class="notes">')[1]

    kept = sorted((tmp_path / "out").iterdir())
    for photo in photos:
        photo.write_bytes(b"")
    for flags in ([], ["--html"]):
        done = browse(f"data.root={root}", SIZE, *flags, config=COCO)
        assert done.status == 2 and "none of 24 images can be shown" in done.stderr
        assert sorted((tmp_path / "out").iterdir()) == kept


def test_earlier_pages_are_replaced_and_other_files_kept(browse, tmp_path, tiny):
    out = tmp_path / "out"
    assert browse(*tiny, "--count", 9).status == 0
    assert browse(*tiny, "--count", 1).status == 0  # replaces the earlier pages
    assert sorted(p.name for p in out.iterdir()) == ["browse.json", "page_001.jpg"]
    (out / "mine.txt").write_text("mine")
    for prepare in (None, (out / "browse.json").unlink):
        if prepare:
            prepare()
        done = browse(*tiny, "--count", 1)
        assert done.status == 2 and f"--output {out}" in done.stderr
        assert (out / "mine.txt").read_text() == "mine" and (out / "page_001.jpg").is_file()
    shutil.rmtree(out)
    out.write_text("a file")
    assert browse(*tiny).status == 2 and out.read_text() == "a file"
    out.unlink()
    out.mkdir()  # empty
    assert browse(*tiny, "--count", 1).status == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--count", "0"], "'0' is not an integer from 1 to"),
        (["--start", "-1"], "-1"),
        (["--count", "1", "--all"], "not allowed with"),
        (["--split", "val", "--start", "2"], "val has only 2 images"),
        (["dataloader.train.dataset.names=x_train"], "names=x_train is not a dataset"),
        (["data.rot=x"], "data.rot"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_invalid_arguments_are_errors_and_write_nothing(browse, tmp_path, tiny, args, words):
    done = browse(*tiny, *args)
    assert done.status == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_start_may_lie_many_epochs_into_the_run(browse, tmp_path, tiny):
    assert browse(*tiny, "--start", 10**9 + 1, "--count", 1, "--html").status == 0
    text = (tmp_path / "out" / "index.html").read_text()
    assert "#1000000001" in text and "iteration 500000000" in text


@pytest.mark.slow
def test_cityscapes_images_are_shown(tmp_path, tiny_cityscapes):
    """A separate process is needed: Detectron2 registers its datasets when it is imported."""
    config = REPO / "configs/cityscapes/mask_rcnn_r50_fpn_1x_cityscapes.py"
    args = ["--config-file", config, "--html", "--all", "--output", tmp_path / "out"]
    run = subprocess.run(
        [sys.executable, REPO / "tools/browse_dataset.py", *args],
        env={**os.environ, "DETECTRON2_DATASETS": str(tiny_cityscapes)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "2 images, 4 annotated objects, 4 in the model's input" in run.stdout
    text = (tmp_path / "out" / "index.html").read_text()
    assert text.count(">car</b>") == text.count(">person</b>") == 4


def test_real_photos_are_shown(browse, tmp_path, real_balloon):
    done = browse(f"data.root={real_balloon.parent}", "--count", 3)
    assert done.status == 0 and "3 images" in done.stdout


def test_help_imports_no_heavy_libraries(repo):
    run = subprocess.run(
        [sys.executable, "-Ximporttime", repo / "tools/browse_dataset.py", "--help"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "--no-augmentation" in run.stdout
    modules = {line.rsplit("|", 1)[1].strip() for line in run.stderr.splitlines() if "|" in line}
    assert "argparse" in modules and not modules & {"torch", "detectron2", "cv2", "numpy"}


def test_joined_datasets_are_labeled_with_their_own_classes(browse, tmp_path):
    """Class ids that differ between the files are matched by name, as in training."""
    first = coco(tmp_path / "one", [{**OBJECT, "category_id": 2}], ["cat", "dog"])
    second = coco(tmp_path / "two", [OBJECT], ["dog", "cat"])
    second = [o.replace("coco_train", "coco_val") for o in second if "coco_train" in o]
    first = [o for o in first if "coco_train" in o]
    names = "dataloader.train.dataset.names=[coco_train,coco_val]"
    done = browse("--html", "--count", 2, "--no-augmentation", *first, *second, names, config=COCO)
    assert done.status == 0, done.stderr
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count(">dog</b>") > 0 and ">cat</b>" not in page


def test_pasted_objects_have_their_source_in_the_title(browse, tmp_path):
    paste = "d2ext.data.loading.augment.copy_paste.CopyPaste"
    override = f"+dataloader.train.copy_paste={{_target_: {paste}, prob: 1}}"
    data = coco(tmp_path / "data", [OBJECT])
    done = browse("--html", "--count", 12, *data, override, config=COCO)
    assert done.status == 0, done.stderr
    page = next((tmp_path / "out").glob("*.html")).read_text()
    assert 0 < page.count("with objects of photo.png</strong>") < 12
