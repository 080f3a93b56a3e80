"""Detections of two models are paired and compared."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from torch import nn

from d2ext.config.load import load_config
from d2ext.errors import UserError
from d2ext.evaluation.instances import Detections
from d2ext.export.verify import Photos, ValidationSet, compare, lines, verify
from d2ext.predict.onnx_info import ModelInfo
from d2ext.predict.predictor import TrainedModel
from tests.conftest import REPO

FASTER = REPO / "tests/detectron2_style/configs/faster_rcnn.py"


def detections(rows, masks=None):
    """Return the columns of (image, label, x, y, width, height, score)."""
    table = np.array(rows, float).reshape(-1, 7)
    image, label = table[:, :2].astype(np.int64).T
    return Detections(image, label, table[:, 2:6], table[:, 6], masks)


def mask(x):
    inside = np.zeros((40, 40), np.uint8, order="F")
    inside[10:20, x : x + 10] = 1
    return mask_util.encode(inside)


def test_equal_detections_do_not_differ():
    one = detections([(0, 0, 5, 5, 10, 10, 0.9), (1, 0, 5, 5, 10, 10, 0.8)], [mask(5), mask(9)])
    found = compare(one, one)
    assert (found.objects, found.alone) == (2, 0)
    assert found.boxes.tolist() == found.scores.tolist() == found.masks.tolist() == [0, 0]


def test_objects_are_paired_within_image_and_class():
    ours = [(0, 0, 5, 5, 10, 10, 0.9), (0, 1, 5, 5, 10, 10, 0.8), (3, 0, 5, 5, 10, 10, 0.7)]
    theirs = [(0, 1, 5, 5, 10, 12, 0.7), (0, 0, 5, 6, 10, 10, 0.9), (2, 0, 5, 5, 10, 10, 0.7)]
    found = compare(detections(ours), detections(theirs))
    assert (found.objects, found.alone) == (3, 2)
    assert sorted(found.boxes) == [1, 2] and sorted(found.scores) == pytest.approx([0, 0.1])
    assert found.masks is None


def test_the_nearest_box_is_taken_once():
    ours = [(0, 0, 0, 0, 10, 10, 0.9), (0, 0, 2, 0, 10, 10, 0.8)]
    theirs = [(0, 0, 2.5, 0, 10, 10, 0.8), (0, 0, 0.25, 0, 10, 10, 0.9)]
    found = compare(detections(ours), detections(theirs))
    assert found.alone == 0 and sorted(found.boxes) == [0.25, 0.5]
    far = compare(detections(ours), detections([(0, 0, 20, 0, 10, 10, 0.9)]))
    assert far.alone == 3 and len(far.boxes) == 0


def test_masks_differ_by_one_minus_their_iou():
    box = [(0, 0, 5, 5, 10, 10, 0.9)]
    found = compare(detections(box, [mask(5)]), detections(box, [mask(10)]))
    assert found.masks.tolist() == pytest.approx([1 - 50 / 150])


def test_no_detections():
    none = detections([])
    for ours, theirs in ((none, none), (none, detections([(0, 0, 1, 1, 2, 2, 0.5)]))):
        found = compare(ours, theirs)
        assert found.objects == 0 and found.alone == len(theirs.scores) and not len(found.boxes)


class Oracle(nn.Module):
    """A detector that returns the annotated objects.

    Args:
        shift: Pixels of the photo to shift the boxes by.
        first: Index of the first object of a photo to return.
        shifted: Number of objects to shift; None shifts all.
    """

    def __init__(self, shift=0.0, first=0, shifted=None):
        super().__init__()
        self.shift, self.first, self.left = shift, first, shifted

    def forward(self, inputs):
        return [{"instances": self.detect(sample)} for sample in inputs]

    def detect(self, sample):
        name = str(sample["file_name"])
        (record,) = (r for r in DatasetCatalog.get("tiny_val") if r["file_name"] == name)
        objects = record["annotations"][self.first :]
        boxes = [BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        for box in boxes:
            if self.left is None or self.left > 0:
                box += self.shift
                self.left = self.left and self.left - 1
        found = Instances((record["height"], record["width"]), pred_boxes=Boxes(boxes))
        found.scores = torch.full((len(boxes),), 0.9)
        found.pred_classes = torch.tensor([o["category_id"] for o in objects]).reshape(-1)
        return found


def info_of(precision="float32", short_edge=64):
    return ModelInfo(
        architecture="Faster R-CNN",
        classes=["ball", "crate"],
        channels="BGR",
        short_edge=short_edge,
        max_size=1333,
        score_threshold=0.05,
        nms_threshold=0.5,
        max_objects=100,
        mask_size=0,
        precision=precision,
    )


@pytest.fixture
def oracle(style, tmp_path):
    """Return a trained model that knows the annotations; its weights are an empty file."""
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"")
    cfg = load_config(FASTER)
    return TrainedModel(Oracle(), cfg, ["ball", "crate"], weights, tmp_path, FASTER.name)


def proof_of(oracle, other, info=None):
    info = info or info_of()
    return verify(oracle.model, other, ValidationSet(oracle), info, oracle.weights)


def test_another_ap_is_a_failure(oracle):
    """The exported model misses the first object of each photo."""
    proof = proof_of(oracle, Oracle(first=1))
    ((name, (ours, theirs)),) = proof.results.items()
    assert name == "tiny_val/coco/bbox/AP" and ours == pytest.approx(100) and theirs < 60
    assert len(proof.failures) == 2 and "differ by more than 0.1 points" in proof.failures[0]
    assert "only 50.00% of the objects" in proof.failures[1] and "fewer than 99%" in lines_of(proof)
    assert proof_of(oracle, Oracle()).failures == []


def lines_of(proof):
    return " ".join([*lines(proof), *proof.failures])


def test_one_object_may_differ_but_not_two(oracle):
    assert proof_of(oracle, Oracle(0.2, shifted=1)).failures == []
    assert len(proof_of(oracle, Oracle(0.2, shifted=2)).failures) == 1


def test_boxes_are_compared_at_the_size_that_the_model_sees(oracle):
    """At half the size of the photo, a difference counts half."""
    half = info_of(short_edge=32)
    assert proof_of(oracle, Oracle(0.06)).boxes == pytest.approx(0.06, abs=1e-4)
    assert proof_of(oracle, Oracle(0.06)).failures
    proof = proof_of(oracle, Oracle(0.06), half)
    assert proof.boxes == pytest.approx(0.03, abs=1e-4) and proof.failures == []


def test_half_precision_has_its_tolerances(oracle):
    for shift, failures in ((2.9, 0), (3.1, 1)):
        proof = proof_of(oracle, Oracle(shift), info_of("float16"))
        assert len([f for f in proof.failures if "of the objects" in f]) == failures
    assert "differ by more than 0.5 points" in proof.failures[0]


def test_nothing_to_compare_is_a_failure(oracle):
    oracle.model.first = 9
    (failure,) = proof_of(oracle, Oracle(first=9)).failures
    assert "neither model finds an object in 2 images" in failure and "--images" in failure


def test_missing_ap_is_reported(oracle, tmp_path):
    """Photos have no annotations, and Detectron2's evaluators cannot use an exported model."""
    oracle.cfg.evaluators = {"coco": L(COCOEvaluator)(dataset_name="tiny_val")}
    photos = Photos(oracle.cfg, [tmp_path / "tiny" / "val"])
    validation = ValidationSet(oracle)
    assert str(photos) == "2 photos"
    assert str(validation).startswith("2 images of the validation set; --images PHOTOS")
    for images in (photos, validation):
        proof = verify(oracle.model, Oracle(), images, info_of(), oracle.weights)
        assert proof.results == {} and proof.failures == [] and proof.objects == 4
        assert lines(proof)[0].startswith("AP was not compared")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_photos_that_cannot_be_used_are_named(oracle, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--images .*absent does not exist"):
        Photos(oracle.cfg, [tmp_path / "absent"])
    thin, broken, large = (tmp_path / f"{name}.png" for name in ("thin", "broken", "large"))
    Image.new("RGB", (5000, 1)).save(thin)
    Image.new("RGB", (100, 100)).save(large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)  # twice as many are an error
    broken.write_bytes(thin.read_bytes()[:60])
    for file in (thin, broken, large):
        photos = Photos(oracle.cfg, [file])
        with pytest.raises(UserError, match=f"{file} cannot be read: .*; give other --images"):
            photos.run(oracle.model, "torch")


def test_other_classes_are_an_error(oracle):
    other = oracle._replace(classes=["cat", "dog"])
    with pytest.raises(UserError, match="has the classes ball, crate, but the model has cat, dog"):
        ValidationSet(other)
