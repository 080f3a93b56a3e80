"""Overlays show the ground truth on the left and predictions on the right, one per image."""

from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2ext.data.segmentation import predicted_segmentation
from d2ext.visualize.overlay import write_overlays

GRAY = 128
CLASSES = SimpleNamespace(thing_classes=["a", "b"], thing_colors=[(230, 20, 20), (20, 20, 230)])


def write_image(folder, name="photo.jpg", size=(600, 400)):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (GRAY,) * 3).save(folder / name)
    return {
        "file_name": str(folder / name),
        "image_id": 7,
        "width": size[0],
        "height": size[1],
        "annotations": [],
    }


def panels(file):
    """Return the two drawings (H, W, 3) without the header."""
    page = np.asarray(Image.open(file)).astype(int)
    width = (page.shape[1] - 6) // 2
    return page[36:, :width], page[36:, -width:]


def drawn(panel):
    """Return where something was drawn on the gray photo."""
    return np.abs(panel - GRAY).max(axis=2) > 24


def prediction(**more):
    return {"image_id": 7, "category_id": 0, "bbox": [350, 250, 100, 100], "score": 0.9, **more}


def test_ground_truth_left_predictions_right(tmp_path):
    record = write_image(tmp_path)
    record["annotations"] = [{"bbox": [50, 50, 150, 150], "bbox_mode": 0, "category_id": 0}]
    other = prediction(image_id=8, bbox=[0, 0, 600, 400])
    (file,) = write_overlays([record], [prediction(), other], CLASSES, tmp_path / "out")
    assert file == tmp_path / "out" / "photo.jpg"
    left, right = map(drawn, panels(file))
    assert left.shape == right.shape == (400, 600)
    assert left[30:170, 30:170].any() and not left[200:].any() and not left[:, 200:].any()
    assert right[230:370, 330:470].any() and not right[:200].any() and not right[:, :300].any()


def test_scores_below_the_threshold_are_not_drawn(tmp_path):
    record = write_image(tmp_path)
    low = [prediction(score=s) for s in (0.1, 0.499, float("nan"))]
    (file,) = write_overlays([record], low, CLASSES, tmp_path / "out")
    assert not drawn(panels(file)[1]).any()
    (file,) = write_overlays([record], low, CLASSES, tmp_path / "out", score_threshold=0.3)
    assert drawn(panels(file)[1]).any()


SQUARE = np.zeros((400, 600), dtype=np.uint8, order="F")
SQUARE[100:300, 200:400] = 1
RLE = mask_util.encode(SQUARE)


@pytest.mark.parametrize(
    ("segmentation", "filled"),
    [
        ([[200, 100, 400, 100, 400, 300, 200, 300]], True),
        ([[200, 100, 400, 100, 400, 300], [200, 100, 200, 300, 400, 300]], True),
        (RLE, True),
        ({**RLE, "counts": RLE["counts"].decode()}, True),
        ({"size": [400, 600], "counts": [80100, *[200, 200] * 199, 200, 79900]}, True),
        ([[200, 100, 400, 100]], False),  # no area
        (mask_util.encode(np.zeros_like(SQUARE)), False),
        ([], False),
        (None, False),
    ],
)
def test_masks_of_any_form(tmp_path, segmentation, filled):
    record = write_image(tmp_path)
    box = {"bbox": [200, 100, 200, 200], "bbox_mode": 1, "category_id": 0}
    plain = {"bbox": [500, 300, 50, 50], "bbox_mode": 1, "category_id": 0}  # without a mask
    record["annotations"] = [plain, {**box, "segmentation": segmentation, "iscrowd": 1}]
    result = {**prediction(bbox=box["bbox"]), "segmentation": segmentation}
    (file,) = write_overlays([record], [result], CLASSES, tmp_path / "out")
    for panel in map(drawn, panels(file)):
        assert panel[150:280, 250:350].all() == filled
        assert panel[150:280, 250:350].any() == filled
        assert panel[200, 198:203].any()  # the box


def test_big_photos_are_reduced_and_small_ones_enlarged(tmp_path):
    for size, page in (((4000, 1000), (2054, 292)), ((64, 32), (1030, 292))):
        record = write_image(tmp_path, size=size)
        w, h = size
        record["annotations"] = [{"bbox": [w / 2, h / 2, w, h], "bbox_mode": 0, "category_id": 0}]
        (file,) = write_overlays([record], [], CLASSES, tmp_path / "out")
        with Image.open(file) as shown:
            assert shown.size == page
        left = drawn(panels(file)[0])
        assert left[len(left) // 2 - 5 :, left.shape[1] // 2 - 5 :].any()
        assert not left[: len(left) // 2 - 30].any()


def test_exif_orientation(tmp_path):
    photo = Image.new("RGB", (600, 400), "white")
    photo.paste("red", (0, 0, 300, 400))
    exif = photo.getexif()
    exif[0x0112] = 6  # rotated: the stored left side is the top
    photo.save(tmp_path / "p.jpg", exif=exif)
    record = {"file_name": str(tmp_path / "p.jpg"), "image_id": 1, "width": 400, "height": 600}
    (file,) = write_overlays([record], [], CLASSES, tmp_path / "out")
    for panel in panels(file):
        assert panel.shape == (600, 400, 3)
        assert np.abs(panel[100, 200] - (255, 0, 0)).max() < 20
        assert np.abs(panel[500, 200] - 255).max() < 20


def test_classes_have_their_colors_in_different_shades(tmp_path):
    record = write_image(tmp_path)
    record["annotations"] = [
        {
            "bbox": [x, 100, x + 90, 300],
            "bbox_mode": 0,
            "category_id": c,
            "segmentation": [[x, 100, x + 90, 100, x + 90, 300, x, 300]],
        }
        for x, c in ((20, 0), (120, 0), (250, 1), (400, 1))
    ]

    def colors(metadata):
        (file,) = write_overlays([record], [], metadata, tmp_path / "out")
        return [panels(file)[0][250, x + 45] for x in (20, 120, 250, 400)]

    red1, red2, blue1, blue2 = colors(CLASSES)
    for red in (red1, red2):
        assert red[0] > red[2] + 40
    for blue in (blue1, blue2):
        assert blue[2] > blue[0] + 40
    assert np.abs(red1 - red2).max() > 10 and np.abs(blue1 - blue2).max() > 10
    found = colors(SimpleNamespace(thing_classes=["balloon", "b"]))
    for i in range(4):
        for j in range(i):
            assert np.abs(found[i] - found[j]).max() > 30


def test_pictures_of_an_earlier_evaluation_are_removed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.jpg").write_bytes(b"")
    (out / "notes.txt").write_text("mine")
    elsewhere = write_image(tmp_path / "photos", "new.png")
    write_overlays([elsewhere], [], CLASSES, out)
    assert sorted(p.name for p in out.iterdir()) == ["new.jpg", "notes.txt"]
    assert write_overlays([], [], CLASSES, out) == []
    assert [p.name for p in out.iterdir()] == ["notes.txt"]


def test_equal_names_and_limit(tmp_path):
    size = (60, 40)
    records = [write_image(tmp_path / str(i), "1.png", size) for i in range(2)]
    records += [write_image(tmp_path, "1_2.png", size)]
    files = write_overlays(records, [], CLASSES, tmp_path / "out")
    assert [f.name for f in files] == ["1.jpg", "1_2.jpg", "1_2_2.jpg"]
    assert sorted(files) == sorted((tmp_path / "out").iterdir())

    records = [write_image(tmp_path, f"n{i}.png", size) for i in range(9)]
    files = write_overlays(records, [], CLASSES, tmp_path / "out", limit=3)
    assert [f.name for f in files] == ["n0.jpg", "n4.jpg", "n8.jpg"]


def test_unreadable_image_is_gray(tmp_path):
    record = write_image(tmp_path)
    whole = (tmp_path / "photo.jpg").read_bytes()
    for content in (b"", b"not an image", whole[:-200], None):
        (tmp_path / "photo.jpg").unlink()
        if content is not None:
            (tmp_path / "photo.jpg").write_bytes(content)
        else:
            (tmp_path / "photo.jpg").symlink_to("nowhere")
        (file,) = write_overlays([record], [], CLASSES, tmp_path / "out")
        pixels = np.asarray(panels(file)[0])
        assert np.abs(pixels[-20:].astype(int) - 128).max() < 8


@pytest.mark.filterwarnings("ignore:Glyph")
@settings(max_examples=25, deadline=None)
@given(
    name=st.text() | st.sampled_from([r"$\foo$", "US$ {", "气球", "\ud800"]),
    category=st.integers(0, 2),
)
def test_any_class_name(tmp_path_factory, name, category):
    folder = tmp_path_factory.mktemp("names")
    record = write_image(folder, size=(320, 240))
    metadata = SimpleNamespace(thing_classes=[name, name])
    result = prediction(category_id=category, bbox=[50, 60, 100, 100])
    (file,) = write_overlays([record], [result], metadata, folder / "out")
    assert drawn(panels(file)[1]).any()


POINTS = [[100, 100], [200, 300], [500, 50]]
NAMED = SimpleNamespace(
    thing_classes=["a"],
    keypoint_names=["x", "y", "z"],
    keypoint_connection_rules=[("x", "y", (255, 0, 0)), ("y", "z", (255, 0, 0))],
)


@pytest.mark.parametrize(("metadata", "connected"), [(CLASSES, False), (NAMED, True)])
def test_labeled_keypoints_and_their_connections(tmp_path, metadata, connected):
    record = write_image(tmp_path)
    keypoints = [v for p, seen in zip(POINTS, (1, 2, 0), strict=True) for v in (*p, seen)]
    box = {"bbox": [0, 350, 30, 40], "category_id": 0, "keypoints": keypoints}
    record["annotations"] = [{**box, "bbox_mode": 1}]
    scores = [v for p, score in zip(POINTS, (0.9, 0.5, 0.01), strict=True) for v in (*p, score)]
    result = prediction(bbox=box["bbox"], keypoints=scores)
    (file,) = write_overlays([record], [result], metadata, tmp_path / "out")
    for panel in map(drawn, panels(file)):
        assert panel[95:105, 95:105].any() and panel[295:305, 195:205].any()
        assert not panel[45:55, 495:505].any()  # neither labeled nor likely
        assert panel[195:205, 145:155].any() == connected


def _halves(**segments):
    """Return a panoptic segmentation of the left and the right half."""
    labels = torch.ones(400, 600, dtype=torch.long)
    labels[:, 300:] = 2
    output = (labels, [{"id": i, "category_id": 0, **segments} for i in (1, 2)])
    return predicted_segmentation({"panoptic_seg": output}, None)


def test_semantic_segmentation_on_both_sides(tmp_path):
    record = write_image(tmp_path)
    del record["annotations"]
    labels = np.full((400, 600), 255, np.uint8)
    labels[:, :300] = 1
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    colors = [(0, 0, 250), (250, 0, 0)]
    metadata = SimpleNamespace(stuff_classes=["sky", "road"], stuff_colors=colors)
    scores = torch.tensor(np.stack([labels != 1, labels == 1])).float()
    maps = {7: predicted_segmentation({"sem_seg": scores}, metadata)}
    (file,) = write_overlays([record], None, metadata, tmp_path / "out", segmentations=maps)
    left, right = panels(file)
    for panel in (left, right):
        assert panel[20, 20, 0] > panel[20, 20, 2] + 60  # red
    assert not drawn(left)[20, 580] and right[20, 580, 2] > right[20, 580, 0] + 60


def test_a_panoptic_segmentation_replaces_the_objects_that_it_contains(tmp_path):
    record = write_image(tmp_path)
    for things in (True, False):
        maps = {7: _halves(isthing=things)}
        arguments = [record], [prediction()], CLASSES, tmp_path / "out"
        (file,) = write_overlays(*arguments, segmentations=maps)
        panel = panels(file)[1].astype(int)
        assert drawn(panel).mean() > 0.9
        side_of_box = np.ptp(panel[320, 335:365], axis=0).max() > 30
        assert side_of_box != things


def test_an_unreadable_label_map_is_not_drawn(tmp_path):
    record = {**write_image(tmp_path), "sem_seg_file_name": "nowhere.png"}
    (file,) = write_overlays([record], [], CLASSES, tmp_path / "out")
    assert not drawn(panels(file)[0]).any()
