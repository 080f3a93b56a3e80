"""VIA annotations: versions, coordinates, and errors."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from d2ext.data.formats.coco import read_coco, to_coco
from d2ext.data.formats.via import read_via
from d2ext.errors import UserError

TRIANGLE = {"name": "polygon", "all_points_x": [2, 10, 2], "all_points_y": [3, 3, 9]}
BOX = {"name": "rect", "x": 1, "y": 2, "width": 6, "height": 4}


def entry(*shapes: dict, file_name: str = "a.jpg", attributes: dict | None = None) -> dict:
    """Return an image entry as VIA 1 writes it."""
    regions = {
        str(i): {"shape_attributes": s, "region_attributes": attributes or {}}
        for i, s in enumerate(shapes)
    }
    return {"filename": file_name, "size": 1, "regions": regions, "file_attributes": {}}


def read(folder: Path, content: object, classes: tuple = ("thing",), **kwargs: object) -> list:
    """Write a.jpg and the annotations `content` to `folder`, and read them."""
    Image.new("RGB", (40, 30)).save(folder / "a.jpg")
    (folder / "via.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_via(folder / "via.json", folder, classes, **kwargs)


def refused(folder: Path, content: object, *args: object, **kwargs: object) -> str:
    """Return the message of the error that `read` raises."""
    with pytest.raises(UserError) as e:
        read(folder, content, *args, **kwargs)
    return str(e.value)


def test_polygon_and_box_both_move_to_pixel_centers(tmp_path: Path) -> None:
    assert read(tmp_path, {"a.jpg1": entry(TRIANGLE)}) == [
        {
            "file_name": str(tmp_path / "a.jpg"),
            "image_id": 1,
            "height": 30,
            "width": 40,
            "annotations": [
                {
                    "bbox": [2.5, 3.5, 10.5, 9.5],
                    "bbox_mode": 0,
                    "category_id": 0,
                    "segmentation": [[2.5, 3.5, 10.5, 3.5, 2.5, 9.5]],
                    "area": 24.0,
                    "iscrowd": 0,
                }
            ],
        }
    ]


def test_versions_1_2_and_projects_give_equal_records(tmp_path: Path) -> None:
    first = entry(TRIANGLE, BOX)
    second = {**first, "regions": list(first["regions"].values())}
    project = {"_via_settings": {}, "_via_attributes": {}, "_via_img_metadata": {"k": second}}
    assert read(tmp_path, {"k": first}) == read(tmp_path, {"k": second}) == read(tmp_path, project)


def test_the_repeated_first_corner_of_version_1_is_dropped(tmp_path: Path) -> None:
    closed = {**TRIANGLE, "all_points_x": [2, 10, 2, 2], "all_points_y": [3, 3, 9, 3]}
    assert read(tmp_path, {"k": entry(closed)}) == read(tmp_path, {"k": entry(TRIANGLE)})


def test_round_shapes_become_polygons(tmp_path: Path) -> None:
    turned = {"name": "ellipse", "cx": 20, "cy": 15, "rx": 8, "ry": 3, "theta": math.pi / 2}
    shapes = (
        BOX,
        {"name": "circle", "cx": 20, "cy": 15, "r": 5},
        {"name": "ellipse", "cx": 20, "cy": 15, "rx": 8, "ry": 3},
        turned,
        {**turned, "theta": math.pi / 4},
    )
    (record,) = read(tmp_path, {"k": entry(*shapes)})
    boxes = [a["bbox"] for a in record["annotations"]]
    assert boxes[:2] == [[1.5, 2.5, 7.5, 6.5], pytest.approx([15.5, 10.5, 25.5, 20.5])]
    assert boxes[2] == pytest.approx([12.5, 12.5, 28.5, 18.5])
    assert boxes[3] == pytest.approx([17.5, 7.5, 23.5, 23.5])
    areas = [a["area"] for a in to_coco([record], ["thing"])["annotations"]]
    ellipse = math.pi * 8 * 3
    assert areas == pytest.approx([24, math.pi * 25, ellipse, ellipse, ellipse], rel=0.003)
    # Rotated clockwise on screen (y points down): the long axis points to the lower right.
    (polygon,) = record["annotations"][4]["segmentation"]
    x, y = max(zip(polygon[::2], polygon[1::2], strict=True))
    assert x > 25 and y > 19


def test_shapes_without_area_are_counted_in_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    point = {"name": "point", "cx": 1, "cy": 1}
    line = {**TRIANGLE, "name": "line"}  # not a supported shape of VIA
    two = {"name": "polygon", "all_points_x": [1, 5], "all_points_y": [1, 5]}
    flat = {"name": "rect", "x": 1, "y": 1, "width": 5, "height": 0}
    (record,) = read(tmp_path, {"k": entry(point, line, TRIANGLE, point, two, flat)})
    assert len(record["annotations"]) == 1
    (warning,) = caplog.messages
    assert "5 objects skipped: 2 point, 1 line, 2 without area" in warning


def test_classes_come_from_the_attribute(tmp_path: Path) -> None:
    content = {
        "k": entry(TRIANGLE, attributes={"kind": "dog"}),
        "l": entry(TRIANGLE, file_name="b.jpg", attributes={"kind": "cat"}),
    }
    Image.new("RGB", (40, 30)).save(tmp_path / "b.jpg")
    records = read(tmp_path, content, ("cat", "dog"), attribute="kind")
    assert [r["annotations"][0]["category_id"] for r in records] == [1, 0]
    assert [r["image_id"] for r in records] == [1, 2]


def test_undetermined_classes_are_refused(tmp_path: Path) -> None:
    content = {"k": entry(TRIANGLE, attributes={"kind": "dgo"})}
    message = refused(tmp_path, content, ("cat", "dog"), attribute="kind")
    assert "via.json has none of the classes 'cat', 'dog'" in message
    assert "kind" in refused(tmp_path, content, ("cat", "dog"))
    assert "did you mean 'dgo'?" in refused(tmp_path, content, ("cat", "dog"))
    assert "no region has the class attribute 'sort'" in refused(
        tmp_path, content, ("cat", "dog"), attribute="sort"
    )


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_image_as_detectron2_reads_it(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    utils = pytest.importorskip("detectron2.data.detection_utils")
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    (record,) = read(tmp_path, {"k": entry(file_name=path.name)})
    assert (record["height"], record["width"]) == utils.read_image(path, "BGR").shape[:2]


def test_missing_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    content = {str(i): entry(file_name=name) for i, name in enumerate(["a.jpg", "b.jpg", "c.jpg"])}
    message = refused(tmp_path, content)
    assert "2 of 3 listed images do not exist" in message
    assert str(tmp_path / "b.jpg") in message and "c.jpg" not in message


def test_a_damaged_image_is_reported(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert str(tmp_path / "b.jpg") in refused(tmp_path, {"k": entry(file_name="b.jpg")})


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "3",
        {"a.jpg": 1},
        {"a.jpg": {"filename": "a.jpg"}},
        {"project": {}, "metadata": {}, "view": {}, "file": {}},
        {"a.jpg": {"filename": "a.jpg", "regions": 5}},
        {"images": [], "annotations": [], "categories": []},
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object) -> None:
    message = refused(tmp_path, content)
    assert str(tmp_path / "via.json") in message
    assert "export" in message or "a COCO annotation file, which training reads directly" in message


@pytest.mark.parametrize(
    "region",
    [
        7,
        {},
        {"shape_attributes": {}},
        {"shape_attributes": {"name": "polygon", "all_points_x": [1, 2, 3]}},
        {"shape_attributes": {**TRIANGLE, "all_points_x": [1, 2]}},
        {"shape_attributes": {**TRIANGLE, "all_points_x": [1, None, 3]}},
        {"shape_attributes": {"name": "circle", "cx": "x", "cy": 0, "r": 1}},
    ],
)
def test_a_malformed_region_is_reported(tmp_path: Path, region: object) -> None:
    message = refused(tmp_path, {"k": {"filename": "a.jpg", "regions": [region]}})
    assert "image a.jpg, region 0 is malformed" in message


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.json does not exist"):
        read_via(tmp_path / "none.json", tmp_path, ["thing"])


coordinates = st.integers(0, 30) | st.floats(0, 30, allow_subnormal=False)
corners = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8)


@given(
    polygons=st.lists(st.tuples(corners, st.sampled_from(["cat", "dog"])), max_size=6),
    data=st.data(),
)
def test_boxes_and_classes_survive_conversion_to_coco(
    tmp_path_factory: pytest.TempPathFactory, polygons: list, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("via")
    classes = data.draw(st.permutations(["cat", "dog"]))
    regions = []
    for points, name in polygons:
        xs, ys = zip(*points, strict=True)
        shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
        regions.append({"shape_attributes": shape, "region_attributes": {"kind": name}})
    content = {"k": {"filename": "a.jpg", "regions": regions}}
    records = read(folder, content, classes, attribute="kind")

    (folder / "coco.json").write_text(json.dumps(to_coco(records, classes, folder)))
    again, _ = read_coco(folder / "coco.json", folder)
    assert len(again) == len(records) == 1
    assert {**again[0], "annotations": []} == {**records[0], "annotations": []}
    for mine, theirs in zip(records[0]["annotations"], again[0]["annotations"], strict=True):
        assert theirs == {**mine, "bbox": pytest.approx(mine["bbox"])}
        assert theirs["area"] > 0


def test_the_real_annotations(real_balloon: Path) -> None:
    found = {}
    for split in ("train", "val"):
        folder = real_balloon / split
        records = read_via(folder / "via_region_data.json", folder, ["balloon"])
        found[split] = (len(records), sum(len(r["annotations"]) for r in records))
        for record in records:
            for a in record["annotations"]:
                (polygon,) = a["segmentation"]
                xs, ys = polygon[::2], polygon[1::2]
                assert a["bbox"] == [min(xs), min(ys), max(xs), max(ys)]
                assert min(polygon) >= 0
                assert max(xs) <= record["width"] and max(ys) <= record["height"]
    assert found == {"train": (61, 255), "val": (13, 50)}
