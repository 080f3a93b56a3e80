"""Convert LabelMe, YOLO, VOC and Open Images to COCO and back: positions of objects, and errors."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask

from d2ext.data.convert import convert_from_coco, convert_to_coco
from d2ext.errors import UserError

NAME = "sub/a b.c ü.jpg"
_WRITTEN = ["cvat", "labelme", "open_images", "via", "voc", "yolo", "yolo_seg"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with two images, of 40 x 30 and 20 x 10 pixels."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / NAME)
    Image.new("L", (20, 10)).save(folder / "b.png")
    return folder


def convert(tmp_path: Path, kind: str, source: Path, *args: object) -> dict:
    """Convert `source` and return the COCO content."""
    out = tmp_path / "coco.json"
    convert_to_coco(kind, source, tmp_path / "images", out, *args)
    return json.loads(out.read_text())


def objects(content: dict) -> list[tuple]:
    """Return (file name, class, box, area, iscrowd) of each object."""
    names = {i["id"]: i["file_name"] for i in content["images"]}
    classes = {c["id"]: c["name"] for c in content["categories"]}
    return [
        (names[a["image_id"]], classes[a["category_id"]], a["bbox"], a["area"], a["iscrowd"])
        for a in content["annotations"]
    ]


def labelme(shapes: list[dict], **fields: object) -> str:
    """Return the content of a LabelMe file."""
    return json.dumps(
        {"shapes": shapes, "imagePath": NAME, "imageWidth": 40, "imageHeight": 30, **fields}
    )


class TestLabelMe:
    def read(self, tmp_path: Path, *shapes: dict, **fields: object) -> dict:
        """Convert one file."""
        (tmp_path / "l").mkdir(exist_ok=True)
        (tmp_path / "l" / "a.json").write_text(labelme(list(shapes), **fields))
        return convert(tmp_path, "labelme", tmp_path / "l")

    def test_shapes(self, tmp_path: Path, images: Path, caplog) -> None:
        png = io.BytesIO()
        part = Image.new("1", (4, 3), 1)
        part.putpixel((0, 0), 0)
        part.save(png, "PNG")
        content = self.read(
            tmp_path,
            {"label": "z", "points": [[1, 1], [9, 1], [9, 9.5]]},
            {"label": "a", "points": [[9, 8], [3, 4]], "shape_type": "rectangle"},
            {"label": "z", "points": [[20, 15], [20, 20]], "shape_type": "circle"},
            {"label": "z", "points": [[20, 15]], "shape_type": "point"},
            {
                "label": "m",
                "points": [[5, 6], [8, 8]],
                "shape_type": "mask",
                "mask": base64.b64encode(png.getvalue()).decode(),
            },
        )
        assert [c["name"] for c in content["categories"]] == ["a", "m", "z"]
        found = {o[1]: o for o in objects(content) if o[1] != "z"}
        assert found["a"] == (NAME, "a", [3, 4, 6, 4], 24, 0)
        assert found["m"] == (NAME, "m", [5, 6, 4, 3], 11, 0)
        first, circle = (o for o in objects(content) if o[1] == "z")
        assert first[2:4] == ([1, 1, 8, 8.5], 34)
        assert circle[2] == pytest.approx([15, 10, 10, 10])
        assert "1 point" in caplog.text

    def test_a_group_is_one_object(self, tmp_path: Path, images: Path) -> None:
        boxes = ([[0, 0], [5, 5]], [[10, 10], [15, 15]], [[20, 0], [25, 5]])
        shapes = [
            {"label": "a", "points": p, "shape_type": "rectangle", "group_id": g}
            for p, g in zip(boxes, (1, 1, None), strict=True)
        ]
        content = self.read(tmp_path, *shapes)
        assert [o[2:4] for o in objects(content)] == [([0, 0, 15, 15], 50), ([20, 0, 5, 5], 25)]
        assert len(content["annotations"][0]["segmentation"]) == 2

    @pytest.mark.parametrize("path", ["..\\images\\b.png", "b.png", "C:\\u\\b.png", "/x/b.png"])
    def test_paths_from_other_machines(self, tmp_path: Path, images: Path, path: str) -> None:
        content = self.read(tmp_path, imagePath=path, imageWidth=None)
        assert [i["file_name"] for i in content["images"]] == ["b.png"]

    def test_paths_outside_of_the_folder_are_refused(self, tmp_path: Path, images: Path) -> None:
        Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
        with pytest.raises(UserError, match=r"secret\.png' is not in the image folder"):
            self.read(tmp_path, imagePath="../secret.png")

    def test_the_output_may_be_in_the_folder_of_the_input(
        self, tmp_path: Path, images: Path
    ) -> None:
        (tmp_path / "l").mkdir()
        (tmp_path / "l" / "z.json").write_text(labelme([]))
        made = []
        for _ in range(2):
            convert_to_coco("labelme", tmp_path / "l", images, tmp_path / "l" / "coco.json")
            made.append((tmp_path / "l" / "coco.json").read_text())
        assert made[0] == made[1]

    def test_the_input_is_not_overwritten(self, tmp_path: Path, images: Path) -> None:
        file = tmp_path / "a.json"
        file.write_text(labelme([]))
        with pytest.raises(UserError, match="is the input"):
            convert_to_coco("labelme", file, images, file)
        assert file.read_text() == labelme([])

    def test_an_image_of_another_size_is_refused(self, tmp_path: Path, images: Path) -> None:
        with pytest.raises(UserError, match="30 x 40 pixels.* has 40 x 30"):
            self.read(tmp_path, imageWidth=30, imageHeight=40)


class TestYolo:
    @pytest.fixture
    def labels(self, tmp_path: Path, images: Path) -> Path:
        """Write boxes and polygons of three classes; b.png has no labels."""
        (tmp_path / "labels" / "sub").mkdir(parents=True)
        text = "2 0.5 0.5 0.25 0.4\n0 0.1 0.1 0.9 0.1 0.9 0.9\n\n"
        (tmp_path / "labels" / "sub" / "a b.c ü.txt").write_text(text)
        (tmp_path / "data.yaml").write_text("names: {0: zebra, 2: cat, 1: 'no'}\n")
        return tmp_path / "labels"

    def test_a_warning_says_that_keypoints_of_poses_are_not_read(
        self, tmp_path: Path, labels: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "data.yaml").write_text("names: {0: zebra}\nkpt_shape: [1, 2]\n")
        (labels / "sub" / "a b.c ü.txt").write_text("0 0.5 0.5 0.25 0.4 0.1 0.1")
        assert len(objects(convert(tmp_path, "yolo", tmp_path / "data.yaml"))) == 1
        assert "keypoints are not read, only the boxes before them" in caplog.text

    @pytest.mark.parametrize("source", ["data.yaml", "labels"])
    def test_boxes_and_polygons(self, tmp_path: Path, labels: Path, source: str) -> None:
        content = convert(tmp_path, "yolo", tmp_path / source)
        assert [c["name"] for c in content["categories"]] == ["zebra", "no", "cat"]
        assert [i["file_name"] for i in content["images"]] == ["b.png", NAME]
        box, polygon = objects(content)
        assert box == (NAME, "cat", pytest.approx([15, 9, 10, 12]), pytest.approx(120), 0)
        assert polygon[:3] == (NAME, "zebra", pytest.approx([4, 3, 32, 24]))
        assert polygon[3] == pytest.approx(32 * 24 / 2)
        assert content["annotations"][0]["segmentation"] == []

    def test_classes_select_and_order(self, tmp_path: Path, labels: Path, caplog) -> None:
        content = convert(tmp_path, "yolo", labels, ["cat", "no"])
        assert [(o[1]) for o in objects(content)] == ["cat"]
        assert content["annotations"][0]["category_id"] == 1
        assert "1 of the class 'zebra'" in caplog.text

    def test_missing_class_names_are_an_error(self, tmp_path: Path, labels: Path) -> None:
        (tmp_path / "data.yaml").unlink()
        with pytest.raises(UserError, match="--classes"):
            convert(tmp_path, "yolo", labels)
        assert len(objects(convert(tmp_path, "yolo", labels, ["x", "y", "z"]))) == 2

    @pytest.mark.parametrize(
        "line",
        ["3 0.5 0.5 1 1", "1.5 0.5 0.5 1 1", "0 5 5 10 10", "0 0.5 0.5 1", "0 nan 0.5 1 1", "x"],
    )
    def test_a_malformed_line_is_named(self, tmp_path: Path, labels: Path, line: str) -> None:
        (labels / "b.txt").write_text(f"0 0.5 0.5 1 1\n{line}\n")
        with pytest.raises(UserError, match=r"b\.txt:2: "):
            convert(tmp_path, "yolo", labels)

    @pytest.mark.parametrize("names", ["ball\nball\n", "ball\n\nkite\n"])
    def test_repeated_or_blank_names_are_refused(
        self, tmp_path: Path, labels: Path, names: str
    ) -> None:
        (tmp_path / "data.yaml").unlink()
        (labels / "classes.txt").write_text(names)
        with pytest.raises(UserError, match="classes.txt repeats a name, or has a blank line"):
            convert(tmp_path, "yolo", labels)

    def test_an_uppercase_suffix(self, tmp_path: Path, labels: Path) -> None:
        before = objects(convert(tmp_path, "yolo", labels))
        file = next(labels.rglob("*.txt"))
        file.rename(file.with_suffix(".TXT"))
        assert objects(convert(tmp_path, "yolo", labels)) == before

    def test_labels_without_an_image_are_named(self, tmp_path: Path, labels: Path) -> None:
        (labels / "c.txt").write_text("")
        with pytest.raises(UserError, match=r"1 label files have no image.*c\.txt"):
            convert(tmp_path, "yolo", labels)


VOC = """<annotation><filename>{name}</filename>
<size><width>40</width><height>30</height></size>
<object><name>salt &amp; pepper</name><difficult>0</difficult>
 <part><name>lid</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>
 </part><bndbox><ymax>30</ymax><ymin>11</ymin><xmin>1</xmin><xmax>40</xmax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
 <bndbox><xmin>3</xmin><ymin>4</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object>
</annotation>"""


class TestVoc:
    def test_boxes_include_their_last_pixel(self, tmp_path: Path, images: Path) -> None:
        (tmp_path / "v" / "Annotations").mkdir(parents=True)
        (tmp_path / "v" / "Annotations" / "a.xml").write_text(VOC.format(name=NAME))
        assert objects(convert(tmp_path, "voc", tmp_path / "v")) == [
            (NAME, "salt & pepper", [0, 10, 40, 20], 800, 0),
            (NAME, "cat", [2, 3, 3, 3], 9, 1),
        ]
        content = json.loads((tmp_path / "coco.json").read_text())
        assert [a.get("difficult") for a in content["annotations"]] == [None, 1]

    @pytest.mark.parametrize(
        ("box", "corners", "flag"),
        [
            (
                "<cx>20</cx><cy>15</cy><w>20</w><h>10</h><angle>1.5707963267948966</angle>",
                [25, 5, 25, 25, 15, 25, 15, 5],
                0,
            ),
            (
                "<x_left_top>5</x_left_top><y_left_top>5</y_left_top>"
                "<x_right_top>15</x_right_top><y_right_top>5</y_right_top>"
                "<x_right_bottom>20</x_right_bottom><y_right_bottom>9</y_right_bottom>"
                "<x_left_bottom>10</x_left_bottom><y_left_bottom>9</y_left_bottom>",
                [5, 5, 15, 5, 20, 9, 10, 9],
                1,
            ),
        ],
        ids=["roLabelImg", "DIOR-R"],
    )
    def test_rotated_boxes_become_polygons(
        self, tmp_path: Path, images: Path, box: str, corners: list, flag: int
    ) -> None:
        (tmp_path / "x.xml").write_text(
            f"<annotation><filename>{NAME}</filename><object><type>robndbox</type>"
            f"<name>cat</name><difficult>{flag}</difficult><robndbox>{box}</robndbox></object>"
            "</annotation>"
        )
        (annotation,) = convert(tmp_path, "voc", tmp_path / "x.xml")["annotations"]
        assert annotation["segmentation"] == [pytest.approx(corners)]
        assert annotation["iscrowd"] == annotation.get("difficult", 0) == flag

    def test_swapped_corners_are_sorted(self, tmp_path: Path, images: Path) -> None:
        text = VOC.format(name=NAME)
        (tmp_path / "x.xml").write_text(text)
        before = objects(convert(tmp_path, "voc", tmp_path / "x.xml"))
        for a, b in (("<xmin>1</xmin><xmax>40", "<xmin>40</xmin><xmax>1"), ("max>30", "max>11")):
            assert a in text
            text = text.replace(a, b)
        (tmp_path / "x.xml").write_text(text.replace("<ymin>11", "<ymin>30"))
        assert objects(convert(tmp_path, "voc", tmp_path / "x.xml")) == before

    def test_an_image_is_found_by_the_name_of_the_xml(self, tmp_path: Path, images: Path) -> None:
        Image.new("RGB", (40, 30)).save(images / "x.jpeg")
        (tmp_path / "x.xml").write_text(VOC.format(name="renamed.jpg"))
        content = convert(tmp_path, "voc", tmp_path / "x.xml")
        assert content["images"][0]["file_name"] == "x.jpeg"

    def test_paths_outside_of_the_folder_are_refused(self, tmp_path: Path, images: Path) -> None:
        (tmp_path / "x.xml").write_text(VOC.format(name="../../etc/passwd"))
        with pytest.raises(UserError, match="is not in the image folder"):
            convert(tmp_path, "voc", tmp_path / "x.xml")


class TestOpenImages:
    CSV = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n"
        "b,x,/m/2,1,0.5,1,0.2,0.6,0,1\nabsent,x,/m/1,1,0,1,0,1,0,0\nb,x,/m/1,1,0,1,0,1,0,0\n"
    )

    def test_boxes_names_and_groups(self, tmp_path: Path, images: Path, caplog) -> None:
        (tmp_path / "boxes.csv").write_text(self.CSV)
        assert [
            o[1] for o in objects(convert(tmp_path, "open_images", tmp_path / "boxes.csv"))
        ] == [
            "/m/2",
            "/m/1",
        ]
        (tmp_path / "class-descriptions-boxable.csv").write_text('/m/1,"Dog, big"\n/m/2,Cat\n')
        assert objects(convert(tmp_path, "open_images", tmp_path / "boxes.csv")) == [
            ("b.png", "Cat", pytest.approx([10, 2, 10, 4]), pytest.approx(40), 1),
            ("b.png", "Dog, big", [0, 0, 20, 10], 200, 0),
        ]
        content = json.loads((tmp_path / "coco.json").read_text())
        assert [a.get("is_group_of") for a in content["annotations"]] == [1, None]
        assert "1 missing image skipped" in caplog.text

    @pytest.mark.parametrize(("text", "crowd"), [("True", 1), ("1.0", 1), ("False", 0), ("-1", 0)])
    def test_group_flags_of_other_programs(
        self, tmp_path: Path, images: Path, text: str, crowd: int
    ) -> None:
        (tmp_path / "boxes.csv").write_text(self.CSV.replace("0.6,0,1", f"0.6,0,{text}"))
        assert objects(convert(tmp_path, "open_images", tmp_path / "boxes.csv"))[0][-1] == crowd
        (tmp_path / "boxes.csv").write_text(self.CSV.replace("0.6,0,1", "0.6,0,maybe"))
        with pytest.raises(UserError, match="line 2: IsGroupOf='maybe' is neither"):
            convert(tmp_path, "open_images", tmp_path / "boxes.csv")

    def test_an_unrelated_csv_is_refused(self, tmp_path: Path, images: Path) -> None:
        (tmp_path / "boxes.csv").write_text("a,b\n1,2\n")
        with pytest.raises(UserError, match="lacks ImageID, LabelName"):
            convert(tmp_path, "open_images", tmp_path / "boxes.csv")


class TestRoundTrip:
    @pytest.fixture
    def coco(self, tmp_path: Path, images: Path) -> Path:
        """Write polygons, two parts, an RLE, a box, a crowd, and class names that break formats."""
        rle = mask.frPyObjects([[10, 10, 20, 10, 20, 25]], 30, 40)[0]
        rle = {**rle, "counts": rle["counts"].decode()}
        square = [1.5, 2, 9.5, 2, 9.5, 8, 1.5, 8]
        shapes = [
            (9, [square], [1.5, 2, 8, 6], 0),
            (4, [square, [20, 20, 30, 20, 30, 28]], [1.5, 2, 28.5, 26], 0),
            (9, rle, [10, 10, 10, 15], 0),
            (4, [], [5, 5, 10, 10], 0),
            (4, {"size": [30, 40], "counts": [0, 1200]}, [0, 0, 40, 30], 1),
        ]
        content = {
            "images": [
                {"id": 5, "file_name": NAME, "width": 40, "height": 30},
                {"id": 8, "file_name": "b.png", "width": 20, "height": 10},
            ],
            "categories": [{"id": 9, "name": "yes"}, {"id": 4, "name": "a: b & 'c'"}],
            "annotations": [
                {"id": i, "image_id": 5, "category_id": c, "segmentation": s, "bbox": b}
                | {"iscrowd": crowd, "area": 1.0}
                for i, (c, s, b, crowd) in enumerate(shapes, start=1)
            ],
        }
        (tmp_path / "in.json").write_text(json.dumps(content))
        return tmp_path / "in.json"

    def test_labelme_and_back_is_exact(self, tmp_path: Path, coco: Path) -> None:
        said = convert_from_coco(coco, "labelme", tmp_path / "l", tmp_path / "images")
        assert "4 annotations" in said and "1 skipped crowd" in said
        made = json.loads((tmp_path / "l" / NAME).with_suffix(".json").read_text())
        assert (tmp_path / "l" / "sub" / made["imagePath"]).resolve() == tmp_path / "images" / NAME
        content = convert(tmp_path, "labelme", tmp_path / "l")
        assert sorted((o[1], o[2], o[3]) for o in objects(content)) == [
            ("a: b & 'c'", [1.5, 2, 28.5, 26], 48 + 40),
            ("a: b & 'c'", [5, 5, 10, 10], 100),
            ("yes", [1.5, 2, 8, 6], 48),
            ("yes", pytest.approx([10, 10, 10, 15], abs=1), pytest.approx(75, abs=8)),
        ]

    def test_via_has_no_attribute_for_scores_without_scores(
        self, tmp_path: Path, coco: Path
    ) -> None:
        convert_from_coco(coco, "via", tmp_path / "via.json")
        made = json.loads((tmp_path / "via.json").read_text())
        assert list(made["_via_attributes"]["region"]) == ["class"]

    def test_yolo_polygons_and_back(self, tmp_path: Path, coco: Path) -> None:
        convert_from_coco(coco, "yolo_seg", tmp_path / "labels")
        content = convert(tmp_path, "yolo", tmp_path / "labels")
        assert [c["name"] for c in content["categories"]] == ["a: b & 'c'", "yes"]
        first, two, rle = objects(content)
        assert first[1:4] == (
            "yes",
            pytest.approx([1.5, 2, 8, 6], abs=1e-3),
            pytest.approx(48, 1e-3),
        )
        assert two[3] == pytest.approx(48 + 40, rel=1e-3)  # one outline around both parts
        assert (rle[1], rle[2], rle[3]) == (
            "yes",
            pytest.approx([10, 10, 10, 15], abs=1),
            pytest.approx(75, abs=8),
        )

    @pytest.mark.parametrize("kind", ["voc", "yolo", "open_images", "cvat", "via"])
    def test_boxes_are_written(self, tmp_path: Path, coco: Path, kind: str) -> None:
        assert " images, " in convert_from_coco(coco, kind, tmp_path / "out")
        text = "".join(
            p.read_text() for p in [tmp_path / "out", *tmp_path.glob("out/**/*")] if p.is_file()
        )
        assert "yes" in text

    @pytest.mark.parametrize("kind", ["cvat", "labelme", "via", "yolo_seg"])
    def test_holes_and_parts_keep_their_area(self, tmp_path: Path, images: Path, kind: str) -> None:
        pixels = np.zeros((30, 40), np.uint8, order="F")
        pixels[2:28, 3:38] = 1
        pixels[5:12, 8:15] = pixels[15:25, 20:30] = 0
        pixels[18:22, 22:26] = 1  # an island in a hole
        rle = mask.encode(pixels)
        clockwise, back = [1, 2, 9, 2, 9, 8, 1, 8], [20, 20, 20, 28, 30, 28, 30, 20]
        overlapping = [5, 2, 15, 2, 15, 8, 5, 8]
        shapes = [
            {"size": [30, 40], "counts": rle["counts"].decode()},
            [clockwise, back],
            [clockwise, overlapping],
        ]
        areas = [int(pixels.sum()), 48 + 80, 14 * 6]
        boxes = [[3, 2, 35, 26], [1, 2, 29, 26], [1, 2, 14, 6]]
        content = {
            "images": [{"id": 1, "file_name": NAME, "width": 40, "height": 30}],
            "categories": [{"id": 1, "name": "big cat"}],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": 1, "segmentation": s, "bbox": b}
                for i, (s, b) in enumerate(zip(shapes, boxes, strict=True), start=1)
            ],
        }
        (tmp_path / "in.json").write_text(json.dumps(content))
        convert_from_coco(tmp_path / "in.json", kind, tmp_path / "out")
        content = convert(tmp_path, kind.removesuffix("_seg"), tmp_path / "out")
        assert [c["name"] for c in content["categories"]] == ["big cat"]
        assert [a["area"] for a in content["annotations"]] == pytest.approx(areas, rel=1e-4)
        for a, box in zip(content["annotations"], boxes, strict=True):
            assert a["bbox"] == pytest.approx(box, abs=1e-3)
        drawn = content["annotations"][0]["segmentation"]
        if isinstance(drawn, list):
            drawn = mask.merge(mask.frPyObjects(drawn, 30, 40))
        assert np.array_equal(mask.decode(drawn), pixels)

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("cvat", "2 images, 4 annotations, 1 skipped crowd"),
            ("labelme", "2 images, 4 annotations, 1 skipped crowd"),
            ("via", "2 images, 4 annotations, 1 skipped crowd"),
            ("open_images", "1 skipped images without a box, 3 skipped masks"),
            ("voc", "2 images, 5 annotations, 1 crowd as difficult, 3 skipped masks"),
            ("yolo", "2 images, 4 annotations, 1 skipped crowd, 3 skipped masks"),
            ("yolo_seg", "2 images, 3 annotations, 1 skipped crowd, 1 skipped no mask"),
        ],
    )
    def test_unsupported_objects_are_counted(
        self, tmp_path: Path, coco: Path, kind: str, words: str
    ) -> None:
        assert words in convert_from_coco(coco, kind, tmp_path / "out")

    @pytest.mark.parametrize("kind", _WRITTEN)
    def test_skipped_keypoints_are_counted(self, tmp_path: Path, coco: Path, kind: str) -> None:
        content = json.loads(coco.read_text())
        for annotation, points in zip(content["annotations"], ([1, 2, 2], [0, 0, 0]), strict=False):
            annotation["keypoints"] = points
        coco.write_text(json.dumps(content))
        said = convert_from_coco(coco, kind, tmp_path / "out")
        assert "1 skipped sets of keypoints" in said

    @pytest.mark.parametrize("kind", ["cvat", "labelme", "via", "yolo_seg"])
    def test_an_empty_mask(self, tmp_path: Path, coco: Path, kind: str) -> None:
        content = json.loads(coco.read_text())
        content["annotations"] = content["annotations"][:1]
        content["annotations"][0]["segmentation"] = {"size": [30, 40], "counts": [1200]}
        coco.write_text(json.dumps(content))
        said = convert_from_coco(coco, kind, tmp_path / "out")
        assert ("1 skipped no mask" in said) is (kind == "yolo_seg")
        convert(tmp_path, kind.removesuffix("_seg"), tmp_path / "out")

    @pytest.mark.parametrize("kind", _WRITTEN)
    def test_shapes_beyond_the_edge_are_clipped(
        self, tmp_path: Path, images: Path, kind: str
    ) -> None:
        outline = [30, 20, 50, 20, 50, 40, 30, 40]
        shapes = [([], [30, 20, 20, 20]), ([outline], [30, 20, 20, 20]), ([], [50, 40, 9, 9])]
        content = {
            "images": [{"id": 1, "file_name": NAME, "width": 40, "height": 30}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": 1, "segmentation": s, "bbox": b}
                for i, (s, b) in enumerate(shapes, start=1)
            ],
        }
        (tmp_path / "in.json").write_text(json.dumps(content))
        said = convert_from_coco(tmp_path / "in.json", kind, tmp_path / "out")
        assert "2 cut at the edge of their image, 1 skipped outside of the image" in said
        source = next((tmp_path / "out").glob("*.csv"), tmp_path / "out")
        made = objects(convert(tmp_path, kind.removesuffix("_seg"), source))
        expected = (
            NAME,
            "cat",
            pytest.approx([30, 20, 10, 10], abs=1e-3),
            pytest.approx(100, abs=0.01),
            0,
        )
        assert made == [expected] * (1 if kind == "yolo_seg" else 2)

    def test_voc_has_whole_pixels_and_images_without_objects(
        self, tmp_path: Path, coco: Path
    ) -> None:
        """A box has at least one pixel, which is in the image."""
        content = json.loads(coco.read_text())
        boxes = [[1.4, 2.6, 10.2, 5.1], [39.8, 29.7, 0.2, 0.3]]
        content["annotations"] = [
            {"id": i, "image_id": 5, "category_id": 9, "bbox": box, "area": 1.0, "iscrowd": 0}
            for i, box in enumerate(boxes, start=1)
        ]
        coco.write_text(json.dumps(content))
        convert_from_coco(coco, "voc", tmp_path / "v")
        content = convert(tmp_path, "voc", tmp_path / "v")
        assert {image["file_name"] for image in content["images"]} == {NAME, "b.png"}
        assert [o[:3] for o in objects(content)] == [
            (NAME, "yes", [1, 3, 11, 5]),
            (NAME, "yes", [39, 29, 1, 1]),
        ]

    def test_yolo_names_stay_strings(self, tmp_path: Path, coco: Path) -> None:
        convert_from_coco(coco, "yolo", tmp_path / "out")
        names = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["names"]
        assert names == ["a: b & 'c'", "yes"]

    def test_failures_leave_no_files_and_overwrite_nothing(
        self, tmp_path: Path, coco: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        with pytest.raises(UserError, match="out exists"):
            convert_from_coco(coco, "yolo", tmp_path / "out")
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write .*file/new: .*choose another --output"):
            convert_from_coco(coco, "yolo", tmp_path / "file" / "new")
        content = json.loads(coco.read_text())
        content["images"][1]["file_name"] = NAME.replace(".jpg", ".png")
        coco.write_text(json.dumps(content))
        before = set(tmp_path.iterdir())
        with pytest.raises(UserError, match="would share a label file; rename one"):
            convert_from_coco(coco, "voc", tmp_path / "new")
        with pytest.raises(UserError, match="none/sub/a b.c ü.jpg does not exist; check --images"):
            convert_from_coco(coco, "via", tmp_path / "new", tmp_path / "none")
        content["images"][1]["file_name"] = "../b.png"
        coco.write_text(json.dumps(content))
        with pytest.raises(UserError, match="not in the image folder"):
            convert_from_coco(coco, "labelme", tmp_path / "new")
        assert set(tmp_path.iterdir()) == before


def test_conversion_is_reproducible_and_ids_start_at_1(tmp_path: Path, images: Path) -> None:
    (tmp_path / "x.xml").write_text(VOC.format(name=NAME))
    made = []
    for _ in range(2):
        content = convert(tmp_path, "voc", tmp_path / "x.xml")
        made.append((tmp_path / "coco.json").read_bytes())
    assert made[0] == made[1]
    for key in ("images", "annotations", "categories"):
        assert [x["id"] for x in content[key]] == [*range(1, len(content[key]) + 1)]
    assert set(content["categories"][0]) == {"id", "name", "supercategory"}
    assert set(content["annotations"][0]) == {
        *("id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd")
    }


def test_repeated_classes_and_a_missing_folder_are_refused(tmp_path: Path, images: Path) -> None:
    (tmp_path / "x.xml").write_text(VOC.format(name=NAME))
    with pytest.raises(UserError, match="repeats a name"):
        convert(tmp_path, "voc", tmp_path / "x.xml", ["a", "a"])
    with pytest.raises(UserError, match="none does not exist"):
        convert_to_coco("voc", tmp_path / "x.xml", tmp_path / "none", tmp_path / "out.json")
    with pytest.raises(UserError, match="contains no .xml file"):
        convert(tmp_path, "voc", images)
