"""Train, resume, evaluate and predict in tiles with the real commands."""

import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from d2ext.data.formats.coco import to_coco
from d2ext.data.formats.via import read_via
from tests.conftest import REPO, checkout_env

CONFIG = REPO / "configs/custom/mask_rcnn_lite0_fpn.py"
STYLE = REPO / "tests/detectron2_style/configs"
CELL = 160  # pixels of the longer side of each photo in a mosaic
TILES = ["data.tiles=128", "data.tile_overlap=0.25"]  # 9 of them per mosaic of 320 x 320
QUICK = [
    *("train.max_iter=4", "train.reference_batch_size=2", "train.log_period=1"),
    *("train.checkpointer.period=2", "train.eval_period=4", "train.validation_loss=True"),
    *("dataloader.train.num_workers=0", "dataloader.val.num_workers=0"),
    "dataloader.train.mapper.augmentations[0].short_edge_length=96",
    "dataloader.val.mapper.augmentations[0].short_edge_length=128",
]


@pytest.fixture(scope="module")
def mosaics(tiny_root, tmp_path_factory):
    """Write mosaics of four tiny balloon photos, and COCO files; return their overrides."""
    folder = tmp_path_factory.mktemp("mosaics")
    overrides = []
    for split, count in (("train", 3), ("val", 2)):
        source = tiny_root / "balloon" / split
        photos = read_via(source / "via_region_data.json", source, ["balloon"])
        records = [_mosaic(photos, k, folder / f"{split}{k}.png") for k in range(count)]
        file = folder / f"{split}.json"
        file.write_text(json.dumps(to_coco(records, ["balloon"], folder)))
        overrides += [f"data.{split}.json={file}", f"data.{split}.images={folder}"]
    return overrides


def _mosaic(photos, number, file):
    canvas, annotations = Image.new("RGB", (2 * CELL, 2 * CELL)), []
    for cell in range(4):
        corner = CELL * (cell % 2), CELL * (cell // 2)
        photo = photos[(number + cell) % len(photos)]
        with Image.open(photo["file_name"]) as image:
            canvas.paste(image, corner)
        for a in photo["annotations"]:
            polygons = [[v + corner[i % 2] for i, v in enumerate(p)] for p in a["segmentation"]]
            box = [v + corner[i % 2] for i, v in enumerate(a["bbox"])]
            annotations.append({**a, "bbox": box, "segmentation": polygons})
    canvas.save(file)
    size = {"height": 2 * CELL, "width": 2 * CELL}
    return {"file_name": str(file), "image_id": number + 1, **size, "annotations": annotations}


def _results(folder):
    return json.loads((folder / "results.json").read_text())["last"]["results"]


@pytest.mark.slow
def test_a_run_in_tiles(train_net, d2ext_command, mosaics, tmp_path):
    """Workers and a resume change nothing; later commands find the tiles in config.yaml."""
    done = train_net("--work-dir", tmp_path / "a", *mosaics, *QUICK, *TILES, config=CONFIG)
    assert done.status == 0, done.stderr
    lines = done.stdout
    plan = r"tiles +128 pixels, overlap 32: 3 photos -> 27 tiles, \d+ of them without objects"
    assert re.search(plan, lines), lines
    assert "custom_val: 2 photos -> 18 tiles, joined" in lines
    assert re.search(r"run +\d+ tiles", lines) and "val loss    custom_val: on " in lines
    results = _results(tmp_path / "a")
    assert "custom_val/coco/segm/AP" in results
    metrics = (tmp_path / "a" / "metrics.json").read_text()
    assert "custom_val/validation_loss/total_loss" in metrics

    # Continue from the second iteration with two workers.
    flags = ["--work-dir", tmp_path / "b", "--no-validate", "--resume-from"]
    flags += [tmp_path / "a" / "model_0000001.pth", *mosaics, *QUICK, *TILES]
    done = train_net(*flags, "dataloader.train.num_workers=2", config=CONFIG)
    assert done.status == 0, done.stderr
    assert "Since the checkpoint" not in done.stdout + done.stderr
    a, b = (torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in "ab")
    assert a["model"].keys() == b["model"].keys()
    assert all(torch.equal(value, b["model"][key]) for key, value in a["model"].items())

    results = {key: value for key, value in results.items() if "validation_loss" not in key}
    done = d2ext_command("evaluate", tmp_path / "a", "--weights", "last")
    assert done.status == 0, done.stderr
    assert _results(tmp_path / "a" / "eval") == pytest.approx(results, nan_ok=True)
    shutil.rmtree(tmp_path / "a" / "eval")
    evaluate = ["evaluate", tmp_path / "a", "--weights", "last", "--num-gpus", "2"]
    subprocess.run(
        [sys.executable, "-m", "d2ext", *evaluate],
        env=checkout_env(),
        capture_output=True,
        check=True,
    )
    assert _results(tmp_path / "a" / "eval") == pytest.approx(results, nan_ok=True)
    evaluated = json.loads((tmp_path / "a" / "predictions" / "custom_val.json").read_text())
    photos = [f"{mosaics[3].partition('=')[2]}/val{k}.png" for k in range(2)]
    flags = ["--output", tmp_path / "out", "--score-threshold", "0", "--weights", "last"]
    done = d2ext_command("predict", tmp_path / "a", *flags, *photos)
    assert done.status == 0, done.stderr
    predicted = json.loads((tmp_path / "out" / "predictions.json").read_text())
    ours, theirs = (
        np.array(sorted([r["image_id"], r["score"], *r["bbox"]] for r in found))
        for found in (predicted, evaluated)
    )
    assert len(ours) and ours.shape == theirs.shape and np.allclose(ours, theirs, atol=1e-3)
    assert {tuple(r["segmentation"]["size"]) for r in predicted} == {(2 * CELL, 2 * CELL)}

    for split in ("train", "val"):
        done = d2ext_command("browse", tmp_path / "a", "--split", split, "--html", "--count", "3")
        assert done.status == 0, done.stderr
        page = next(tmp_path.glob(f"work_dirs/browse/*_{split}/index.html")).read_text()
        assert "tile at " in page


@pytest.mark.nightly
@pytest.mark.slow
def test_tta_in_tiles(train_net, mosaics, tmp_path):
    short = [*mosaics, *QUICK, *TILES, "train.max_iter=1"]
    done = train_net("--work-dir", tmp_path / "a", "--no-validate", *short, config=CONFIG)
    assert done.status == 0, done.stderr
    flags = ["--work-dir", tmp_path / "a", "--eval-only", "--weights", "last", "--tta"]
    sizes = "dataloader.tta.min_sizes=[96, 128]"
    done = train_net(*flags, *short, sizes, config=CONFIG)
    assert done.status == 0, done.stderr
    assert "custom_val/coco/segm/AP" in _results(tmp_path / "a" / "eval")


def _dry(train_net, *overrides, config=CONFIG):
    return train_net("--dry-run", "--work-dir", "run", *overrides, config=config)


def test_the_plan_names_objects_that_tiles_lose(train_net, mosaics):
    """Tiles of 32 pixels: most balloons are larger."""
    done = _dry(train_net, *mosaics, *QUICK, "data.tiles=32", "data.tile_min_share=0.9")
    assert done.status == 0, done.stderr
    larger = r"tiles +note: \d+ of \d+ objects are larger than a tile .* such as one of \d+ x \d+"
    assert re.search(larger + r" pixels in .*train\d\.png\n", done.stdout)
    assert re.search(r"are whole in no tile; a larger data\.tile_overlap", done.stdout)
    lost = r"are in no tile with data\.tile_min_share=0\.9 of the area, such as in .*png, and not"
    assert re.search(lost, done.stdout), done.stdout


def test_the_plan_names_large_objects_of_a_test_set(train_net, mosaics):
    """The photos of the training set, whose objects are larger."""
    val = [text.replace("data.train", "data.val") for text in mosaics if "data.train" in text]
    done = _dry(train_net, *mosaics, *val, *QUICK, "data.tiles=32")
    assert done.status == 0, done.stderr
    assert re.search(r"custom_val: note: \d+ of \d+ objects are larger than a tile", done.stdout)


def test_tiles_set_by_code_count(mosaics):
    """The config has been loaded without them; `data.tiles` is read before the datasets are."""
    import d2ext
    from d2ext.preflight.plan import plan_run

    cfg = d2ext.get_config("custom/mask_rcnn_lite0_fpn.py", [*mosaics, *QUICK])
    cfg.data.tiles = 128
    plan = plan_run(cfg, "tiles", validate=False)
    assert any("3 photos -> 27 tiles" in line for line in plan.lines)
    cfg.data.tiles = None
    plan = plan_run(cfg, "tiles", validate=False)
    assert not any(line.startswith("tiles") for line in plan.lines)


@pytest.mark.parametrize("filter_empty", [True, False])
def test_an_epoch_is_every_tile_once(mosaics, filter_empty):
    """Unless tiles have no objects."""
    import d2ext
    from d2ext.preflight.plan import plan_run

    options = ["data.auto=False", "train.reference_batch_size=4", "train.max_epochs=5"]
    options.append(f"dataloader.train.dataset.filter_empty={filter_empty}")
    cfg = d2ext.get_config("custom/mask_rcnn_lite0_fpn.py", [*mosaics, *TILES, *options])
    lines = "\n".join(plan_run(cfg, "tiles", validate=False).lines)
    empty = int(re.search(r"3 photos -> 27 tiles, (\d+) of them without objects", lines)[1])
    tiles = 27 - empty if filter_empty else 27
    dropped = f" ({empty} without objects dropped, filter_empty)" if filter_empty else ""
    found = re.search(
        r"run +(\d+ tiles.*), 4 per step, on 1 worker: (.+) epochs = (\d+) iterations", lines
    )
    assert empty and found[1] == f"{tiles} tiles{dropped}"
    iterations = int(found[3])
    assert iterations == math.ceil(5 * tiles / 4)
    assert float(found[2]) == pytest.approx(4 * iterations / tiles, abs=1e-3)


def test_a_config_of_detectron2_trains_in_tiles(train_net, style):
    """Such a config has no section `data`; its mapper is Detectron2's DatasetMapper."""
    done = train_net("--work-dir", "run", "data.tiles=48", config=STYLE / "mask_rcnn.py")
    assert done.status == 0, done.stderr
    assert "6 photos -> 36 tiles" in done.stdout and "replaces Detectron2's" in done.stdout
    assert "2 photos -> 12 tiles, joined" in done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "detr",
            r"data\.tiles=48: dataloader\.train\.mapper \(DetrMapper\) does not read tiles; set",
        ),
        ("panoptic_fpn", r"data\.tiles=48 joins only objects, but the model \(PanopticFPN\)"),
    ],
)
def test_what_cannot_be_cut_is_named(train_net, style, name, message):
    done = _dry(train_net, "data.tiles=48", config=STYLE / f"{name}.py")
    assert done.status == 2 and re.search(message, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.tiles=20", "data.tiles=20: takes int or null, 32 or more"),
        ("data.tile_overlap=1", "data.tile_overlap=1: takes int or float, above 0 and below 0.9"),
        ("data.tile_min_share=2", "data.tile_min_share=2: takes int or float, 0 to 1"),
    ],
)
def test_values_are_checked(train_net, override, message):
    done = _dry(train_net, override)
    assert done.status == 2 and message in done.stderr, done.stderr
