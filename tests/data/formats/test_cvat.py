"""CVAT's XML: positions of objects, skipped shapes, and a round trip."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask

from d2ext.data.convert import convert_from_coco, convert_to_coco
from d2ext.errors import UserError

META = (
    "<meta><task><labels><label><name>dog</name></label><label><name>cat</name></label><label>"
    "<name>paw</name><parent>cat</parent></label></labels></task></meta>"
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write two images of 40 x 30 pixels."""
    for name in ("a.jpg", "sub/b.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    return tmp_path / "images"


def read(tmp_path: Path, *image_elements: str, classes: list[str] | None = None) -> dict:
    """Convert a file with these `image` elements."""
    text = "".join(image_elements)
    (tmp_path / "annotations.xml").write_text(f"<annotations>{META}{text}</annotations>")
    return convert(tmp_path, tmp_path / "annotations.xml", classes)


def convert(tmp_path: Path, source: Path, classes: list[str] | None = None) -> dict:
    convert_to_coco("cvat", source, tmp_path / "images", tmp_path / "out.json", classes)
    return json.loads((tmp_path / "out.json").read_text())


def image(shapes: str, name: str = "a.jpg") -> str:
    return f'<image id="0" name="{name}" width="40" height="30">{shapes}</image>'


def objects(content: dict) -> list[tuple]:
    """Return (class, box, area) of each object."""
    classes = {c["id"]: c["name"] for c in content["categories"]}
    return [(classes[a["category_id"]], a["bbox"], a["area"]) for a in content["annotations"]]


def test_boxes_polygons_ellipses_and_masks(tmp_path: Path, images: Path) -> None:
    content = read(
        tmp_path,
        image(
            '<box label="cat" xtl="5" ytl="6" xbr="15.5" ybr="20"/>'
            '<polygon label="dog" points="1,1;9,1;9,9"/>'
            '<ellipse label="dog" cx="20" cy="15" rx="10" ry="5"/>'
            '<mask label="cat" rle="1, 2, 1, 2" left="3" top="4" width="3" height="2"/>'
        ),
    )
    assert [c["name"] for c in content["categories"]] == ["dog", "cat"]  # as in the task
    box, triangle, ellipse, pixels = objects(content)
    assert box == ("cat", [5, 6, 10.5, 14], 147)
    assert triangle == ("dog", [1, 1, 8, 8], 32)
    assert ellipse[1] == pytest.approx([10, 10, 20, 10])
    assert ellipse[2] == pytest.approx(math.pi * 50, rel=0.01)
    assert pixels == ("cat", [4, 4, 2, 2], 4)
    # Row by row: background, object, object; background, object, object.
    decoded = mask.decode(content["annotations"][3]["segmentation"])
    assert decoded[4:6, 3:6].tolist() == [[0, 1, 1], [0, 1, 1]] and decoded.sum() == 4
    assert {a["iscrowd"] for a in content["annotations"]} == {0}


def test_rotation(tmp_path: Path, images: Path) -> None:
    turned = (
        '<box label="cat" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"/>'
        '<ellipse label="cat" cx="20" cy="15" rx="10" ry="5" rotation="90"/>'
        '<box label="cat" xtl="10" ytl="10" xbr="20" ybr="20" rotation="30"/>'
    )
    box, ellipse, square = objects(read(tmp_path, image(turned)))
    assert box[1:] == (pytest.approx([13, 7, 4, 10]), pytest.approx(40))
    assert ellipse[1] == pytest.approx([15, 5, 10, 20])
    # Clockwise: the upper left corner moves up and to the right.
    segmentation = json.loads((tmp_path / "out.json").read_text())["annotations"][2]["segmentation"]
    x, y = segmentation[0][:2]
    assert (x, y) == (
        pytest.approx(15 - 5 * math.cos(math.pi / 6) + 5 * math.sin(math.pi / 6)),
        pytest.approx(15 - 5 * math.sin(math.pi / 6) - 5 * math.cos(math.pi / 6)),
    )
    assert square[2] == pytest.approx(100)


def test_shapes_with_the_same_group_and_label_form_one_object(tmp_path: Path, images: Path) -> None:
    content = read(
        tmp_path,
        image(
            '<polygon label="cat" points="0,0;5,0;5,5;0,5" group_id="1"/>'
            '<polygon label="dog" points="0,0;5,0;5,5;0,5" group_id="1"/>'
            '<polygon label="cat" points="10,10;15,10;15,15;10,15" group_id="1"/>'
            '<polygon label="cat" points="20,0;25,0;25,5;20,5" group_id="0"/>'
            '<mask label="dog" rle="0, 4" left="30" top="20" width="2" height="2" group_id="1"/>'
        ),
    )
    assert objects(content) == [
        ("cat", [0, 0, 15, 15], 50),
        ("dog", [0, 0, 32, 22], 29),
        ("cat", [20, 0, 5, 5], 25),
    ]


def test_other_shapes_are_counted(tmp_path: Path, images: Path, caplog) -> None:
    content = read(
        tmp_path,
        image(
            '<polyline label="cat" points="1,1;2,2"/><points label="cat" points="1,1"/>'
            '<skeleton label="cat"><points label="paw" points="1,1"/></skeleton>'
            '<cuboid label="cat"/><tag label="cat"/><box label="dog" xtl="1" ytl="1" xbr="5"'
            ' ybr="5"/>'
        ),
        image("", "sub/b.jpg"),
        classes=["cat"],
    )
    assert len(content["images"]) == 2 and not content["annotations"]
    for part in ("1 polyline", "1 points", "1 skeleton", "1 cuboid", "1 tag", "of the class 'dog'"):
        assert part in caplog.text


def test_the_files_of_several_jobs(tmp_path: Path, images: Path, caplog) -> None:
    box = '<box label="cat" xtl="{}" ytl="1" xbr="9" ybr="5"/>'
    (tmp_path / "jobs").mkdir()
    for job, text in (
        ("1", image(box.format(1)) + image("", "sub/b.jpg")),
        ("2", image(box.format(1) + box.format(2))),
    ):
        (tmp_path / "jobs" / f"{job}.xml").write_text(f"<annotations>{META}{text}</annotations>")
    content = convert(tmp_path, tmp_path / "jobs")
    assert [i["file_name"] for i in content["images"]] == ["a.jpg", "sub/b.jpg"]
    assert [a["bbox"][0] for a in content["annotations"]] == [1, 2]
    assert "1 entries repeat an image" in caplog.text


def test_the_subset_names_the_folder(tmp_path: Path, images: Path) -> None:
    Image.new("RGB", (40, 30)).save(images / "b.jpg")
    content = read(tmp_path, '<image name="b.jpg" subset="sub"/><image name="a.jpg"/>')
    assert [i["file_name"] for i in content["images"]] == ["sub/b.jpg", "a.jpg"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotations><track/></annotations>", "CVAT export for videos; export as 'CVAT for ima"),
        ("<annotation/>", "a Pascal VOC annotation"),
        ("<a/>", "its root is <a>"),
        (f"<annotations>{image('<box/>')}</annotations>", "a box has no label"),
        (
            f"<annotations>{image('<box label=@a@ xtl=@1@/>')}</annotations>".replace("@", '"'),
            "image 'a.jpg': a box is malformed .it lacks ytl",
        ),
        (
            f"<annotations>{image('<mask label=@a@ rle=@9@ left=@1@ top=@1@ width=@2@')}".replace(
                "</image>", ' height="2"/></image></annotations>'
            ).replace("@", '"'),
            "its rle does not fit 2 x 2 pixels",
        ),
        (
            '<annotations><image name="a.jpg" width="9" height="9"/></annotations>',
            "is for an image of 9 x 9 pixels",
        ),
        ('<annotations><image name="c.jpg"/></annotations>', "'c.jpg' is not in the image folder"),
        ("<annotations>", "is not valid XML"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, images: Path, text: str, words: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match=words):
        convert(tmp_path, tmp_path / "a.xml")


def test_round_trip(tmp_path: Path, images: Path) -> None:
    pixels = np.zeros((30, 40), np.uint8, order="F")
    pixels[2:20, 3:30] = 1
    pixels[5:10, 8:15] = 0
    rle = mask.encode(pixels)
    rle = {"size": [30, 40], "counts": rle["counts"].decode()}
    square, other = [1.5, 2, 9.5, 2, 9.5, 8, 1.5, 8], [20, 20, 30, 20, 30, 28]
    shapes = [
        (1, rle, [3, 2, 27, 18], 0),
        (2, [square, other], [1.5, 2, 28.5, 26], 0),
        (2, [square], [1.5, 2, 8, 6], 0),
        (1, [], [5, 5, 10, 10], 0),
        (1, rle, [3, 2, 27, 18], 1),
    ]
    content = {
        "images": [
            {"id": 1, "file_name": "sub/b.jpg", "width": 40, "height": 30},
            {"id": 2, "file_name": "a.jpg", "width": 40, "height": 30},
        ],
        "categories": [{"id": 1, "name": "big <cat> & 'co'"}, {"id": 2, "name": "ü"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": c, "segmentation": s, "bbox": b, "iscrowd": f}
            for i, (c, s, b, f) in enumerate(shapes, start=1)
        ],
    }
    (tmp_path / "in.json").write_text(json.dumps(content))
    said = convert_from_coco(tmp_path / "in.json", "cvat", tmp_path / "out.xml")
    assert "2 images, 4 annotations, 1 skipped crowd" in said
    read_back = convert(tmp_path, tmp_path / "out.xml")
    assert [i["file_name"] for i in read_back["images"]] == ["sub/b.jpg", "a.jpg"]
    cat, other = "big <cat> & 'co'", "ü"
    assert objects(read_back) == [
        (cat, [3, 2, 27, 18], int(pixels.sum())),
        (other, [1.5, 2, 28.5, 26], 48 + 40),
        (other, [1.5, 2, 8, 6], 48),
        (cat, [5, 5, 10, 10], 100),
    ]
    again = mask.decode(read_back["annotations"][0]["segmentation"])
    assert np.array_equal(again, pixels)
