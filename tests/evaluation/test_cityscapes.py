"""Cityscapes' AP, compared with its scripts, which read files, and with hand-worked examples."""

import dataclasses
import importlib
import logging
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from PIL import Image

from d2ext.errors import UserError
from d2ext.evaluation.cityscapes import CityscapesMetric
from d2ext.evaluation.instances import Detections, GroundTruth
from tests.evaluation.columns import ground_truth
from tests.evaluation.repeated import assert_close, one_draw, repeated_images

SCRIPTS = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"
CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
IDS = {"person": 24, "car": 26}
HEIGHT, WIDTH = 96, 192


@pytest.fixture(scope="module")
def scripts():
    pytest.importorskip("pyquaternion", reason="Cityscapes' scripts need it: pip install it")
    return importlib.import_module(SCRIPTS)


def _layout(root: Path, images: list[np.ndarray], classes: tuple[str, ...] = CLASSES):
    """Write ground truth from arrays of instance ids; the images themselves are never read."""
    folder = root / "gtFine" / "val" / "town"
    folder.mkdir(parents=True)
    names = []
    for i, ids in enumerate(images):
        stem = f"town_{i:06d}_000019"
        Image.fromarray(ids.astype(np.uint16)).save(folder / f"{stem}_gtFine_instanceIds.png")
        names.append(str(root / "leftImg8bit" / "val" / "town" / f"{stem}_leftImg8bit.png"))
    return dataclasses.replace(ground_truth([], classes, len(images)), file_names=names)


def _road() -> np.ndarray:
    return np.full((HEIGHT, WIDTH), 7)


def _mask(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = True
    return mask


def _found(rows: list[tuple[int, str, np.ndarray, float]]) -> Detections:
    """Return detections from (image, class, mask, score)."""
    return Detections(
        image=np.array([r[0] for r in rows], dtype=np.int64),
        label=np.array([CLASSES.index(r[1]) for r in rows], dtype=np.int64),
        boxes=np.zeros((len(rows), 4)),
        scores=np.array([r[3] for r in rows], dtype=float),
        masks=[pycocotools.mask.encode(np.asfortranarray(r[2], dtype=np.uint8)) for r in rows],
    )


def _official(scripts, t: GroundTruth, rows: list, folder: Path, monkeypatch) -> dict[str, float]:
    """Write the files that the scripts read, and return the scripts' results."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # removed in numpy 2.4
    # The scripts write matches.json to the current folder, and fail on numpy integers.
    monkeypatch.setattr(scripts, "writeDict2JSON", lambda content, file: None)
    results = folder / "results"
    results.mkdir()
    pairs = []
    for i, name in enumerate(t.file_names):
        stem = Path(name).stem.removesuffix("_leftImg8bit")
        lines = []
        for n, (image, label, mask, score) in enumerate(rows):
            if image == i:
                png = f"{stem}_{n}.png"
                Image.fromarray(mask.astype(np.uint8) * 255).save(results / png)
                lines.append(f"{png} {scripts.name2label[label].id} {score}\n")
        (results / f"{stem}.txt").write_text("".join(lines))
        gt = Path(name).parents[3] / "gtFine/val/town" / f"{stem}_gtFine_instanceIds.png"
        pairs.append((str(results / f"{stem}.txt"), str(gt)))
    for setting, value in dict(
        predictionPath=str(results),
        JSONOutput=False,
        quiet=True,
        gtInstancesFile=str(folder / "gtInstances.json"),
    ).items():
        monkeypatch.setattr(scripts.args, setting, value)
    monkeypatch.setattr(scripts.args, "instLabels", [])
    averages = scripts.evaluateImgLists(*map(list, zip(*pairs, strict=True)), scripts.args)
    averages = averages["averages"]
    numbers = {"segm/AP": averages["allAp"], "segm/AP50": averages["allAp50%"]}
    for c in CLASSES:
        of_class = averages["classes"][c]
        numbers |= {f"segm/AP-{c}": of_class["ap"], f"segm/AP50-{c}": of_class["ap50%"]}
    return {key: 100 * float(value) for key, value in numbers.items()}


def _random(seed: int) -> tuple[list[np.ndarray], list[tuple]]:
    """Return images with void, groups and objects below 100 pixels, and detections.

    Some masks are empty, and some scores are equal.
    """
    rng = np.random.default_rng(seed)

    def box() -> np.ndarray:
        x, y = rng.integers(-5, WIDTH - 10), rng.integers(-5, HEIGHT - 10)
        return _mask(x, y, *rng.integers(4, 60, 2))

    images, rows = [], []
    for i in range(3):
        ids = _road()
        for n in range(int(rng.integers(0, 12))):
            name = ("person", "car")[n % 2]
            mask = box()
            ids[mask] = (0, IDS[name], IDS[name] * 1000 + n, IDS[name] * 1000 + n)[rng.integers(4)]
            for _ in range(int(rng.integers(0, 3))):
                shifted = np.roll(mask, rng.integers(-4, 5, 2), axis=(0, 1))
                rows.append((i, name, shifted, round(float(rng.random()), 1)))
        rows += [(i, "person", box(), 0.55), (i, "bus", box(), 0.9)]
        rows += [(i, "car", _mask(0, 0, 0, 0), 1.0)]
        images.append(ids)
    return images, rows


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
def test_results_equal_those_of_the_scripts(scripts, tmp_path, monkeypatch, seed):
    images, rows = _random(seed)
    t = _layout(tmp_path, images)
    ours = CityscapesMetric()(t, _found(rows))
    theirs = _official(scripts, t, rows, tmp_path, monkeypatch)
    assert 0 < theirs["segm/AP50"] < 100
    assert ours == pytest.approx(theirs, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_draws_of_images_equal_datasets_of_these_images(scripts, tmp_path, seed):
    images, rows = _random(seed)
    t, found = _layout(tmp_path / "all", images), _found(rows)
    metric = CityscapesMetric()
    assert_close(one_draw(metric, t, found, [1, 1, 1]), metric(t, found))
    draw = [(2, 0, 1), (3, 2, 1), (0, 0, 2)][seed % 3]
    _, repeated = repeated_images(t, found, list(draw))
    several = _layout(tmp_path / "drawn", [images[i] for i in np.repeat(range(3), draw)])
    assert_close(one_draw(metric, t, found, list(draw)), metric(several, repeated))


def test_perfect_masks_score_exactly_100(scripts, tiny_cityscapes):
    """Each image has a car and a person; other classes have no result."""
    folder = tiny_cityscapes / "cityscapes" / "leftImg8bit" / "train" / "town"
    files = sorted(map(str, folder.iterdir()))
    t = dataclasses.replace(ground_truth([], CLASSES, len(files)), file_names=files)
    rows = []
    for i, file in enumerate(files):
        file = file.replace("/leftImg8bit/", "/gtFine/")
        ids = np.asarray(Image.open(file.replace("_leftImg8bit", "_gtFine_instanceIds")))
        rows += [(i, c, ids == 1000 * number, 0.1 + i / 10) for c, number in IDS.items()]
    numbers = CityscapesMetric()(t, _found(rows))
    assert {k for k, v in numbers.items() if v == 100} == {"segm/AP", "segm/AP50"} | {
        f"segm/{name}-{c}" for name in ("AP", "AP50") for c in IDS
    }
    assert all(math.isnan(v) for v in numbers.values() if v != 100)
    half = CityscapesMetric()(t, _found([row for row in rows if row[1] == "car"]))
    assert half["segm/AP"] == 50 and half["segm/AP-person"] == 0
    moved = str(tiny_cityscapes / "cityscapes" / "gtFine" / "train")
    names = [f"town/{Path(file).name}" for file in files]  # as in COCO files
    by_folder = CityscapesMetric(gt_dir=moved)(
        dataclasses.replace(t, file_names=names), _found(rows)
    )
    assert by_folder == pytest.approx(numbers, nan_ok=True)


def test_detections_on_void_are_ignored(scripts, tmp_path):
    """A false positive with a higher score than the hit is ignored on void, but not on the road.

    On the road, the curve goes from recall 0 at precision 0 to recall 1 at precision 1/2, and the
    scripts take the mean of both ends of a step: 1/4.
    """
    ids = _road()
    ids[_mask(20, 20, 40, 40)] = 26001
    ids[_mask(100, 0, 60, 90)] = 0
    t = _layout(tmp_path, [ids])
    hit = (0, "car", _mask(20, 20, 40, 40), 0.5)
    assert CityscapesMetric()(t, _found([hit]))["segm/AP"] == 100
    on_void = (0, "car", _mask(110, 10, 30, 30), 0.9)
    assert CityscapesMetric()(t, _found([hit, on_void]))["segm/AP"] == 100
    on_road = (0, "car", _mask(70, 10, 25, 30), 0.9)
    assert CityscapesMetric()(t, _found([hit, on_road]))["segm/AP"] == 25


def test_no_detections_and_no_objects(scripts, tmp_path):
    ids = _road()
    ids[_mask(20, 20, 40, 40)] = 26001
    t = _layout(tmp_path / "a", [ids])
    nothing = dataclasses.replace(_found([]), masks=None)
    for none in (_found([]), nothing):
        numbers = CityscapesMetric()(t, none)
        assert numbers["segm/AP"] == numbers["segm/AP50-car"] == 0
        assert math.isnan(numbers["segm/AP-bus"])
    empty = _layout(tmp_path / "b", [_road()])
    for found in (_found([]), _found([(0, "car", _mask(0, 0, 20, 20), 0.5)])):
        assert all(map(math.isnan, CityscapesMetric()(empty, found).values()))


def test_the_settings_of_the_scripts_and_the_folder_do_not_change(
    scripts, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "d2ext")
    monkeypatch.chdir(tmp_path)
    t = _layout(tmp_path, [_road()])
    before, files = list(scripts.args.instLabels), set(tmp_path.rglob("*"))
    CityscapesMetric()(t, _found([(0, "car", _mask(0, 0, 20, 20), 0.5)]))
    assert scripts.args.instLabels == before
    assert set(tmp_path.rglob("*")) == files
    assert "bicycle" in caplog.text


@pytest.mark.parametrize("per_class", [True, False])
def test_keys_equal_those_of_the_results(scripts, tmp_path, per_class):
    metric = CityscapesMetric(per_class=per_class)
    results = metric(_layout(tmp_path, [_road()], ("car", "bus")), _found([]))
    assert metric.keys(("car", "bus"), ["bbox", "segm"]) == set(results)
    with pytest.raises(UserError, match="no masks to evaluate; use CocoMetric"):
        metric.keys(("car",), ["bbox"])
    with pytest.raises(UserError, match=r"'balloon' is not a Cityscapes class \(person, "):
        metric.keys(("car", "balloon"), ["bbox", "segm"])


def test_errors_name_the_problem(scripts, tmp_path):
    t = _layout(tmp_path, [_road()])
    car = _found([(0, "car", _mask(0, 0, 20, 20), 0.5)])
    with pytest.raises(UserError, match="no masks"):
        CityscapesMetric()(t, dataclasses.replace(car, masks=None))
    small = pycocotools.mask.encode(np.zeros((50, 60), dtype=np.uint8, order="F"))
    with pytest.raises(UserError, match=r"a mask has 60 x 50 pixels, .* has 192 x 96"):
        CityscapesMetric()(t, dataclasses.replace(car, masks=[small]))
    for names in (["0.jpg"], ["/a/b/c/d/e.png"]):
        with pytest.raises(UserError, match="does not exist; keep Cityscapes' layout, or set gt_d"):
            CityscapesMetric()(dataclasses.replace(t, file_names=names), car)
    shutil.rmtree(tmp_path / "gtFine")
    with pytest.raises(UserError, match=r"gtFine/val/town/.*_gtFine_instanceIds.png, the ground"):
        CityscapesMetric()(t, car)


def test_without_the_scripts_the_error_says_how_to_install_them(monkeypatch):
    for package in ("cityscapesscripts", "pyquaternion"):
        with monkeypatch.context() as patch:
            for name in [n for n in sys.modules if n.startswith("cityscapesscripts")]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, package, None)  # hides it from imports
            with pytest.raises(UserError, match="pip install cityscapesscripts pyquaternion$"):
                CityscapesMetric()


@pytest.mark.parametrize("settings", [dict(gt_dir=3), dict(per_class="no")])
def test_arguments_are_checked_on_creation(settings):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=f"^CityscapesMetric: {name}={value!r}; give"):
        CityscapesMetric(**settings)


def test_a_metric_from_a_config(scripts, tmp_path):
    metric = instantiate(L(CityscapesMetric)(gt_dir=None))
    assert math.isnan(metric(_layout(tmp_path, [_road()]), _found([]))["segm/AP"])
