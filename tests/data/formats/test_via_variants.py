"""VIA files from real use: CSV, projects, unusual names and images, shapes at the edge."""

import csv
import json
import math
import random
from pathlib import Path

import pytest
from PIL import Image

from d2ext.data.formats.via import read_via, via_classes
from d2ext.errors import UserError

TRIANGLE = {"name": "polygon", "all_points_x": [2, 10, 2], "all_points_y": [3, 3, 9]}
NAME = "ünï \"q', (1) 名.jpg"


def image(folder: Path, name: str, mode: str = "RGB") -> None:
    """Save an image of 40 x 30 pixels."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (40, 30)).save(folder / name)


def entry(name: str, *shapes: dict, **attributes: object) -> dict:
    """Return an image entry as VIA 2 writes it; all regions have the same attributes."""
    regions = [{"shape_attributes": s, "region_attributes": attributes} for s in shapes]
    return {"filename": name, "size": -1, "regions": regions, "file_attributes": {"a": 'x"y'}}


def write(folder: Path, *entries: dict) -> Path:
    """Write a JSON export of these entries under distinct keys."""
    file = folder / "via.json"
    file.write_text(json.dumps({f"k{i}": e for i, e in enumerate(entries)}))
    return file


def write_csv(
    folder: Path, entries: list[dict], header: str = "#filename", comma: str = ","
) -> Path:
    """Write these entries as VIA's CSV."""
    file = folder / "via.csv"
    with open(file, "w", newline="", encoding="utf-8-sig") as f:
        rows = csv.writer(f, delimiter=comma)
        columns = "file_size file_attributes region_count region_id".split()
        rows.writerow([header, *columns, "region_shape_attributes", "region_attributes"])
        for e in entries:
            start = [e["filename"], e["size"], json.dumps(e["file_attributes"]), len(e["regions"])]
            for i, r in enumerate(e["regions"]):
                cells = (json.dumps(r[k]) for k in ("shape_attributes", "region_attributes"))
                rows.writerow([*start, i, *cells])
            if not e["regions"]:
                rows.writerow([*start, 0, "{}", "{}"])
    return file


@pytest.mark.parametrize(("header", "comma"), [("#filename", ","), ("filename", ";")])
def test_csv_and_json_give_equal_records(tmp_path: Path, header: str, comma: str) -> None:
    for name in (NAME, "sub/b.jpg", "c.jpg"):
        image(tmp_path, name)
    outline = {
        "name": "polygon",
        "all_points_x": [20 + 9 * math.cos(i / 3000) for i in range(18000)],
        "all_points_y": [15 + 9 * math.sin(i / 3000) for i in range(18000)],
    }
    entries = [
        entry(NAME, TRIANGLE, outline, kind='a "big", dog'),
        entry("sub/b.jpg"),
        entry("c.jpg", TRIANGLE, kind="chat noir"),
    ]
    from_csv = read_via(write_csv(tmp_path, entries, header, comma), tmp_path)
    assert from_csv == read_via(write(tmp_path, *entries), tmp_path)
    assert [len(r["annotations"]) for r in from_csv] == [2, 0, 1]
    assert via_classes(tmp_path / "via.csv") == (('a "big", dog', "chat noir"), "kind")


def test_files_of_via_s_authors_and_their_variants(via_shapes: Path) -> None:
    files = [via_shapes / f"via_region_data.{suffix}" for suffix in ("json", "csv")]
    twins = [read_via(file, via_shapes) for file in files]
    assert twins[0] == twins[1]
    assert [len(r["annotations"]) for r in twins[0]] == [2, 1, 2]
    assert via_classes(files[0]) == via_classes(files[1])


def test_polylines_are_closed(tmp_path: Path) -> None:
    image(tmp_path, "a.jpg")
    line = {**TRIANGLE, "name": "polyline"}
    (mine,) = read_via(write(tmp_path, entry("a.jpg", line)), tmp_path, ["x"])
    (theirs,) = read_via(write(tmp_path, entry("a.jpg", TRIANGLE)), tmp_path, ["x"])
    assert mine == theirs


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "I;16"])
def test_images_of_any_mode(tmp_path: Path, mode: str) -> None:
    image(tmp_path, "sub/a.png", mode)
    (record,) = read_via(write(tmp_path, entry("sub/a.png", TRIANGLE)), tmp_path, ["x"])
    assert (record["width"], record["height"]) == (40, 30)


@pytest.mark.parametrize("fields", [{"regions": None}, {"regions": {}}, {}])
def test_entries_without_regions_are_images_without_objects(tmp_path: Path, fields: dict) -> None:
    image(tmp_path, "a.jpg")
    file = write(tmp_path, {"filename": "a.jpg", "size": -1, **fields})
    (record,) = read_via(file, tmp_path, ["x"])
    assert record["annotations"] == []


def test_entries_of_one_image_are_merged(tmp_path: Path, caplog) -> None:
    image(tmp_path, "a.jpg")
    other = {**TRIANGLE, "all_points_x": [3, 9, 3]}
    file = write(tmp_path, entry("a.jpg", TRIANGLE, TRIANGLE), entry("./a.jpg", TRIANGLE, other))
    (record,) = read_via(file, tmp_path, ["x"])
    assert [a["bbox"][0] for a in record["annotations"]] == [2.5, 3.5]
    assert "1 entries repeat an image" in caplog.text


def test_entries_under_one_key_are_all_read(tmp_path: Path) -> None:
    """A merged file may repeat a key."""
    image(tmp_path, "a.jpg")
    square = {"name": "rect", "x": 20, "y": 10, "width": 5, "height": 5}
    one, two = (json.dumps(entry("a.jpg", shape, label="x")) for shape in (TRIANGLE, square))
    (tmp_path / "via.json").write_text(f'{{"a.jpg-1": {one}, "a.jpg-1": {two}}}')
    (record,) = read_via(tmp_path / "via.json", tmp_path)
    assert len(record["annotations"]) == 2


def test_names_in_another_unicode_form_are_found(tmp_path: Path) -> None:
    image(tmp_path, "a\u0308.jpg")
    (record,) = read_via(write(tmp_path, entry("\u00e4.jpg", TRIANGLE)), tmp_path, ["x"])
    assert record["file_name"].endswith("a\u0308.jpg")


class TestEdge:
    """Shapes at the edge of an image of 40 x 30 pixels; VIA's 39 is the center of the last one."""

    def read(self, folder: Path, xs: list, ys: list) -> list[dict]:
        """Return the objects for one polygon."""
        image(folder, "a.jpg")
        shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
        (record,) = read_via(write(folder, entry("a.jpg", shape)), folder, ["x"])
        return record["annotations"]

    def test_corners_on_the_edge_are_inside(self, tmp_path: Path) -> None:
        (a,) = self.read(tmp_path, [0, 40, 40, 0], [-1, -1, 30, 30])
        assert a["bbox"] == [0.5, 0.0, 40.0, 30.0]
        assert a["segmentation"] == [[0.5, 0.0, 40.0, 0.0, 40.0, 30.0, 0.5, 30.0]]
        assert a["area"] == 39.5 * 30

    def test_polygons_are_clipped_to_the_image(self, tmp_path: Path, caplog) -> None:
        (a,) = self.read(tmp_path, [-60.5, 39.5, -60.5], [-0.5, -0.5, 99.5])
        # A right triangle at (-60, 0) with legs of 100; its part at x >= 0 has legs of 40.
        assert a["bbox"] == [0.0, 0.0, 40.0, 30.0]
        assert a["area"] == pytest.approx(40 * 30 - 30 * 30 / 2)
        assert "1 objects cut at the edge" in caplog.text

    def test_two_parts_stay_one_object(self, tmp_path: Path) -> None:
        # A U whose bottom lies below the image.
        xs, ys = [5, 10, 10, 20, 20, 25, 25, 5], [5, 5, 50, 50, 5, 5, 60, 60]
        (a,) = self.read(tmp_path, xs, ys)
        assert len(a["segmentation"]) == 2
        assert a["area"] == 2 * 5 * 24.5

    def test_polygons_outside_of_the_image_are_skipped(self, tmp_path: Path, caplog) -> None:
        assert self.read(tmp_path, [50, 60, 60], [1, 1, 9]) == []
        assert "1 outside of the image" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b"#filename,size\na.jpg,1\n",
        b"filename,region_count,region_shape_attributes,region_attributes\na.jpg,1,{,{}\n",
        b"filename,region_count,region_shape_attributes,region_attributes\na.jpg,1,[],{}\n",
        b"filename,region_count,region_shape_attributes,region_attributes\na.jpg,1\n",
        b"filename,region_count,region_shape_attributes,region_attributes\n\xff.jpg,0,{},{}\n",
        b"\0\0\0",
        b"",
    ],
)
def test_malformed_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "via.csv").write_bytes(content)
    image(tmp_path, "a.jpg")
    with pytest.raises(UserError, match=r"via\.csv"):
        read_via(tmp_path / "via.csv", tmp_path, ["x"])


def test_an_outline_with_many_crossings_is_refused(tmp_path: Path) -> None:
    """Computing its exact area would take minutes and exhaust the memory."""
    image(tmp_path, "a.jpg")
    rng = random.Random(0)
    xs, ys = ([rng.uniform(-20, 60) for _ in range(200_000)] for _ in range(2))
    shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
    with pytest.raises(UserError, match="a.jpg: an outline has 200000 corners"):
        read_via(write(tmp_path, entry("a.jpg", shape, label="x")), tmp_path)
