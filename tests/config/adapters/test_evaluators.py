"""Translation of `dataloader.evaluator` into the section `evaluators`."""

from detectron2 import evaluation
from detectron2.config import LazyCall as L
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.model_zoo import get_config
from omegaconf import OmegaConf

from d2ext.config.adapters.evaluators import translate_evaluators

COCO = "d2ext.evaluation.coco.CocoMetric"


class CountEvaluator(DatasetEvaluator):
    """An evaluator of a project."""


def _translated(*calls):
    """Translate a list of evaluators as in a Detectron2 config."""
    test = {"dataset": {"names": "some_val"}}
    loaders = OmegaConf.create({"test": test, "evaluator": []}, flags={"allow_objects": True})
    loaders.evaluator = list(calls)
    return translate_evaluators(loaders.evaluator)


def test_evaluators_of_coco_lvis_and_cityscapes_become_metrics_with_the_same_settings():
    entries, changes = _translated(
        L(COCOEvaluator)(
            dataset_name="${...test.dataset.names}",
            tasks=("bbox", "keypoints"),
            kpt_oks_sigmas=[0.1, 0.2],
            max_dets_per_image=300,
            output_dir="out",
        ),
        L(evaluation.LVISEvaluator)(dataset_name="${...test.dataset.names}", tasks=["bbox"]),
        L(CityscapesInstanceEvaluator)(dataset_name="some_val"),
    )
    settings = {"max_detections": [1, 10, 300], "oks_sigmas": [0.1, 0.2]}
    assert entries == {
        "coco": {"_target_": COCO, "tasks": ["bbox", "keypoints"], **settings},
        "lvis": {"_target_": "d2ext.evaluation.lvis.LvisMetric", "tasks": ["bbox"]},
        "cityscapes": {"_target_": "d2ext.evaluation.cityscapes.CityscapesMetric"},
    }
    assert [line.partition("(")[0] for line in changes] == [
        "dataloader.evaluator: COCOEvaluator becomes evaluators.coco, CocoMetric",
        "dataloader.evaluator: LVISEvaluator becomes evaluators.lvis, LvisMetric",
        "dataloader.evaluator: CityscapesInstanceEvaluator becomes evaluators.cityscapes,"
        " CityscapesMetric",
    ]


def test_limits_of_detections_stay_increasing():
    entries, _ = _translated(L(COCOEvaluator)(dataset_name="a", max_dets_per_image=10))
    assert entries["coco"]["max_detections"] == [1, 10]


def test_other_evaluators_stay_and_take_the_name_of_the_test_set_later():
    given = L(SemSegEvaluator)(
        dataset_name="${...test.dataset.names}", output_dir="${...test.dataset.names}/out"
    )
    entries, changes = _translated(
        given,
        L(COCOPanopticEvaluator)(dataset_name="other", output_dir="${train.output_dir}"),
        L(PascalVOCDetectionEvaluator)(dataset_name="${...test.dataset.names}"),
        L(CountEvaluator)(),
        L(CountEvaluator)(),
    )
    assert not changes
    assert list(entries) == ["sem_seg", "panoptic", "pascal_voc_detection", "count", "count_2"]
    assert dict(entries["sem_seg"]) == {"_target_": SemSegEvaluator, "output_dir": "some_val/out"}
    moved = OmegaConf.create({"train": {"output_dir": "x"}}, flags={"allow_objects": True})
    moved.evaluators = entries
    panoptic = {"_target_": COCOPanopticEvaluator, "dataset_name": "other", "output_dir": "x"}
    assert dict(moved.evaluators.panoptic) == panoptic
    assert OmegaConf.to_container(given)["dataset_name"] == "${...test.dataset.names}"


def test_an_lvis_evaluator_with_another_limit_stays():
    entries, changes = _translated(L(LVISEvaluator)(dataset_name="a", max_dets_per_image=1000))
    assert entries["lvis"]["_target_"] is LVISEvaluator and not changes


def test_the_evaluators_of_detectron2s_panoptic_config():
    cfg = get_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py")
    for node in (
        cfg.dataloader.evaluator,
        L(DatasetEvaluators)(evaluators=cfg.dataloader.evaluator),
    ):
        entries, changes = translate_evaluators(node)
        assert len(changes) == 1
        assert entries["coco"] == {"_target_": COCO}
        assert dict(entries["sem_seg"]) == {"_target_": SemSegEvaluator}
        assert dict(entries["panoptic"]) == {"_target_": COCOPanopticEvaluator}


def test_a_config_without_an_evaluator_has_no_entries():
    assert translate_evaluators(None) == ({}, [])
