"""`Mapper` returns the samples of Detectron2's mapper, up to rounding of resized pixels."""

import copy

import detectron2.data.transforms as T
import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2ext.data.formats.via import read_via
from d2ext.data.loading.augment.center_crop import CropPadTransform
from d2ext.data.loading.image_io import read_photo
from d2ext.data.loading.mapper import Mapper, transform_polygons
from d2ext.errors import UserError

RESIZE = T.ResizeShortestEdge([96, 128], 200, "choice")
CHAINS = {
    "balloon recipe": [RESIZE, T.RandomFlip(horizontal=True)],
    "laptop recipe": [RESIZE, T.RandomCrop("absolute", (64, 64)), T.RandomFlip()],
    "crop first": [T.RandomCrop("relative_range", (0.5, 0.5)), RESIZE],
    "rotation and contrast": [T.RandomRotation([-20, 20]), RESIZE, T.RandomContrast(0.5, 1.5)],
    "flips only": [T.RandomFlip(), T.RandomFlip(horizontal=False, vertical=True)],
    "nearest": [T.Resize((90, 120), Image.NEAREST)],
    "nothing": [],
}


@pytest.fixture
def records(tiny_root):
    folder = tiny_root / "balloon" / "train"
    return read_via(folder / "via_region_data.json", folder, ["balloon"])


def both(record, chain, seed=0, is_train=True, **options):
    """Return Detectron2's sample and ours."""
    options = {"image_format": "BGR", "use_instance_mask": True} | options
    samples = []
    for kind in (DatasetMapper, Mapper):
        mapper = kind(is_train, augmentations=chain, **options)
        given = copy.deepcopy(record)
        np.random.seed(seed)
        samples.append(mapper(given))
        assert given == record
    return samples


def assert_alike(theirs, ours, most=2):
    assert theirs.keys() == ours.keys()
    assert theirs["image"].dtype == ours["image"].dtype and ours["image"].is_contiguous()
    assert (theirs["image"].float() - ours["image"].float()).abs().max() <= most
    if "instances" not in theirs:
        return
    a, b = theirs["instances"], ours["instances"]
    assert a.image_size == b.image_size and a.get_fields().keys() == b.get_fields().keys()
    assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor)
    assert torch.equal(a.gt_classes, b.gt_classes)
    if not a.has("gt_masks"):
        return
    if hasattr(a.gt_masks, "tensor"):
        assert torch.equal(a.gt_masks.tensor, b.gt_masks.tensor)
        return
    pairs = zip(a.gt_masks.polygons, b.gt_masks.polygons, strict=True)
    for theirs, ours in pairs:
        assert len(theirs) == len(ours)
        assert all(np.array_equal(p, q) for p, q in zip(theirs, ours, strict=True))


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("image_format", ["BGR", "RGB", "L"])
def test_samples_match_detectron2(records, chain, image_format):
    if image_format == "L" and chain == "rotation and contrast":
        chain = "balloon recipe"  # Detectron2's rotation does not support gray images
    for seed, record in enumerate(records):
        assert_alike(*both(record, CHAINS[chain], seed, image_format=image_format))


@pytest.mark.parametrize(
    "options",
    [
        dict(use_instance_mask=False),
        dict(instance_mask_format="bitmask"),
        dict(recompute_boxes=True),
        dict(is_train=False),
    ],
    ids=str,
)
def test_options_match_detectron2(records, options):
    for seed, record in enumerate(records):
        assert_alike(*both(record, CHAINS["laptop recipe"], seed, **options))


def test_evaluated_images_are_equal_to_detectron2s(records):
    """Both use Pillow, so that a model sees the same pixels as in `d2ext predict`."""
    for record in records:
        theirs, ours = both(record, [T.ResizeShortestEdge(96, 200)], is_train=False)
        assert torch.equal(theirs["image"], ours["image"])


def test_edge_cases_match_detectron2(records):
    record = records[0]
    box = {"bbox": [1.0, 2.0, 30.0, 40.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    mask = np.zeros((record["height"], record["width"]), np.uint8, order="F")
    mask[10:40, 10:50] = 1
    rle = pycocotools.mask.encode(mask)
    crowd = record["annotations"][0] | {"iscrowd": 1}
    for annotations, options in [
        ([], {}),
        ([crowd], {}),
        ([crowd, *record["annotations"]], {}),
        ([box], dict(use_instance_mask=False)),
        ([box | {"segmentation": rle}], dict(instance_mask_format="bitmask")),
    ]:
        edge_case = record | {"annotations": annotations}
        assert_alike(*both(edge_case, CHAINS["balloon recipe"], **options))
    without = {k: v for k, v in record.items() if k not in ("annotations", "height", "width")}
    assert_alike(*both(without, CHAINS["balloon recipe"]))


def test_keypoints_match_detectron2(records):
    person = records[0]["annotations"][0] | {"keypoints": [10, 20, 2, 30, 40, 2]}
    options = dict(use_keypoint=True, keypoint_hflip_indices=np.array([1, 0]))
    record = records[0] | {"annotations": [person]}
    theirs, ours = both(record, [T.RandomFlip(prob=1.0)], **options)
    assert_alike(theirs, ours)
    keypoints = (s["instances"].gt_keypoints.tensor for s in (theirs, ours))
    assert torch.equal(*keypoints)


@pytest.mark.parametrize("chain", ["balloon recipe", "laptop recipe", "flips only"])
@pytest.mark.parametrize("masks", [True, False])
def test_augmented_keypoints_match_detectron2(records, chain, masks):
    generator = np.random.default_rng(0)
    options = dict(use_keypoint=True, keypoint_hflip_indices=[0, 2, 1], use_instance_mask=masks)
    for seed, record in enumerate(records):
        people = [
            a | {"keypoints": np.c_[generator.uniform(0, 160, (3, 2)), [0, 1, 2]].ravel().tolist()}
            for a in record["annotations"]
        ]
        theirs, ours = both(record | {"annotations": people}, CHAINS[chain], seed, **options)
        assert_alike(theirs, ours)
        keypoints = [s["instances"].gt_keypoints.tensor for s in (theirs, ours)]
        assert torch.equal(*keypoints)


def test_objects_without_keypoints_get_unlabeled_ones(records):
    annotation = records[0]["annotations"][0]
    person = annotation | {"keypoints": [10, 20, 2, 30, 40, 2]}
    mapper = Mapper(
        True,
        augmentations=[],
        image_format="BGR",
        use_keypoint=True,
        keypoint_hflip_indices=[1, 0],
    )
    sample = mapper(records[0] | {"annotations": [annotation, person]})
    points = sample["instances"].gt_keypoints.tensor
    assert points.tolist() == [[[0, 0, 0]] * 2, [[10, 20, 2], [30, 40, 2]]]


@given(
    counts=st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=3), max_size=5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_polygons_are_transformed_as_if_one_by_one(counts, seed):
    rng = np.random.default_rng(seed)
    objects = [[(rng.random(2 * n) * 100).tolist() for n in parts] for parts in counts]
    transforms = T.TransformList(
        [
            T.ResizeTransform(100, 100, 150, 220),
            T.HFlipTransform(220),
            T.CropTransform(20, 30, 120, 90),
            T.VFlipTransform(90),
        ]
    )
    made = transform_polygons(objects, transforms)
    for parts, polygons in zip(objects, made, strict=True):
        wanted = transforms.apply_polygons([np.array(p).reshape(-1, 2) for p in parts])
        assert len(wanted) == len(polygons)
        for a, b in zip(wanted, polygons, strict=True):
            assert np.array_equal(a.reshape(-1), b)


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_real_photos_match_detectron2(real_balloon, image_format):
    from detectron2.data.detection_utils import read_image

    for path in sorted((real_balloon / "val").glob("*.jpg")):
        assert np.array_equal(read_photo(path, image_format), read_image(path, image_format))


def _photo(size, mode="RGB"):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (size[1] // 20, size[0] // 20, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.BICUBIC).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "progressive", "png"])
def test_image_kinds_are_read_like_detectron2(tmp_path, mode):
    from detectron2.data.detection_utils import read_image

    path = tmp_path / ("a.png" if mode in ("P", "RGBA", "png") else "a.jpg")
    kinds = {"progressive": "RGB", "png": "RGB"}
    options = {"progressive": True} if mode == "progressive" else {}
    _photo((120, 80), kinds.get(mode, mode)).save(path, **options)
    assert np.array_equal(read_photo(path, "BGR"), read_image(str(path), "BGR"))


@pytest.mark.parametrize("where", ["EXIF", "XMP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_applied_like_detectron2(tmp_path, where, orientation):
    from detectron2.data.detection_utils import read_image

    path = tmp_path / "a.jpg"
    if where == "EXIF":
        exif = Image.Exif()
        exif[0x0112] = orientation
        _photo((120, 80)).save(path, exif=exif)
    else:
        xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
        _photo((120, 80)).save(path, xmp=xmp.encode())
    assert np.array_equal(read_photo(path, "BGR"), read_image(str(path), "BGR"))


def test_truncated_photo_is_an_error(tmp_path):
    path = tmp_path / "a.jpg"
    _photo((320, 240)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(OSError, match="truncated"):
        read_photo(path, "BGR")


def _large(tmp_path, suffix="jpg"):
    _photo((640, 480)).save(tmp_path / f"a.{suffix}", quality=95)
    outline = [100.0, 100.0, 300.0, 100.0, 300.0, 300.0]
    one = {"bbox": [100.0, 100.0, 300.0, 300.0], "bbox_mode": 0, "category_id": 0}
    return {
        "file_name": str(tmp_path / f"a.{suffix}"),
        "height": 480,
        "width": 640,
        "image_id": 1,
        "annotations": [one | {"segmentation": [outline]}],
    }


@pytest.mark.parametrize(("edge", "divisor"), [(400, 1), (200, 2), (100, 4), (60, 8)])
def test_scaled_decoding_uses_the_largest_possible_divisor(tmp_path, edge, divisor):
    record = _large(tmp_path)
    chain = [T.ResizeShortestEdge(edge), T.RandomFlip(prob=1.0)]
    options = dict(augmentations=chain, image_format="BGR", use_instance_mask=True)
    theirs, ours = DatasetMapper(True, **options)(record), Mapper(True, decode="scaled", **options)
    ours = ours(record)
    # libjpeg averages while decoding, and Detectron2 filters afterwards: close, but not equal.
    assert_alike(theirs, ours, most=40)
    difference = (theirs["image"].float() - ours["image"].float()).abs().mean()
    assert difference <= (0.2 if divisor == 1 else 4)
    assert read_photo(record["file_name"], "BGR", divisor).shape[0] == 480 // divisor


def test_scaled_decoding_detects_a_wrong_size(tmp_path):
    record = _large(tmp_path) | {"height": 470}
    mapper = Mapper(
        True, augmentations=[T.ResizeShortestEdge(100)], image_format="BGR", decode="scaled"
    )
    with pytest.raises(ValueError, match="Mismatched image shape"):
        mapper(record)


def test_other_formats_are_decoded_at_full_size(tmp_path):
    record = _large(tmp_path, "png")
    options = dict(augmentations=[T.ResizeShortestEdge(100)], image_format="BGR")
    whole, scaled = (Mapper(True, decode=d, **options)(record) for d in ("exact", "scaled"))
    assert torch.equal(whole["image"], scaled["image"])


def test_cached_photos_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    record = _large(tmp_path)
    options = dict(
        augmentations=[T.RandomFlip(prob=1.0)], image_format="BGR", use_instance_mask=True
    )
    plain, cached = Mapper(True, **options), Mapper(True, cache=True, **options)
    assert_alike(plain(record), cached(record), most=0)
    assert_alike(plain(record), cached(record), most=0)
    (file,) = (tmp_path / "cache" / "photos").iterdir()
    before = file.read_bytes()
    # Writing to a sample does not change the file.
    not_flipped = Mapper(True, augmentations=[], image_format="BGR", cache=True)
    not_flipped(record)["image"].zero_()
    assert file.read_bytes() == before
    file.write_bytes(before[:1000])
    assert_alike(plain(record), cached(record), most=0)
    assert file.read_bytes() == before
    # A new photo with the same name is read again.
    _photo((640, 480), "L").save(record["file_name"])
    assert_alike(plain(record), cached(record), most=0)


def test_unusable_cache_is_bypassed_with_one_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "cache").write_text("not a folder")
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    record = _large(tmp_path)
    mapper = Mapper(False, augmentations=[], image_format="BGR", cache=True)
    assert torch.equal(mapper(record)["image"], mapper(record)["image"])
    assert caplog.text.count("images are read without the cache") == 1


def test_unknown_decode_value_is_an_error():
    with pytest.raises(ValueError, match="decode='fast': give exact or scaled"):
        Mapper(True, augmentations=[], image_format="BGR", decode="fast")


@pytest.mark.parametrize("chain", CHAINS)
def test_label_maps_match_detectron2(records, tmp_path, chain):
    """Labels are never mixed with those of neighboring pixels."""
    record = records[0]
    size = record["height"], record["width"]
    labels = np.random.default_rng(0).integers(0, 182, size, dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {**record, "sem_seg_file_name": str(tmp_path / "labels.png")}
    theirs, ours = both(record, CHAINS[chain])
    assert_alike(theirs, ours)
    assert ours["sem_seg"].dtype == torch.int64
    assert torch.equal(theirs["sem_seg"], ours["sem_seg"])


def test_a_label_map_that_is_missing_damaged_or_of_another_size_is_named(records, tmp_path):
    """The photo is intact, so the error must not name it."""
    file = tmp_path / "labels.png"
    record = {**records[0], "sem_seg_file_name": str(file)}
    mapper = Mapper(True, augmentations=[], image_format="BGR")
    with pytest.raises(UserError, match=f"label map {file} is missing; replace it, or"):
        mapper(record)
    Image.new("L", (record["width"], record["height"]), 7).save(file)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=f"label map {file} cannot be read: .*; replace it, or"):
        mapper(record)
    Image.new("L", (7, 5)).save(file)
    with pytest.raises(UserError, match=f"label map {file} has 7 x 5 pixels, but .* has "):
        mapper(record)


def test_evaluations_read_no_label_map(records, tmp_path):
    record = {**records[0], "sem_seg_file_name": str(tmp_path / "missing.png")}
    sample = Mapper(False, augmentations=[], image_format="BGR")(record)
    assert not {"sem_seg", "sem_seg_file_name"} & sample.keys()


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_labels_are_the_values_of_a_map_s_pixels(records, tmp_path, mode):
    """Those of a palette PNG are its indices, not the gray values of their colors."""
    labels = Image.new(mode, (records[0]["width"], records[0]["height"]), 1)
    if mode == "P":
        labels.putpalette([200, 100, 50] * 256)
    labels.save(tmp_path / "map.png")
    record = {**records[0], "sem_seg_file_name": str(tmp_path / "map.png")}
    sample = Mapper(True, augmentations=[RESIZE], image_format="BGR")(record)
    assert sample["sem_seg"].unique().tolist() == [1]
    assert sample["sem_seg"].shape == sample["image"].shape[1:]


@pytest.mark.parametrize(
    ("mode", "color", "words"),
    [("RGB", (1, 1, 1), "mode RGB"), ("LA", (1, 1), "mode LA"), ("I;16", 256, "label 256")],
)
def test_a_map_of_colors_or_large_labels_is_an_error(records, tmp_path, mode, color, words):
    file = tmp_path / "map.png"
    Image.new(mode, (records[0]["width"], records[0]["height"]), color).save(file)
    mapper = Mapper(True, augmentations=[], image_format="BGR")
    with pytest.raises(UserError, match=f"label map {file} has the {words}; save it as"):
        mapper({**records[0], "sem_seg_file_name": str(file)})


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("chain", ["balloon recipe", "laptop recipe"])
def test_precomputed_proposals_match_detectron2(records, chain, is_train):
    """Crowds are not trained on."""
    crowd = records[0]["annotations"][0] | {"iscrowd": 1}
    record = records[0] | {
        "annotations": [crowd, *records[0]["annotations"]],
        "proposal_boxes": np.random.default_rng(0).uniform(
            [0, 0, 60, 60], [50, 50, 99, 99], (9, 4)
        ),
        "proposal_objectness_logits": np.arange(9.0)[::-1],
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }
    options = dict(precomputed_proposal_topk=5, use_instance_mask=False, is_train=is_train)
    samples = []
    for kind in (DatasetMapper, Mapper):
        np.random.seed(0)
        mapper = kind(augmentations=CHAINS[chain], image_format="BGR", **options)
        samples.append(mapper(copy.deepcopy(record)))
    theirs, ours = samples
    assert_alike(theirs, ours)
    assert torch.equal(
        theirs["proposals"].proposal_boxes.tensor, ours["proposals"].proposal_boxes.tensor
    )
    if is_train:
        assert len(ours["instances"]) <= len(records[0]["annotations"])


@pytest.mark.parametrize("pad", ["crop", "Detectron2's"])
def test_bitmap_masks_are_padded_with_zeros(tmp_path, pad):
    """Label maps are padded with the transform's label at the same time."""
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    Image.new("L", (100, 100), 7).save(tmp_path / "map.png")
    mask = np.zeros((100, 100), np.uint8, order="F")
    mask[40:60, 40:60] = 1
    rle = pycocotools.mask.encode(mask)
    thing = {"bbox": [40, 40, 60, 60], "bbox_mode": 0, "category_id": 0, "segmentation": rle}
    record = {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "map.png"),
        "height": 100,
        "width": 100,
        "annotations": [thing],
    }
    chain = {
        "crop": CropPadTransform(20, 30, 160, 50, (0, 0, 0)),
        "Detectron2's": T.PadTransform(0, 0, 60, 0, 100, 100, 0, 255),
    }
    mapper = Mapper(
        True,
        augmentations=[chain[pad]],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    sample = mapper(record)
    masks = sample["instances"].gt_masks.tensor
    assert masks.shape[-1] == 160 and int(masks.sum()) == 400
    assert sample["sem_seg"].unique().tolist() == [7, 255]
