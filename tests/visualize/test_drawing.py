"""Objects, regions and labels change the pixels of a photo that they should, and no others."""

from types import SimpleNamespace

import cv2
import matplotlib
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from d2ext.data.formats.via import read_via
from d2ext.data.segmentation import predicted_segmentation
from d2ext.visualize.drawing import font
from d2ext.visualize.overlay import (
    class_color,
    draw_instances,
    draw_segmentation,
    write_overlays,
)
from tests.conftest import REPO

RED, BLUE = (230, 20, 20), (20, 20, 230)
CLASSES = SimpleNamespace(thing_classes=["balloon", "kite"], thing_colors=[RED, BLUE])


@pytest.fixture(scope="module")
def balloons():
    """Return a photo of several balloons, its objects with polygons, and their masks."""
    folder = REPO / "examples/balloon/train"
    records = read_via(folder / "via_region_data.json", folder, ["balloon"])
    record = max(records, key=lambda r: len(r["annotations"]))
    photo = np.asarray(Image.open(record["file_name"]).convert("RGB"))
    objects = record["annotations"]
    return photo, objects, [encoded(o["segmentation"], photo.shape[:2]) for o in objects]


def encoded(polygons, shape):
    return mask_util.merge(mask_util.frPyObjects(polygons, *shape))


def draw(photo, objects, metadata=CLASSES, size=None, **options):
    return draw_instances(photo, objects, metadata, size or photo.shape[1::-1], **options)


def box(x0, y0, x1, y1, **more):
    return {"bbox": [x0, y0, x1, y1], "bbox_mode": 0, "category_id": 0, **more}


def frame(objects, shape, scale, width):
    """Return where the sides of the boxes may be."""
    sides = np.zeros(shape, np.uint8)
    for o in objects:
        corners = np.reshape(o["bbox"], (2, 2)) * scale
        cv2.rectangle(sides, *corners.round().astype(int), 1, width)
    return sides.astype(bool)


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("as_rle", [False, True])
def test_masks_are_blended_and_other_pixels_are_unchanged(balloons, scale, as_rle):
    full, objects, rles = balloons
    photo = cv2.resize(full, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    before = photo.copy()
    if as_rle:
        objects = [{**o, "segmentation": r} for o, r in zip(objects, rles, strict=True)]
    drawn = draw(photo, objects, size=full.shape[1::-1], labels=False, by_class=True)
    assert np.array_equal(photo, before)

    masks = mask_util.decode(rles)
    count = cv2.resize(masks.sum(axis=2), photo.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    near = cv2.dilate((count > 0).astype(np.uint8), np.ones((7, 7))) > 0
    sides = frame(objects, photo.shape[:2], scale, 7)
    assert np.array_equal(drawn[~near & ~sides], photo[~near & ~sides])

    edges = np.zeros_like(near)  # of each mask, which may lie inside of another
    for k in range(masks.shape[2]):
        mask = cv2.resize(masks[..., k], photo.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        edges |= cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((7, 7), np.uint8)) > 0
    inside = (count == 1) & ~edges & ~sides
    assert inside.mean() > 0.1
    blend = 0.6 * photo[inside] + 0.4 * np.array(RED)
    assert np.abs(drawn[inside] - blend).max() <= 1


def test_outlines_and_boxes_are_opaque_and_boxes_scale_with_the_photo():
    for factor in (1, 4):
        photo = np.full((300 * factor, 400 * factor, 3), 128, np.uint8)
        square = np.array([100, 100, 200, 100, 200, 200, 100, 200]) * factor + 0.5
        objects = [box(*np.array([50, 50, 350, 250]) * factor, segmentation=[square.tolist()])]
        drawn = draw(photo, objects, labels=False, by_class=True)
        row = np.abs(drawn[150 * factor].astype(int) - RED).max(axis=1) < 10
        edges = [(row[part * factor : (part + 40) * factor]).sum() for part in (30, 80, 330)]
        assert edges[0] == edges[2] == factor and edges[1] > 0


@pytest.mark.parametrize("numbers", [[], [1, 2, 3], [1, 2, 3, 4, 5]])
def test_polygons_of_fewer_than_three_points_are_ignored(balloons, numbers):
    photo = balloons[0]
    triangle = [10.0, 10, 40, 10, 10, 40]
    expected, found = (
        draw(photo, [box(5, 5, 60, 60, segmentation=polygons)])
        for polygons in ([triangle], [triangle, numbers])
    )
    assert np.array_equal(found, expected)


def test_holes_are_not_filled_and_overlapping_polygons_are():
    photo = np.full((200, 200, 3), 128, np.uint8)
    ring = np.zeros((200, 200), np.uint8, order="F")
    ring[20:180, 20:180] = 1
    ring[60:140, 60:140] = 0
    drawn = draw(photo, [box(20, 20, 180, 180, segmentation=mask_util.encode(ring))], labels=False)
    assert (drawn[100, 100] == 128).all() and (drawn[40, 40] != 128).any()

    whole, part = [20, 20, 180, 20, 180, 180, 20, 180], [60, 60, 140, 60, 140, 140, 60, 140]
    drawn = draw(photo, [box(20, 20, 180, 180, segmentation=[whole, part])], labels=False)
    assert np.array_equal(drawn[100, 100], drawn[40, 40])


def written(photo, objects, metadata=CLASSES):
    """Return where labels are."""
    with_labels, without = (draw(photo, objects, metadata, labels=n) for n in (True, False))
    return (with_labels != without).any(axis=2)


def extent(pixels):
    """Return left, top, right and bottom of the pixels."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize("x", [0, 300, 760])
@pytest.mark.parametrize("y", [0, 300, 560])
def test_a_label_is_whole_near_its_box(balloons, x, y):
    photo = cv2.resize(balloons[0], (800, 600))
    objects = [box(x, y, x + 40, y + 40, score=0.87)]
    x0, y0, x1, y1 = extent(written(photo, objects))
    middle = [box(300, 300, 340, 340, score=0.87)]
    left, top, right, bottom = extent(written(photo, middle))
    # Where text lies on the sides of the box, a pixel may keep its color.
    assert abs((x1 - x0) - (right - left)) <= 2 and abs((y1 - y0) - (bottom - top)) <= 2
    assert x1 - x0 > 4 * (y1 - y0) > 40
    assert x0 <= x + 45 and x1 >= x - 5 and y0 <= y + 45 and y1 >= y - 5
    colors = draw(photo, objects, by_class=True)[y0:y1, x0:x1].reshape(-1, 3)
    background = (colors == RED).all(axis=1).mean()
    assert background > 0.4 and (colors == 255).all(axis=1).mean() > 0.02


def test_labels_of_close_objects_overlap_little():
    photo = np.full((600, 800, 3), 128, np.uint8)
    objects = [box(300 + 9 * k, 300 + 7 * k, 360 + 9 * k, 350 + 7 * k) for k in range(8)]
    alone = written(photo, objects[:1]).sum()
    assert written(photo, objects).sum() > 0.95 * len(objects) * alone


def test_labels_show_accents_and_the_score(balloons):
    photo = balloons[0]

    def label(name, score):
        metadata = SimpleNamespace(thing_classes=[name])
        return draw(photo, [box(200, 200, 300, 300, score=score)], metadata)

    pictures = [label("Bär", 0.9), label("Bar", 0.9), label("Bär", 0.8), label("熊", 0.9)]
    for i in range(4):
        for j in range(i):
            assert not np.array_equal(pictures[i], pictures[j])
    assert np.array_equal(pictures[3], label("class 0", 0.9))


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (40, 10000), (7, 5)])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_any_size_and_number_of_objects(shape, count):
    h, w = shape
    mask = mask_util.encode(np.ones(shape, np.uint8, order="F"))
    points = [w / 2, h / 2, 2, w, h, 2]
    one = box(0, 0, w, h, segmentation=mask, score=0.5, keypoints=points)
    drawn = draw(np.zeros((*shape, 3), np.uint8), [one] * count)
    assert drawn.shape == (*shape, 3) and drawn.dtype == np.uint8
    assert drawn.any() == (count > 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_invalid_coordinates_do_not_hide_other_objects(value):
    photo = np.full((300, 400, 3), 128, np.uint8)
    invalid = box(value, 10, 50, 50, segmentation=[[value, 10, 50, 10, 50, 50]])
    drawn = draw(photo, [invalid, box(200, 100, 300, 200)], by_class=True)
    assert (drawn[150, 200] == RED).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_photos_of_any_mode(tmp_path, mode):
    gray = np.full((400, 600), 128, np.uint16 if mode == "I;16" else np.uint8)
    gray[0, :2] = 0, 255  # the range of 16-bit images is stretched
    photo = Image.fromarray(gray)
    (photo if mode == "I;16" else photo.convert(mode)).save(tmp_path / "p.png")
    square = [100, 100, 300, 100, 300, 300, 100, 300]
    record = {"file_name": str(tmp_path / "p.png"), "width": 600, "height": 400, "image_id": 1}
    record["annotations"] = [box(100, 100, 300, 300, segmentation=[square])]
    (file,) = write_overlays([record], [], CLASSES, tmp_path / "out")
    page = np.asarray(Image.open(file)).astype(int)
    assert np.abs(page[36 + 350, 500] - 128).max() < 5
    assert np.abs(page[36 + 200, 200] - (0.6 * 128 + 0.4 * np.array(RED))).max() < 5


def test_colors_may_be_arrays():
    colors = list(np.array([RED, BLUE]))
    arrays = SimpleNamespace(thing_classes=["a", "b"], thing_colors=colors)
    photo = np.zeros((60, 80, 3), np.uint8)
    expected = draw(photo, [box(5, 5, 40, 40)], CLASSES, by_class=True, labels=False)
    drawn = draw(photo, [box(5, 5, 40, 40)], arrays, by_class=True, labels=False)
    assert np.array_equal(drawn, expected) and class_color(0, arrays) == RED


def test_connections_have_the_color_of_their_rule():
    rules = [("x", "y", np.array([0, 200, 0]))]
    metadata = SimpleNamespace(
        thing_classes=["a"], keypoint_names=["x", "y"], keypoint_connection_rules=rules
    )
    photo = np.full((300, 400, 3), 128, np.uint8)
    drawn = draw(photo, [box(0, 0, 9, 9, keypoints=[100, 100, 2, 300, 100, 2])], metadata)
    assert (drawn[100, 200] == (0, 200, 0)).all()
    changed = (drawn != photo).any(axis=2)
    assert changed[95:105, 99:102].any() and not changed[110:].any()


def test_regions_are_blended_and_other_pixels_are_unchanged(balloons):
    photo = balloons[0]
    height, width = photo.shape[:2]
    output = torch.zeros(height, width, dtype=torch.long)
    output[: height // 2] = 1
    output[height // 2 :, : width // 4] = 2
    segments = [{"id": i, "category_id": i - 1, "isthing": False} for i in (1, 2)]
    segmentation = predicted_segmentation({"panoptic_seg": (output, segments)}, None)
    colors = [(70, 130, 180), (107, 142, 35)]
    metadata = SimpleNamespace(stuff_classes=["sky", "grass"], stuff_colors=colors)
    drawn = draw_segmentation(photo, segmentation, metadata)
    rest = slice(height // 2, None), slice(width // 4, None)
    assert np.array_equal(drawn[rest], photo[rest])
    for label, color in enumerate(colors, 1):
        mask = (output == label).numpy()
        inside = cv2.erode(np.pad(mask, 1, "edge").astype(np.uint8), np.ones((7, 7)))[1:-1, 1:-1]
        blend = (photo[inside > 0] + np.array(color)) / 2
        off = np.abs(drawn[inside > 0] - blend).max(axis=1) > 1
        assert 50 < off.sum() < 0.05 * len(off)  # the label
        columns = np.nonzero(mask)[1]
        edge = drawn[height // 2 - (label == 1), columns.min() + 5 : columns.max() - 5]
        assert (edge == color).all(axis=1).any()


def test_the_font_that_matplotlib_is_configured_with_is_used():
    font.cache_clear()
    with matplotlib.rc_context({"font.sans-serif": ["STIXGeneral"]}):
        assert font(20).getname()[0] == "STIXGeneral"
    font.cache_clear()
