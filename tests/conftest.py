"""Fixtures shared by all tests."""

import gc
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data sets that tests make do not fill the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2EXT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def real_balloon() -> Path:
    """The folder with the real balloon photos; skips where they are not at hand."""
    root = Path(os.environ.get("DETECTRON2_DATASETS") or REPO / "datasets") / "balloon"
    if not (root / "train" / "via_region_data.json").is_file() or (root / "SYNTHETIC").exists():
        pytest.skip(f"needs the real balloon photos in {root} (set DETECTRON2_DATASETS)")
    return root


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a tiny synthetic balloon set: 6 + 2 images of 160 pixels."""
    from d2ext.data.synthetic import draw_balloons

    root = tmp_path_factory.mktemp("datasets")
    draw_balloons(root / "balloon", num_train=6, num_val=2, long_side=160, seed=0)
    return root


@pytest.fixture(scope="session")
def tiny_coco(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with COCO's layout and 80 classes: the tiny balloons, as sports balls."""
    from detectron2.data import MetadataCatalog

    from d2ext.data.formats.coco import to_coco
    from d2ext.data.formats.via import read_via

    root = tmp_path_factory.mktemp("datasets")
    classes = MetadataCatalog.get("coco_2017_val").thing_classes
    (root / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        images = root / "coco" / f"{split}2017"
        shutil.copytree(tiny_root / "balloon" / split, images)
        records = read_via(images / "via_region_data.json", images, ["balloon"])
        for annotation in (a for r in records for a in r["annotations"]):
            annotation["category_id"] = classes.index("sports ball")
        content = json.dumps(to_coco(records, classes, images))
        (root / "coco" / "annotations" / f"instances_{split}2017.json").write_text(content)
    return root


@pytest.fixture(scope="session")
def tiny_cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with Cityscapes' layout: 2 + 1 images of 192 x 96, a car and a person each."""
    import numpy as np
    from PIL import Image, ImageDraw

    root = tmp_path_factory.mktemp("datasets")
    shapes = {"car": [20, 30, 90, 80], "person": [110, 20, 140, 85]}  # x0, y0, x1, y1
    ids = {"car": 26, "person": 24}
    for split, count in (("train", 2), ("val", 1)):
        photos = root / "cityscapes" / "leftImg8bit" / split / "town"
        truth = root / "cityscapes" / "gtFine" / split / "town"
        photos.mkdir(parents=True)
        truth.mkdir(parents=True)
        for i in range(count):
            photo, objects = Image.new("RGB", (192, 96), (90, 90, 100 + i)), []
            labels = Image.new("L", photo.size, 7)
            instances = np.full((96, 192), 7, dtype=np.uint16)  # Pillow's paste spoils 16 bits
            for name, (x0, y0, x1, y1) in shapes.items():
                polygon = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
                objects.append({"label": name, "polygon": polygon})
                ImageDraw.Draw(photo).rectangle((x0, y0, x1, y1), fill=(200, 40 * i, 30))
                labels.paste(ids[name], (x0, y0, x1, y1))
                instances[y0:y1, x0:x1] = ids[name] * 1000
            stem = f"town_{i:06d}_000019"
            photo.save(photos / f"{stem}_leftImg8bit.png")
            labels.save(truth / f"{stem}_gtFine_labelIds.png")
            Image.fromarray(instances).save(truth / f"{stem}_gtFine_instanceIds.png")
            described = {"imgHeight": 96, "imgWidth": 192, "objects": objects}
            (truth / f"{stem}_gtFine_polygons.json").write_text(json.dumps(described))
    return root


@pytest.fixture(scope="session")
def tiny(tiny_root: Path) -> list[str]:
    """Overrides that make the lite0 recipe a matter of a second: tiny data, images and batch."""
    return [
        f"data.root={tiny_root}",
        "train.max_iter=4",
        "train.reference_batch_size=2",
        "train.log_period=1",
        "dataloader.train.num_workers=0",
        "dataloader.val.num_workers=0",
        "dataloader.train.mapper.augmentations[0].short_edge_length=96",
        "dataloader.val.mapper.augmentations[0].short_edge_length=96",
    ]


@dataclass(frozen=True)
class Finished:
    """How a tool ended."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def run_tool(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs a tool of `tools/` in this process (a new one costs seconds of imports)."""

    def run(name: str, *args: str | Path) -> Finished:
        file = REPO / "tools" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, file)
        tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        before, sys.argv = sys.argv, list(map(str, [file, *args]))
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as e:
                tool.run_tool(tool.main)
        finally:
            sys.argv = before
            gc.unfreeze()  # what d2ext.startup does for a process that runs one tool
            gc.enable()
            if register := sys.modules.get("d2ext.data.register"):
                register.unregister_datasets()
        out = capsys.readouterr()
        return Finished(e.value.code, out.out, out.err)

    return run


@pytest.fixture
def train_net(run_tool: Callable[..., Finished]) -> Callable[..., Finished]:
    """Runs tools/train_net.py in this process."""

    def run(*args: str | Path, config: str | Path = REPO / LITE0) -> Finished:
        return run_tool("train_net", "--config-file", config, *args)

    return run
