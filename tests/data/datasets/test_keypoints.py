"""Keypoints, `min_keypoints` and proposals: the dataset dicts are those of Detectron2."""

import json
import logging
import pickle

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.structures import BoxMode

from d2ext.data.datasets.declare import annotated_dataset, coco_dataset
from d2ext.data.datasets.keypoints import flip_indices
from d2ext.data.datasets.mixing import evaluation_set, training_set
from d2ext.data.datasets.register import (
    register_datasets,
    unregister_datasets,
    use_classes,
)
from d2ext.data.formats.coco import read_coco, to_coco
from d2ext.data.records.cache import cached_coco_records
from d2ext.data.records.records import columns_of, select
from d2ext.errors import UserError

NAMES = ["nose", "left_eye", "right_eye"]
POINTS = [[10, 5, 2, 7, 3.25, 1, 0, 0, 0], [0] * 9, [1, 2, 2] * 3]
MASK = {"segmentation": [[1, 1, 9, 1, 9, 9]]}
RLE = {"segmentation": {"size": [20, 30], "counts": [100, 400, 100]}}


def _content(*annotations, **more):
    objects = [
        {"image_id": 1, "category_id": 2, "bbox": [1, 2, 8, 9], "area": 50, "iscrowd": 0, **a}
        for a in annotations
    ]
    person = {"id": 2, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (3, 1, 2)
        ],
        "annotations": [{"id": i, **a} for i, a in enumerate(objects, start=1)],
        "categories": [{**person, **more}, {"id": 7, "name": "dog"}],
    }


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "people.json"
    file.write_text(
        json.dumps(
            _content(
                {"keypoints": POINTS[0], "num_keypoints": 2, **MASK},
                {"keypoints": POINTS[1], "num_keypoints": 0, **RLE},
                {"category_id": 7, **MASK},
                {"image_id": 3, "keypoints": POINTS[1]},
                {"image_id": 2, "keypoints": POINTS[2], "iscrowd": 1},
                {"image_id": 2, "keypoints": POINTS[2]},
            )
        )
    )
    return file


@pytest.fixture
def register(tmp_path):
    """Return a function that registers a COCO file in this test."""
    yield lambda name, file: register_datasets(
        {name: L(coco_dataset)(json_file=str(file), image_root=str(tmp_path))}
    )
    unregister_datasets()


def _as_detectron2(record):
    """Return one of our dicts as Detectron2's reader writes it: boxes by size, without areas."""
    annotations = []
    for a in record["annotations"]:
        box = BoxMode.convert(list(a["bbox"]), BoxMode(a["bbox_mode"]), BoxMode.XYWH_ABS)
        made = {**a, "bbox": box, "bbox_mode": BoxMode.XYWH_ABS}
        del made["area"]
        if isinstance(mask := made.get("segmentation"), dict):
            made["segmentation"] = {**mask, "counts": mask["counts"].encode()}
        annotations.append(made)
    return {**record, "annotations": annotations}


def test_dicts_equal_those_of_detectron2(file):
    theirs = load_coco_json(str(file), "imgs", "keypoints_theirs")
    assert sum("keypoints" in a for record in theirs for a in record["annotations"]) == 5
    for ours in (
        read_coco(file, "imgs")[0],
        cached_coco_records(file, "imgs"),
        cached_coco_records(file, "imgs"),  # from the cache
    ):
        assert list(map(_as_detectron2, ours)) == theirs


def test_an_extraordinary_file_is_read_in_the_same_way(file):
    content = json.loads(file.read_text())
    plain = list(cached_coco_records(file, "imgs"))
    for image in content["images"]:
        image["height"] = 20.0  # which the fast path leaves to the other one
    file.write_text(json.dumps(content))
    assert list(cached_coco_records(file, "imgs")) == plain


def test_keypoints_are_kept_by_class_selection_and_counted_in_columns(file):
    records = cached_coco_records(file, "imgs", ["person"])
    columns = columns_of(select(records, [2, 0]))
    assert columns.keypoints.tolist() == [[3, 0], [3, 2], [3, 0]]
    assert columns.labeled_keypoints.tolist() == [0, 2]
    decoded = columns_of(list(select(records, [2, 0])))
    assert decoded.keypoints.tolist() == columns.keypoints.tolist()
    nose, unlabeled = (a["keypoints"][:3] for a in records[0]["annotations"])
    assert nose == [10.5, 5.5, 2] and unlabeled == [0.5, 0.5, 0]


def test_files_without_keypoints_do_not_store_any(file):
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["keypoints"] = []
    file.write_text(json.dumps(content))
    records = cached_coco_records(file, "imgs")
    assert not any("keypoints" in a for record in records for a in record["annotations"])
    assert records._arrays["keypoints"].nbytes == 0
    assert records.columns.keypoints.tolist() == [[0, 0]] * 6


@pytest.mark.parametrize("keypoints", [[1, 2], "none", [1, "2", 2], [1, 1e9, 2], {"x": 1}])
def test_malformed_keypoints_are_dropped_and_counted(tmp_path, caplog, keypoints):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(_content({"keypoints": keypoints}, {"keypoints": POINTS[0]})))
    caplog.set_level(logging.INFO)
    records = cached_coco_records(file, "imgs")
    assert ["keypoints" in a for a in records[0]["annotations"]] == [False, True]
    assert "1 with malformed keypoints (ignored)" in caplog.text
    assert list(records) == read_coco(file, "imgs")[0]


def test_keypoints_become_pixel_indices_again_in_coco(file):
    records, _ = read_coco(file, "imgs", ["person"])
    objects = to_coco(records, ["person"])["annotations"]
    assert [a.get("keypoints") for a in objects if a["image_id"] == 1] == POINTS[:2]
    assert [a.get("num_keypoints") for a in objects if a["image_id"] == 1] == [2, 0]


def test_metadata_has_names_mirrored_pairs_and_limbs(file, register):
    register("keypoints_a", file)
    assert flip_indices("keypoints_a") == [0, 2, 1]
    metadata = MetadataCatalog.get("keypoints_a")
    assert metadata.keypoint_names == NAMES
    assert metadata.keypoint_flip_map == [("left_eye", "right_eye")]
    assert [rule[:2] for rule in metadata.keypoint_connection_rules] == [
        ("nose", "left_eye"),
        ("nose", "right_eye"),
    ]
    assert create_keypoint_hflip_indices("keypoints_a") == [0, 2, 1]
    use_classes("keypoints_a", ["dog", "person"])
    assert flip_indices(["keypoints_a", "keypoints_a"]) == [0, 2, 1]


def test_flip_indices_equal_detectron2s_for_coco():
    name = "keypoints_coco_2017_train"
    assert flip_indices(name) == create_keypoint_hflip_indices(name)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Left Eye", "Right Eye", "Tail"], [("Left Eye", "Right Eye")]),
        (["R_Hip", "L_Hip", "cleft"], [("L_Hip", "R_Hip")]),
        (["hip-r", "hip-l", "ball"], [("hip-l", "hip-r")]),
        (["eyeLeft", "eyeRight", "left"], [("eyeLeft", "eyeRight")]),
        (["tip", "base", "middle"], []),
    ],
)
def test_pairs_are_found_by_their_names(tmp_path, names, pairs):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(_content({"keypoints": POINTS[0]}, keypoints=names)))
    dataset = coco_dataset(str(file), str(tmp_path))
    dataset.load()
    assert dataset.metadata["keypoint_flip_map"] == pairs


def test_a_given_flip_map_replaces_the_pairs_of_names(file, tmp_path):
    dataset = annotated_dataset(str(file), str(tmp_path), flip_map=[["nose", "left_eye"]])
    dataset.load()
    assert dataset.metadata["keypoint_flip_map"] == [("nose", "left_eye")]
    wrong = annotated_dataset(str(file), str(tmp_path), flip_map=[["nose", "left_ear"]])
    with pytest.raises(UserError, match="'left_ear' is not the name of a keypoint; .*left_eye"):
        wrong.load()


@pytest.mark.parametrize(
    "category",
    [
        {"keypoints": None},
        {"keypoints": "none"},
        {"keypoints": ["a", "a", "b"]},
        {"keypoints": [1, [], 2]},
        {"skeleton": [[0, 1]]},
        {"skeleton": [[1, 2, 3]]},
        {"skeleton": 5},
    ],
)
def test_keypoints_without_usable_names_are_named_by_index(tmp_path, caplog, category):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(_content({"keypoints": POINTS[0]}, **category)))
    dataset = coco_dataset(str(file), str(tmp_path))
    dataset.load()
    assert dataset.metadata["keypoint_names"] == ["keypoint_0", "keypoint_1", "keypoint_2"]
    assert ("keypoint names of the category 'person' are ignored" in caplog.text) == (
        category != {"keypoints": None}
    )


def test_flip_indices_of_unsuitable_datasets_are_an_error(tmp_path, register):
    for name, names, keypoints in [
        ("keypoints_none", NAMES, []),
        ("keypoints_abc", ["a", "b", "c"], POINTS[0]),
        ("keypoints_xyz", ["x", "y", "z"], POINTS[0]),
    ]:
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(_content({"keypoints": keypoints}, keypoints=names)))
        register(name, file)
    with pytest.raises(UserError, match="'keypoints_none' has no keypoints"):
        flip_indices("keypoints_none")
    with pytest.raises(UserError, match="keypoints_abc and keypoints_xyz have different keypoints"):
        flip_indices(["keypoints_abc", "keypoints_xyz"])


@pytest.fixture
def people(file):
    """Register Detectron2's dicts of `file`."""
    DatasetCatalog.register("people", lambda: load_coco_json(str(file), "imgs"))
    yield "people"
    DatasetCatalog.remove("people")
    MetadataCatalog.pop("people", None)


def _proposals(file, **more):
    generator = np.random.default_rng(0)
    content = {
        "ids": [2, 1, 3, 4],
        "boxes": [generator.random((5, 4), np.float32) for _ in range(4)],
        "objectness_logits": [generator.random(5) for _ in range(4)],
    }
    file.write_bytes(pickle.dumps(content | more, protocol=pickle.HIGHEST_PROTOCOL))
    return str(file)


@pytest.mark.parametrize("filter_empty", [True, False])
@pytest.mark.parametrize("min_keypoints", [0, 1, 3])
def test_training_sets_equal_those_of_detectron2(people, tmp_path, filter_empty, min_keypoints):
    options = dict(
        filter_empty=filter_empty,
        min_keypoints=min_keypoints,
        proposal_files=[_proposals(tmp_path / "p.pkl", bbox_mode=BoxMode.XYWH_ABS)] * 2,
    )
    theirs = get_detection_dataset_dicts([people, people], **options)
    ours = training_set([people, people], **options).records
    assert len(ours) == len(theirs)
    for a, b in zip(theirs, ours, strict=True):
        for name in ("proposal_boxes", "proposal_objectness_logits"):
            np.testing.assert_array_equal(a.pop(name), b.pop(name))
        assert a == b


def test_the_plan_counts_images_with_few_keypoints(people):
    text = str(training_set(people, min_keypoints=1))
    assert text == "2 images (1 with few keypoints dropped, min_keypoints)"
    with pytest.raises(UserError, match="no image has 9 labeled keypoints; .*min_keypoints"):
        training_set(people, min_keypoints=9)


def test_images_of_a_dataset_without_annotations_are_kept():
    DatasetCatalog.register("stuff", lambda: [{"file_name": "a.jpg", "height": 1, "width": 1}])
    try:
        assert len(training_set("stuff", min_keypoints=1)) == 1
    finally:
        DatasetCatalog.remove("stuff")


def test_proposals_are_added_to_test_sets(people, tmp_path):
    file = _proposals(tmp_path / "p.pkl", indexes=[1, 2, 3, 4], scores=[np.arange(5)] * 4)
    records = evaluation_set(people, proposal_files=[file])
    assert [r["proposal_objectness_logits"].shape for r in records] == [(5,)] * 3
    assert records[0]["proposal_bbox_mode"] == BoxMode.XYXY_ABS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"ids": [1, 2, 4, 5]}, "no proposals for 1 of the 3 images of dataset 'people'.*id 3"),
        ({"ids": [1, 2]}, "2 ids, 4 boxes"),
        ({"boxes": None}, "is not a dict with ids"),
        ({"bbox_mode": 99}, "is not a dict with ids"),
        ({"boxes": pytest.approx(1)}, "only arrays and plain containers"),
    ],
)
def test_invalid_proposals_are_an_error(people, tmp_path, content, words):
    file = _proposals(tmp_path / "p.pkl", **content)
    with pytest.raises(UserError, match=words):
        training_set(people, proposal_files=[file])
    with pytest.raises(UserError, match="give a file for each of people"):
        training_set(people, proposal_files=[file, file])
    with pytest.raises(UserError, match="cannot read the proposals"):
        evaluation_set(people, proposal_files=[str(tmp_path / "none.pkl")])
