"""Segmentations of models and datasets as label maps with classes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from d2ext.data.segmentation import Segment, annotated_segmentation, predicted_segmentation

METADATA = SimpleNamespace(
    label_divisor=1000, thing_dataset_id_to_contiguous_id={7: 2}, ignore_label=9
)
LABELS = np.array([[0, 0, 2], [1, 1, 2]])


def test_scores_by_class_become_the_best_class():
    scores = torch.nn.functional.one_hot(torch.tensor(LABELS), 4).permute(2, 0, 1)
    found = predicted_segmentation({"sem_seg": scores.float(), "instances": None}, METADATA)
    assert found.segments == [Segment(c, is_thing=False) for c in (0, 1, 2)]
    assert found.labels.tolist() == (LABELS + 1).tolist()


def test_panoptic_segments_keep_their_classes():
    infos = [
        {"id": 2, "isthing": True, "category_id": 5, "score": 0.9},
        {"id": 1, "isthing": False, "category_id": 0},
    ]
    output = {"panoptic_seg": (torch.tensor(LABELS), infos), "sem_seg": torch.zeros(3, 2, 3)}
    found = predicted_segmentation(output, METADATA)
    assert found.segments == [Segment(5, is_thing=True), Segment(0, is_thing=False)]
    assert found.labels.tolist() == [[0, 0, 1], [2, 2, 1]]


def test_panoptic_labels_without_segments_are_split_by_the_divisor():
    labels = torch.tensor([[-1, 2001], [2002, 1000]])
    found = predicted_segmentation({"panoptic_seg": (labels, None)}, METADATA)
    stuff, thing = Segment(1, is_thing=False), Segment(2, is_thing=True)
    assert found.segments == [stuff, thing, thing]
    assert found.labels.tolist() == [[0, 2], [3, 1]]


def test_many_segments():
    infos = [{"id": i, "isthing": True, "category_id": i} for i in range(1, 301)]
    labels = torch.arange(1, 301).reshape(10, 30)
    found = predicted_segmentation({"panoptic_seg": (labels, infos)}, METADATA)
    assert found.labels.tolist() == labels.tolist()


def test_files_of_a_dataset(tmp_path):
    Image.fromarray(np.array([[0, 9, 2]], np.uint8)).save(tmp_path / "semantic.png")
    Image.fromarray(np.array([[[1, 2, 3], [0, 0, 0]]], np.uint8)).save(tmp_path / "panoptic.png")
    record = {"sem_seg_file_name": str(tmp_path / "semantic.png")}
    semantic = annotated_segmentation(record, METADATA)
    assert [s.category for s in semantic.segments] == [0, 2]
    assert semantic.labels.tolist() == [[1, 0, 2]]
    record["pan_seg_file_name"] = str(tmp_path / "panoptic.png")
    record["segments_info"] = [{"id": 1 + 2 * 256 + 3 * 256**2, "category_id": 4, "isthing": 1}]
    panoptic = annotated_segmentation(record, METADATA)
    assert panoptic.segments == [Segment(4, is_thing=True)]
    assert panoptic.labels.tolist() == [[1, 0]]


def test_nothing_to_show():
    assert predicted_segmentation({"instances": None}, METADATA) is None
    assert annotated_segmentation({"annotations": []}, METADATA) is None
    with pytest.raises(OSError, match="nowhere"):
        annotated_segmentation({"sem_seg_file_name": "nowhere.png"}, METADATA)
