"""Fuzz the converter: damaged files give a clear error or a correct result, quickly."""

import base64
import io
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from d2ext.data.convert import convert_to_coco
from d2ext.errors import UserError

WIDTH, HEIGHT = 40, 30


def _png(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("1", (width, height), 1).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _via() -> dict:
    triangle = {"name": "polygon", "all_points_x": [2, 10.5, 2], "all_points_y": [3, 3, 29]}
    circle = {"name": "circle", "cx": 20, "cy": 15, "r": 25}
    regions = [
        {"shape_attributes": triangle, "region_attributes": {"name": "dog", "id": {"a": True}}},
        {"shape_attributes": circle, "region_attributes": {"name": "cat", "id": {"b": True}}},
    ]
    second = {"filename": "sub/b.png", "size": -1, "regions": {"0": regions[0]}}
    return {"a": {"filename": "a.jpg", "size": 1, "regions": regions}, "b": second}


VIA_CSV = (
    "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
    'region_attributes\na.jpg,1,"{}",1,0,"{""name"":""rect"",""x"":1,""y"":2,""width"":9,'
    '""height"":9}","{""name"":""dog""}"\nsub/b.png,1,"{}",0,0,"{}","{}"\n'
)
LABELME = {
    "shapes": [
        {"label": "dog", "points": [[1, 1], [9, 1], [9, 9.5]], "shape_type": "polygon"},
        {"label": "dog", "points": [[3, 4], [8, 9]], "shape_type": "rectangle", "group_id": 1},
        {"label": "x", "points": [[3, 4], [5, 4]], "shape_type": "mask", "mask": _png(3, 1)},
    ],
    "imagePath": "..\\a.jpg",
    "imageWidth": WIDTH,
    "imageHeight": HEIGHT,
}
VOC = (
    "<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height></size>"
    "<object><name>dog &amp; cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>12.5</xmax>"
    "<ymax>30</ymax></bndbox></object></annotation>"
)
YOLO_YAML = "names: {0: dog, 1: cat}\ntrain: [images/sub, l]\nval: data.yaml\nkpt: &a [1]\nx: *a\n"
YOLO = "0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.9 0.1 0.9 0.9\n"
CVAT = (
    '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task><labels>'
    "<label><name>dog</name></label></labels></task></meta>"
    '<image id="0" name="a.jpg" width="40" height="30"><box label="dog" xtl="1" ytl="2" xbr="12.5"'
    ' ybr="30" rotation="20"/><polygon label="cat" points="1,1;9,1;9,9.5" group_id="2"/><mask'
    ' label="cat" rle="1, 2, 1, 2" left="3" top="4" width="3" height="2" group_id="2"/><ellipse'
    ' label="dog" cx="20" cy="15" rx="9" ry="5"/></image><image id="1" name="sub/b.png"/>'
    "</annotations>"
)
CREATEML = [
    {
        "image": "a.jpg",
        "annotations": [
            {"label": "dog", "coordinates": {"x": 9, "y": 8.5, "width": 10, "height": 6}}
        ],
    },
    {"image": "sub/b.png", "annotations": []},
]
OPEN_IMAGES = (
    "ImageID,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\na,/m/1,1,0.1,0.5,0.2,0.6,0\n"
    "b,/m/0,1,0,1,0,1,1\n"
)
# By format: the file to damage, its content, the converter's arguments, and whether it is JSON.
CASES: list[tuple[str, str, object, str]] = [
    ("via", "via.json", _via(), "via.json"),
    ("via", "via.csv", VIA_CSV, "via.csv"),
    ("labelme", "l/a.json", LABELME, "l"),
    ("voc", "v/a.xml", VOC, "v"),
    ("cvat", "cvat.xml", CVAT, "cvat.xml"),
    ("createml", "createml.json", CREATEML, "createml.json"),
    ("yolo", "labels/a.txt", YOLO, "data.yaml"),
    ("yolo", "data.yaml", YOLO_YAML, "data.yaml"),
    ("open_images", "boxes.csv", OPEN_IMAGES, "boxes.csv"),
]
JUNK: list[object] = [
    None, True, -1, 0, 1e308, -1e308, 10**400, math.nan, math.inf, -math.inf, "", "x", "1", "\0",
    "\ud800", "../../etc/passwd", "/etc/passwd", "..", "C:\\windows\\x.jpg", "a.jpg", "sub", [], {},
    [None], [[]], {"a": {"a": 1}}, "y" * 100_000, [0] * 10_000, 2**31, 1e-320,
]  # fmt: skip
TEXT_JUNK = (
    [
        "nan",
        "inf",
        "-1",
        "1e400",
        "9" * 5000,
        "",
        "\0",
        "../../etc/passwd",
        "/etc/passwd",
        "<",
        "&x;",
    ]
    + [
        '"',
        ",",
        "\n",
        "{" * 3000,
        "[" * 100_000,
        "<a>" * 50_000,
        "!!python/object:os.system x",
        "é",
    ]
    + ["&a [*a, *a]", "0.5 " * 1000, "- " * 2000]
)


def _places(value: object) -> list[tuple]:
    """Return every (container, key) of a JSON value."""
    found = []
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict | list):
            items = node.items() if isinstance(node, dict) else enumerate(node)
            for key, child in list(items):
                found.append((node, key))
                stack.append(child)
    return found


def _damaged_json(value: object, rng: random.Random) -> bytes:
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        node, key = rng.choice(_places(value))
        match rng.randrange(4):
            case 0 if isinstance(node, dict) and len(node) > 1:
                del node[key]
            case 1 if isinstance(node, list):
                node.append(rng.choice(JUNK))
            case 2:
                deep: object = 1
                for _ in range(rng.choice((5, 100, 250))):
                    deep = rng.choice(([deep], {"a": deep}))
                node[key] = deep
            case _:
                node[key] = rng.choice(JUNK)
    return json.dumps(value).encode()


def _damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    match rng.randrange(7):
        case 0:
            return content[:start]
        case 1:
            return content[:start] + content[end:]
        case 2:
            return content[:start] + rng.randbytes(rng.randrange(1, 9)) + content[start:]
        case 3:
            return content.decode().encode(rng.choice(("utf-16", "utf-32", "cp037", "utf-8-sig")))
        case 4:
            return content[:start] + content[start:end] * 50 + content[end:]
        case _:
            junk = rng.choice(TEXT_JUNK).encode()
            return content[:start] + junk + content[start + rng.randrange(8) :]


def damaged(content: object, seed: int) -> bytes:
    """Return the content of a valid file with a few faults, determined by the seed."""
    rng = random.Random(seed)
    if not isinstance(content, str):
        if rng.random() < 0.7:
            return _damaged_json(content, rng)
        content = json.dumps(content)
    return _damaged_bytes(content.encode(), rng)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images and a valid file of each format."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "images" / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / name)
    # A file that only a path outside of the folder would find.
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "a.jpg")
    for _, name, content, _ in CASES:
        (root / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (root / name).write_text(text)
    return root


def check(folder: Path, out: Path) -> None:
    """Check that a result is valid COCO by the schema, with images in the folder."""
    content = json.loads(out.read_bytes(), parse_constant=pytest.fail)
    assert [i["id"] for i in content["images"]] == [*range(1, len(content["images"]) + 1)]
    assert [a["id"] for a in content["annotations"]] == [*range(1, len(content["annotations"]) + 1)]
    categories = {c["id"] for c in content["categories"]}
    for image in content["images"]:
        assert set(image) == {"id", "file_name", "width", "height"}
        assert image["file_name"] in ("a.jpg", "sub/b.png")
        assert (image["width"], image["height"]) == (WIDTH, HEIGHT)
    assert len({i["file_name"] for i in content["images"]}) == len(content["images"])
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        assert 0 <= x < x + w <= WIDTH + 1e-6 and 0 <= y < y + h <= HEIGHT + 1e-6
        assert 0 < a["area"] <= w * h * (1 + 1e-6)
        assert a["category_id"] in categories and a["iscrowd"] in (0, 1)
        assert 1 <= a["image_id"] <= len(content["images"])
        if isinstance(a["segmentation"], list):
            for polygon in a["segmentation"]:
                assert len(polygon) >= 6 and all(map(math.isfinite, polygon))


def fuzz(folder: Path, tmp_path: Path, numbers: range) -> dict[str, int]:
    """Convert damaged files, and count the refused and the converted ones."""
    ended = {"refused": 0, "converted": 0}
    for number in numbers:
        kind, name, content, source = CASES[number % len(CASES)]
        original = (folder / name).read_bytes()
        (folder / name).write_bytes(damaged(content, number))
        out = tmp_path / f"{number}.json"
        start = time.process_time()
        try:
            convert_to_coco(kind, folder / source, folder / "images", out)
        except UserError as e:
            ended["refused"] += 1
            message = str(e)
            assert len(message) < 2000 and message.count("\n") <= 1, (number, message)
            assert not list(tmp_path.iterdir()), number
        except Exception as e:
            raise AssertionError(f"number {number} ({kind}, {name}): {e!r}") from e
        else:
            ended["converted"] += 1
            check(folder, out)
            out.unlink()
        finally:
            (folder / name).write_bytes(original)
        assert time.process_time() - start < 5, number
    return ended


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[1])
def test_the_undamaged_files_convert(folder: Path, tmp_path: Path, case: tuple) -> None:
    kind, _, _, source = case
    convert_to_coco(kind, folder / source, folder / "images", tmp_path / "coco.json")
    check(folder, tmp_path / "coco.json")
    assert json.loads((tmp_path / "coco.json").read_text())["annotations"]


def test_damaged_files(folder: Path, tmp_path: Path) -> None:
    ended = fuzz(folder, tmp_path, range(105))
    assert ended["refused"] > 20 and ended["converted"] > 5


@pytest.mark.nightly
def test_many_damaged_files(folder: Path, tmp_path: Path) -> None:
    ended = fuzz(folder, tmp_path, range(105, 1155))
    assert ended["refused"] > 200 and ended["converted"] > 50


@pytest.mark.parametrize("depth", [900, 100_000])
@pytest.mark.parametrize(("kind", "name", "wrap"), [
    ("via", "deep.json", lambda d: "[" * d + "]" * d),
    ("via", "deep.csv", lambda d: VIA_CSV.replace('"{}"', "[" * d + "]" * d)),
    ("labelme", "deep/a.json", lambda d: '{"shapes":' * d + "1" + "}" * d),
    ("voc", "deep/a.xml", lambda d: "<annotation>" * d + "</annotation>" * d),
    ("yolo", "deep.yaml", lambda d: "names: " + "[" * d + "]" * d),
])  # fmt: skip
def test_deep_nesting(
    folder: Path, tmp_path: Path, kind: str, name: str, wrap: Callable, depth: int
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / name).write_text(wrap(depth))
    source = tmp_path / "deep" if "/" in name else tmp_path / name
    try:
        convert_to_coco(kind, source, folder / "images", tmp_path / "coco.json")
    except UserError:
        assert not (tmp_path / "coco.json").exists()
    else:
        check(folder, tmp_path / "coco.json")
