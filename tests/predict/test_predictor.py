"""Test d2ext.Predictor: detections, class names and conversions."""

import shutil
import sys

import numpy as np
import pycocotools.mask as mask_util
import pytest
import supervision
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from PIL import Image

import d2ext
from d2ext.errors import UserError
from d2ext.predict.writers import predict_files
from tests.conftest import LITE0, REPO
from tests.detectron2_style.photos import write_photos

# Two photos of the same size, so that a batch needs no padding.
PHOTOS = ("15717689633_5f7f78c28e_k", "17178818589_16e58fc1e5_k")


@pytest.fixture(scope="module")
def images(tiny_root):
    photos = [tiny_root / "balloon" / "train" / f"{name}.jpg" for name in PHOTOS]
    return [np.asarray(Image.open(photo)) for photo in photos]


def test_predictions_are_arrays_and_convert_to_coco(trained, images):
    """The batch size does not change the objects, and images are read one batch at a time."""
    predictor = d2ext.Predictor.from_run(trained, score_threshold=0)
    assert predictor.classes == ["balloon"]
    one, two = predictor.predict(images)
    n = len(one.scores)
    assert n and one.image is images[0] and one.class_names == ("balloon",)
    assert (one.boxes.shape, one.boxes.dtype) == ((n, 4), np.float32)
    assert (one.scores.shape, one.scores.dtype) == ((n,), np.float32)
    assert (one.masks.shape, one.masks.dtype) == ((n, *images[0].shape[:2]), bool)
    assert (np.diff(one.scores) <= 0).all() and set(one.classes) == {0}
    results = one.to_coco(7)
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert {(r["image_id"], r["category_id"]) for r in results} == {(7, 1)}
    for box, mask, result in zip(one.boxes, one.masks, results, strict=True):
        x, y, width, height = result["bbox"]
        assert box == pytest.approx([x, y, x + width, y + height])
        assert np.array_equal(mask, mask_util.decode(result["segmentation"]))
    together = list(predictor.predict(iter(images), batch_size=2))
    assert [len(p.scores) for p in together] == [n, len(two.scores)]
    taken = []
    first = next(predictor.predict(taken.append(i) or images[0] for i in range(5)))
    assert taken == [0] and len(first.scores) == n


def test_a_prediction_may_be_empty(trained, images):
    prediction = d2ext.Predictor.from_run(trained, "last", score_threshold=1.0)(images[0])
    assert (prediction.boxes.shape, prediction.masks.shape) == ((0, 4), (0, *images[0].shape[:2]))
    assert prediction.to_coco(1) == [] and len(prediction.to_supervision()) == 0
    assert repr(prediction) == "Prediction(nothing)"
    every = d2ext.Predictor.from_run(trained, "last", score_threshold=0)(images[0])
    assert len(every.scores) and np.array_equal(np.sort(prediction.all_scores)[::-1], every.scores)


def test_predictions_convert_to_supervision(trained, images):
    prediction = d2ext.Predictor.from_run(trained, score_threshold=0)(images[0])
    found = prediction.to_supervision()
    assert np.array_equal(found.xyxy, prediction.boxes)
    assert np.array_equal(found.mask, prediction.masks)
    assert np.array_equal(found.confidence, prediction.scores)
    assert set(found.data["class_name"]) == {"balloon"} and set(found.class_id) == {0}
    annotated = supervision.MaskAnnotator().annotate(images[0].copy(), found)
    assert not np.array_equal(annotated, images[0])


def test_a_missing_supervision_is_an_error_with_the_fix(trained, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    prediction = d2ext.Predictor.from_run(trained)(images[0])
    with pytest.raises(UserError, match=r"pip install 'd2ext\[supervision\]'"):
        prediction.to_supervision()


def test_images_may_be_arrays_paths_or_pillow_images(trained, tmp_path, images):
    """All give the same objects, and the EXIF orientation of a photo is applied."""
    predictor = d2ext.Predictor.from_run(trained, score_threshold=0)
    upright = Image.fromarray(images[0])
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers rotate the photo by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    expected = predictor(images[0]).boxes
    for name in ("upright.png", "turned.png"):
        assert np.array_equal(predictor(tmp_path / name).boxes, expected)
        assert np.array_equal(predictor(Image.open(tmp_path / name)).boxes, expected)
    assert np.array_equal(predictor(str(tmp_path / "upright.png")).boxes, expected)
    assert np.array_equal(predictor(upright).boxes, expected)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((8, 8), np.uint8), r"an array of uint8 \(8, 8\)"),
        (np.zeros((8, 8, 3)), r"an array of float64 \(8, 8, 3\)"),
        ([np.zeros((8, 8, 3), np.uint8)], "a list; .* several images to Predictor.predict"),
        ("absent.jpg", "absent.jpg cannot be read: No such file"),
        (np.zeros((0, 10, 3), np.uint8), r"an array of uint8 \(0, 10, 3\)"),
        (np.zeros((1, 5000, 3), np.uint8), "an image of 5000 x 1 pixels cannot be resized"),
    ],
    ids=["gray", "float", "list", "absent", "empty", "thin"],
)
def test_an_invalid_image_is_an_error(trained, image, words):
    with pytest.raises(UserError, match=words):
        d2ext.Predictor.from_run(trained)(image)


def test_a_model_in_memory_can_predict(trained, images):
    """Its classes are those that are given or that the config declares."""
    cfg = d2ext.load_config(trained / "config.yaml")
    model = _built(cfg, trained / "model_final.pth").train()
    predictor = d2ext.Predictor(model, cfg, score_threshold=0)
    assert not model.training and predictor.classes == ["balloon"]
    expected = d2ext.Predictor.from_run(trained, score_threshold=0)(images[0])
    assert np.allclose(predictor(images[0]).boxes, expected.boxes, atol=1e-3)  # rounding differs
    named = d2ext.Predictor(model, cfg, ["ball"], score_threshold=0, keep=["ball"])
    assert named(images[0]).class_names == ("ball",)
    with pytest.raises(UserError, match="the model has no class 'bal'.*ball"):
        d2ext.Predictor(model, cfg, ["ball"], keep=["bal"])


def _built(cfg, weights):
    cfg.model.roi_heads.num_classes = 1
    model = instantiate(cfg.model)
    model.load_state_dict(torch.load(weights, weights_only=True)["model"])
    return model


def test_wrong_arguments(trained):
    """Each is an error of one line, also a string in place of a list of classes."""
    cfg = d2ext.load_config(trained / "config.yaml")
    predictor = d2ext.Predictor.from_run(trained)
    for arguments, words in (
        ((["a.jpg"], 0), "batch_size=0: give a positive number"),
        (("a.jpg",), "predict takes several images"),
    ):
        with pytest.raises(UserError, match=words):
            next(predictor.predict(*arguments))
    for arguments, words in (
        (({},), "cfg is a dict; give a config"),
        ((cfg, "balloon"), "classes='balloon' is a string; give a list"),
        ((cfg, ["balloon"], 0.5, "balloon"), "keep='balloon' is a string; give a list"),
    ):
        with pytest.raises(UserError, match=words):
            d2ext.Predictor(torch.nn.Linear(1, 1), *arguments)


def test_the_constructor_arguments_of_0_1_are_an_error(trained):
    with pytest.raises(UserError, match=r"Predictor\.from_run.*Predictor\.from_config"):
        d2ext.Predictor(str(trained / "config.yaml"), "last")


def test_a_moved_run_can_predict(trained, tmp_path, images):
    """Weights are searched for next to the config, and a damaged run.json is ignored."""
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    shutil.copy(moved / "model_final.pth", moved / "model_best.pth")
    (moved / "last_checkpoint").unlink()  # so that the best one is used
    for file in moved.glob("model_[f0]*"):
        file.unlink()
    assert d2ext.Predictor.from_run(moved).classes == ["balloon"]
    (moved / "run.json").write_text("{")
    file = moved / "model_best.pth"
    assert d2ext.Predictor.from_config(moved / "config.yaml", file).classes == ["balloon"]


@pytest.fixture
def alone(trained, tmp_path):
    """Return a function that builds a predictor from a model file without its run or its data."""
    (tmp_path / "alone").mkdir()
    file = tmp_path / "alone" / "model.pth"
    shutil.copy(trained / "model_final.pth", file)

    def predictor(*overrides):
        return d2ext.Predictor.from_config(REPO / LITE0, file, ["data.root=/nowhere", *overrides])

    predictor.file = file
    return predictor


def _save_classes(source, target, classes):
    content = torch.load(source, map_location="cpu", weights_only=True)
    torch.save({**content, "classes": classes}, target)


def test_classes_of_weights_without_their_run(alone, trained, caplog):
    """They come from the checkpoint, else from the config or run.json, else they are numbers."""
    unnamed = "datasets.balloon_train.classes=null"
    caplog.set_level("INFO", "d2ext")
    _save_classes(trained / "model_final.pth", alone.file, None)  # like older checkpoints
    assert alone().classes == ["balloon"] and "class 1" not in caplog.text
    assert alone(unnamed).classes == ["class 1"]
    assert "class names are unknown; the classes are called class 1 to 1" in caplog.text
    unknown = "model.roi_heads.num_classes=null"
    with pytest.raises(UserError, match=r"unknown: .* override model\.roi_heads\.num_classes=N"):
        alone(unnamed, unknown)
    _save_classes(trained / "model_final.pth", alone.file, ["ball"])
    assert alone(unnamed, unknown).classes == ["ball"]
    (alone.file.parent / "run.json").write_text('{"classes": ["another"]}')
    assert alone(unnamed, unknown).classes == ["ball"]
    _save_classes(trained / "model_final.pth", alone.file, None)
    assert alone(unnamed, unknown).classes == ["another"]


def test_builtin_datasets_of_detectron2_have_class_names(alone, trained):
    """No file of the dataset is needed."""
    rows = {"box_predictor.cls_score": 9, "box_predictor.bbox_pred": 32, "mask_head.predictor": 8}
    model = torch.load(trained / "model_final.pth", map_location="cpu", weights_only=True)["model"]
    for key, value in model.items():
        for head, n in rows.items():
            if head in key:
                model[key] = value.new_zeros(n, *value.shape[1:])
    torch.save({"model": model}, alone.file)
    data = "dataloader.train.dataset.names=cityscapes_fine_instance_seg_train"
    assert alone(data, "model.roi_heads.num_classes=null").classes[:2] == ["person", "rider"]


class KeypointsAndRegions(torch.nn.Module):
    """Return an object with two keypoints, and the left half as a region."""

    def __init__(self, *kinds):
        super().__init__()
        self.kinds = kinds

    def forward(self, inputs):
        return [{kind: getattr(self, f"_{kind}")(x) for kind in self.kinds} for x in inputs]

    def _instances(self, sample):
        found = Instances((sample["height"], sample["width"]))
        found.pred_boxes = Boxes(torch.tensor([[10.0, 10, 50, 50]]))
        found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.long)
        found.pred_keypoints = torch.tensor([[[20.0, 30.0, 0.75], [40.0, 45.0, 0.5]]])
        return found

    def _sem_seg(self, sample):
        scores = torch.zeros(2, sample["height"], sample["width"])
        scores[1, :, : sample["width"] // 2] = 1
        return scores


@pytest.fixture
def balloon_cfg():
    return d2ext.load_config(REPO / LITE0)


def test_keypoints_are_in_pixels_and_coco_results_in_indices(balloon_cfg):
    model = KeypointsAndRegions("instances")
    prediction = d2ext.Predictor(model, balloon_cfg, ["balloon"])(np.zeros((60, 80, 3), np.uint8))
    assert prediction.keypoints.tolist() == [[[20, 30, 0.75], [40, 45, 0.5]]]
    (result,) = prediction.to_coco(1)
    assert result["keypoints"] == [19.5, 29.5, 0.75, 39.5, 44.5, 0.5]
    assert prediction.segmentation is None


def test_regions_are_predicted_and_drawn_with_and_without_instances(balloon_cfg, tmp_path):
    Image.new("RGB", (80, 60)).save(tmp_path / "a.jpg")
    for kinds, count in ((["sem_seg"], 0), (["sem_seg", "instances"], 1)):
        predictor = d2ext.Predictor(KeypointsAndRegions(*kinds), balloon_cfg, ["balloon"])
        prediction = predictor(tmp_path / "a.jpg")
        assert len(prediction.scores) == count
        assert [s.category for s in prediction.segmentation.segments] == [0, 1]
        assert predict_files(predictor, [tmp_path / "a.jpg"], tmp_path / "out") == 0
        drawn = np.asarray(Image.open(tmp_path / "out" / "overlays" / "a.jpg")).astype(int)
        assert np.abs(drawn[55, 2] - drawn[55, 78]).max() > 30  # two classes


def test_a_model_without_instances_and_regions_cannot_predict(balloon_cfg):
    predictor = d2ext.Predictor(KeypointsAndRegions(), balloon_cfg, ["balloon"])
    with pytest.raises(UserError, match="the model returns nothing; only models that"):
        predictor(np.zeros((60, 80, 3), np.uint8))


@pytest.fixture
def detr(tmp_path, monkeypatch):
    """Return a config with a mapper of another class, its model, and a photo of 96 x 64 pixels."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_photos(tmp_path)
    file = REPO / "tests/detectron2_style/configs/detr.py"
    cfg = d2ext.load_config(file, ["model.device=cpu"])
    return cfg, instantiate(cfg.model), tmp_path / "tiny/val/photo_1.jpg"


def test_a_mapper_of_another_class_makes_the_sample(detr):
    """DETR's mapper, which names its arguments differently, reads a file."""
    cfg, model, photo = detr
    predictor = d2ext.Predictor(model, cfg, ["ball", "crate"], score_threshold=0)
    sample = instantiate(cfg.dataloader.val.mapper)(
        {"file_name": str(photo), "height": 64, "width": 96}
    )
    (output,) = model.eval()([sample])
    expected = output["instances"].scores.sort(descending=True).values.detach().numpy()
    for image in (photo, np.asarray(Image.open(photo))):
        assert np.allclose(predictor(image).scores, expected, atol=1e-4)


def test_a_mapper_that_needs_annotations_is_an_error(detr):
    cfg, model, photo = detr
    cfg.dataloader.val.mapper = {"_target_": f"{__name__}.NeedsAnnotations"}
    predictor = d2ext.Predictor(model, cfg)
    with pytest.raises(UserError, match=r"mapper \(NeedsAnnotations\) cannot map .*KeyError") as e:
        predictor(photo)
    assert "\n" not in str(e.value)


class NeedsAnnotations:
    """A mapper for training only."""

    def __call__(self, record):
        return {"objects": record["annotations"]}
