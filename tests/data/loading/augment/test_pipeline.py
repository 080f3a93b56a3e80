"""Samples of an Albumentations pipeline are those of its own transforms, and exact at any place."""

import os
import random
import subprocess
import sys
import textwrap

import albumentations as A
import detectron2.data.transforms as T
import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.structures import BitMasks, BoxMode
from omegaconf import OmegaConf
from PIL import Image

from d2ext.data.loading.augment.pipeline import AlbumentationsPipeline
from d2ext.data.loading.mapper import Mapper
from d2ext.errors import UserError
from tests.data.loading.augment.test_samples import TRIANGLES, _as_rle, _record

GEOMETRIC = {
    "flips": [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.Transpose(p=0.5)],
    "quarters": [A.RandomRotate90(p=1), A.D4(p=1)],
    "affine": [A.Affine(rotate=(-40, 40), scale=(0.7, 1.3), shear=(-10, 10), p=1)],
    "perspective": [A.Perspective(scale=(0.05, 0.15), p=1)],
    "resized crop": [A.RandomResizedCrop(size=(90, 110), scale=(0.4, 1), p=1)],
    "resize": [A.Resize(77, 230, p=1)],
    "pad": [A.PadIfNeeded(200, 220, p=1)],
    "elastic": [A.ElasticTransform(alpha=30, sigma=6, p=1)],
    "grid": [A.GridDistortion(p=1)],
    "one of": [A.OneOf([A.HorizontalFlip(p=1), A.Sequential([A.Rotate(30, p=1)])], p=0.8)],
    "boxes kept": [A.RandomSizedBBoxSafeCrop(100, 120, p=1)],
    "color": [A.RandomGamma(p=1), A.GaussNoise(std_range=(0.01, 0.03), p=1)],
}


def _sample(transforms, record, seed, *, before=(), **options):
    given = dict(image_format="BGR", use_instance_mask=True) | options
    augmentations = [*before, AlbumentationsPipeline(transforms, given["image_format"])]
    np.random.seed(seed)
    return Mapper(True, augmentations=augmentations, **given)(record)


def _has_block(mask):
    """Return whether a mask contains 5 x 5 pixels; outlines differ by rounding."""
    return (torch.nn.functional.avg_pool2d(mask[None].float(), 5, 1) == 1).any()


@pytest.mark.parametrize("masks", ["polygon", "RLE"])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_objects_are_where_their_pixels_are(tmp_path, name, masks):
    record = _record(tmp_path)
    given_record = _as_rle(record) if masks == "RLE" else record
    kind = "bitmask" if masks == "RLE" else "polygon"
    options = dict(
        use_keypoint=True, keypoint_hflip_indices=np.array([0]), instance_mask_format=kind
    )
    seen = 0
    for seed in range(8):
        sample = _sample(GEOMETRIC[name], given_record, seed, **options)
        white, objects = sample["image"].float().mean(dim=0) > 127, sample["instances"]
        found = objects.gt_masks if len(objects) else BitMasks(torch.zeros(1, *white.shape))
        if not isinstance(found, BitMasks):  # the pipeline moved no pixel
            assert masks == "polygon" and name in ("color", "flips", "one of")
            found = BitMasks.from_polygon_masks(found, *white.shape)
        bitmaps = found.tensor
        assert not _has_block(white ^ bitmaps.any(dim=0))
        for i in range(len(objects)):
            seen += 1
            ys, xs = torch.nonzero(bitmaps[i], as_tuple=True)
            x0, y0, x1, y1 = objects.gt_boxes.tensor[i].tolist()
            assert x0 - 1.5 <= xs.min() and xs.max() + 1 <= x1 + 1.5
            assert y0 - 1.5 <= ys.min() and ys.max() + 1 <= y1 + 1.5
            x, y, visibility = objects.gt_keypoints.tensor[i, 0].tolist()
            if visibility:
                assert bitmaps[i, min(int(y), white.shape[0] - 1), min(int(x), white.shape[1] - 1)]
    assert seen > 6


def test_masks_equal_albumentations_pixel_by_pixel(tmp_path):
    """The reference transforms each mask by itself, with the same draws."""
    record = _record(tmp_path)
    image = np.asarray(Image.open(record["file_name"]))
    for transforms in (GEOMETRIC["affine"], GEOMETRIC["elastic"], GEOMETRIC["resized crop"]):
        for seed in range(3):
            np.random.seed(seed)
            transform = AlbumentationsPipeline(transforms).get_transform(image[..., ::-1], None)
            np.random.seed(seed)
            draws = int(np.random.randint(2**31))
            for annotation in _as_rle(record)["annotations"]:
                mask = pycocotools.mask.decode(annotation["segmentation"])
                reference = A.Compose(transforms)
                reference.set_random_state(np.random.default_rng(draws), random.Random(draws))
                expected = reference(image=image, mask=mask)
                transform.seg_pad_value = 0
                assert np.array_equal(transform.apply_segmentation(mask), expected["mask"])
                made = transform.apply_image(image[..., ::-1])
                assert np.array_equal(made[..., ::-1], expected["image"])


@pytest.mark.parametrize(
    ("transform", "shape", "source"),
    [
        (A.HorizontalFlip(p=1), (7, 11), lambda row, column: (row, 10 - column)),
        (A.VerticalFlip(p=1), (7, 11), lambda row, column: (6 - row, column)),
        (A.Transpose(p=1), (11, 7), lambda row, column: (column, row)),
        (A.Crop(2, 1, 9, 6, p=1), (5, 7), lambda row, column: (row + 1, column + 2)),
        (A.Pad(2, p=1), (11, 15), lambda row, column: (row - 2, column - 2)),
    ],
)
def test_samples_equal_a_reference_pixel_by_pixel(transform, shape, source):
    image = np.random.default_rng(0).integers(1, 256, (7, 11, 3)).astype(np.uint8)
    labels = image[..., 0] % 20
    made = AlbumentationsPipeline([transform]).get_transform(image, None)
    pixels, new_labels = made.apply_image(image), made.apply_segmentation(labels)
    assert pixels.shape == (*shape, 3) and new_labels.shape == shape
    for row, column in np.ndindex(shape):
        y, x = source(row, column)
        inside = 0 <= y < 7 and 0 <= x < 11
        assert np.array_equal(pixels[row, column], image[y, x] if inside else [0] * 3)
        assert new_labels[row, column] == (labels[y, x] if inside else 255)
        if inside and (row + column) % 4 == 0:  # each takes a run of the pipeline
            place = np.array([[x, y, x + 1, y + 1]], float)
            box = [column, row, column + 1, row + 1]
            assert made.apply_box(place)[0] == pytest.approx(box, abs=1e-4)
            moved = made.apply_coords(place[:, :2] + 0.5)[0]
            assert moved == pytest.approx([column + 0.5, row + 0.5], abs=1e-4)


def test_boxes_are_exact_to_fractions_of_a_pixel():
    image = np.zeros((40, 60, 3), np.uint8)
    boxes = np.array([[10.25, 5, 30, 25.5], [50, 30, 70, 44], [3, 3, 3, 3]])
    for transforms, expected in (
        ([A.HorizontalFlip(p=1)], [[30, 5, 49.75, 25.5], [0, 30, 10, 40], [0, 0, 0, 0]]),
        ([A.Crop(20, 10, 50, 40, p=1)], [[0, 0, 10, 15.5], [0, 0, 0, 0], [0, 0, 0, 0]]),
        ([A.Resize(80, 30, p=1)], [[5.125, 10, 15, 51], [25, 60, 30, 80], [0, 0, 0, 0]]),
    ):
        pipeline = AlbumentationsPipeline(transforms)
        for known in (boxes, None):  # None: Detectron2's mapper, which asks box by box
            transform = pipeline.get_transform(image, known)
            made = [transform.apply_box(box[None])[0] for box in boxes]
            np.testing.assert_allclose(made, expected, atol=1e-4)
            np.testing.assert_allclose(transform.apply_box(boxes), expected, atol=1e-4)


def test_points_move_with_the_pixels():
    image = np.zeros((40, 60, 3), np.uint8)
    points = np.array([[10.5, 5.25], [0, 40]])
    flip = AlbumentationsPipeline([A.HorizontalFlip(p=1)]).get_transform(image, None)
    assert flip.apply_coords(points) == pytest.approx(np.array([[49.5, 5.25], [60, 40]]))
    assert flip.apply_coords(np.zeros((0, 2))).shape == (0, 2)
    resize = AlbumentationsPipeline([A.Resize(80, 120, p=1)]).get_transform(image, None)
    assert np.abs(resize.apply_coords(points) - 2 * points).max() <= 0.5


@pytest.mark.parametrize("seed", range(6))
def test_mirrored_images_exchange_left_and_right(tmp_path, seed):
    """Any number of flips and turns, before and in the pipeline."""
    record = _record(tmp_path, (120, 180), [[[40, 60], [140, 50], [90, 110]]])
    # Seen from the third corner, the first one is on the left.
    record["annotations"][0]["keypoints"] = [50, 62, 2, 130, 57, 2, 90, 100, 2]
    transforms = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.RandomRotate90(p=1)]
    sample = _sample(
        transforms,
        record,
        seed,
        before=[T.RandomFlip()],
        use_keypoint=True,
        keypoint_hflip_indices=np.array([1, 0, 2]),
    )
    points = sample["instances"].gt_keypoints.tensor[0]
    assert (points[:, 2] == 2).all()
    (left, right), below = points[:2, :2], points[2, :2]
    (a, b), (c, d) = left - below, right - below
    assert a * d - b * c > 0


def test_draws_follow_numpys_generator_only(tmp_path):
    record = _record(tmp_path)
    transforms = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.RandomGamma(p=0.5)]
    images = [_sample(transforms, record, seed)["image"] for seed in range(40)]
    again = [_sample(transforms, record, seed)["image"] for seed in reversed(range(40))][::-1]
    assert all(map(torch.equal, images, again))
    # Each transform draws for itself: both flips, neither and one alone occur.
    plain = torch.as_tensor(np.asarray(Image.open(record["file_name"])).transpose(2, 0, 1) > 127)
    kinds = {
        next(
            k
            for k, dims in enumerate(((), (2,), (1,), (1, 2)))
            if torch.equal(i > 127, plain.flip(dims))
        )
        for i in images
    }
    assert kinds == {0, 1, 2, 3}


def test_colors_are_rgb_for_the_transforms(tmp_path):
    pixels = np.full((4, 5, 3), [250, 100, 10], np.uint8)  # red
    transforms = [A.ChannelDropout(channel_drop_range=(2, 2), p=1)]
    for image_format, image in (("RGB", pixels), ("BGR", pixels[..., ::-1].copy())):
        made = []
        for seed in range(5):
            np.random.seed(seed)
            pipeline = AlbumentationsPipeline(transforms, image_format)
            found = pipeline.get_transform(image, None).apply_image(image)
            made.append(found if image_format == "RGB" else found[..., ::-1])
        if image_format == "RGB":
            expected = made
    assert all(map(np.array_equal, made, expected))


@pytest.mark.parametrize("shape", [(40, 30), (1, 30), (1, 1)])
def test_gray_images(tmp_path, shape):
    record = _record(tmp_path, shape, [])
    for transforms in (GEOMETRIC["flips"], GEOMETRIC["color"], GEOMETRIC["affine"]):
        sample = _sample(transforms, record, 0, image_format="L")
        assert sample["image"].dtype == torch.uint8 and sample["image"].shape[0] == 1


def test_erased_pixels_leave_the_masks_only_if_the_pipeline_says_so(tmp_path):
    record = _record(tmp_path)
    whole = _sample([A.CoarseDropout(p=0)], _as_rle(record), 0, instance_mask_format="bitmask")
    whole = whole["instances"].gt_masks.tensor.sum()
    holes = dict(num_holes_range=(6, 6), hole_height_range=(20, 20), hole_width_range=(20, 20), p=1)
    for fill, fewer in ((None, False), (0, True)):
        made = _sample(
            [A.CoarseDropout(fill_mask=fill, **holes)],
            _as_rle(record),
            0,
            instance_mask_format="bitmask",
        )
        assert (made["instances"].gt_masks.tensor.sum() < whole) == fewer


def test_label_maps_and_masks_are_padded_with_their_labels(tmp_path):
    record = _record(tmp_path)
    Image.fromarray(np.full((120, 180), 3, np.uint8)).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    sample = _sample([A.PadIfNeeded(200, 300, p=1)], record, 0)
    assert sample["sem_seg"].unique().tolist() == [3, 255]
    assert (sample["sem_seg"] == 3).sum() == 120 * 180
    assert sample["instances"].gt_masks.tensor.sum() < 120 * 180


def test_polygons_are_drawn_at_the_size_of_the_image_that_the_pipeline_gets(tmp_path):
    record = _record(tmp_path)
    flip = [A.HorizontalFlip(p=1)]
    sample = _sample(flip, record, 0, before=[T.Resize((360, 540))])
    assert sample["instances"].gt_masks.tensor.shape[1:] == (360, 540)
    area = 9 * _sample(flip, record, 0)["instances"].gt_masks.tensor.sum()
    assert sample["instances"].gt_masks.tensor.sum() == pytest.approx(float(area), rel=0.02)


def test_objects_stay_as_they_are_if_no_pixel_moves(tmp_path):
    record = _record(tmp_path)
    options = dict(use_keypoint=True, keypoint_hflip_indices=np.array([0]))
    for given in ({}, options):
        plain = Mapper(True, augmentations=[], image_format="BGR", use_instance_mask=True, **given)(
            record
        )["instances"]
        made = _sample(GEOMETRIC["color"], record, 0, **given)["instances"]
        for expected, found in zip(plain.gt_masks.polygons, made.gt_masks.polygons, strict=True):
            assert all(map(np.array_equal, expected, found))
        np.testing.assert_allclose(made.gt_boxes.tensor, plain.gt_boxes.tensor, atol=1e-4)
    assert torch.equal(made.gt_keypoints.tensor, plain.gt_keypoints.tensor)


def test_integer_boxes_are_not_truncated(tmp_path):
    record = _record(tmp_path)
    whole = [{**a, "bbox": list(map(int, a["bbox"]))} for a in record["annotations"]]
    made = [
        _sample(
            [A.HorizontalFlip(p=1)],
            {**record, "annotations": objects},
            0,
            before=[T.Resize((50, 77))],
        )
        for objects in (record["annotations"], whole)
    ]
    assert torch.equal(*(sample["instances"].gt_boxes.tensor for sample in made))


def test_nothing_asks_for_updates():
    """A new process, because Albumentations asks when it is imported."""
    code = """
        import urllib.request
        def build_opener(*handlers):
            raise SystemExit("asks for updates")
        urllib.request.build_opener = build_opener
        import d2ext
        from detectron2.config import instantiate
        name = "d2ext.data.loading.augment.pipeline.AlbumentationsPipeline"
        inner = {"_target_": "albumentations.RandomGamma"}
        print(type(instantiate({"_target_": name, "transforms": [inner]})).__name__)
    """
    env = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True
    )
    assert done.stdout == "AlbumentationsPipeline\n", done.stderr


def _as_floats(image, **_):
    return image / np.float32(255)


def _without_a_channel(image, **_):
    return image[..., :2].copy()


def test_images_that_are_converted_are_refused():
    image = np.zeros((4, 5, 3), np.uint8)
    for convert, kind in (
        (_as_floats, r"shape \(4, 5, 3\) and type float32"),
        (_without_a_channel, r"shape \(4, 5, 2\) and type uint8"),
    ):
        pipeline = AlbumentationsPipeline([A.Lambda(image=convert, p=1)], "RGB")
        with pytest.raises(UserError, match=f"made a ndarray of {kind}; remove the transforms"):
            pipeline.get_transform(image, None)


def test_detectron2s_mapper_and_lazy_calls(tmp_path):
    node = {
        "_target_": "d2ext.data.loading.augment.pipeline.AlbumentationsPipeline",
        "transforms": [
            {
                "_target_": "albumentations.OneOf",
                "p": 1.0,
                "transforms": [
                    {"_target_": "albumentations.Affine", "rotate": [-30, 30], "p": 1.0},
                    {"_target_": "albumentations.HorizontalFlip", "p": 1.0},
                ],
            }
        ],
    }
    record = _record(tmp_path)
    mapper = DatasetMapper(
        True,
        augmentations=[instantiate(OmegaConf.create(node))],
        image_format="BGR",
        use_instance_mask=True,
    )
    for seed in range(4):
        np.random.seed(seed)
        sample = mapper(record)
        white, objects = sample["image"].float().mean(dim=0) > 127, sample["instances"]
        masks = BitMasks.from_polygon_masks(objects.gt_masks, *white.shape).tensor
        assert not _has_block(white ^ masks.any(dim=0))


def test_images_without_objects_and_of_one_pixel(tmp_path):
    for shape in ((1, 1), (1, 50), (40, 30)):
        record = _record(tmp_path, shape, [])
        for name in ("flips", "affine", "resize", "color", "boxes kept"):
            sample = _sample(GEOMETRIC[name], record, 1)
            assert sample["image"].dtype == torch.uint8 and len(sample["instances"]) == 0


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (A.CropNonEmptyMaskIfExists(20, 20), "CropNonEmptyMaskIfExists needs the content of masks"),
        (A.OneOf([A.Morphological()]), "Morphological needs the content"),
        (A.Mosaic(), "Mosaic needs mosaic_metadata"),
        (A.Normalize(), "remove Normalize; the model normalizes"),
        (A.OneOf([A.ToFloat()]), "remove ToFloat; the model"),
        (A.ToTensorV2(), "remove ToTensorV2; the model"),
    ],
)
def test_transforms_that_do_not_fit_are_refused(transform, words):
    with pytest.raises(UserError, match=words):
        AlbumentationsPipeline([transform])


def test_boxes_annotated_beyond_the_image_are_clipped(tmp_path):
    record = _record(tmp_path, triangles=TRIANGLES[:1])
    record["annotations"][0]["bbox"] = [-5, 30, 400, 90]
    record["annotations"][0]["bbox_mode"] = BoxMode.XYXY_ABS
    sample = _sample([A.HorizontalFlip(p=1)], record, 0)
    assert sample["instances"].gt_boxes.tensor.tolist() == [[0, 30, 180, 90]]


def test_a_missing_package_is_an_error_with_the_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(UserError, match=r"pip install 'd2ext\[albumentations\]'"):
        AlbumentationsPipeline([])
