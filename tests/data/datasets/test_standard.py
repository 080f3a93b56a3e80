"""Pascal VOC and Open Images as datasets of a config."""

import csv
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import parse_rec
from detectron2.structures import Boxes, Instances

from d2ext.data.convert import convert_to_coco
from d2ext.data.datasets.declare import (
    Dataset,
    coco_dataset,
    open_images_dataset,
    voc_dataset,
)
from d2ext.data.formats.open_images import read_open_images
from d2ext.data.formats.voc import CLASSES
from d2ext.data.records.records import columns_of
from d2ext.errors import UserError
from d2ext.evaluation.instances import detection_columns, ground_truth_columns
from d2ext.evaluation.voc import VocMetric
from tests.standard_data import OPEN_IMAGES_CLASSES


def voc(root: Path, name: str = "test", year: int = 2007, **options: object) -> Dataset:
    """Declare an image set of the tiny devkit."""
    folder = root / f"VOC{year}"
    list_file = folder / "ImageSets" / "Main" / f"{name}.txt"
    return voc_dataset(
        str(list_file), str(folder / "Annotations"), str(folder / "JPEGImages"), **options
    )


def open_images(root: Path, **options: object) -> Dataset:
    """Declare the training set of the tiny Open Images."""
    file = root / "OpenImages" / "annotations" / "oidv6-train-annotations-bbox.csv"
    return open_images_dataset(str(file), str(root / "OpenImages/OpenImages/train"), **options)


@pytest.fixture
def devkit(tiny_voc: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny devkit that a test may change."""
    return shutil.copytree(tiny_voc, tmp_path / "devkit")


@pytest.fixture
def oid(tiny_open_images: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny Open Images that a test may change."""
    return shutil.copytree(tiny_open_images, tmp_path / "oid")


class TestVoc:
    @pytest.mark.parametrize("image_set", [("trainval", 2007), ("test", 2007), ("trainval", 2012)])
    def test_boxes_are_those_of_detectron2(self, tiny_voc: Path, image_set: tuple) -> None:
        name, year = image_set
        mine = voc(tiny_voc, name, year).load()
        theirs = load_voc_instances(str(tiny_voc / f"VOC{year}"), name, CLASSES)
        for record, other in zip(mine, theirs, strict=True):
            assert record["file_name"] == other["file_name"]
            assert (record["height"], record["width"]) == (other["height"], other["width"])
            for a, b in zip(record["annotations"], other["annotations"], strict=True):
                assert (a["bbox"], a["category_id"]) == (b["bbox"], b["category_id"])

    def test_difficult_objects_are_kept_but_not_trained_on(self, tiny_voc: Path) -> None:
        records = voc(tiny_voc).load()
        assert columns_of(records).objects.tolist() == [6, 8, 0]  # 7, 9 and 0 objects
        flagged = [a for r in records for a in r["annotations"] if a["iscrowd"]]
        assert [a["difficult"] for a in flagged] == [1, 1]

    def test_small_objects_become_difficult_as_in_mmdetection(self, tiny_voc: Path) -> None:
        """MMDetection compares xmax - xmin, a pixel less than the width."""
        every = voc(tiny_voc, "trainval").load()
        few = voc(tiny_voc, "trainval", min_box_side=19).load()
        boxes = np.array([a["bbox"] for r in every for a in r["annotations"]])
        difficult = np.array([a.get("difficult", 0) for r in every for a in r["annotations"]])
        small = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) - 1 < 19
        assert (small & (difficult == 0)).any() and not small.all()
        assert ((columns_of(few).flags > 0) == (small | (difficult == 1))).all()

    def test_other_classes_are_dropped_and_counted(self, tiny_voc: Path) -> None:
        dataset = voc(tiny_voc, classes=["cat", "sofa"])
        assert columns_of(dataset.load()).category_counts(2)[0].tolist() == [5, 0]
        assert dataset.metadata["left_out"] == {"of the class 'boat'": 9}
        with pytest.raises(UserError, match="has none of the classes 'sheeep'"):
            voc(tiny_voc, classes=["sheeep"]).load()

    def test_a_changed_annotation_is_read_again(self, devkit: Path) -> None:
        assert len(voc(devkit).load()[0]["annotations"]) == 7
        file = devkit / "VOC2007" / "Annotations" / "009000.xml"
        file.write_text(file.read_text().replace("cat", "dog"))
        os.utime(file, ns=(1, 1))
        names = {CLASSES[a["category_id"]] for a in voc(devkit).load()[0]["annotations"]}
        assert names == {"boat", "dog"}

    def test_missing_files_are_errors_of_one_line(self, devkit: Path) -> None:
        folder = devkit / "VOC2007"
        (folder / "Annotations" / "009001.xml").unlink()
        with pytest.raises(UserError, match=r"lacks 1 annotation of .*test.txt, .* is 009001.xml"):
            voc(devkit).load()
        (folder / "JPEGImages" / "002008.jpg").unlink()
        with pytest.raises(UserError, match="the image .002008.jpg. is not in the image folder"):
            voc(devkit, "trainval").load()
        with pytest.raises(UserError, match=r"run .*prepare voc --root DIR and train with"):
            voc(devkit, "val").load()

    @pytest.mark.parametrize(
        ("text", "words"),
        [("", "is empty"), ("009000\n009000\n", "repeats"), ("../../x\n", "is not in the image")],
    )
    def test_an_invalid_list_is_refused(self, devkit: Path, text: str, words: str) -> None:
        (devkit / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text(text)
        with pytest.raises(UserError, match=words):
            voc(devkit).load()


def jittered(records: list[dict]) -> list[dict]:
    """Return COCO results near the objects, with hits and misses at every IoU."""
    rng = np.random.default_rng(0)
    results = []
    for record in records:
        for a in [*record["annotations"]] * 2:
            x0, y0, x1, y1 = np.round(np.array(a["bbox"]) + rng.uniform(-4, 4, 4), 1).tolist()
            results.append(
                {
                    "image_id": record["image_id"],
                    "category_id": a["category_id"],
                    "bbox": [x0, y0, max(x1 - x0, 1.0), max(y1 - y0, 1.0)],
                    "score": float(np.round(rng.uniform(0, 1), 3)),
                }
            )
    return results


def voc_metric(dataset: Dataset, results: list[dict], **settings: object) -> dict[str, float]:
    """Return the results of our metric on a dataset."""
    ground_truth = ground_truth_columns(dataset.load(), dataset.classes)
    return VocMetric(**settings)(ground_truth, detection_columns(ground_truth, results))


class TestTheMetricOfVoc:
    @pytest.mark.parametrize("mode", ["11points", "area"])
    def test_equals_that_on_the_data_converted_to_coco(
        self, tiny_voc: Path, tmp_path: Path, mode: str
    ) -> None:
        folder = tiny_voc / "VOC2007"
        every = tmp_path / "Annotations"
        every.mkdir()
        for name in ("009000", "009001", "009002"):
            shutil.copy(folder / "Annotations" / f"{name}.xml", every)
        convert_to_coco("voc", every, folder / "JPEGImages", tmp_path / "coco.json", list(CLASSES))
        converted = coco_dataset(str(tmp_path / "coco.json"), str(folder / "JPEGImages"))
        results = jittered(voc(tiny_voc).load())
        mine = voc_metric(voc(tiny_voc), results, mode=mode)
        assert 10 < mine["bbox/AP50"] < 90
        assert voc_metric(converted, results, mode=mode) == pytest.approx(mine, nan_ok=True)

    @pytest.mark.parametrize(("year", "mode"), [(2007, "11points"), (2012, "area")])
    def test_equals_detectron2_s_evaluation(self, tiny_voc: Path, year: int, mode: str) -> None:
        """Its boxes end where ours do, and its evaluation reads the XML files.

        The set has 14 boats and 8 cats: no recall is a tenth that floating point misses.
        """
        parse_rec.cache_clear()
        classes = ("boat", "cat")  # it averages over all classes, even without objects
        dataset = voc(tiny_voc, "trainval", classes=classes)
        results = jittered(dataset.load())
        meta = dict(dirname=str(tiny_voc / "VOC2007"), split="trainval", year=year)
        name = f"tiny_voc_{year}"
        MetadataCatalog.get(name).set(thing_classes=list(classes), **meta)
        theirs = PascalVOCDetectionEvaluator(name)
        theirs.reset()
        for record in dataset.load():
            mine = [r for r in results if r["image_id"] == record["image_id"]]
            instances = Instances((record["height"], record["width"]))
            boxes = torch.tensor([r["bbox"] for r in mine], dtype=torch.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances.pred_boxes = Boxes(boxes)
            instances.scores = torch.tensor([r["score"] for r in mine])
            instances.pred_classes = torch.tensor([r["category_id"] for r in mine])
            stem = Path(record["file_name"]).stem
            theirs.process([{"image_id": stem}], [{"instances": instances}])
        MetadataCatalog.remove(name)
        numbers = theirs.evaluate()["bbox"]
        mine = voc_metric(dataset, results, mode=mode, iou_thresholds=[0.5, 0.75])
        assert mine["bbox/AP50"] == pytest.approx(numbers["AP50"], abs=1e-9)
        assert mine["bbox/AP75"] == pytest.approx(numbers["AP75"], abs=1e-9)


class TestOpenImages:
    def test_records_are_those_of_the_converter(self, oid: Path, caplog) -> None:
        dataset = open_images(oid)
        assert list(dataset.classes) == list(OPEN_IMAGES_CLASSES.values())
        mine = dataset.load()
        file = oid / "OpenImages" / "annotations" / "oidv6-train-annotations-bbox.csv"
        theirs, _ = read_open_images(file, oid / "OpenImages/OpenImages/train", dataset.classes)
        assert list(mine) == theirs
        assert columns_of(mine).objects.sum() == 28 and len(columns_of(mine).flags) == 34
        groups = [a for r in mine for a in r["annotations"] if a["iscrowd"]]
        assert len(groups) == 6 and all(a["is_group_of"] for a in groups)
        assert "1 missing image skipped" in caplog.text

    def test_photos_that_arrive_later_are_used(self, oid: Path, caplog) -> None:
        photos = oid / "OpenImages" / "OpenImages" / "train"
        part = photos / "part"
        part.mkdir()
        shutil.move(photos / f"{1:016x}.jpg", oid)
        shutil.move(photos / f"{2:016x}.jpg", part)
        assert len(open_images(oid).load()) == 5
        shutil.move(oid / f"{1:016x}.jpg", part)
        assert len(open_images(oid).load()) == 6

    def test_cached_records_repeat_the_warning(self, oid: Path, caplog) -> None:
        open_images(oid).load()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert columns_of(open_images(oid).load()).objects.sum() == 28

    def test_all_photos_missing_is_an_error(self, oid: Path, tmp_path: Path) -> None:
        photos = oid / "OpenImages" / "OpenImages" / "train"
        shutil.rmtree(photos)
        with pytest.raises(UserError, match=r"train does not exist; give the folder"):
            open_images(oid).load()
        photos.mkdir()
        with pytest.raises(UserError, match=r"has no image of .*\.csv \(<ImageID>.jpg\)"):
            open_images(oid).load()

    def test_classes_come_from_a_file(self, oid: Path, tmp_path: Path) -> None:
        """The file of V7 has a header; classes without objects stay."""
        beside = oid / "OpenImages" / "annotations" / "class-descriptions-boxable.csv"
        other = tmp_path / "oidv7.csv"
        other.write_text("LabelName,DisplayName\n" + beside.read_text())
        beside.unlink()
        with pytest.raises(UserError, match=r"no \*class-descriptions\*.csv is beside .*prepare"):
            open_images(oid)
        dataset = open_images(oid, class_file=str(other))
        assert list(dataset.classes) == list(OPEN_IMAGES_CLASSES.values())
        kites = open_images(oid, class_file=str(other), classes=["Kite"])
        assert columns_of(kites.load()).objects.sum() == 13
        assert kites.metadata["left_out"] == {"of the class 'Balloon'": 15}

    def test_the_text_files_of_the_challenge_2019(self, oid: Path) -> None:
        """MMDetection's files number classes from 1; the third column defines their order."""
        folder = oid / "OpenImages" / "annotations"
        number = {"/m/02": 2, "/m/03": 1}
        names = [("/m/02", "Balloon", 2), ("/m/03", "Kite", 1)]
        with open(folder / "cls-label-description.csv", "w", newline="") as f:
            csv.writer(f).writerows(names)
        images: dict[str, list[str]] = {}
        with open(folder / "oidv6-train-annotations-bbox.csv") as f:
            for row in csv.DictReader(f):
                box = " ".join(row[k] for k in ("XMin", "YMin", "XMax", "YMax"))
                text = f"{number[row['LabelName']]} {box} {row['IsGroupOf']}"
                images.setdefault(row["ImageID"], []).append(text)
        lines = [[f"train/{k}.jpg", "0", str(len(rows)), *rows] for k, rows in images.items()]
        file = folder / "challenge-2019-train-detection-bbox.txt"
        file.write_text("\n".join(line for image in lines for line in image) + "\n")
        photos, labels = oid / "OpenImages/OpenImages/train", folder / "cls-label-description.csv"
        dataset = open_images_dataset(str(file), str(photos), str(labels))
        assert dataset.classes == ("Kite", "Balloon")
        theirs = open_images(oid, classes=["Kite", "Balloon"])
        assert list(dataset.load()) == list(theirs.load())
        file.write_text("a.jpg\n0\nmany\n")
        with pytest.raises(UserError, match=r"Challenge 2019 \(line 3\)"):
            open_images_dataset(str(file), str(photos), str(labels)).load()

    def test_rounding_errors_at_the_edge_are_clipped(self, oid: Path) -> None:
        file = oid / "OpenImages" / "annotations" / "oidv6-train-annotations-bbox.csv"
        header = file.read_text().partition("\n")[0]
        row = f"{1:016x},xclick,/m/02,1,-0.0000003,1.0000002,0,0.5,0,0,0,0,0"
        file.write_text(f"{header}\n{row}\n")
        (record,) = open_images(oid).load()
        assert record["annotations"][0]["bbox"] == [0, 0, record["width"], record["height"] / 2]
        file.write_text(f"{header}\n{row.replace('1.0000002', '1.1')}\n")
        with pytest.raises(UserError, match="line 2 is malformed .*from 0 to 1, not"):
            open_images(oid).load()

    def test_the_hierarchy_has_the_names_of_the_classes(self, oid: Path) -> None:
        from d2ext.evaluation.open_images import read_hierarchy

        above = read_hierarchy(oid / "OpenImages/annotations/bbox_labels_600_hierarchy.json")
        assert above["Kite"] >= {"Toy"}
