"""Tiny versions of standard datasets for tests, with balloons as objects of their classes."""

import csv
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

from d2ext.data.formats.via import read_via

VOC_SETS = {("2007", "trainval"): [0, 1, 2, 3], ("2012", "trainval"): [4, 5]}
VOC_TEST = ("2007", "test")
OPEN_IMAGES_CLASSES = {
    "/m/01": "Toy",
    "/m/02": "Balloon",
    "/m/03": "Kite",
    "/m/04": "Person",
}


def write_voc(root: Path, balloons: Path) -> None:
    """Write root/VOC2007 (4 photos for training, 3 for the test) and root/VOC2012 (2 photos).

    Balloons are boats and cats in turn; the second one of each photo is difficult. The third test
    photo has no objects.

    Args:
        root: Folder to create.
        balloons: Folder of `write_balloons` with 6 + 2 photos.
    """
    train, val = (_records(balloons, split) for split in ("train", "val"))
    for (year, name), chosen in VOC_SETS.items():
        _write_voc_set(root / f"VOC{year}", name, [train[i] for i in chosen], int(year))
    empty = {**train[5], "annotations": []}
    _write_voc_set(root / f"VOC{VOC_TEST[0]}", VOC_TEST[1], [*val, empty], 9000)


def _records(balloons: Path, split: str) -> list[dict]:
    folder = balloons / split
    return read_via(folder / "via_region_data.json", folder, ["balloon"])


def _write_voc_set(folder: Path, name: str, records: list[dict], first: int) -> None:
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = [f"{first + i:06d}" for i in range(len(records))]
    (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(names) + "\n")
    for stem, record in zip(names, records, strict=True):
        shutil.copyfile(record["file_name"], folder / "JPEGImages" / f"{stem}.jpg")
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = f"{stem}.jpg"
        size = ElementTree.SubElement(root, "size")
        for side in ("width", "height"):
            ElementTree.SubElement(size, side).text = str(record[side])
        for i, annotation in enumerate(record["annotations"]):
            thing = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(thing, "name").text = "cat" if i % 2 else "boat"
            for key, value in dict(pose="Unspecified", truncated=0, difficult=int(i == 1)).items():
                ElementTree.SubElement(thing, key).text = str(value)
            box = ElementTree.SubElement(thing, "bndbox")
            x0, y0, x1, y1 = annotation["bbox"]
            corners = dict(xmin=int(x0) + 1, ymin=int(y0) + 1, xmax=int(x1), ymax=int(y1))
            for key, value in corners.items():
                ElementTree.SubElement(box, key).text = str(value)
        ElementTree.ElementTree(root).write(folder / "Annotations" / f"{stem}.xml")


def write_open_images(root: Path, balloons: Path) -> None:
    """Write root/OpenImages with MMDetection's folders: 6 photos for training, 2 for validation.

    Balloons are kites and balloons in turn, both below Toy; the third one of each photo is a group.
    The files also have a photo that is missing.

    Args:
        root: Folder to create.
        balloons: Folder of `write_balloons` with 6 + 2 photos.
    """
    folder = root / "OpenImages"
    annotations = folder / "annotations"
    annotations.mkdir(parents=True)
    with open(annotations / "class-descriptions-boxable.csv", "w", newline="") as f:
        csv.writer(f).writerows(OPEN_IMAGES_CLASSES.items())
    toys = [{"LabelName": code} for code in ("/m/02", "/m/03")]
    tree = [{"LabelName": "/m/01", "Subcategory": toys}, {"LabelName": "/m/04"}]
    (annotations / "bbox_labels_600_hierarchy.json").write_text(
        json.dumps({"LabelName": "/m/0bl9f", "Subcategory": tree})
    )
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated"
    for split, name, file in (
        ("train", "train", "oidv6-train-annotations-bbox.csv"),
        ("val", "validation", "validation-annotations-bbox.csv"),
    ):
        photos = folder / "OpenImages" / name
        photos.mkdir(parents=True)
        rows = [f"{header},IsGroupOf,IsDepiction,IsInside"]
        for number, record in enumerate(_records(balloons, split)):
            stem = f"{number + 1:016x}"
            shutil.copyfile(record["file_name"], photos / f"{stem}.jpg")
            width, height = record["width"], record["height"]
            for i, annotation in enumerate(record["annotations"]):
                x0, y0, x1, y1 = annotation["bbox"]
                xs, ys = (
                    f"{x0 / width:.6f},{x1 / width:.6f}",
                    f"{y0 / height:.6f},{y1 / height:.6f}",
                )
                code = "/m/02" if i % 2 else "/m/03"
                rows.append(f"{stem},xclick,{code},1,{xs},{ys},0,0,{int(i == 2)},0,0")
        rows.append("ffffffffffffffff,xclick,/m/02,1,0.1,0.2,0.1,0.2,0,0,0,0,0")
        (annotations / file).write_text("\n".join(rows) + "\n")
