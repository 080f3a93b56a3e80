"""Files in other formats: each reader identifies them and gives advice."""

import json
from pathlib import Path

import pytest
from PIL import Image

from d2ext.data.convert import convert_from_coco, convert_to_coco
from d2ext.data.formats.detect_format import detect_format
from d2ext.data.formats.other_formats import advice
from d2ext.data.formats.registry import converted_formats
from d2ext.data.validation.coco.table import read_coco_table
from d2ext.errors import UserError
from d2ext.evaluation.dataset_file import read_dataset

_LABELBOX = {"data_row": {"id": "1"}, "media_attributes": {}, "projects": {}}
_TASK = {"id": 1, "data": {"image": "1.jpg"}, "annotations": [{"result": []}]}
# File name, content, words of every reader's error, and the format that reads it.
FILES = [
    (
        "a.xml",
        "<?xml version='1.0'?><!-- x --><annotations/>",
        "CVAT export .*convert cvat",
        "cvat",
    ),
    ("a.xml", "<annotations><track/></annotations>", "videos; export as 'CVAT for images", None),
    ("a.xml", "<annotation/>", "Pascal VOC annotation .*convert voc", "voc"),
    ("a.json", {"shapes": [], "imagePath": "a"}, "LabelMe .*convert labelme", "labelme"),
    (
        "a.json",
        [{"image": "1.jpg", "annotations": []}],
        "CreateML JSON; convert it with .*convert createml",
        "createml",
    ),
    ("a.json", [_TASK], "Label Studio export .*export the annotations as COCO", None),
    ("a.json", _TASK, "Label Studio export", None),
    ("a.json", [{"id": 1, "annotator": 1, "lead_time": 2, "image": "a"}], "Label Studio", None),
    (
        "a.json",
        {"description": "", "tags": [], "size": {"height": 1, "width": 1}, "objects": []},
        "Supervisely annotation .*export the project as COCO",
        None,
    ),
    ("meta.json", {"classes": [], "tags": []}, "Supervisely", None),
    ("a.ndjson", f"{json.dumps(_LABELBOX)}\n{json.dumps(_LABELBOX)}\n", "Labelbox export", None),
    ("a.json", [{"ID": "1", "DataRow ID": "2", "Label": {}}], "Labelbox export", None),
    (
        "a.json",
        [{"id": 1, "image": "1.jpg", "label": [{"x": 1}], "annotation_id": 3}],
        "Label Studio export",
        None,
    ),
    ("a.json", {"name": "p", "tags": [], "assets": {}}, "VoTT file .*as Pascal VOC", None),
    ("a.json", {"asset": {}, "regions": [], "version": "2"}, "VoTT file", None),
    ("a.json", {"version": "2.0", "item": {}, "annotations": []}, "V7 Darwin JSON", None),
    ("a.json", {"dataset": "d", "image": {}, "annotations": []}, "V7 Darwin JSON", None),
    ("a.json", [{"name": "1.jpg", "labels": []}], "BDD100K or Scalabel", None),
    ("a.json", {"name": "1", "frames": [{"objects": []}]}, "BDD100K or Scalabel", None),
    ("a.json", {"openlabel": {"frames": {}}}, "OpenLABEL file", None),
    ("a.manifest", '{"source-ref": "s3://1.jpg"}\n{"source-ref": "s3://2.jpg"}\n', "SageM", None),
    ("a.json", {"imgHeight": 1, "imgWidth": 1, "objects": []}, "a Cityscapes annotation", None),
    (
        "a.json",
        [{"class": "image", "filename": "1.jpg", "annotations": [{"class": "a", "x": 1}]}],
        "Sloth annotation file",
        None,
    ),
    ("a.json", {"info": {}, "categories": {}, "items": []}, "Datumaro JSON; export as COCO", None),
    ("a.json", {"project": {}, "metadata": {}, "view": {}}, "VIA 3 project", None),
    (
        "a.csv",
        "filename,width,height,class,xmin,ymin\n",
        "CSV of boxes in the format of Roboflow",
        None,
    ),
    ("a.csv", "ImageID,LabelName,XMin\n", "Open Images CSV.*convert open_images", "open_images"),
    ("a.yaml", "names: [a]\n", "YOLO dataset; convert it with .*convert yolo", "yolo"),
    ("a.txt", "0 0.5 0.5 1 1\n", "YOLO dataset", "yolo"),
    ("a.yaml", "# YOLOv5 by Ultralytics, GPL-3.0 license\nnames: [a]\n", "YOLO dataset", "yolo"),
    ("a.txt", "0\t0.5\t0.5\t1\t1\n", "YOLO dataset; convert it with .*convert yolo", "yolo"),
    ("a.yml", "names: [a]; nc: 1\n", "YOLO dataset", "yolo"),
    ("a.zip", b"PK\x03\x04...", "an archive; unpack it", None),
    ("a.json.gz", b"\x1f\x8b\x08...", "an archive; unpack it", None),
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with an image."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "1.jpg")
    return tmp_path / "images"


@pytest.mark.parametrize(("name", "content", "words", "own"), FILES, ids=range(len(FILES)))
def test_every_reader_identifies_the_file(
    tmp_path: Path, images: Path, name: str, content: object, words: str, own: str | None
) -> None:
    file = tmp_path / name
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    readers = {
        "train": lambda: detect_format(file),
        "check": lambda: read_coco_table(file),
        "evaluate": lambda: read_dataset(file, with_masks=True),
        "from COCO": lambda: convert_from_coco(file, "yolo", tmp_path / "out"),
    }
    for kind in (form.name for form in converted_formats()):
        if kind != own:
            readers[kind] = lambda kind=kind: convert_to_coco(
                kind, file, images, tmp_path / "out.json"
            )
    for reader, read in readers.items():
        with pytest.raises(UserError, match=words) as raised:
            read()
        message = str(raised.value)
        assert name in message and "\n" not in message and len(message) < 700, (reader, message)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", {"images": 1, "annotations": {}, "categories": []}, "a COCO annotation file"),
        ("a.json", {"images": [], "annotations": []}, "a COCO annotation file"),
        ("a.json", {"metainfo": {}, "data_list": 3}, "in MMDetection's middle format"),
        ("a.csv", "filename,region_shape_attributes\n", "a VIA annotation file"),
        ("a.tsv", "ImageID\tLabelName\n", "an Open Images CSV"),
        ("a.txt", "filename;region_shape_attributes\n", "a VIA annotation file"),
        ("a.json", {"images": [], "categories": []}, None),
        ("a.json", [{"image": "1.jpg", "annotations": [], "data": {}}], "a Label Studio export"),
        ("a.json", [{"image": "a", "annotation": [], "annotation_id": 3}], "a Label Studio export"),
    ],
)
def test_incomplete_and_ambiguous_files_are_reported(
    tmp_path: Path, name: str, content: object, words: str | None
) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text)
    known = advice(tmp_path / name)
    assert known.startswith(words) if words else not known


def test_the_error_for_an_unknown_format_recommends_coco(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"boxes": []}')
    words = "reads LabelMe, YOLO, Pascal VOC, CVAT, CreateML and Open Images, or export it as COCO"
    with pytest.raises(UserError, match=words):
        detect_format(tmp_path / "a.json")


def test_a_folder_instead_of_a_file_is_reported(tmp_path: Path, images: Path) -> None:
    for kind in ("via", "open_images", "createml"):
        with pytest.raises(UserError, match="images is a folder; give an annotation file"):
            convert_to_coco(kind, images, images, tmp_path / "out.json")


class TestCreateMl:
    def test_boxes_have_centers(self, tmp_path: Path, images: Path) -> None:
        box = {"label": "cat", "coordinates": {"x": 4, "y": 3, "width": 4, "height": 2}}
        entries = [{"imagefilename": "1.jpg", "annotation": [box]}]
        (tmp_path / "a.json").write_text(json.dumps(entries))
        convert_to_coco("createml", tmp_path / "a.json", images, tmp_path / "out.json")
        content = json.loads((tmp_path / "out.json").read_text())
        assert [a["bbox"] for a in content["annotations"]] == [[2, 2, 4, 2]]
        assert [c["name"] for c in content["categories"]] == ["cat"]

    @pytest.mark.parametrize(
        ("annotation", "words"),
        [
            ({"label": "a", "coordinates": {"x": 1, "y": 1, "width": 1}}, r"\[0\] .*'height'"),
            ({"label": "a", "coordinates": {"x": "1", "y": 1, "width": 1, "height": 1}}, "number"),
            ({"label": " ", "coordinates": {}}, "no label"),
            (3, "malformed"),
        ],
    )
    def test_malformed_boxes_are_reported(
        self, tmp_path: Path, images: Path, annotation: object, words: str
    ) -> None:
        (tmp_path / "a.json").write_text(
            json.dumps([{"image": "1.jpg", "annotations": [annotation]}])
        )
        with pytest.raises(UserError, match=words):
            convert_to_coco("createml", tmp_path / "a.json", images, tmp_path / "out.json")

    def test_a_repeated_image_is_refused(self, tmp_path: Path, images: Path) -> None:
        (tmp_path / "a.json").write_text(json.dumps([{"image": "1.jpg", "annotations": []}] * 2))
        with pytest.raises(UserError, match="repeats the image '1.jpg'"):
            convert_to_coco("createml", tmp_path / "a.json", images, tmp_path / "out.json")
