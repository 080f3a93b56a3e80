"""`--fix` with wrong image sizes: shapes move to their objects, or nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask

from d2ext.data.formats.rle import compressed
from d2ext.data.validation.coco.check_file import Checks, Fixed, write_fixed
from d2ext.data.validation.coco.finding import ERROR
from d2ext.data.validation.coco.source import Source
from d2ext.errors import UserError
from tests.data.validation.coco.conftest import annotation

STORED = (120, 80)
OBJECTS = ([10, 10, 50, 20], [70, 30, 30, 40])  # x, y, width, height in the stored image


def photo(path: Path, orientation: int = 1, size: tuple[int, int] = STORED) -> None:
    """Write a black photo with white objects, of the given stored size and EXIF orientation."""
    pixels = np.zeros((STORED[1], STORED[0]), np.uint8)
    for x, y, w, h in OBJECTS:
        pixels[y : y + h, x : x + w] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels).convert("RGB").resize(size, Image.Resampling.NEAREST)
    image.save(path, exif=exif, quality=95)


def annotated() -> dict:
    """Return the objects in the stored image, as polygon, both kinds of RLE, and keypoints."""
    box, other = OBJECTS
    x, y, w, h = box
    pixels = np.zeros((STORED[1], STORED[0]), np.uint8, order="F")
    pixels[y : y + h, x : x + w] = 1
    text = mask.encode(pixels)
    flat = np.flatnonzero(np.diff(pixels.ravel("F"), prepend=0, append=0)).tolist()
    runs = np.diff([0, *flat, pixels.size]).tolist()
    shapes = [
        (box, [[x, y, x + w, y, x + w, y + h, x, y + h]]),
        (box, {**text, "counts": text["counts"].decode()}),
        (box, {"size": [STORED[1], STORED[0]], "counts": runs}),
        (other, [[70, 30, 100, 30, 100, 70, 70, 70]]),
    ]
    points = {"keypoints": [x, y, 2, 0, 0, 0, x + w, y + h, 1]}
    entries = [
        annotation(i, 1, 1, b, b[2] * b[3], s, **points) for i, (b, s) in enumerate(shapes, 1)
    ]
    entries[2]["iscrowd"] = 1  # otherwise it would equal the second
    image = {"id": 1, "file_name": "a.jpg", "width": STORED[0], "height": STORED[1]}
    categories = [{"id": 1, "name": "cat"}]
    return {"images": [image], "annotations": entries, "categories": categories}


def run_fix(content: dict, folder: Path) -> tuple[dict, Fixed]:
    """Write and fix a file; check that the input is unchanged and no error is left."""
    path, out = folder / "x.json", folder / "fixed.json"
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    check = Checks(Source(path, folder))
    fixed = write_fixed(Source(path, folder), out, check)
    assert path.read_bytes() == before
    assert not [f for f in fixed.findings if f.severity == ERROR]
    return json.loads(out.read_bytes()), fixed


def assert_on_objects(made: dict, path: Path, boxes: list) -> None:
    """Check that annotations cover exactly their objects in the photo as Detectron2 reads it."""
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("L")) > 127
    assert (made["images"][0]["width"], made["images"][0]["height"]) == shown.shape[::-1]
    assert len(made["annotations"]) == len(boxes)
    whole = np.zeros(shown.shape, bool)
    for a in made["annotations"]:
        x, y, w, h = a["bbox"]
        covered = np.zeros(shown.shape, bool)
        covered[round(y) : round(y + h), round(x) : round(x + w)] = True
        assert shown[covered].mean() > 0.9
        whole |= covered
        shape = a["segmentation"]
        if isinstance(shape, list):
            shape = mask.merge(mask.frPyObjects(shape, *shown.shape))
        pixels = mask.decode(compressed(shape)) > 0
        assert (pixels & covered).sum() > 0.9 * (pixels | covered).sum()
        assert a["area"] == pytest.approx(pixels.sum(), rel=0.1)
    assert (whole & shown).sum() > 0.9 * (whole | shown).sum()
    first = made["annotations"][0]
    x, y, w, h = first["bbox"]
    points = first["keypoints"]
    assert points[3:6] == [0, 0, 0] and points[2::3] == [2, 0, 1]
    assert sorted(points[0:9:6]) == pytest.approx([x, x + w])
    assert sorted(points[1:9:6]) == pytest.approx([y, y + h])


@pytest.mark.parametrize("size", [STORED, (60, 40), (301, 200)])
@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])  # 2 to 4 do not change the size
def test_shapes_follow_the_photo(orientation: int, size: tuple[int, int], tmp_path: Path) -> None:
    content = annotated()
    photo(tmp_path / "a.jpg", orientation, size)
    made, fixed = run_fix(content, tmp_path)
    assert_on_objects(made, tmp_path / "a.jpg", content["annotations"])
    assert orientation == 1 or f"orientation {orientation}" in fixed.changes[1]
    again, fixed = run_fix(made, tmp_path)
    assert not fixed.changes and again == made


@pytest.mark.parametrize("orientation", range(2, 9))
def test_every_orientation_matches_pillow(orientation: int, tmp_path: Path) -> None:
    from d2ext.data.validation.coco.fixes.image_sizes import Move

    photo(tmp_path / "a.jpg", orientation)
    content = annotated()
    size = STORED[::-1] if orientation >= 5 else STORED
    move = Move(STORED, size, orientation)
    content["annotations"] = [{**a, **move.annotation(a, True)} for a in content["annotations"]]
    content["images"][0] |= {"width": size[0], "height": size[1]}
    assert_on_objects(content, tmp_path / "a.jpg", content["annotations"])


def test_shapes_that_fit_only_the_rotated_photo_are_kept(tmp_path: Path) -> None:
    """The photo was annotated as shown; only the entry has the stored size."""
    photo(tmp_path / "a.jpg", 6)
    content = annotated()
    content["annotations"] = content["annotations"][:2]
    for i, y in enumerate((5, 95)):
        box = [10, y, 20, 20]
        polygon = [10, y, 30, y, 30, y + 20, 10, y + 20]
        content["annotations"][i] |= {"bbox": box, "area": 400, "segmentation": [polygon]}
    made, _ = run_fix(content, tmp_path)
    assert made["annotations"] == content["annotations"]
    assert (made["images"][0]["width"], made["images"][0]["height"]) == STORED[::-1]


def test_rle_size_shows_which_image_was_annotated(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    content = annotated()
    content["images"][0] |= {"width": 999}
    made, _ = run_fix(content, tmp_path)
    assert made["annotations"] == content["annotations"]


@pytest.mark.parametrize("width", [90, 80])  # 80 x 80 has other proportions than the photo
def test_ambiguous_sizes_are_refused(width: int, tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", 6)
    content = annotated()
    content["annotations"] = [a for a in content["annotations"] if type(a["segmentation"]) is list]
    content["annotations"] = content["annotations"][:1]
    content["images"][0] |= {"width": width, "height": 80}
    with pytest.raises(UserError, match=r"nothing was written.*images\[0\] \(a.jpg\).*correct"):
        run_fix(content, tmp_path)
    assert not (tmp_path / "fixed.json").exists()
    content["annotations"] = []  # without annotations, nothing can be misplaced
    made, _ = run_fix(content, tmp_path)
    assert (made["images"][0]["width"], made["images"][0]["height"]) == STORED[::-1]


@pytest.mark.parametrize("size", [{}, {"width": 60, "height": 3}, {"height": 3}])
def test_shape_that_fits_both_orientations_is_not_moved(size: dict, tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", 5)
    content = annotated()
    outline = [5, 5, 35, 5, 35, 25.5, 5, 25.5]
    content["annotations"] = [annotation(1, 1, 1, [5, 5, 30, 20.5], 615, [outline])]
    content["images"][0] = {"id": 1, "file_name": "a.jpg"} | size
    with pytest.raises(UserError, match=r"nothing was written.*images\[0\] \("):
        run_fix(content, tmp_path)


def test_thumbnail_scale_is_not_guessed(tmp_path: Path) -> None:
    """A size of 2 x 1 pixels has the proportions of the photo up to one pixel of rounding."""
    photo(tmp_path / "a.jpg")
    content = annotated()
    content["annotations"] = [annotation(1, 1, 1, [0, 0, 1, 1], 1, [[0, 0, 1, 0, 1, 1]])]
    content["images"][0] |= {"width": 2, "height": 1}
    with pytest.raises(UserError, match="whose width or height"):
        run_fix(content, tmp_path)


def test_shapes_of_both_orientations_are_refused(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", 8)
    content = annotated()
    polygon = [10, 90, 30, 90, 30, 110]
    upright = annotation(9, 1, 1, [10, 90, 20, 20], 200, [polygon])
    content["annotations"].append(upright)
    with pytest.raises(UserError, match="width or height differs"):
        run_fix(content, tmp_path)


@pytest.mark.parametrize("sides", [{}, {"width": 120}, {"width": 120, "height": "?"}])
def test_missing_size_is_inferred_from_the_shapes(sides: dict, tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", 6)
    content = annotated()
    del content["images"][0]["width"], content["images"][0]["height"]
    content["images"][0] |= sides
    made, _ = run_fix(content, tmp_path)
    assert_on_objects(made, tmp_path / "a.jpg", content["annotations"])


def test_fixed_annotations_are_rotated_too(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", 7)
    content = annotated()
    first, second, *_ = content["annotations"]
    first |= {"bbox": list(map(str, first["bbox"])), "image_id": "one"}
    second |= {"id": 0, "image_id": "one"}
    # The same photo at half the size; its objects are rotated and scaled before they are merged.
    content["images"] = [
        {**content["images"][0], "id": "one"},
        {**content["images"][0], "width": 60, "height": 40, "id": 5},
    ]
    content["annotations"] = content["annotations"][:3]
    x, y, w, h = (v / 2 for v in OBJECTS[1])
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    small = annotation(8, 5, 1, [x, y, w, h], w * h, [polygon])
    content["annotations"].append(small)
    for a in content["annotations"]:
        if a["image_id"] == 1:
            a["image_id"] = "one"
    made, _ = run_fix(content, tmp_path)
    assert len(made["images"]) == 1
    assert_on_objects(made, tmp_path / "a.jpg", content["annotations"])


def test_entries_of_one_photo_with_two_sizes_are_not_merged_without_images(
    content: dict, write_json: Callable
) -> None:
    content["images"].append({**content["images"][0], "id": 70, "width": 128, "height": 96})
    path = write_json(content)
    with pytest.raises(UserError, match="the entries differ in size: give --images"):
        write_fixed(Source(path), path.with_name("out.json"), Checks(Source(path)))
