"""Predictions as annotations for a tool: each format is read again and gives the same objects."""

import json
import pickle
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image

import d2ext
from d2ext.data.convert import convert_to_coco
from d2ext.data.formats.coco import coco_classes, read_coco
from d2ext.errors import UserError
from d2ext.predict.names import ANNOTATIONS
from d2ext.predict.outcomes import Outcome, outcomes_of
from d2ext.predict.sources import find_inputs
from d2ext.predict.writers import predict_files
from tests.conftest import LITE0, REPO

CLASSES = ["red ball", "hund ü"]
# Two photos have the same name, and one has no objects; sizes tell the model which one it sees.
PHOTOS = {"a b/ü 1.jpg": (120, 160), "c/ü 1.jpg": (90, 110), "c/none.png": (40, 30)}


def _ring_and_part(pixels):
    cv2.circle(pixels, (60, 60), 40, 1, -1)
    cv2.circle(pixels, (60, 60), 15, 0, -1)
    pixels[80:120, 120:160] = 1


def _large(pixels):
    cv2.ellipse(pixels, (50, 40), (30, 20), 30, 0, 360, 1, -1)


def _thin(pixels):
    pixels[:, 109] = 1


def _pixel(pixels):
    pixels[89, 3] = 1


# Objects by the size of their photo: class, score, and a function that draws the mask.
FOUND = {
    (120, 160): [(0, 0.9, _ring_and_part), (0, 0.3, _large)],
    (90, 110): [(0, 0.8, _large), (1, 0.7, _thin), (1, 0.625, _pixel)],
    (40, 30): [],
}


def _mask(draw, size):
    pixels = np.zeros(size, np.uint8)
    draw(pixels)
    return pixels


class Model(torch.nn.Module):
    """Return the objects in FOUND, with or without their masks."""

    def __init__(self, with_masks=True):
        super().__init__()
        self.with_masks = with_masks

    def forward(self, inputs):
        return [{"instances": self._found((x["height"], x["width"]))} for x in inputs]

    def _found(self, size):
        found = Instances(size)
        masks = np.array([_mask(draw, size) for _, _, draw in FOUND[size]]).reshape(-1, *size)
        boxes = [_box(mask) for mask in masks]
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.tensor([score for _, score, _ in FOUND[size]])
        found.pred_classes = torch.tensor([label for label, _, _ in FOUND[size]]).long()
        if self.with_masks:
            found.pred_masks = torch.tensor(masks).bool()
        return found


def _box(mask):
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.fixture
def photos(tmp_path):
    for name, (height, width) in PHOTOS.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height)).save(path)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def predictor():
    cfg = d2ext.load_config(REPO / LITE0)

    def make(with_masks=True, **arguments):
        return d2ext.Predictor(Model(with_masks), cfg, CLASSES, **arguments)

    cfg.model.roi_heads.num_classes = 2
    return make


def written(predictor, photos, kind, output="out", **arguments):
    """Write annotations of the photos; return their file or folder."""
    output = Path(output)
    predict_files(predictor, [photos], output, annotations=kind, overlays=False, **arguments)
    return output / ANNOTATIONS[kind]


def read_again(kind, file, photos):
    """Return {photo: [(class, box x0 y0 x1 y1, segmentation), ...]} as d2ext reads the file."""
    if kind != "coco":
        convert_to_coco(kind.removesuffix("_seg"), file, photos, file.with_name("read.json"))
        file = file.with_name("read.json")
    names = coco_classes(file)
    return {
        str(Path(record["file_name"]).relative_to(photos)): [
            (names[a["category_id"]], a["bbox"], a.get("segmentation"))
            for a in record["annotations"]
        ]
        for record in read_coco(file, photos)[0]
    }


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_each_format_is_read_again(predictor, photos, kind, caplog):
    """Objects below the score threshold are absent, photos without objects are not."""
    caplog.set_level("INFO", "d2ext")
    file = written(predictor(), photos, kind)
    read = read_again(kind, file, photos)
    assert set(read) == set(PHOTOS)
    for name, size in PHOTOS.items():
        expected = [(CLASSES[i], _mask(draw, size)) for i, s, draw in FOUND[size] if s >= 0.5]
        assert len(read[name]) == len(expected)
        for label, mask in expected:
            rle = mask_util.encode(np.asfortranarray(mask))
            same = [_iou(box, shape, rle, kind) for c, box, shape in read[name] if c == label]
            assert max(same) >= 0.95
    assert f"{file}: 3 photos, 4 objects" in caplog.text
    assert ("points per outline" in caplog.text) is (kind not in ("yolo", "voc"))
    assert f"image names are relative to {photos}" in caplog.text


def _iou(box, segmentation, rle, kind):
    """Return the IoU of an object with a mask; of the boxes for formats that have only boxes."""
    if kind in ("yolo", "voc"):
        assert not segmentation
        x0, y0, x1, y1 = box
        return mask_util.iou([[x0, y0, x1 - x0, y1 - y0]], [mask_util.toBbox(rle)], [0])[0, 0]
    drawn = mask_util.merge(mask_util.frPyObjects(segmentation, *rle["size"]))
    return mask_util.iou([drawn], [rle], [0])[0, 0]


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_models_without_masks_write_boxes(predictor, photos, kind):
    read = read_again(kind, written(predictor(with_masks=False), photos, kind), photos)
    for name, size in PHOTOS.items():
        boxes = [_box(_mask(draw, size)) for _, score, draw in FOUND[size] if score >= 0.5]
        found = [box for _, box, _ in read[name]]
        assert sorted(found) == [pytest.approx(box, abs=1e-3) for box in sorted(boxes)]


def test_scores_are_kept_where_the_format_has_a_place(predictor, photos):
    expected = [0.625, 0.7, 0.8, 0.9]
    found = predictor()
    coco = json.loads(written(found, photos, "coco").read_text())
    scores = {"coco": [a["score"] for a in coco["annotations"]]}
    via = json.loads(written(found, photos, "via").read_text())
    regions = [r for entry in via["_via_img_metadata"].values() for r in entry["regions"]]
    scores["via"] = [float(r["region_attributes"]["score"]) for r in regions]
    files = written(found, photos, "labelme").rglob("*.json")
    shapes = [s for file in files for s in json.loads(file.read_text())["shapes"]]
    # The two parts of an object have the same group and the same description.
    parts = [s for s in shapes if s["group_id"] is not None]
    assert len(parts) == 2 and parts[0]["description"] == parts[1]["description"]
    shapes.remove(parts[0])
    scores["labelme"] = [json.loads(s["description"])["score"] for s in shapes]
    root = ElementTree.parse(written(found, photos, "cvat")).getroot()
    assert {e.findtext("name") for e in root.iterfind(".//label/attributes/attribute")} == {"score"}
    polygons = {p.get("group_id", i): p for i, p in enumerate(root.iter("polygon"))}.values()
    scores["cvat"] = [float(p.findtext("attribute[@name='score']")) for p in polygons]
    assert {kind: sorted(values) for kind, values in scores.items()} == {
        kind: pytest.approx(expected, abs=1e-4) for kind in scores
    }


def test_via_opens_the_photos_of_a_project(predictor, photos):
    """Keys are file names with sizes in bytes, and the classes are a list to choose from."""
    project = json.loads(written(predictor(), photos, "via").read_text())
    assert project["_via_settings"]["core"]["default_filepath"] == f"{photos}/"
    keys = {f"{name}{(photos / name).stat().st_size}" for name in PHOTOS}
    assert set(project["_via_img_metadata"]) == set(project["_via_image_id_list"]) == keys
    assert list(project["_via_attributes"]["region"]["class"]["options"]) == CLASSES


def test_labelme_files_lead_to_their_photos(predictor, photos):
    folder = written(predictor(), photos, "labelme")
    files = sorted(folder.rglob("*.json"))
    assert len(files) == 3
    for file in files:
        image = (file.parent / json.loads(file.read_text())["imagePath"]).resolve()
        assert image == photos / image.relative_to(photos) and image.is_file()
        assert image.with_suffix("").relative_to(photos) == file.with_suffix("").relative_to(folder)


def test_labelme_files_behind_a_link_lead_to_their_photos(predictor, photos, tmp_path):
    """The parent of --output is a link into a deeper folder."""
    deep = tmp_path / "scratch" / "deep" / "deeper"
    deep.mkdir(parents=True)
    (tmp_path / "work_dirs").symlink_to(deep)
    folder = written(predictor(), photos, "labelme", tmp_path / "work_dirs" / "out")
    files = sorted(folder.rglob("*.json"))
    assert len(files) == 3
    for file in files:
        assert (file.parent / json.loads(file.read_text())["imagePath"]).is_file()
    assert set(read_again("labelme", folder, photos)) == set(PHOTOS)


def test_inputs_in_several_folders_share_their_common_folder(predictor, photos):
    inputs = [photos / "a b" / "ü 1.jpg", photos / "c"]
    predict_files(predictor(), inputs, Path("out"), annotations="coco", overlays=False)
    content = json.loads(Path("out/coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [
        "a b/ü 1.jpg",
        "c/none.png",
        "c/ü 1.jpg",
    ]


def test_training_and_the_checker_read_the_files(predictor, photos, d2ext_command):
    """COCO and VIA are read as they are."""
    coco = written(predictor(), photos, "coco")
    via = written(predictor(), photos, "via")
    checked = d2ext_command("check", coco, "--images", photos)
    assert checked.status == 0, checked
    for file in (coco, via):
        data = [f"data.train.json={file}", f"data.train.images={photos}"]
        arguments = ["custom/mask_rcnn_lite0_fpn.py", "--dry-run", "--no-validate", *data]
        done = d2ext_command("train", *arguments, "train.init_checkpoint=")
        assert done.status == 0, done
        assert all(name in done.stdout for name in CLASSES)


class Refusing(torch.nn.Module):
    """Fail when it is called."""

    def forward(self, inputs):
        raise AssertionError("the model runs")


@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_existing_annotations_stay(predictor, photos, kind):
    """The error comes before the model runs; another format and plain predictions are possible."""
    file = written(predictor(), photos, kind)
    corrected = next(file.rglob("*.json")) if file.is_dir() else file
    corrected.write_text("corrected")
    cfg = d2ext.load_config(REPO / LITE0)
    refusing = d2ext.Predictor(Refusing(), cfg, ["ball"])
    with pytest.raises(UserError, match=f"{file} exists and may contain .* another --output"):
        written(refusing, photos, kind)
    assert Path("out/predictions.json").exists()  # not even earlier predictions are removed
    written(predictor(), photos, "cvat")
    predict_files(predictor(), [photos], Path("out"), overlays=False)
    assert corrected.read_text() == "corrected" and Path("out/cvat.xml").exists()


class Saving(Model):
    """Create a file when it is called, as a user who saves corrections does."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def forward(self, inputs):
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text("corrected")
        return super().forward(inputs)


@pytest.mark.parametrize(
    ("kind", "file", "new"),
    [("coco", "coco.json", "coco_2.json"), ("voc", "voc/a.xml", "voc_2")],
)
def test_annotations_that_appear_meanwhile_stay(predictor, photos, caplog, kind, file, new):
    """The new ones get a number, and the last lines say where they are."""
    caplog.set_level("INFO", "d2ext")
    corrected, new = Path("out") / file, Path("out") / new
    cfg = d2ext.load_config(REPO / LITE0, ["model.roi_heads.num_classes=2"])
    written(d2ext.Predictor(Saving(corrected), cfg, CLASSES), photos, kind)
    assert corrected.read_text() == "corrected"
    assert set(read_again(kind, new, photos)) == set(PHOTOS)
    assert f"out/{ANNOTATIONS[kind]} was created in the meantime and is kept" in caplog.text
    assert f"{new}: 3 photos, 4 objects" in caplog.text


def test_photos_that_would_share_a_file_are_refused(predictor, photos):
    """This comes before the model runs, and nothing is written."""
    cfg = d2ext.load_config(REPO / LITE0)
    refusing = d2ext.Predictor(Refusing(), cfg, ["ball"])
    Image.new("RGB", (30, 40)).save(photos / "c" / "ü 1.png")
    for kind in ("labelme", "yolo", "yolo_seg", "voc"):
        with pytest.raises(UserError, match=r"c/ü 1\.jpg and c/ü 1\.png would share a label file"):
            written(refusing, photos, kind)
    with pytest.raises(UserError, match=r"the photo none\.png is given twice"):
        twice = [photos / "c" / "none.png"] * 2
        predict_files(refusing, twice, Path("out"), annotations="coco")
    assert not Path("out").exists()


class Semantic(torch.nn.Module):
    """Return a label for each pixel, and no objects."""

    def forward(self, inputs):
        return [{"sem_seg": torch.ones(2, x["height"], x["width"])} for x in inputs]


@pytest.mark.parametrize("arguments", [{"annotations": "coco"}, {"rank": True}])
def test_models_without_objects_are_refused(photos, arguments):
    cfg = d2ext.load_config(REPO / LITE0)
    semantic = d2ext.Predictor(Semantic(), cfg, ["ball"])
    with pytest.raises(UserError, match="returns only a segmentation, but --annotations and --ra"):
        predict_files(semantic, [photos], Path("out"), overlays=False, **arguments)
    assert not Path("out/coco.json").exists() and not Path("out/rank.txt").exists()


def test_each_rank_refuses_a_model_without_objects(photos, tmp_path, monkeypatch):
    """The error comes with its first photo, not after the whole prediction."""
    semantic = d2ext.Predictor(Semantic(), d2ext.load_config(REPO / LITE0), ["ball"])
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    files = find_inputs([photos], tmp_path / "out", [])
    outcomes = outcomes_of(semantic, files, 1, [], tmp_path / "ranks", needs_objects=True)
    with pytest.raises(UserError, match="returns only a segmentation, but --annotations and --ra"):
        next(outcomes)


def test_truncated_outcomes_of_another_rank_are_an_error(predictor, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    files = find_inputs([photos], tmp_path / "out", [])
    (ranks / "1.pickle").write_bytes(pickle.dumps(Outcome(files[1])))
    with pytest.raises(EOFError):
        list(outcomes_of(predictor(), files, 1, [], ranks, needs_objects=False))
    (ranks / "1.pickle").write_bytes(pickle.dumps(Outcome(files[1])) + pickle.dumps(None))
    found = list(outcomes_of(predictor(), files, 1, [], ranks, needs_objects=False))
    assert [outcome.item for outcome in found] == files


def test_nothing_is_written_if_no_photo_can_be_read(predictor, tmp_path, caplog):
    caplog.set_level("INFO", "d2ext")
    (tmp_path / "broken.jpg").write_text("no photo")
    status = predict_files(
        predictor(), [tmp_path / "broken.jpg"], Path("out"), annotations="coco", rank=True
    )
    assert status == 1 and "broken.jpg cannot be read" in caplog.text
    assert "Label these photos first" not in caplog.text
    assert not Path("out/coco.json").exists() and not Path("out/rank.txt").exists()


def test_masks_without_pixels_are_counted(predictor, photos, caplog, monkeypatch):
    caplog.set_level("INFO", "d2ext")
    monkeypatch.setitem(FOUND, (40, 30), [(0, 0.9, _large), (0, 0.8, _nothing)])
    with_empty = predictor()
    monkeypatch.setattr(f"{__name__}._box", lambda mask: [0, 0, 9, 9])
    file = written(with_empty, photos, "coco")
    assert "3 photos, 5 objects" in caplog.text and "1 skipped without area" in caplog.text
    assert len(json.loads(file.read_text())["annotations"]) == 5


def _nothing(pixels):
    pass


def test_uncertain_photos_are_ranked_first(predictor, photos, caplog):
    """Detections below the score threshold count; photos without any are last, by name."""
    caplog.set_level("INFO", "d2ext")
    Image.new("RGB", (30, 40)).save(photos / "a b" / "none.png")
    predict_files(predictor(), [photos], Path("out"), rank=True, overlays=False)
    first, second = photos / "c/ü 1.jpg", photos / "a b/ü 1.jpg"
    none = photos / "a b/none.png", photos / "c/none.png"
    rows = json.loads(Path("out/rank.json").read_text())
    assert rows == [
        # (1 - |2s - 1|)^2 is 0.16 + 0.36 + 0.5625 for 0.8, 0.7 and 0.625; 0.04 + 0.36 for 0.9, 0.3
        {"file_name": str(first), "uncertainty": 1.0825, "detections": 3},
        {"file_name": str(second), "uncertainty": 0.4, "detections": 2},
        *({"file_name": str(path), "uncertainty": 0.0, "detections": 0} for path in none),
    ]
    listed = Path("out/rank.txt").read_text().splitlines()
    assert listed == [row["file_name"] for row in rows]
    assert f"   1.083    3  {first}" in caplog.text
    assert "2 photos without any detection are last" in caplog.text
    predict_files(predictor(), [photos], Path("out"), overlays=False)
    assert not Path("out/rank.json").exists() and not Path("out/rank.txt").exists()
